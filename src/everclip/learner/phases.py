"""Run a task's phases in order, from a position to their end or to a pause."""

from __future__ import annotations

from collections.abc import Sequence

from everclip.contracts import Phase, Task
from everclip.learner.memory_check import check_memory
from everclip.methods.base import Method
from everclip.training.engine import Engine
from everclip.training.guard import Guard
from everclip.training.watching import Cursor, Watcher


def run_phases(
    engine: Engine,
    method: Method,
    task: Task,
    phases: Sequence[Phase],
    cursor: Cursor,
    watcher: Watcher | None,
    guard: Guard | None,
) -> None:
    """Run the phases that are left; return early if the watcher pauses (`cursor.paused`).

    Args:
        engine: runs the steps.
        method: the method that learns.
        task: the task to learn.
        phases: all phases of the task, in order.
        cursor: where to continue; kept up to date.
        watcher: follows the steps.
        guard: measures during phases that train; a phase is skipped after it has stopped the task.

    Raises:
        ConfigError: if the device has too little memory for a step.
    """
    if (cursor.phase, cursor.repeat, cursor.step) == (0, 0, 0):
        check_memory(engine, method, phases)
    while cursor.phase < len(phases):
        phase = phases[cursor.phase]
        # A phase without optimiser is solved in closed form: the guard has nothing to do.
        active = guard if phase.optimiser is not None and phase.guarded else None
        while cursor.repeat < phase.repeats:
            if active is None or not active.stopped:
                engine.run(method, phase, task.index, cursor, watcher, active)
            if cursor.paused:
                return
            cursor.repeat, cursor.step, cursor.optimiser = cursor.repeat + 1, 0, {}
        method.end_phase(task, phase)
        cursor.phase, cursor.repeat = cursor.phase + 1, 0
