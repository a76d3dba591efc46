"""What a method costs is told before a task: what is there inside it and gone after it, counted beforehand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import everclip
from everclip.contracts import ClassEntry, Task
from everclip.data.table import Table
from everclip.learner import Learner
from everclip.methods.cost import bytes_on_disk

MOE = {"experts": {"count": 4, "active": 2, "width": 4}, "selector": None}
CONSTRAINT = {"weight-constraint": {"reference": "initial"}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "finetune": ("finetune", {}),
    "lwf": ("lwf", {}),
    "two teachers": ("finetune", {"penalties": {"lwf": {}, "feature-distill": {}}}),
    "a teacher between": ("zscl", {"penalties": {"zscl": {"toward_task_start": 0.8}}}),
    "zscl": ("zscl", {}),
    "a part trains": ("lwf", {"trainable": ["image-layernorm"]}),
    "initial weights": ("finetune", {"penalties": CONSTRAINT}),
    "wise-ft": ("wise-ft", {}),
    "running mean": ("finetune", {"merge": {"kind": "running-mean"}}),
    "experts with a teacher": ("moe-adapters", {**MOE, "penalties": {"lwf": {}}, "routers": "one"}),
    "experts by task": ("moe-adapters", {**MOE, "penalties": {"lwf": {}}}),
    "coleclip": ("coleclip", {}),
}


def task_of(data: Table, index: int) -> Task:
    keys = [f"class-{2 * index}", f"class-{2 * index + 1}"]
    rows = [i for i, key in enumerate(data.column("class_key")) if key in keys]
    entries = tuple(ClassEntry(k, k, ("a {}",), (index,)) for k in keys)
    return Task(index, f"task {index}", data.select(rows), classes=entries)


@pytest.mark.parametrize("case", CASES)
def test_what_a_task_will_hold_is_counted_before_it(micro_folder: Path, case: str) -> None:
    name, settings = CASES[case]
    data = Table(pq.read_table(micro_folder / "data.parquet"))
    learner = Learner.create(str(micro_folder / "model"), name, {"steps": 1, "device": "cpu"}, **settings)
    method = learner.method
    for index in range(2):
        before, disk, routers = method.describe(), bytes_on_disk(method, method.describe()), _routers(method)
        method.begin_task(task_of(data, index), learner.past())
        inside = method.describe()
        # What stays for good is told as growth: routers (the first also as it was); a prompt and rows of classes.
        new = _routers(method) - routers
        left = 32 + 2 * 32 if name == "coleclip" else new if index else 2 * new
        assert inside.stored_parameters == before.stored_parameters + before.task_parameters + left
        assert inside.task_parameters == 0
        if not left and name != "moe-adapters":
            kept = {**method.state_dict(), **method.extra_tensors()}
            assert disk == sum(t.numel() * t.element_size() for t in kept.values())
        held_for_good = case == "finetune" or (case == "initial weights" and index)
        assert (before.task_parameters == 0) == held_for_good
        assert before.held_during_task.startswith("nothing more") == held_for_good
        method.eval()
        method.end_task(task_of(data, index), learner.past(), dict)
        learner.tasks.append(task_of(data, index))


def _routers(method: Any) -> int:
    return sum(p.numel() for n, p in method.named_parameters() if ".routers." in n)


def test_zero_shot_trains_nothing_and_says_so(micro_config: Callable[..., Any]) -> None:
    result = everclip.execute(micro_config("single", "method=zero-shot"))
    assert result.method["cost"]["trainable_parameters"] == 0
