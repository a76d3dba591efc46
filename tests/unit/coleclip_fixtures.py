"""CoLeCLIP that learns from noise, without engine or pictures."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import torch

from everclip.contracts import Batch, ClassEntry, Past, Progress, Task
from everclip.data.table import Table
from everclip.methods.coleclip.method import CoLeClip
from everclip.methods.coleclip.settings import CoLeClipSettings
from everclip.models.backbone import Backbone


def entries(*names: str, tasks: tuple[int, ...] = (0,)) -> tuple[ClassEntry, ...]:
    return tuple(ClassEntry(name, name, ("a {}", "the {}"), tasks) for name in names)


def task(index: int, *names: str) -> Task:
    table = Table(
        pa.table({"id": [f"{index}-{n}" for n in names], "image": [b""] * len(names)}), name=str(index)
    )
    return Task(index, f"task {index}", table, classes=entries(*names, tasks=(index,)))


class Walk:
    """A method that learns tasks from noise, step by step, without engine or pictures."""

    def __init__(self, backbone: Backbone, **settings: Any) -> None:
        self.method = CoLeClip(backbone, CoLeClipSettings(**settings))
        self.tasks: list[Task] = []
        self.losses: list[dict[str, float]] = []

    def learn(self, *names: str, steps: int = 4, batch: int = 6, until: int | None = None) -> Task:
        method, now = self.method, task(len(self.tasks), *names)
        method.begin_task(now, Past(tuple(self.tasks)))
        (phase,) = method.phases(now, Past(tuple(self.tasks)))
        trained = [method.get_parameter(n) for group in phase.param_groups for n in group.names]
        optimiser = torch.optim.Adam(trained, lr=1e-2)
        for step in range(steps if until is None else until):
            optimiser.zero_grad()
            found = method(self.batch(now, step, batch), Progress(now.index, "train", 0, step, steps, 0))
            torch.stack(list(found.values())).sum().backward()
            assert all(p.grad is not None for p in trained)
            optimiser.step()
            method.after_step(Progress(now.index, "train", 0, step, steps, 0))
            self.losses.append({name: float(value.detach()) for name, value in found.items()})
        if until is None:
            method.end_task(now, Past(tuple(self.tasks)), lambda: {})
            self.tasks.append(now)
        return now

    def batch(self, now: Task, step: int, size: int) -> Batch:
        draw = torch.Generator().manual_seed(100 * now.index + step)
        classes = now.classes or ()
        return {
            "main": {
                "image": torch.randn(size, 3, 16, 16, generator=draw),
                "label": torch.randint(len(classes), (size,), generator=draw),
                "class_tokens": self.method.backbone.tokenise([c.prompts()[0] for c in classes]),
            }
        }
