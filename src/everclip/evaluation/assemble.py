"""From the rows measured so far to the whole typed result: matrix, derived metrics, examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from everclip.contracts import EvalSet, Task
from everclip.errors import ConfigError, did_you_mean
from everclip.evaluation.matrix import average_incremental, stage_scores, summary
from everclip.evaluation.results import Answer, Column, Example, Matrix, Row, TaskInfo

AUTO = "auto"
"""The headline metric that is each column's own, for streams whose tasks are of several kinds."""

CLASSIFICATION = ("accuracy", "top5", "mean_class_accuracy", "ece")


def column_info(s: EvalSet) -> Column:
    """Describe an evaluation set as a column of the result."""
    classes = None if s.classes is None else len(s.classes)
    return Column(name=s.name, kind=s.kind, group=s.group, task=s.task, samples=len(s.data), classes=classes)


def task_info(task: Task) -> TaskInfo:
    """Describe a task as the result names it."""
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

    Columns of another kind than the headline's metric (a retention set that is classified, say) show their own
    main metric: accuracy, or the mean of Recall@1 both ways.
    """
    scores = row.scores.get(column.name, {}).get(headline["protocol"])
    if scores is None:
        return None
    score = scores.get(metric_of(column, headline))
    return None if score is None else score.value


def metric_of(column: Column, headline: Mapping[str, str]) -> str:
    """Return the metric that stands for a column: the headline's where its kind has it, else its kind's own."""
    own = "accuracy" if column.kind == "classification" else "mean_r1"
    if headline["metric"] == AUTO:
        return own
    return headline["metric"] if (headline["metric"] in CLASSIFICATION) == (own == "accuracy") else own


def _shown_metric(columns: Sequence[Column], headline: Mapping[str, str]) -> str:
    """Return the metric that all task columns show, or `auto` where each shows its own."""
    shown = {metric_of(column, headline) for column in columns if column.group == "task"}
    return shown.pop() if len(shown) == 1 else headline["metric"]


def check_headline(sets: Sequence[EvalSet], metric: str, top_k: Sequence[int]) -> None:
    """Check before a run starts that the task sets will have the headline's metric.

    Raises:
        ConfigError: if they will not; lists what they will have.
    """
    ways = ("mean", "text_to_image", "image_to_text")
    recalls = tuple(f"{way}_r{k}" for way in ways for k in top_k)
    more = tuple(f"{way}_{name}" for way in ways[1:] for name in ("map", "median_rank"))
    measured = {"classification": CLASSIFICATION, "retrieval": (*recalls, *more), "pairs": ()}
    own = {"classification": "accuracy", "retrieval": "mean_r1"}
    for s in (s for s in sets if s.group == "task"):
        wanted = own.get(s.kind, metric) if metric == AUTO else metric
        if wanted not in measured[s.kind]:
            raise ConfigError(
                f"scenario.headline.metric: {wanted!r} is not measured on {s.name!r} ({s.kind}, "
                f"evaluation.top_k={list(top_k)}).{did_you_mean(wanted, measured[s.kind])}"
            )


def build_matrix(rows: Sequence[Row], columns: Sequence[Column], headline: Mapping[str, str]) -> Matrix:
    """Return the headline score matrix over all columns, row 0 included."""
    return Matrix(
        protocol=headline["protocol"],
        metric=_shown_metric(columns, headline),
        rows=[row.label for row in rows],
        columns=[column.name for column in columns],
        values=[[headline_value(row, column, headline) for column in columns] for row in rows],
    )


def flat_metrics(
    rows: Sequence[Row], columns: Sequence[Column], headline: Mapping[str, str]
) -> dict[str, float | None]:
    """Return every derived number under a flat name; undefined is null.

    The matrix metrics are over the task columns; `known_*`, `retention_*` and `new_*` are means over the columns of
    a group at row 0 (`before`) and at the last row (`last`), and their difference (`change`).
    """
    if not rows:
        return {}

    def values(row: Row, group: str) -> list[float | None]:
        return [headline_value(row, c, headline) for c in columns if c.group == group]

    learned = [values(row, "task") for row in rows[1:]]
    suites = (values(rows[0], "retention"), values(rows[-1], "retention"))
    flat = summary(learned, values(rows[0], "task"), suites[0] or None, suites[1] or None)
    stages = _stages(rows[1:], columns, learned)
    flat["stage_average"] = average_incremental(stages) if stages else None
    flat["stage_last"] = stages[-1] if stages else None
    flat["worst_retention_drop"] = flat.pop("worst_set_drop")
    for name, group in (("known", "known"), ("retention", "retention"), ("new", "task")):
        before, last = _mean(values(rows[0], group)), _mean(values(rows[-1], group))
        flat[f"{name}_before"], flat[f"{name}_last"] = before, last
        flat[f"{name}_change"] = None if before is None or last is None else last - before
    return flat


def _stages(
    rows: Sequence[Row], columns: Sequence[Column], learned: Sequence[Sequence[float | None]]
) -> list[float | None]:
    """Return the score over all samples of what was learned, per row; a row of all tasks at once has learned all."""
    tasks = [column.task for column in columns if column.group == "task"]
    samples = [column.samples for column in columns if column.group == "task"]
    if not tasks:
        return []
    known: set[int] = set()
    seen = []
    for row in rows:
        known |= {task for task in tasks if task is not None} if row.task is None else {row.task}
        seen.append([j for j, task in enumerate(tasks) if task is None or task in known])
    return stage_scores(learned, seen, samples)


def _mean(values: Sequence[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return sum(given) / len(given) if given and len(given) == len(values) else None


def add_answers(
    examples: Sequence[Example],
    row: int,
    answers: Mapping[str, Mapping[int, Any]],
    positions: Mapping[str, Sequence[int]],
) -> list[Example]:
    """Return the examples with what the model said at one row added."""
    given = {(name, position): value for name, found in answers.items() for position, value in found.items()}
    result, order = [], [(name, position) for name, chosen in positions.items() for position in chosen]
    for example, place in zip(examples, order, strict=True):
        if place in given:
            best, correct = given[place]
            answer = Answer(row=row, answers=best, correct=correct)
            others = [a for a in example.answers if a.row != row]  # a row may be measured again
            answers_now = sorted([*others, answer], key=lambda a: a.row)
            example = example.model_copy(update={"answers": answers_now})
        result.append(example)
    return result
