"""Stores the learner after each row, to measure rows again on sets that are added later.

This is on request (`checkpoint.keep_rows`). The newest checkpoints hold the learners of the last rows in any case.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from everclip.files import folder_atomic
from everclip.learner.core import Learner
from everclip.training.checkpoint import STATE as CHECKPOINT_STATE
from everclip.training.checkpoint import TENSORS as CHECKPOINT_TENSORS
from everclip.training.checkpoint import Checkpoints
from everclip.training.watching import Cursor

MODELS = "rows/models"

LEARN = "learn"
"""The stage of a run after a row: the next task is to be learned."""

_TENSORS, _STATE = "model.safetensors", "state.json"

Kept = tuple[dict[str, torch.Tensor], dict[str, Any]]
"""Tensors and state, the arguments of `Learner.restore`."""


class RowModels:
    """Stores and loads the learner after each row.

    Args:
        folder: the run folder.
        checkpoints: its checkpoints.
    """

    def __init__(self, folder: Path, checkpoints: Checkpoints) -> None:
        self._folder, self._checkpoints = folder / MODELS, checkpoints

    def keep(self, row: int, learner: Learner) -> None:
        """Store the learner after a row."""
        folder = self._folder / f"{row:03d}"
        if all((folder / name).is_file() for name in (_TENSORS, _STATE)):
            return
        shutil.rmtree(folder, ignore_errors=True)  # of a run far away, half of it may have been published
        with folder_atomic(folder) as temporary:
            tensors = {
                name: tensor.detach().cpu().contiguous() for name, tensor in learner.tensors({}).items()
            }
            save_file({name: tensor.clone() for name, tensor in tensors.items()}, temporary / _TENSORS)
            (temporary / _STATE).write_text(json.dumps(learner.state(Cursor())), encoding="utf-8")

    def load(self, row: int) -> Kept | None:
        """Return the learner after a row; `None` if it was not stored or is damaged."""
        folder = self._folder / f"{row:03d}"
        if folder.is_dir():
            try:
                return load_file(folder / _TENSORS), json.loads((folder / _STATE).read_text(encoding="utf-8"))
            except (OSError, ValueError, SafetensorError):
                pass  # a checkpoint may hold it, too; else the row is reported as not measured again
        for path in reversed(self._checkpoints.numbered()):
            if self._checkpoints.problem(path) is None:
                state = json.loads((path / CHECKPOINT_STATE).read_text(encoding="utf-8"))
                if _is_after_row(state, row):
                    return load_file(path / CHECKPOINT_TENSORS), state["learner"]
        return None


def _is_after_row(state: dict[str, Any], row: int) -> bool:
    """Whether a checkpoint was written after a row and before the next task."""
    run_state, cursor = state["place"], state["learner"]["cursor"]
    return len(run_state["rows"]) == row + 1 and run_state["stage"] == LEARN and not cursor["begun"]
