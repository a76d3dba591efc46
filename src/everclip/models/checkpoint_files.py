"""Several checkpoints in one folder: named in the order of their numbers, and which of them is proposed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")

_MOST_SHOWN = 12
_BEST = ("best", "model_best", "checkpoint_best", "best_model")
_LAST = ("last", "latest", "final", "epoch_latest", "checkpoint_last", "model_final")
_PARAMS = "params.txt"
"""Where open_clip's trainer writes its settings, `model: ViT-B-32` among them."""


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder that may hold weights, by name, numbers in their order (`epoch_2`, `epoch_10`)."""
    found = [p for p in folder.glob("*") if p.suffix in WEIGHT_SUFFIXES and p.is_file()]
    return sorted(found, key=lambda path: _natural(path.name))


def _natural(name: str) -> list[tuple[int, str]]:
    pieces = re.split(r"(\d+)", name.lower())
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]


def which_weights(files: Sequence[Path]) -> str:
    """Return sentences that name the checkpoints of a folder and the setting that takes one.

    Args:
        files: in the order of `weight_files`; at least one.
    """
    shown = names_of(files)
    named = _architecture(files[0].parent)
    both = f"backbone.name={named or 'ARCHITECTURE'} backbone.weights="
    why = f"{_PARAMS} says {named}" if named else "nothing says of which architecture"
    if len(files) == 1:
        return f" It holds {shown}, but {why}: give both, {both}{files[0]}"
    chosen, reason = obvious(files)
    return (
        f" It holds {len(files)} checkpoints ({shown}), and {why}: say both, {both}FILE. {chosen.name} {reason}: "
        f"{both}{chosen}"
    )


def names_of(files: Sequence[Path]) -> str:
    """Return the names of checkpoints, and how many more there are."""
    shown = ", ".join(path.name for path in files[:_MOST_SHOWN])
    return shown + (f" and {len(files) - _MOST_SHOWN} more" if len(files) > _MOST_SHOWN else "")


def obvious(files: Sequence[Path]) -> tuple[Path, str]:
    """Return the checkpoint that is proposed, and why."""
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
    for place in (folder, folder.parent):
        try:
            text = (place / _PARAMS).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        found = re.search(r"^model: ([\w.-]+)$", text[:100_000], re.MULTILINE)
        if found is not None:
            return found.group(1)
    return None
