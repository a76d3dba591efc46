"""What a result is put together from: the flat metrics of each group of columns, and the headline's metric."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from everclip.contracts import ClassEntry, EvalSet, Task
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.evaluation.assemble import (
    add_answers,
    build_matrix,
    column_info,
    flat_metrics,
    headline_value,
    task_info,
)
from everclip.evaluation.best_answers import Best
from everclip.evaluation.headline import check_headline, metric_of
from everclip.evaluation.measurements import Measurements
from everclip.evaluation.results import Answer, Column, Example, Row, Score

ACCURACY = {"protocol": "all", "metric": "accuracy"}


def column(
    name: str, group: Any, task: int | None = None, samples: int = 10, kind: Any = "classification"
) -> Column:
    return Column(name=name, kind=kind, group=group, task=task, samples=samples)


def row(index: int, scores: dict[str, float | None], task: int | None = None) -> Row:
    measured = {name: {"all": {"accuracy": Score(value=value)}} for name, value in scores.items()}
    return Row(index=index, task=task, label=f"row {index}", step=0, samples=0, scores=measured)


COLUMNS = (
    column("a", "task", 0, samples=10),
    column("b", "task", 1, samples=30),
    column("old", "known"),
    column("older", "known"),
    column("kept", "retention"),
    column("kept too", "retention"),
)
ROWS = (
    row(0, {"a": 0.10, "b": 0.20, "old": 0.50, "older": 0.70, "kept": 0.60, "kept too": 0.40}),
    row(1, {"a": 0.80, "b": 0.30, "old": 0.40, "older": 0.60, "kept": 0.55, "kept too": 0.45}, 0),
    row(2, {"a": 0.70, "b": 0.90, "old": 0.30, "older": 0.55, "kept": 0.45, "kept too": 0.20}, 1),
)


def test_every_group_is_the_mean_of_its_own_columns_before_and_last() -> None:
    found = flat_metrics(Measurements(ROWS, COLUMNS, ACCURACY))
    expected = {
        "known_before": 0.60,
        "known_last": 0.425,
        "known_change": -0.175,
        "retention_before": 0.50,
        "retention_last": 0.325,
        "retention_change": -0.175,
        "new_before": 0.15,
        "new_last": 0.80,
        "new_change": 0.65,
        # After the first task only its own pictures count, after the second 10 and 30 together.
        "stage_average": (0.80 + (10 * 0.70 + 30 * 0.90) / 40) / 2,
        "stage_last": (10 * 0.70 + 30 * 0.90) / 40,
        # Task 0 by 0.1; the retention sets by 0.15 and 0.2.
        "forgetting": 0.1,
        "transfer": 0.30,
        "last": 0.80,
        "worst_retention_drop": 0.2,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert "worst_set_drop" not in found


def test_a_column_without_a_value_makes_its_group_undefined_and_no_other() -> None:
    rows = (
        ROWS[0],
        ROWS[1],
        row(2, {"a": 0.7, "b": 0.9, "old": None, "older": 0.5, "kept": 0.4, "kept too": 0.2}, 1),
    )
    found = flat_metrics(Measurements(rows, COLUMNS, ACCURACY))
    assert (found["known_before"], found["known_last"], found["known_change"]) == (
        pytest.approx(0.6),
        None,
        None,
    )
    assert found["retention_change"] == pytest.approx(-0.2)
    assert flat_metrics(Measurements((), COLUMNS, ACCURACY)) == {}


def test_a_row_of_all_tasks_at_once_has_learned_all() -> None:
    found = flat_metrics(Measurements((ROWS[0], row(1, {"a": 0.5, "b": 0.7}, None)), COLUMNS[:2], ACCURACY))
    assert found["stage_last"] == pytest.approx((10 * 0.5 + 30 * 0.7) / 40)


def test_the_matrix_has_a_row_per_moment_and_nothing_where_nothing_was_measured() -> None:
    rows = (ROWS[0], row(1, {"a": 0.8}, 0))
    found = build_matrix(rows, COLUMNS[:3], ACCURACY)
    assert (found.protocol, found.metric) == ("all", "accuracy")
    assert (found.rows, found.columns) == (["row 0", "row 1"], ["a", "b", "old"])
    assert found.values == [[0.10, 0.20, 0.50], [0.80, None, None]]
    assert headline_value(ROWS[0], COLUMNS[0], {"protocol": "own", "metric": "accuracy"}) is None


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("classification", ("auto", "accuracy", "mean_class_accuracy"), ("mean_r1", "acuracy")),
        ("retrieval", ("auto", "mean_r1", "text_to_image_r5", "image_to_text_map"), ("accuracy", "mean_r10")),
    ],
)
def test_the_headlines_metric_is_one_that_the_task_sets_have(
    kind: str, good: tuple[str, ...], bad: tuple[str, ...]
) -> None:
    task: Any = SimpleNamespace(name="t", kind=kind, group="task")
    other: Any = SimpleNamespace(name="o", kind="pairs", group="retention")
    for metric in good:
        check_headline([task, other], metric, (1, 5))
    for metric in bad:
        with pytest.raises(ConfigError, match=rf"'{metric}' is not measured on 't' \({kind}"):
            check_headline([task, other], metric, (1, 5))


def test_a_column_and_a_task_are_named_with_their_counts() -> None:
    table, held = (Table(pa.table({"id": list(ids), "image": [b""] * len(ids)})) for ids in ("abc", "v"))
    classes = (ClassEntry("x", "x"), ClassEntry("y", "y"))
    of_classes = column_info(EvalSet("set", "classification", table, 3, "task", classes))
    assert (of_classes.name, of_classes.kind, of_classes.group, of_classes.task) == (
        "set",
        "classification",
        "task",
        3,
    )
    assert (of_classes.samples, of_classes.classes) == (3, 2)
    assert column_info(EvalSet("set", "retrieval", table, None, "known")).classes is None
    labels = task_info(Task(3, "t", table, held, classes))
    captions = task_info(Task(4, "u", table))
    assert (labels.index, labels.name, labels.samples, labels.validation_samples, labels.classes) == (
        3,
        "t",
        3,
        1,
        2,
    )
    assert (captions.index, captions.samples, captions.validation_samples, captions.classes) == (
        4,
        3,
        0,
        None,
    )


def test_answers_are_added_row_by_row_and_a_row_measured_again_replaces_its_own() -> None:
    examples = [
        Example(column=c, id=f"{c}{i}", picture="p.png", truth="t", answers=[])
        for c, i in (("a", 3), ("a", 7), ("b", 0))
    ]
    positions = {"a": [3, 7], "b": [0]}

    def said(name: str, correct: bool) -> Best:
        return Best([(name, 0.5)], correct, 1 if correct else 9)

    first = add_answers(examples, 1, {"a": {3: said("x", True), 7: said("y", False)}}, positions)
    assert [[a.row for a in e.answers] for e in first] == [[1], [1], []]
    assert first[0].answers == [Answer(row=1, answers=[("x", 0.5)], correct=True, rank=1)]
    assert not first[1].answers[0].correct
    both = add_answers(first, 0, {"a": {3: said("z", False)}, "b": {0: said("w", True)}}, positions)
    assert [[a.row for a in e.answers] for e in both] == [[0, 1], [1], [0]]
    again = add_answers(both, 1, {"a": {3: said("v", False)}}, positions)
    assert [(a.row, a.answers[0][0]) for a in again[0].answers] == [(0, "z"), (1, "v")]
    assert again[1:] == both[1:]
    assert all(e.answers == [] for e in examples)


def test_a_column_shows_the_headlines_metric_where_its_kind_has_it() -> None:
    classified, asked = column("a", "task"), column("b", "task", kind="retrieval")
    for metric, of_classes, of_pairs in (
        ("auto", "accuracy", "mean_r1"),
        ("accuracy", "accuracy", "mean_r1"),
        ("top5", "top5", "mean_r1"),
        ("mean_class_accuracy", "mean_class_accuracy", "mean_r1"),
        ("mean_r5", "accuracy", "mean_r5"),
        ("text_to_image_map", "accuracy", "text_to_image_map"),
    ):
        assert metric_of(classified, {"metric": metric}) == of_classes
        assert metric_of(asked, {"metric": metric}) == of_pairs
