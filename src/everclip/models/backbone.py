"""A CLIP from open_clip with everything that belongs to it: towers, tokenizer, transforms, fingerprints.

The name of a backbone is `builtin:photo`, `builtin:tiny`, a folder in open_clip's layout (`open_clip_config.json`
beside the weights, and `merges.txt.gz` if it has its own vocabulary), an export to ONNX, `hf-hub:ORG/NAME[@REVISION]`
in the hub's cache folder, or an open_clip architecture with a tag or file of weights. `weights=random` starts any of
them from scratch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from everclip.config import BackboneConfig, validated
from everclip.data.pictures.images import PixelFormat
from everclip.data.sampling.order import key_of
from everclip.errors import ConfigError
from everclip.models.activation import decide_activation
from everclip.models.adapter import merge_adapter
from everclip.models.architecture import build_clip, with_overrides
from everclip.models.chunks import encode_in_chunks
from everclip.models.clip import Clip
from everclip.models.fingerprint import tensors_hash
from everclip.models.fitting import put_weights
from everclip.models.locate import RANDOM, locate
from everclip.models.located import Located
from everclip.models.modules.prompts import coupled_texts
from everclip.models.modules.token_rows import add_rows, embedding_of, require_end_pooling
from everclip.models.onnx_layout import WEIGHTS as ONNX_WEIGHTS
from everclip.models.onnx_layout import read_onnx_weights
from everclip.models.preprocessing import build_preprocessing
from everclip.models.scalars import add_bias
from everclip.models.tokenizers import build_tokenizer, check_tokenizer
from everclip.models.vocabulary import GrownTokenizer, Vocabulary, require_growable, with_vocabulary
from everclip.models.weights import OPENAI_KEYS, read_weights


@dataclass(frozen=True)
class Layout:
    """The contents of open_clip's folder layout beside the weights: both configurations and the tokenizer's files."""

    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    tokenizer_files: tuple[Path, ...] = ()


class Backbone(nn.Module):
    """Both towers of a CLIP, its tokenizer and its image transform.

    Args:
        clip: open_clip's `CLIP` or `CustomTextCLIP`.
        tokenizer: texts to ids.
        preprocess: the evaluation transform, image to `(3, S, S)`.
        pixels: size and normalisation of the image tower.
        name: its name in results.

    `chunk` is the largest number of samples that are encoded at a time, `None` is all (`everclip.models.chunks`).
    `directory` is where a run began: relative paths that are not found in the working directory start there; `layout`
    holds the configurations and tokenizer files (`None` for a model made by hand); `notes` lists the assumptions made
    while loading.
    """

    def __init__(
        self,
        clip: Clip,
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
        self.directory: str | None = None
        self.chunk: int | None = None
        self.layout: Layout | None = None
        self.notes: list[str] = []

    def tokenise(self, texts: list[str]) -> torch.Tensor:
        """Return token ids `(N, L)`, int64."""
        ids: torch.Tensor = self.tokenizer(texts)
        return ids

    def encode_image(self, pixels: torch.Tensor, unit: bool = True) -> torch.Tensor:
        """Return unit embeddings `(N, D)` of pixels `(N, 3, S, S)`; without `unit`, as the projection gives them."""
        return encode_in_chunks(
            partial(self.clip.encode_image, normalize=unit), pixels, self.chunk, self.clip
        )

    def encode_text(self, tokens: torch.Tensor, unit: bool = True) -> torch.Tensor:
        """Return unit embeddings `(N, D)` of token ids `(N, L)`; without `unit`, as the projection gives them."""
        return encode_in_chunks(partial(self.clip.encode_text, normalize=unit), tokens, self.chunk, self.clip)

    @torch.no_grad()
    def embedding_width(self) -> int:
        """Return the width D of embeddings, from the embedding of an empty text."""
        tokens = self.tokenise([""]).to(next(self.parameters()).device)
        return int(self.encode_text(tokens).shape[1])

    @property
    def logit_scale(self) -> torch.Tensor:
        """The factor on cosines (not its logarithm), a scalar tensor with gradient."""
        return self.clip.logit_scale.exp().squeeze()

    @property
    def logit_bias(self) -> torch.Tensor | None:
        """The constant that a sigmoid loss adds to all logits, a scalar tensor with gradient; `None` without one."""
        bias: torch.Tensor | None = getattr(self.clip, "logit_bias", None)
        return None if bias is None else bias.squeeze()

    @torch.no_grad()
    def bound_logit_scale(self, most: float) -> None:
        """Keep the logit scale in [1, most] by changing the parameter.

        A clamp in the forward pass would make the gradient zero at the bound, and the scale would stay there.
        """
        self.clip.logit_scale.clamp_(0.0, math.log(most))

    def fingerprints(self) -> dict[str, str]:
        """Return one hash per tower. Neither covers the logit scale, because no embedding depends on it.

        That of the text tower covers a tokenizer that has grown: the same weights then read other tokens. That of the
        image tower covers text tokens that coupled prompts make image tokens of.
        """
        state = self.clip.state_dict()
        image = [(k, v) for k, v in state.items() if k.startswith("visual.")] + coupled_texts(self.clip)
        text = [(k, v) for k, v in state.items() if not k.startswith(("visual.", "logit_"))]
        hashes = {"image": tensors_hash(image), "text": tensors_hash(text)}
        if isinstance(self.tokenizer, GrownTokenizer):
            hashes["text"] = f"{key_of(hashes['text'], self.tokenizer.key()):032x}"[:16]
        return hashes

    @torch.no_grad()
    def draw_weights(self, seed: int) -> None:
        """Draw all weights anew, as for a model of this architecture that starts from scratch.

        Raises:
            ConfigError: if the architecture is not known, or the model has grown.
        """
        if self.layout is None:
            raise ConfigError(
                "method.start: this backbone has no description of its architecture to start from anew."
            )
        fresh = build_clip(self.layout.model_cfg, seed, self.name).state_dict()
        own = self.clip.state_dict()
        if fresh.keys() != own.keys() or any(fresh[k].shape != own[k].shape for k in own):
            raise ConfigError(
                "method.start: random weights do not fit a model that has grown modules or tokens; take "
                "start=initial."
            )
        self.clip.load_state_dict(fresh)

    def grow_vocabulary(self, vocabulary: Vocabulary, rows: torch.Tensor | None = None) -> None:
        """Add the tokens and merges of a language; old ids, old rows and the ids of start and end stay.

        Args:
            vocabulary: what is added; tokens that the tokenizer has are ignored.
            rows: embeddings of the new tokens `(K, W)`; `None`: zeros, to be loaded.

        Raises:
            ConfigError: if the tokenizer or the text tower cannot grow.
        """
        base = require_growable(self.tokenizer, self.name)
        require_end_pooling(self.clip)
        grown = GrownTokenizer(base, vocabulary)
        table = embedding_of(self.clip).weight
        count = grown.vocab_size - len(table)
        add_rows(
            self.clip, table.new_zeros(count, table.shape[1]) if rows is None else rows, grown.eot_token_id
        )
        self.tokenizer = grown
        if self.layout is not None:
            text = {"vocab_size": grown.vocab_size, "pool_type": "eos", "eos_id": grown.eot_token_id}
            text_cfg = {**self.layout.model_cfg["text_cfg"], **text}
            self.layout = replace(self.layout, model_cfg={**self.layout.model_cfg, "text_cfg": text_cfg})


def load_backbone(
    config: BackboneConfig | Mapping[str, Any] | str | PathLike[str],
    seed: int = 0,
    directory: str | None = None,
) -> Backbone:
    """Load a backbone in float32, in evaluation mode; nothing is downloaded.

    Args:
        config: name and weights; a plain string is a name.
        seed: decides the weights when `weights="random"`.
        directory: where to look for relative paths that are not found from the working directory.

    Raises:
        ConfigError: if there is no such model, or its files are missing or do not fit each other.
    """
    if not isinstance(config, BackboneConfig):
        named = config if isinstance(config, Mapping) else {"name": config}
        config = validated(BackboneConfig, named, "backbone")
    located = locate(config, directory)
    clip, notes = _load_clip(located, config, seed)
    resized = config.image_size is not None
    preprocessing = build_preprocessing(
        clip, located.preprocess_cfg, config.preprocess, located.where, resized
    )
    text_cfg = located.model_cfg["text_cfg"]
    tokenizer, files = build_tokenizer(text_cfg, located.folder)
    tokenizer = with_vocabulary(tokenizer, located.vocabulary)
    check_tokenizer(tokenizer, clip, text_cfg)
    backbone = Backbone(clip, tokenizer, preprocessing.transform, preprocessing.pixels, config.name).eval()
    backbone.config, backbone.directory = config, directory
    # Patch dropout belongs to the run; every other setting belongs to the model from now on.
    model_cfg = with_overrides(located.model_cfg, None, config.image_size, config.force_quick_gelu)
    if backbone.logit_bias is not None:
        model_cfg.setdefault(
            "init_logit_bias", float(backbone.logit_bias.detach())
        )  # may come from the weights
    backbone.layout = Layout(model_cfg, preprocessing.config, files)
    backbone.notes = [*notes, *preprocessing.notes]
    if config.adapter is not None:
        if config.weights == RANDOM:
            raise ConfigError(
                "backbone.adapter: changes weights that were trained; leave out backbone.weights=random."
            )
        towers = backbone.fingerprints()
        backbone.notes += merge_adapter(clip, config.adapter, config.name, towers, directory)
    return backbone


def _load_clip(located: Located, config: BackboneConfig, seed: int) -> tuple[Clip, list[str]]:
    """Return the model with its weights, and the assumptions made."""
    forced = config.force_quick_gelu
    model_cfg = with_overrides(located.model_cfg, config.patch_dropout, config.image_size, forced)
    clip = build_clip(model_cfg, seed, located.where, located.folder)
    trained_with, why, state, reading_notes = located.quick_gelu, located.why, None, list[str]()
    if located.weights is not None:
        expected = clip.state_dict()
        size = 4 * sum(tensor.numel() for tensor in expected.values())
        if located.weights.name == ONNX_WEIGHTS:
            state = read_onnx_weights(located.weights, size)
        else:
            state, reading_notes = read_weights(located.weights, size, expected.keys(), config.key)
        if any(key in state for key in OPENAI_KEYS):
            trained_with, why = True, f"{located.weights} is in OpenAI's own form"
    notes = [*located.notes, *decide_activation(config.name, located.model_cfg, trained_with, forced, why)]
    if located.weights is not None and state is not None:
        notes += reading_notes + add_bias(clip, state)
        notes += put_weights(clip, state, located.weights, resize=config.image_size is not None)
    return clip, notes
