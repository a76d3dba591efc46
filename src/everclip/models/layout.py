"""A model in open_clip's folder layout: name its files; read and check its configuration."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from everclip.errors import ConfigError, did_you_mean
from everclip.files import found_in
from everclip.models.adapter_config import CONFIG as ADAPTER
from everclip.models.adapter_config import adapter_hint
from everclip.models.checkpoint_files import (
    checkpoint_names,
    describe_checkpoints,
    propose_checkpoint,
    weight_files,
)

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

BESIDE = {
    "head.json": ("class head", "classify.py"),
    "correction.json": ("text correction", "corrected.py"),
}
"""File of an export that holds what was learned beside the towers -> what that is, and the script that reads it.
everclip itself does not read it."""

_NEEDED = ("embed_dim", "vision_cfg", "text_cfg")
_PREPROCESS = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")


def read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Read `open_clip_config.json`.

    Returns:
        `model_cfg`, and `preprocess_cfg` or `None` if the file has none.

    Raises:
        ConfigError: if the file is missing, is not JSON, or lacks a key that open_clip needs; names file and key.
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
    model = check_model_config(document, path)
    preprocess = document.get("preprocess_cfg")
    if preprocess is not None:
        check_preprocess(preprocess, f"{path}: preprocess_cfg")
    return model, preprocess


def check_model_config(document: object, path: Path) -> dict[str, Any]:
    """Return `model_cfg` of a configuration.

    Raises:
        ConfigError: if it lacks a key that open_clip needs; names the key and the file `path`.
    """
    if not isinstance(document, dict) or not isinstance(document.get("model_cfg"), dict):
        raise ConfigError(f"backbone: {path}: the key 'model_cfg' is missing.")
    model: dict[str, Any] = document["model_cfg"]
    for key in _NEEDED:
        if key not in model:
            raise ConfigError(f"backbone: {path}: the key 'model_cfg.{key}' is missing.")
    for key in _NEEDED[1:]:
        if not isinstance(model[key], dict):
            raise ConfigError(f"backbone: {path}: model_cfg.{key}: expected a mapping, found {model[key]!r}.")
    return model


def _hint(folder: Path) -> str:
    """Describe what the folder seems to be instead, and what to do."""
    inner = weight_files(folder / "checkpoints")
    if inner:
        return describe_checkpoints(inner).replace(" It holds", " Its folder checkpoints/ holds", 1)
    if (folder / "checkpoints").is_dir():
        return f" It is the folder of a run or learner: make a backbone from it with everclip export {folder} FOLDER."
    if any(folder.glob("*.distcp")):
        return (
            " It is a distributed checkpoint of PyTorch. Join its files: python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pt"
        )
    if (folder / "image.onnx").is_file() and (folder / "text.onnx").is_file():
        return (
            " It is an export to ONNX that does not say where its weights are (onnx_weights.json is missing; an older "
            "everclip did not write it): export the model again, or name the run or model that it was made from."
        )
    if (folder / ADAPTER).is_file():
        return adapter_hint(folder)
    if (folder / "config.json").is_file():
        return (
            " It seems to be in transformers' layout, but it is not a whole CLIPModel (model_type clip). Use "
            "open_clip's release of the model, or set backbone.name=ARCHITECTURE with its weights in open_clip's "
            "layout."
        )
    index = sorted(folder.glob("*.index.json"))
    if index:
        return (
            " It holds weights in several files, but nothing names the architecture: set both, "
            f"backbone.name=ARCHITECTURE backbone.weights={index[0]}"
        )
    weights = weight_files(folder)
    if weights:
        return describe_checkpoints(weights)
    return ""


def check_preprocess(preprocess: object, where: str) -> None:
    """Check the types and ranges of a preprocessing configuration.

    Raises:
        ConfigError: if one is wrong; names the key, its value and what was expected.
    """
    if not isinstance(preprocess, dict):
        raise ConfigError(f"backbone: {where}: expected a mapping, found {preprocess!r}.")
    for key, value in preprocess.items():
        if key not in _PREPROCESS:
            raise ConfigError(f"backbone: {where}: unknown key {key!r}.{did_you_mean(key, _PREPROCESS)}")
        expected = _expected_instead(key, value)
        if expected:
            raise ConfigError(f"backbone: {where}.{key}: expected {expected}, found {value!r}.")


def _expected_instead(key: str, value: Any) -> str | None:
    """Return what was expected instead of a value; `None` if the value is valid."""
    if key in ("mean", "std"):
        triple = isinstance(value, list | tuple) and len(value) == 3
        numbers = triple and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        # Pixels are already scaled to [0, 1]; numbers on the 0..255 scale would blacken every image.
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
    """Return a note about other checkpoints in the folder; other files of the same weights do not count."""
    others = [path for path in weight_files(folder) if path.name not in WEIGHT_NAMES]
    if read in others or not others:
        return ()
    return (
        f"{read.name} is read, not the checkpoints beside it: {checkpoint_names(others)} (backbone.weights=FILE)",
    )


def find_weights(folder: Path, named: str | None, directory: str | None = None) -> Path:
    """Return the weights file of a folder.

    Args:
        folder: the model's folder.
        named: a file in the folder or elsewhere; default: the first of `WEIGHT_NAMES` that exists.
        directory: where to look for a relative path that is found neither in the folder nor from the working directory.

    Raises:
        ConfigError: if there is none; lists the names that were tried.
    """
    if named:
        tried = [folder / named, found_in(Path(os.path.expanduser(named)), directory)]
    else:
        tried = [folder / name for name in WEIGHT_NAMES]
    for path in tried:
        if path.is_file():
            return path
    others = weight_files(folder)
    if named is None and len(others) == 1:
        return others[0]
    if named is None and others:
        proposed, reason = propose_checkpoint(others)
        raise ConfigError(
            f"backbone: {folder} holds {len(others)} checkpoints ({checkpoint_names(others)}), none with open_clip's "
            f"name ({WEIGHTS}): choose one with backbone.weights=FILE. {proposed.name} {reason}: "
            f"backbone.weights={proposed.name}"
        )
    foreign = sorted(p.name for p in folder.glob("*") if p.suffix in (".msgpack", ".h5", ".onnx", ".gguf"))
    if named is None and foreign and not others:
        raise ConfigError(
            f"backbone: {folder} holds {foreign[0]}, which PyTorch does not read. Use model.safetensors or "
            "pytorch_model.bin of the same model."
        )
    looked = str(tried[0]) if named else f"{tried[0]} (nor {', '.join(WEIGHT_NAMES[1:])})"
    hint = (
        f" The folder holds {checkpoint_names(others)}: choose one with backbone.weights." if others else ""
    )
    raise ConfigError(
        f"backbone: no weights at {looked}.{hint} Put them there, or set backbone.weights=random to start from "
        "scratch."
    )
