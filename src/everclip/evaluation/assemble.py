"""Assemble the typed result from the rows measured so far: matrix, derived metrics, examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from everclip.contracts import EvalSet, Task
from everclip.evaluation.best_answers import BestAnswers
from everclip.evaluation.cells import metric_value
from everclip.evaluation.headline import metric_of
from everclip.evaluation.measurements import OLD_AND_NEW, Measurements
from everclip.evaluation.results import Answer, Column, Example, Matrix, Row, TaskInfo
from everclip.metrics import get


def column_info(s: EvalSet) -> Column:
    """Describe an evaluation set as a column of the result."""
    classes = None if s.classes is None else len(s.classes)
    return Column(name=s.name, kind=s.kind, group=s.group, task=s.task, samples=len(s.data), classes=classes)


def task_info(task: Task) -> TaskInfo:
    """Describe a task for the result."""
    return TaskInfo(
        index=task.index,
        name=task.name,
        samples=len(task.train),
        validation_samples=0 if task.val is None else len(task.val),
        classes=None if task.classes is None else len(task.classes),
        language=task.language,
        time=task.time,
    )


def headline_value(row: Row, column: Column, headline: Mapping[str, str]) -> float | None:
    """Return a column's headline value at a row.

    A column that the headline's metric does not fit (such as a retention set with classes) shows the default metric of
    its kind: accuracy, or the mean of Recall@1 in both directions.
    """
    scores = row.scores.get(column.name, {}).get(headline["protocol"])
    if scores is None:
        return None
    score = scores.get(metric_of(column, headline))
    return None if score is None else score.value


def _shown_metric(columns: Sequence[Column], headline: Mapping[str, str]) -> str:
    """Return the metric that all task columns show, or `auto` if they differ."""
    shown = {metric_of(column, headline) for column in columns if column.group == "task"}
    return shown.pop() if len(shown) == 1 else headline["metric"]


def build_matrix(rows: Sequence[Row], columns: Sequence[Column], headline: Mapping[str, str]) -> Matrix:
    """Return the headline score matrix over all columns, row 0 included."""
    return Matrix(
        protocol=headline["protocol"],
        metric=_shown_metric(columns, headline),
        rows=[row.label for row in rows],
        columns=[column.name for column in columns],
        values=[[headline_value(row, column, headline) for column in columns] for row in rows],
    )


def build_together(measured: Measurements) -> Matrix | None:
    """Return old, new and everything at every row; `None` if they are not scored together."""
    together = measured.together
    if isinstance(together, str):
        return None
    cells = {name: measured.cells(name) for name in OLD_AND_NEW}
    ends = [get(name, "stream") for name in ("everything_old_last", "everything_new_last", "everything_last")]
    return Matrix(
        protocol=together.protocol,
        metric=together.metric,
        rows=[row.label for row in measured.rows],
        columns=list(OLD_AND_NEW),
        values=[
            [metric_value(end, cells[end.sets].up_to(row)) for end in ends]
            for row in range(len(measured.rows))
        ],
    )


def flat_metrics(measured: Measurements) -> dict[str, float | None]:
    """Return every metric of the headline's sets at the last row by name; `None` if undefined."""
    return measured.values("task", "known", "retention") if measured.rows else {}


def add_answers(
    examples: Sequence[Example],
    row: int,
    answers: Mapping[str, BestAnswers],
    positions: Mapping[str, Sequence[int]],
) -> list[Example]:
    """Return the examples with the model's answers at one row added."""
    by_key = {
        (name, position): value for name, of_set in answers.items() for position, value in of_set.items()
    }
    result, keys = [], [(name, position) for name, chosen in positions.items() for position in chosen]
    for example, key in zip(examples, keys, strict=True):
        if key in by_key:
            best = by_key[key]
            answer = Answer(row=row, answers=best.answers, correct=best.correct, rank=best.rank)
            others = [a for a in example.answers if a.row != row]  # a row may be measured again
            answers_now = sorted([*others, answer], key=lambda a: a.row)
            example = example.model_copy(update={"answers": answers_now})
        result.append(example)
    return result
