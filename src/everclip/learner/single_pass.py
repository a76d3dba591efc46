"""Streams that are seen once: every sample of such a task is drawn exactly once, whatever the method declares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from everclip.config import BUDGET_KEYS, TrainingConfig
from everclip.contracts import Phase, Stream, Task
from everclip.errors import ConfigError
from everclip.methods.base import Method


def require_one_pass(training: TrainingConfig, tasks: Sequence[Task]) -> None:
    """Refuse a budget that does not fit: a stream that is seen once has one pass, other tasks one step per batch.

    Raises:
        ConfigError: names the key to change.
    """
    if not any(task.once for task in tasks):
        if training.steps_per_batch > 1:
            raise ConfigError(
                f"training.steps_per_batch: {training.steps_per_batch} needs a stream that is seen once "
                "(kind: online); for other streams, raise training.epochs or training.steps."
            )
        return
    if (training.epochs, training.extra_steps) != (1, 0):
        found = {key: getattr(training, key) for key in (*BUDGET_KEYS, "extra_steps")}
        shown = ", ".join(f"training.{key}={value:g}" for key, value in found.items() if value)
        raise ConfigError(
            f"training: this stream is seen once, so its budget is one pass: set training.epochs=1 (found {shown}). "
            "For more steps on each batch, set training.steps_per_batch."
        )


def one_pass(phases: Sequence[Phase], task: Task, training: TrainingConfig, method: Method) -> list[Phase]:
    """Return a task's phases such that each sample of the task is drawn once.

    Args:
        phases: as the method declares them.
        task: a task; unless it is seen once, its phases are returned as they are.
        training: holds the steps per batch.
        method: the method; one that does not need borders only knows the classes seen so far.

    Raises:
        ConfigError: if the method needs several passes, or steps of its own number.
    """
    if not task.once:
        return list(phases)
    if any(phase.gradients for phase in phases):
        raise ConfigError(
            "method.penalties.oewc: it measures gradients in one more pass over a task's samples, and this stream is "
            "seen once. Leave it out, or take a stream of kind classes or time."
        )
    passes = sum(phase.repeats for phase in phases if any(_reads(s, task) for s in phase.streams.values()))
    if passes > 1:
        raise ConfigError(
            f"method: {method.preset} passes over the samples of a task {passes} times, and this stream is seen "
            "once. Take a method that needs one pass (sit, replay, finetune, rail), or a stream of kind classes."
        )
    return [_once(phase, task, training.steps_per_batch, method) for phase in phases]


def _reads(stream: Stream, task: Task) -> bool:
    return any(source.table is task.train for source in stream.sources)


def _once(phase: Phase, task: Task, times: int, method: Method) -> Phase:
    reading = {name: stream for name, stream in phase.streams.items() if _reads(stream, task)}
    if not reading:
        return phase
    if phase.steps is not None or phase.epochs is not None:
        raise ConfigError(
            f"method: {method.preset} sets its own number of steps for task {task.name!r} (method.per_task), and this "
            "stream is seen once: its length is its number of steps. Leave it out."
        )
    sizes = {stream.batch_size for stream in reading.values()}
    if len(sizes) > 1:
        raise ConfigError(
            f"method: {method.preset} reads the task in batches of {' and '.join(map(str, sorted(sizes)))} samples "
            "at the same time; in a stream that is seen once they must be equal: set no batch_size in method.penalties."
        )
    hidden = not method.needs.borders
    times = 1 if phase.optimiser is None else times
    streams = {
        name: replace(
            stream,
            order="once",
            times=times,
            space="seen" if hidden and stream.space == "all" and stream.classes else stream.space,
        )
        for name, stream in reading.items()
    }
    return replace(phase, streams={**phase.streams, **streams}, repeats=1, stretch=1.0)
