"""Write the checkpoint of a run: the state of the run and its learner."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from everclip.learner.core import Learner
from everclip.running.run_state import RunState
from everclip.training.checkpoint import Checkpoints
from everclip.training.watching import Cursor


def write_checkpoint(
    checkpoints: Checkpoints,
    state: RunState,
    learner: Learner,
    cursor: Cursor,
    optimiser: Mapping[str, torch.Tensor],
) -> None:
    """Write a checkpoint, and count its time and bytes in `state.checkpoints`."""
    started = time.monotonic()
    content = {"place": vars(state), "learner": learner.state(cursor)}
    path = checkpoints.save(learner.tensors(optimiser), content)
    spent, costs = time.monotonic() - started, state.checkpoints
    costs["longest"] = max(spent, costs.get("longest", 0.0))
    costs["written"] = costs.get("written", 0) + 1
    costs["bytes"] = sum(f.stat().st_size for f in path.iterdir())
