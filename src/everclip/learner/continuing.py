"""What a learner needs to continue, as tensors and JSON, and how it is restored: the content of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from everclip.errors import CheckpointError
from everclip.methods.base import Method
from everclip.training.engine import Engine
from everclip.training.guard import Guard
from everclip.training.watching import Cursor


class Continued(Protocol):
    """The interface of a learner that continuing uses; see `everclip.Learner`."""

    method: Method
    accelerator: Accelerator
    learned: set[int]
    engine: Engine
    compute: list[dict[str, Any]]
    guard: Guard | None
    guard_state: Mapping[str, Any] | None


def tensors_of(learner: Continued, optimiser: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """See `everclip.Learner.tensors`."""
    tensors = {f"model/{k}": v for k, v in learner.method.state_dict().items()}
    tensors |= {f"extra/{k}": v for k, v in learner.method.extra_tensors().items()}
    if learner.guard is not None:
        tensors |= {f"guard/{k}": v for k, v in learner.guard.tensors().items()}
    carried = {f"{phase}/{k}": v for phase, of in learner.engine.carried.items() for k, v in of.items()}
    tensors |= {f"carried/{k}": v for k, v in carried.items()}
    return tensors | {f"optimiser/{k}": v for k, v in optimiser.items()}


def state_of(learner: Continued, cursor: Cursor) -> dict[str, Any]:
    """See `everclip.Learner.state`."""
    method = learner.method
    place = {"phase": cursor.phase, "repeat": cursor.repeat, "step": cursor.step, "begun": cursor.begun}
    counted = {"macs": cursor.macs} if cursor.macs else {}
    return {
        "cursor": place | counted,
        "compute": [dict(entry) for entry in learner.compute],
        "learned": sorted(learner.learned),
        "structure": method.structure(),
        "slots": method.slot_structure(),
        "trainable": list(method.trainable),
        "method": method.extra_state(),
        "guard": learner.guard_state if learner.guard is None else learner.guard.state(),
    }


def restore(learner: Continued, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Cursor:
    """See `everclip.Learner.restore`."""
    parts: dict[str, dict[str, torch.Tensor]] = {
        name: {} for name in ("model", "extra", "optimiser", "guard", "carried")
    }
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        parts[kind][name] = tensor
    method, device = learner.method, learner.accelerator.device
    learner.learned = set(state["learned"])
    learner.compute = list(state.get("compute", []))
    learner.engine.carried = {}
    for key, tensor in parts["carried"].items():
        phase, _, name = key.partition("/")
        learner.engine.carried.setdefault(phase, {})[name] = tensor
    method.grow(state["structure"])
    method.grow_slots(state.get("slots", {}))
    # The beginning of a task sets what trains; a task that continues does not begin again.
    method.trainable = list(state.get("trainable", method.trainable))
    method.to(device)
    _load(method, parts["model"])
    method.load_extra({k: v.to(device) for k, v in parts["extra"].items()}, state["method"])
    learner.guard_state = state.get("guard")
    if learner.guard is not None and learner.guard_state is not None:
        learner.guard.restore({k: v.to(device) for k, v in parts["guard"].items()}, learner.guard_state)
    cursor = Cursor(**state["cursor"])
    cursor.optimiser = parts["optimiser"]
    if cursor.begun:
        method.mark_trainable()
    return cursor


def _load(method: Method, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load a checkpoint's tensors into a method.

    Raises:
        CheckpointError: if names or shapes differ, because the backbone's files have changed since.
    """
    own = method.state_dict()
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += [k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape]
    if wrong:
        listed = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise CheckpointError(
            f"the checkpoint does not fit the model that its configuration builds from {method.backbone.name} "
            f"({listed}). Put the backbone's files back as they were when it was saved."
        )
    method.load_state_dict(tensors)
