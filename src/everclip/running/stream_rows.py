"""The rows of a stream that is seen once, as a run plans and reports them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from everclip.config import RunConfig
from everclip.contracts import Phase, Task
from everclip.evaluation.results import Online, Row, TaskInfo
from everclip.learner.core import Learner
from everclip.methods.base import Method
from everclip.running.run_state import RunState
from everclip.scenarios.base import ListScenario
from everclip.scenarios.online import StreamPlan, StreamRow, plan_stream, settings_of


def new_per_batch(learner: Learner, scenario: ListScenario) -> int:
    """Return the number of new samples in a batch of a stream: fewer than `training.batch_size` with replay."""
    size = learner.training.batch_size
    # Rows do not matter here, only what the method declares.
    task = plan_stream(scenario, size, learner.method.needs.borders).scenario.tasks[0]
    phases = learner.plan(task)
    return phases[0].streams["main"].batch_size if phases else size


def stream_notes(stream: StreamPlan, method: Method) -> Iterator[tuple[str, str]]:
    """Yield (kind, message) of what the readers of a result must know about a stream that is seen once."""
    if method.needs.borders:
        yield (
            "borders",
            f"{method.preset} needs task borders: it is told where each of the {len(stream.scenario.tasks)} parts "
            "begins and ends, which this stream hides from other methods, and is measured at the ends of parts only",
        )
    elif stream.borders:
        yield (
            "borders",
            "online.borders=visible: the method is told where a part begins, and its optimiser starts anew there",
        )


def planned_row(stream: StreamPlan | None, done: int) -> StreamRow | None:
    """Return the next row of a stream after `done` rows; `None` for other streams and before row 0."""
    return stream.rows[done - 1] if stream is not None and 0 < done <= len(stream.rows) else None


def pause_step(planned: StreamRow | None, phases: Sequence[Phase]) -> int | None:
    """Return the step of a task after which training pauses for a row inside it.

    Args:
        planned: the next row.
        phases: of the task; without phases nothing trains: rows differ only in the classes that were seen.

    Returns:
        `None` if the next row is at the task's end; 0 without phases.
    """
    if planned is None or planned.last:
        return None
    return planned.batches * phases[0].streams["main"].times if phases else 0


@dataclass(frozen=True)
class Moment:
    """What the next row measures.

    Attributes:
        label: the row's label.
        task: index of the task just learned; `None` for row 0 and for a method that learns everything at once.
        learned: indices of the tasks learned so far; in a stream that is seen once, of its stretches.
        samples: samples so far.
        at: see `Row`.
    """

    label: str
    task: int | None
    learned: Collection[int]
    samples: int
    at: tuple[str, ...] = ()


def moment(planned: StreamRow | None, state: RunState, tasks: Sequence[Task], learner: Learner) -> Moment:
    """Return what the next row of a run measures; `planned` is its row if the stream is seen once."""
    index = len(state.rows)
    task = None if index == 0 or learner.method.needs.all_tasks_at_once else index - 1
    if planned is None:
        label = "before" if index == 0 else tasks[index - 1].name
        return Moment(label, task, learner.learned, state.samples)
    # The classes of a stream name the stretch between two rows in which they appear first.
    return Moment(planned.label, task, set(range(index)), planned.samples, planned.at)


def stretches(stream: StreamPlan) -> list[TaskInfo]:
    """Describe the stretches of a stream between its rows, in the place of tasks."""
    starts = [0, *(row.samples for row in stream.rows)]
    sizes = [stop - start for start, stop in pairwise(starts)]
    return [
        TaskInfo(index=i, name=row.label, samples=size)
        for i, (row, size) in enumerate(zip(stream.rows, sizes, strict=True))
    ]


def online_info(stream: StreamPlan, config: RunConfig, rows: Sequence[Row]) -> Online:
    """Describe a stream and how often its samples were used, for the result."""
    settings, last = settings_of(stream.scenario.spec), rows[-1] if rows else None
    steps, seen = (last.step, last.samples) if last is not None else (0, 0)
    return Online(
        samples=stream.rows[-1].samples,
        parts=settings.parts,
        every=settings.every,
        borders=stream.borders,
        batch_size=config.training.batch_size,
        steps_per_batch=config.training.steps_per_batch,
        steps=steps,
        steps_per_sample=steps / seen if seen else None,
    )
