"""Several checkpoints in one folder: list them in the order of their numbers, and propose one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")

_NO_MODEL = ("onnx_rest.safetensors",)
"""Files of tensors that are only a part of a model."""

_MOST_SHOWN = 12
_BEST = ("best", "model_best", "checkpoint_best", "best_model")
_LAST = ("last", "latest", "final", "epoch_latest", "checkpoint_last", "model_final")
_PARAMS = "params.txt"
"""The file in which open_clip's trainer writes its settings, such as `model: ViT-B-32`."""


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder that may hold weights, sorted by name, numbers by value (`epoch_2`, `epoch_10`)."""
    files = [
        p for p in folder.glob("*") if p.suffix in WEIGHT_SUFFIXES and p.name not in _NO_MODEL and p.is_file()
    ]
    return sorted(files, key=lambda path: _natural_key(path.name))


def _natural_key(name: str) -> list[tuple[int, str]]:
    pieces = re.split(r"(\d+)", name.lower())
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]


def describe_checkpoints(files: Sequence[Path]) -> str:
    """Return sentences that name the checkpoints of a folder and the settings that select one.

    Args:
        files: in the order of `weight_files`; at least one.
    """
    shown = checkpoint_names(files)
    architecture = _architecture(files[0].parent)
    settings = f"backbone.name={architecture or 'ARCHITECTURE'} backbone.weights="
    why = f"{_PARAMS} says {architecture}" if architecture else "nothing names the architecture"
    if len(files) == 1:
        return f" It holds {shown}, but {why}: set both, {settings}{files[0]}"
    proposed, reason = propose_checkpoint(files)
    return (
        f" It holds {len(files)} checkpoints ({shown}), and {why}: set both, {settings}FILE. {proposed.name} {reason}: "
        f"{settings}{proposed}"
    )


def checkpoint_names(files: Sequence[Path]) -> str:
    """Return the names of the first checkpoints, and the number of the others."""
    shown = ", ".join(path.name for path in files[:_MOST_SHOWN])
    return shown + (f" and {len(files) - _MOST_SHOWN} more" if len(files) > _MOST_SHOWN else "")


def propose_checkpoint(files: Sequence[Path]) -> tuple[Path, str]:
    """Return the checkpoint to propose, and the reason."""
    by_stem = {path.stem.lower(): path for path in files}
    best = next((by_stem[stem] for stem in _BEST if stem in by_stem), None)
    if best is not None:
        return best, "is called the best"
    numbered = [path for path in files if re.search(r"\d", path.stem)]
    if len(numbered) > 1:
        return numbered[-1], "has the highest number"
    last = next((by_stem[stem] for stem in _LAST if stem in by_stem), None)
    if last is not None:
        return last, "is called the last"
    newest = max(files, key=lambda path: path.stat().st_mtime)
    return newest, "is the newest"


def _architecture(folder: Path) -> str | None:
    """Return the architecture that open_clip's trainer wrote beside its checkpoints, or one folder up."""
    for candidate in (folder, folder.parent):
        try:
            text = (candidate / _PARAMS).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        match = re.search(r"^model: ([\w.-]+)$", text[:100_000], re.MULTILINE)
        if match is not None:
            return match.group(1)
    return None
