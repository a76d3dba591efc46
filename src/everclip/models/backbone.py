"""A CLIP from open_clip with everything that belongs to it: towers, tokenizer, transforms, fingerprints.

A backbone is named by `builtin:tiny`, a folder in open_clip's layout (`open_clip_config.json` beside the weights,
and `merges.txt.gz` if it has a vocabulary of its own), `hf-hub:ID`, or an open_clip architecture with a tag or
file of weights. `weights=random` starts any of them from scratch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from everclip.config import BackboneConfig
from everclip.data.images import PixelFormat
from everclip.data.order import key_of
from everclip.errors import ConfigError, did_you_mean
from everclip.models.fingerprint import tensors_hash

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
MERGES = "merges.txt.gz"


class Backbone(nn.Module):
    """Both towers of a CLIP, its tokenizer and its image transform.

    Args:
        clip: open_clip's `CLIP` or `CustomTextCLIP`.
        tokenizer: texts to ids.
        preprocess: the evaluation transform, picture to `(3, S, S)`.
        pixels: size and normalisation of the image tower.
        name: how results call it.
    """

    def __init__(
        self,
        clip: nn.Module,
        tokenizer: Any,
        preprocess: Callable[[Any], torch.Tensor],
        pixels: PixelFormat,
        name: str,
    ) -> None:
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.pixels = pixels
        self.name = name
        self.config = BackboneConfig(name=name)

    def tokenise(self, texts: list[str]) -> torch.Tensor:
        """Return token ids `(N, L)`, int64."""
        ids: torch.Tensor = self.tokenizer(texts)
        return ids

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return unit embeddings `(N, D)` of pixels `(N, 3, S, S)`."""
        features: torch.Tensor = self.clip.encode_image(pixels, normalize=True)  # type: ignore[operator]
        return features

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return unit embeddings `(N, D)` of token ids `(N, L)`."""
        features: torch.Tensor = self.clip.encode_text(tokens, normalize=True)  # type: ignore[operator]
        return features

    @property
    def logit_scale(self) -> torch.Tensor:
        """The factor on cosines (not its logarithm), a scalar tensor with gradient."""
        scale: torch.Tensor = self.clip.logit_scale.exp()  # type: ignore[operator]
        return scale

    @torch.no_grad()
    def bound_logit_scale(self, most: float) -> None:
        """Keep the logit scale in [1, most] by moving the parameter.

        A clamp in the forward pass would instead stop its gradient at the bound, for ever.
        """
        self.clip.logit_scale.clamp_(0.0, math.log(most))  # type: ignore[operator]

    def fingerprints(self) -> dict[str, str]:
        """Return one hash per tower; the logit scale is in neither, since no embedding depends on it."""
        state = self.clip.state_dict()
        image = [(k, v) for k, v in state.items() if k.startswith("visual.")]
        text = [(k, v) for k, v in state.items() if not k.startswith(("visual.", "logit_"))]
        return {"image": tensors_hash(image), "text": tensors_hash(text)}


def builtin_folder(name: str) -> Path:
    """Return the folder of a built-in backbone.

    Raises:
        ConfigError: for an unknown name.
    """
    root = Path(str(resources.files("everclip.models.builtin")))
    known = sorted(p.name for p in root.iterdir() if (p / CONFIG).is_file())
    if name not in known:
        names = [f"builtin:{n}" for n in known]
        raise ConfigError(f"backbone: 'builtin:{name}' is not known.{did_you_mean(f'builtin:{name}', names)}")
    return root / name


def load_backbone(config: BackboneConfig | str, seed: int = 0) -> Backbone:
    """Load a backbone in float32, in evaluation mode.

    Args:
        config: name and weights; a plain string is a name.
        seed: decides the weights when `weights="random"`.

    Raises:
        ConfigError: if there is no such model, or its weights are missing or do not fit.
    """
    if isinstance(config, str):
        config = BackboneConfig(name=config)
    name = config.name
    if name.startswith("builtin:"):
        backbone = _from_folder(builtin_folder(name.removeprefix("builtin:")), config, seed)
    elif name.startswith("local-dir:") or Path(name).is_dir():
        backbone = _from_folder(Path(name.removeprefix("local-dir:")), config, seed)
    else:
        backbone = _from_open_clip(config, seed)
    backbone.config = config
    return backbone


def _from_folder(folder: Path, config: BackboneConfig, seed: int) -> Backbone:
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"backbone: {folder}: expected a folder with {CONFIG}; there is none.")
    document = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for key in ("model_cfg", "preprocess_cfg"):
        if key not in document:
            raise ConfigError(f"backbone: {folder / CONFIG}: the key {key!r} is missing.")
    model_cfg = document["model_cfg"]
    if config.patch_dropout is not None:
        model_cfg["vision_cfg"]["patch_dropout"] = config.patch_dropout
    clip = _random_clip(model_cfg, seed)
    if config.weights != "random":
        _load_weights(clip, folder / (config.weights or WEIGHTS))
    text = document["model_cfg"]["text_cfg"]
    if (folder / MERGES).is_file():
        tokenizer: Any = SimpleTokenizer(str(folder / MERGES), context_length=text["context_length"])
    else:
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    return _assemble(clip, tokenizer, document["preprocess_cfg"], config.name)


def _random_clip(model_cfg: dict[str, Any], seed: int) -> nn.Module:
    from open_clip.model import CLIP, CustomTextCLIP

    settings = {k: v for k, v in model_cfg.items() if k != "custom_text"}
    kind = CustomTextCLIP if model_cfg.get("custom_text") else CLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_of("backbone", seed) % 2**63)
        clip: nn.Module = kind(**settings)
    return clip.float().eval()


def _load_weights(clip: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise ConfigError(
            f"backbone: no weights at {path}. Put them there, or set backbone.weights=random to start from scratch."
        )
    try:
        stored = load_file(path)
        state = {key: value.float() if value.is_floating_point() else value for key, value in stored.items()}
        missing, unexpected = clip.load_state_dict(state, strict=False)
    except SafetensorError as error:
        raise ConfigError(f"backbone: {path} is no readable safetensors file ({error}).") from error
    except RuntimeError as error:  # tensors of another shape, listed by torch
        raise ConfigError(f"backbone: {path} does not fit its configuration: {error}") from error
    if missing or unexpected:
        raise ConfigError(
            f"backbone: {path} does not fit its configuration: missing {sorted(missing)[:5]}, "
            f"unexpected {sorted(unexpected)[:5]}."
        )


def _from_open_clip(config: BackboneConfig, seed: int) -> Backbone:
    hub = config.name.startswith("hf-hub:")
    if not hub and config.name not in open_clip.list_models():
        known = [*open_clip.list_models(), "builtin:tiny"]
        raise ConfigError(
            f"backbone: {config.name!r} is neither a folder nor an open_clip model."
            f"{did_you_mean(config.name, known)}"
        )
    if not hub and config.weights is None:
        tags = open_clip.list_pretrained_tags_by_model(config.name)
        raise ConfigError(
            f"backbone: {config.name} needs backbone.weights: a file, 'random', or one of "
            f"{', '.join(tags) or '(no tags)'}."
        )
    pretrained = None if hub or config.weights == "random" else config.weights
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key_of("backbone", seed) % 2**63)
            clip, _, _ = open_clip.create_model_and_transforms(
                config.name,
                pretrained=pretrained,
                load_weights=config.weights != "random",
                force_patch_dropout=config.patch_dropout,
            )
    except (RuntimeError, OSError, ValueError) as error:
        raise ConfigError(
            f"backbone: {config.name} with weights {config.weights!r} could not be loaded: {error}\n"
            "Without a connection: give a local file (backbone.weights=PATH), a folder in open_clip's layout "
            "(backbone.name=FOLDER), or use builtin:tiny."
        ) from error
    preprocess_cfg = dict(getattr(clip.visual, "preprocess_cfg", {}))
    return _assemble(clip.float().eval(), open_clip.get_tokenizer(config.name), preprocess_cfg, config.name)


def _assemble(clip: nn.Module, tokenizer: Any, preprocess_cfg: dict[str, Any], name: str) -> Backbone:
    size = clip.visual.image_size  # type: ignore[union-attr]
    side = int(size[0] if isinstance(size, tuple | list) else size)  # type: ignore[arg-type]
    mean = tuple(preprocess_cfg.get("mean", open_clip.OPENAI_DATASET_MEAN))
    std = tuple(preprocess_cfg.get("std", open_clip.OPENAI_DATASET_STD))
    preprocess = open_clip.image_transform(
        side,
        is_train=False,
        mean=mean,
        std=std,
        interpolation=preprocess_cfg.get("interpolation"),
        resize_mode=preprocess_cfg.get("resize_mode"),
    )
    return Backbone(clip, tokenizer, preprocess, PixelFormat(side, mean, std), name).eval()
