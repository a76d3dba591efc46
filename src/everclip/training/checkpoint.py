"""Checkpoints: tensors (safetensors) and JSON in a folder that is written atomically. No pickle.

A checkpoint is `checkpoints/NNNNNNNN/` with `tensors.safetensors`, `state.json` and `manifest.json` (sizes and SHA-256
of both). The folder is written under a temporary name, synced and renamed. The newest checkpoint with correct checksums
is used.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from everclip.config import CheckpointConfig
from everclip.errors import CheckpointError
from everclip.files import clear_leftovers, file_digest, folder_atomic

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_NAME = re.compile(r"\d{8}")


@dataclass(frozen=True)
class Loaded:
    """A loaded checkpoint, and the problems of newer, damaged ones."""

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]
    path: Path
    damaged: tuple[str, ...] = ()


def _write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    # Clones, because safetensors rejects tensors that share memory (tied weights, views).
    copies = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    try:
        save_file(copies, path)
    except SafetensorError as error:
        # safetensors only reports the system's error in its text; a full disk must be distinguished from a bug.
        system = re.search(r"os error (\d+)", str(error))
        if system is None:
            raise
        raise OSError(int(system[1]), os.strerror(int(system[1])), str(path)) from error


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        folder: the run folder.
        config: the number of checkpoints to keep, and the disk budget.
    """

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self.folder = folder / "checkpoints"
        self._config = config
        # Damaged checkpoints do not count among those to keep.
        self._damaged: set[Path] = set()

    def numbered(self) -> list[Path]:
        """Return the checkpoint folders, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if _NAME.fullmatch(p.name))

    def save(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Path:
        """Write a new checkpoint, then remove those beyond the number to keep.

        Raises:
            CheckpointError: if the disk is full or the budget too small; the last good checkpoint stays.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(self.folder)
        existing = self.numbered()
        path = self.folder / f"{int(existing[-1].name) + 1 if existing else 1:08d}"
        self._check_budget(sum(t.numel() * t.element_size() for t in tensors.values()))
        with folder_atomic(path) as aside:
            _write_tensors(tensors, aside / TENSORS)
            (aside / STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
            files = {
                n: {"bytes": (aside / n).stat().st_size, "sha256": file_digest(aside / n)}
                for n in (TENSORS, STATE)
            }
            (aside / MANIFEST).write_text(json.dumps({"format": 1, "files": files}), encoding="utf-8")
        good = [p for p in self.numbered() if p not in self._damaged]
        for old in {*self._damaged, *good[: -self._config.keep]}:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def _check_budget(self, size: int) -> None:
        budget = self._config.disk_budget_mb
        if budget is None:
            return
        used = sum(f.stat().st_size for p in self.numbered() for f in p.iterdir())
        if (used + size) / 1e6 > budget:
            raise CheckpointError(
                f"{self.folder}: another checkpoint of {size / 1e6:.1f} MB beside {used / 1e6:.1f} MB exceeds "
                f"checkpoint.disk_budget_mb={budget}. Raise it, or lower checkpoint.keep."
            )

    def latest(self) -> Loaded | None:
        """Read the newest checkpoint with correct checksums; `None` if there is no checkpoint.

        Raises:
            CheckpointError: if every checkpoint is damaged; lists the problem of each.
        """
        damaged: list[str] = []
        for path in reversed(self.numbered()):
            problem = self.problem(path)
            if problem is None:
                state = json.loads((path / STATE).read_text(encoding="utf-8"))
                return Loaded(load_file(path / TENSORS), state, path, tuple(damaged))
            damaged.append(f"{path.name}: {problem}")
            self._damaged.add(path)
        if damaged:
            listed = "\n".join(f"  {line}" for line in damaged)
            raise CheckpointError(
                f"{self.folder}: every checkpoint is damaged:\n{listed}\nTo start over, remove the run folder or "
                "choose another output."
            )
        return None

    @staticmethod
    def problem(path: Path) -> str | None:
        """Return the problem of a checkpoint folder; `None` if its checksums are correct."""
        try:
            files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
            for name in (TENSORS, STATE):
                size = (path / name).stat().st_size
                if size != files[name]["bytes"]:
                    return f"{name} has {size} bytes, expected {files[name]['bytes']}"
                if file_digest(path / name) != files[name]["sha256"]:
                    return f"{name} does not match its checksum"
        except FileNotFoundError as error:
            return f"{Path(str(error.filename)).name} is missing"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{MANIFEST} cannot be read ({error})"
        return None
