"""What an update would take: steps, time, memory and disk, from a few steps on a copy of the version that serves."""

from __future__ import annotations

import time
from dataclasses import dataclass

from everclip.contracts import Task
from everclip.learner.core import Learner
from everclip.learner.memory_check import need_of
from everclip.training.budget import phase_steps
from everclip.training.watching import Cursor, StepLog, Watcher

TIMED = 3
"""Steps that are timed, after a first one that warms up."""


@dataclass(frozen=True)
class Foreseen:
    """What an update would take on this machine.

    Attributes:
        steps: optimiser steps of training.
        seconds: of training; `None` if nothing trains.
        memory: bytes that a step needs; `None` if nothing trains.
        disk: bytes of the new version, at most: tensors that training changes.
        images_change: whether the image tower trains, so that every search index must be embedded again.
    """

    steps: int
    seconds: float | None
    memory: float | None
    disk: int
    images_change: bool


class _Timer(Watcher):
    """Notes when steps end, and pauses after a few."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def after_step(self, log: StepLog) -> bool:
        self.ends.append(time.perf_counter())
        return False

    def pauses(self, step: int) -> bool:
        return step >= 1 + TIMED


def foresee(learner: Learner, task: Task) -> Foreseen:
    """Try a few steps; the learner cannot be used afterwards.

    Args:
        learner: a copy of the version that serves.
        task: what would be learned.
    """
    cursor, timer = Cursor(), _Timer()
    learner.begin(task, cursor)
    phases = learner.plan(task, cursor)
    need = need_of(learner.engine, learner.method, phases)
    steps = sum(phase_steps(phase, learner.training) * phase.repeats for phase in phases)
    learner.learn(task, cursor, timer)
    gaps = [after - before for before, after in zip(timer.ends, timer.ends[1:], strict=False)]
    trained = set(learner.method.trainable)
    changed = sum(
        p.numel() * p.element_size() for name, p in learner.method.named_parameters() if name in trained
    )
    return Foreseen(
        steps,
        steps * min(gaps) if gaps else None,
        None if need is None else need.total,
        changed,
        any(".visual." in f".{name}." for name in trained),
    )
