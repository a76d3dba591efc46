"""A model in open_clip's folder layout: the names of its files, and its configuration read and checked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from everclip.errors import ConfigError, did_you_mean
from everclip.models.checkpoint_files import names_of, obvious, weight_files, which_weights

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
MERGES = "merges.txt.gz"

WEIGHT_NAMES = (
    WEIGHTS,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
    "open_clip_model.safetensors.index.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
"""Files that may hold the weights, in open_clip's order of preference."""

_NEEDED = ("embed_dim", "vision_cfg", "text_cfg")
_PREPROCESS = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")


def read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Read `open_clip_config.json`.

    Returns:
        `model_cfg`, and `preprocess_cfg` or `None` where the file has none.

    Raises:
        ConfigError: if the file is missing, is no JSON, or lacks what open_clip needs; names file and key.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(
            f"backbone: {folder}: expected a folder with {CONFIG}; there is none.{_hint(folder)}"
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"backbone: {path}: not valid JSON ({error}).") from error
    except OSError as error:
        raise ConfigError(f"backbone: {path}: cannot be read ({error.strerror}).") from error
    if not isinstance(document, dict) or not isinstance(document.get("model_cfg"), dict):
        raise ConfigError(f"backbone: {path}: the key 'model_cfg' is missing.")
    model = document["model_cfg"]
    for key in _NEEDED:
        if key not in model:
            raise ConfigError(f"backbone: {path}: the key 'model_cfg.{key}' is missing.")
    for key in _NEEDED[1:]:
        if not isinstance(model[key], dict):
            raise ConfigError(f"backbone: {path}: model_cfg.{key}: expected a mapping, found {model[key]!r}.")
    preprocess = document.get("preprocess_cfg")
    if preprocess is not None:
        check_preprocess(preprocess, f"{path}: preprocess_cfg")
    return model, preprocess


def _hint(folder: Path) -> str:
    """Return what the folder seems to be instead, and the way on."""
    inner = weight_files(folder / "checkpoints")
    if inner:
        return which_weights(inner).replace(" It holds", " Its folder checkpoints/ holds", 1)
    if (folder / "checkpoints").is_dir():
        return f" It is a run's or learner's folder: everclip export {folder} FOLDER makes a backbone of it."
    if any(folder.glob("*.distcp")):
        return (
            " It is a distributed checkpoint of PyTorch. Join it where it was made: python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pt"
        )
    if (folder / "adapter_config.json").is_file():
        return (
            " It holds an adapter (LoRA), which only changes a model. Merge it where it was made (with peft: "
            "model.merge_and_unload()), save the whole model, and give that."
        )
    if (folder / "config.json").is_file():
        return (
            " It seems to be in transformers' layout, which open_clip does not read (only a whole CLIPModel is read, "
            "model_type clip). Take open_clip's release of the model, or name it by backbone.name=ARCHITECTURE with "
            "its weights in open_clip's layout."
        )
    index = sorted(folder.glob("*.index.json"))
    if index:
        return (
            " It holds weights in several files, but nothing says of which architecture: give both, "
            f"backbone.name=ARCHITECTURE backbone.weights={index[0]}"
        )
    weights = weight_files(folder)
    if weights:
        return which_weights(weights)
    return ""


def check_preprocess(preprocess: object, where: str) -> None:
    """Check the types and ranges of a preprocessing configuration.

    Raises:
        ConfigError: naming the key, what was found and what was expected.
    """
    if not isinstance(preprocess, dict):
        raise ConfigError(f"backbone: {where}: expected a mapping, found {preprocess!r}.")
    for key, value in preprocess.items():
        if key not in _PREPROCESS:
            raise ConfigError(f"backbone: {where}: unknown key {key!r}.{did_you_mean(key, _PREPROCESS)}")
        expected = _unlike(key, value)
        if expected:
            raise ConfigError(f"backbone: {where}.{key}: expected {expected}, found {value!r}.")


def _unlike(key: str, value: Any) -> str | None:
    """Return what was expected of a value, `None` if it is fine."""
    if key in ("mean", "std"):
        triple = isinstance(value, list | tuple) and len(value) == 3
        numbers = triple and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        # Pixels are scaled to [0, 1] before; numbers of the 0..255 scale would blacken every picture.
        low = 0.0 if key == "mean" else 1e-6
        return None if numbers and all(low <= v <= 1 for v in value) else f"three numbers in [{low:g}, 1]"
    if key == "interpolation":
        return None if value in ("bicubic", "bilinear", "random") else "bicubic or bilinear"
    if key == "resize_mode":
        return None if value in ("shortest", "longest", "squash") else "shortest, longest or squash"
    if key == "mode":
        return None if value == "RGB" else "RGB"
    return None


def other_checkpoints(folder: Path, read: Path) -> tuple[str, ...]:
    """Return a line about checkpoints beside the one that is read; other forms of the same weights are none."""
    others = [path for path in weight_files(folder) if path.name not in WEIGHT_NAMES]
    if read in others or not others:
        return ()
    return (f"{read.name} is read, not what lies beside it: {names_of(others)} (backbone.weights=FILE)",)


def find_weights(folder: Path, named: str | None) -> Path:
    """Return the weights file of a folder.

    Args:
        folder: where it lies.
        named: a file of the folder, or one elsewhere; default: the first of `WEIGHT_NAMES` that is there.

    Raises:
        ConfigError: if there is none; lists what was looked for.
    """
    tried = [folder / named, Path(os.path.expanduser(named))] if named else [folder / n for n in WEIGHT_NAMES]
    for path in tried:
        if path.is_file():
            return path
    others = weight_files(folder)
    if named is None and len(others) == 1:
        return others[0]
    if named is None and others:
        chosen, reason = obvious(others)
        raise ConfigError(
            f"backbone: {folder} holds {len(others)} checkpoints ({names_of(others)}), none of them called as "
            f"open_clip does ({WEIGHTS}): say which with backbone.weights=FILE. {chosen.name} {reason}: "
            f"backbone.weights={chosen.name}"
        )
    foreign = sorted(p.name for p in folder.glob("*") if p.suffix in (".msgpack", ".h5", ".onnx", ".gguf"))
    if named is None and foreign and not others:
        raise ConfigError(
            f"backbone: {folder} holds {foreign[0]}, which PyTorch does not read. Take the same model's "
            "model.safetensors or pytorch_model.bin."
        )
    looked = str(tried[0]) if named else f"{tried[0]} (nor {', '.join(WEIGHT_NAMES[1:])})"
    found = f" The folder holds {names_of(others)}: name one by backbone.weights." if others else ""
    raise ConfigError(
        f"backbone: no weights at {looked}.{found} Put them there, or set backbone.weights=random to start from "
        "scratch."
    )
