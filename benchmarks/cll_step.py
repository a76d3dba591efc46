"""A step of CLL-CLIP: stored embeddings of images and source captions against encoding both at every step.

And the optimiser's state: as it is after a step of AdamW, for the rows in use (`rows: both`) and for the whole table
(`rows: none`), language by language.

`builtin:tiny` on the first six languages of `emoji-languages`. A step is making the batch, forward, backward and
AdamW. Seconds are processor time, in turn. Run: python benchmarks/cll_step.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from common import processor_seconds, ratio, table

from everclip.config import resolve_config
from everclip.contracts import Progress
from everclip.learner import Learner
from everclip.learner.fit import learner_for
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario
from everclip.training.watching import Cursor, OptimiserState, StepLog, Watcher

LANGUAGES = ("en", "de", "ru", "zh", "ar", "hi")
ROUNDS = 5
WAYS = {"rows in use": "cll-clip", "whole table": "cll-clip-naive"}


class Moments(Watcher):
    """Adds up the bytes of the optimiser's state of the token rows after the last step."""

    def __init__(self) -> None:
        self.bytes = self.rows = 0

    def after_step(self, log: StepLog) -> bool:
        """Ask for the state."""
        return True

    def save(self, cursor: Cursor, optimiser: OptimiserState) -> None:
        """Count the state of the token embedding."""
        held = {
            name: value
            for name, value in optimiser().items()
            if "token_embedding" in name and value.dim() == 2
        }
        self.bytes = sum(value.numel() * value.element_size() for value in held.values())
        self.rows = max((len(value) for value in held.values()), default=0)


def prepared(method: str, scenario: ListScenario | None = None, languages: Sequence[str] = LANGUAGES) -> Any:
    """Return (learner, scenario) for one step per language."""
    settings = [f"scenario.data.languages=[{', '.join(languages)}]", f"method={method}", "training.steps=1"]
    config = resolve_config("emoji-languages", [*settings, "training.threads=1", "training.device=cpu"])
    scenario = scenario or load_scenario(config.scenario)
    return learner_for(config, scenario), scenario


def states(scenario: ListScenario, method: str) -> list[Moments]:
    """Learn one step per language; return what the optimiser held after each."""
    learner, _ = prepared(method, scenario)
    found = []
    for task in scenario.tasks:
        found.append(Moments())
        learner.learn(task, watcher=found[-1])
    return found


def steps(learner: Learner, scenario: ListScenario) -> dict[str, Callable[[], None]]:
    """Return a training step on the last language with stored embeddings, and one that encodes its batch."""
    method, engine, task = learner.method, learner.engine, scenario.tasks[-1]
    method.begin_task(task, learner.past())
    (phase,) = learner.plan(task)
    streams = dict(phase.streams)
    engine.columns.prepare(method, streams)
    trained = [method.get_parameter(name) for group in phase.param_groups for name in group.names]
    optimiser = torch.optim.AdamW(trained, lr=1e-5)

    def step(stored: bool) -> None:
        batch = {"main": engine.maker.batch(streams["main"], "step/main", 0)}
        if stored:
            engine.columns.add(batch, streams, "step", 0)
        else:
            engine.columns.add_once(method, batch, streams, "step/main")
        method.train()
        optimiser.zero_grad()
        loss = torch.stack(list(method(batch, Progress(0, "train", 0, 0, 1, 0)).values())).sum()
        loss.backward()
        optimiser.step()

    return {"stored": partial(step, True), "encoded": partial(step, False)}


def main() -> str:
    """Measure and return the tables."""
    torch.set_num_threads(1)
    learner, scenario = prepared("cll-clip")
    for task in scenario.tasks[:-1]:
        learner.learn(task)
    both = steps(learner, scenario)
    times = processor_seconds(both, ROUNDS)
    middle, low, high = ratio(times["encoded"], times["stored"])
    rows = [
        ("step, embeddings stored", f"{statistics.median(times['stored']):.3f} s"),
        (
            "step, image tower and source captions at every step",
            f"{statistics.median(times['encoded']):.3f} s",
        ),
        ("stored embeddings: faster", f"{middle:.2f} x ({low:.2f}-{high:.2f})"),
    ]
    held = {name: states(scenario, method) for name, method in WAYS.items()}
    for task, used, whole in zip(scenario.tasks, *held.values(), strict=True):
        rows.append(
            (
                f"optimiser state after {task.name}: {used.rows:,} rows in use, {whole.rows:,} in the table",
                f"{used.bytes / 1e6:.2f} MB, {whole.bytes / 1e6:.2f} MB: {whole.bytes / used.bytes:.1f} x",
            )
        )
    title = "A step of CLL-CLIP, and its optimiser's state (benchmarks/cll_step.py): builtin:tiny, batch 128"
    return table(title, rows, ("what", "measured (quartiles)"))


if __name__ == "__main__":
    print(main())
