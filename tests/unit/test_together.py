"""Old and new together: every picture counts once, and where answers grow only what was learned is asked."""

from __future__ import annotations

from typing import Any

import pytest

from everclip.evaluation.results import Column, Row, Score
from everclip.evaluation.together import build_together

HEADLINE = {"protocol": "own", "metric": "accuracy"}


def column(name: str, group: Any, task: int | None = None) -> Column:
    return Column(name=name, kind="classification", group=group, task=task, samples=10)


COLUMNS = (column("old", "known"), column("a", "task", 0), column("b", "task", 1))
COUNTS = {"old": 20, "a": 10, "b": 30}


def row(index: int, task: int | None, **values: float) -> Row:
    scores = {name: {"wide": {"accuracy": Score(value=v, n=COUNTS[name])}} for name, v in values.items()}
    return Row(index=index, task=task, label=f"row {index}", step=0, samples=0, scores=scores)


ROWS = (
    row(0, None, old=0.9, a=0.1, b=0.2),
    row(1, 0, old=0.8, a=0.6, b=0.2),
    row(2, 1, old=0.7, a=0.5, b=0.9),
)


def test_where_all_answers_are_on_offer_every_row_asks_about_everything() -> None:
    found = build_together(ROWS, COLUMNS, [{"name": "wide", "space": "all"}], HEADLINE)
    assert found is not None
    assert (found.protocol, found.metric, found.columns) == ("wide", "accuracy", ["old", "new", "everything"])
    new = [(10 * a + 30 * b) / 40 for a, b in ((0.1, 0.2), (0.6, 0.2), (0.5, 0.9))]
    whole = [(20 * o + 40 * n) / 60 for o, n in zip((0.9, 0.8, 0.7), new, strict=True)]
    assert found.values == [pytest.approx(list(v)) for v in zip((0.9, 0.8, 0.7), new, whole, strict=True)]


def test_where_answers_grow_a_row_asks_about_what_was_learned_so_far() -> None:
    found = build_together(ROWS, COLUMNS, [{"name": "wide", "space": "seen"}], HEADLINE)
    assert found is not None
    assert found.values[0] == [0.9, None, pytest.approx(0.9)]
    assert found.values[1] == pytest.approx([0.8, 0.6, (20 * 0.8 + 10 * 0.6) / 30])
    new = (10 * 0.5 + 30 * 0.9) / 40
    assert found.values[2] == pytest.approx([0.7, new, (20 * 0.7 + 40 * new) / 60])


def test_a_method_that_learns_everything_at_once_has_learned_it_at_its_row() -> None:
    rows = (ROWS[0], row(1, None, old=0.7, a=0.5, b=0.9))
    found = build_together(rows, COLUMNS, [{"name": "wide", "space": "seen"}], HEADLINE)
    assert found is not None
    assert found.values[1][1] == pytest.approx((10 * 0.5 + 30 * 0.9) / 40)
    assert build_together(rows, COLUMNS, [{"name": "own", "space": "own"}], HEADLINE) is None
    assert build_together(rows, COLUMNS[:1], [{"name": "wide", "space": "all"}], HEADLINE) is None
