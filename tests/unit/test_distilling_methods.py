"""What every preset of one model must bear: long streams, tasks of one class, shared names, single pictures.

Those that grow with each task (moe-adapters with a router per task, coleclip, rail) have tests of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from everclip.contracts import ClassEntry, LabelSpace, Reference, Task
from everclip.data.table import Table
from everclip.learner import Learner
from everclip.methods.slots import SlotMethod
from everclip.registry import method_entry

METHODS = ("zscl", "lwf", "lwf-vr", "icarl", "finetune", "wise-ft", "moe-adapters-cil")
LIGHT: dict[str, dict[str, Any]] = {
    "zscl": {"penalties": {"zscl": {"images": 6, "batch_size": 2}}},
    "lwf-vr": {"penalties": {"lwf-vr": {"sentences": 5}}},
    "icarl": {"replay": {"size": 5}},
    "wise-ft": {"merge": {"alpha": 0.5}},
    "moe-adapters-cil": {"experts": {"width": 4}},
}
Make = Callable[..., Learner]


@pytest.fixture
def learner(micro_folder: Path) -> Make:
    """Return a function (preset, **training) -> learner on the micro model, with reference data."""

    def make(name: str, settings: dict[str, Any] | None = None, **training: Any) -> Learner:
        given = {
            "steps": 1,
            "batch_size": 3,
            "lr": 1e-2,
            "warmup": 0,
            "device": "cpu",
            "workers": 0,
            **training,
        }
        own = settings if settings is not None else LIGHT.get(name, {})
        found = Learner.create(str(micro_folder / "model"), name, given, **own)
        pictures = Table(pq.read_table(micro_folder / "reference.parquet"))
        found.reference = Reference(pictures, ("a red thing", "a blue thing", "nothing at all"))
        return found

    return make


@pytest.fixture
def pictures(micro_folder: Path) -> Table:
    return Table(pq.read_table(micro_folder / "data.parquet"))


def task_of(pictures: Table, index: int, rows: list[int], names: list[str], **more: Any) -> Task:
    """Return a task of some pictures, which take the names in turn."""
    keys = [names[i % len(names)] for i in range(len(rows))]
    data = pictures.select(rows).with_column("class_key", keys).with_column("class_name", keys)
    return Task(index, f"task {index}", data, classes=tuple(ClassEntry(n, n) for n in names), **more)


@pytest.mark.parametrize("name", METHODS)
def test_thirteen_tasks_of_which_some_have_one_class_and_one_a_name_twice(
    learner: Make, pictures: Table, name: str, one_class_tasks: None
) -> None:
    found = learner(name)
    sizes = []
    for index in range(13):
        rows = list(range(7 * index, 7 * index + 7))
        names = ["shared", f"name {index}"] if index in (2, 11) else [f"only {index}"]
        found.learn(task_of(pictures, index, rows, names))
        sizes.append(found.method.describe().bytes)
        if found.method.buffer is not None:
            assert len(found.method.buffer) <= 5
    assert len(set(sizes)) == 1, "what is stored does not grow"
    entries = tuple({e.key: e for t in found.tasks for e in t.classes or ()}.values())
    assert len(entries) == 14
    bank = found.method.eval().class_bank(LabelSpace(entries))["embedding"]
    assert bool(bank.isfinite().all())


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_one_and_a_task_of_one_picture(learner: Make, pictures: Table, name: str) -> None:
    light = {"zscl": {"penalties": {"zscl": {"batch_size": 1}}}}.get(name, LIGHT.get(name, {}))
    found = learner(name, light, batch_size=1, steps=2)
    for index in range(2):
        found.learn(task_of(pictures, index, [index], [f"name {index}", "another"]))
    assert all(bool(p.isfinite().all()) for p in found.method.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_what_is_not_chosen_to_train_does_not_move(learner: Make, pictures: Table, name: str) -> None:
    settings = {**LIGHT.get(name, {}), "trainable": ["image-layernorm"]}
    found = learner(name, settings, steps=2)
    before = {k: v.clone() for k, v in found.method.named_parameters()}
    for index in range(2):
        found.learn(task_of(pictures, index, list(range(8 * index, 8 * index + 8)), ["a", "b"]))
    moved = {
        k for k, v in found.method.named_parameters() if k not in before or not torch.equal(v, before[k])
    }
    assert moved
    assert moved == set(found.method.trainable)
    plain = {k for k in moved if ".experts." not in k}
    assert all("visual" in k and "ln" in k for k in plain)
    assert plain
    assert (moved > plain) == (name == "moe-adapters-cil")


@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_changed_before_the_first_step(learner: Make, pictures: Table, name: str) -> None:
    found, plain = learner(name), learner("zero-shot", {})
    task = task_of(pictures, 0, list(range(8)), ["a", "b"])
    found.method.begin_task(task, found.past())
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, two = (m.method.eval().encode_images(pixels)["embedding"] for m in (found, plain))
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", METHODS[:-1])
def test_summaries_and_costs_are_told(learner: Make, name: str) -> None:
    entry, method = method_entry(name), learner(name).method
    assert entry.target.endswith(":SlotMethod")
    assert type(method) is SlotMethod
    cost = method.describe()
    plain = sum(p.numel() for p in method.parameters())
    assert cost.active_parameters == plain
    assert cost.growth_per_task == "none"
    teachers = 1 if name in ("zscl", "icarl") else 0  # that of the task's start is there inside a task alone
    assert cost.stored_parameters == plain * (1 + teachers)
