"""What a method keeps inside a task comes back from a checkpoint, whatever its slots keep."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from everclip.config import MethodConfig, TrainingConfig
from everclip.contracts import Past, Progress, Task
from everclip.data.table import Table
from everclip.methods.base import Method
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone

SLOTS: dict[str, dict[str, Any]] = {
    "running mean": {"merge": {"kind": "running-mean", "every": 1}},
    "running mean from the second half": {"merge": {"kind": "running-mean", "every": 1, "start": 0.5}},
    "running mean with the start": {"merge": {"kind": "running-mean", "every": 1, "wise_we": 0.9}},
    "wise-ft": {"merge": {"kind": "wise-ft", "alpha": 0.5, "reference": "initial"}},
    "weight constraint": {"penalties": {"weight-constraint": {}}},
    "teacher": {"penalties": {"lwf": {}}},
    "replay": {"replay": {"kind": "reservoir", "size": 5, "base": True}},
}


@pytest.fixture
def begun(micro_folder: Path) -> Callable[..., Method]:
    """Return a function (settings) -> a method after two of four steps of its second task."""
    data = Table(pq.read_table(micro_folder / "data.parquet"))
    task, base = Task(1, "second", data.select(range(24))), data.select(range(24, 48))

    def make(settings: dict[str, Any], take_steps: bool) -> Method:
        method = build_method(MethodConfig(settings=settings), load_backbone(str(micro_folder / "model")))
        if not take_steps:
            return method
        method.begin_task(task, Past(base=base, training=TrainingConfig(steps=4)))
        step(method, 0, 2)
        return method

    return make


def step(method: Method, start: int, stop: int) -> None:
    """Move every weight that trains, as steps of an optimiser would."""
    for number in range(start, stop):
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1 + 0.01 * (number + 1))
        method.after_step(Progress(1, "train", 0, number, 4, 0))


@pytest.mark.parametrize("name", SLOTS)
def test_it_goes_on_as_if_nothing_had_happened(
    name: str, begun: Callable[..., Method], micro_folder: Path
) -> None:
    method, again = begun(SLOTS[name], True), begun(SLOTS[name], False)
    again.load_state_dict(method.state_dict())
    kept, state = method.extra_tensors(), json.loads(json.dumps(method.extra_state()))
    again.load_extra({key: tensor.clone() for key, tensor in kept.items()}, state)
    again.mark_trainable()
    for one in (method, again):
        step(one, 2, 4)
    found, wanted = again.extra_tensors(), method.extra_tensors()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert again.extra_state() == method.extra_state()
    data = Table(pq.read_table(micro_folder / "data.parquet"))
    for one in (method, again):
        one.eval()
        one.end_task(Task(1, "second", data.select(range(24))), Past(base=data.select(range(24, 48))), dict)
    state, other = method.state_dict(), again.state_dict()
    assert all(torch.equal(state[key], other[key]) for key in state)
