"""Old and new together: every picture counts once, and where answers grow only what was learned is asked."""

from __future__ import annotations

from typing import Any

import pytest

from everclip.evaluation.assemble import build_together as build
from everclip.evaluation.cells import Cells, metric_value
from everclip.evaluation.measurements import OLD_AND_NEW, Measurements
from everclip.evaluation.old_and_new import OldAndNew, old_and_new
from everclip.evaluation.results import Column, Matrix, Row, Score
from everclip.metrics import get


def build_together(rows: Any, columns: Any, protocols: Any, headline: Any) -> Matrix | None:
    return build(Measurements(rows, columns, headline, protocols))


def together_metrics(rows: Any, columns: Any, protocols: Any, headline: Any) -> dict[str, float | None]:
    return Measurements(rows, columns, headline, protocols).values(*OLD_AND_NEW)


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


def test_a_set_of_everything_is_asked_where_all_is_learned_and_stands_for_the_rest() -> None:
    columns = (*COLUMNS, column("all of it", "everything"))
    values = (0.4, 0.5, 0.65)
    rows = []
    for one, value in zip(ROWS, values, strict=True):
        score = {"wide": {"accuracy": Score(value=value, n=60)}}
        rows.append(one.model_copy(update={"scores": {**one.scores, "all of it": score}}))
    seen = build_together(rows, columns, [{"name": "wide", "space": "seen"}], HEADLINE)
    assert seen is not None
    assert [values[2] for values in seen.values] == [None, None, 0.65]
    whole = build_together(rows, columns, [{"name": "wide", "space": "all"}], HEADLINE)
    assert whole is not None
    assert [values[2] for values in whole.values] == [0.4, 0.5, 0.65]
    found = old_and_new(columns, [{"name": "wide", "space": "seen"}], HEADLINE)
    assert isinstance(found, OldAndNew)
    assert [c.name for c in found.columns("everything")] == ["all of it"]
    assert found.columns("everything", [0]) == found.columns("everything", []) == ()
    assert [c.name for c in found.columns("everything", [0, 1])] == ["all of it"]
    assert [[c.name for c in found.columns("new", done)] for done in ([], [1], [0, 1])] == [
        [],
        ["b"],
        ["a", "b"],
    ]
    assert [c.name for c in found.columns("old", [])] == ["old"]


@pytest.mark.parametrize("space", ["all", "seen"])
def test_before_and_last_are_told_of_each_part_and_their_change_where_answers_stay(space: str) -> None:
    found = together_metrics(ROWS, COLUMNS, [{"name": "wide", "space": space}], HEADLINE)
    new = ((10 * 0.1 + 30 * 0.2) / 40, (10 * 0.5 + 30 * 0.9) / 40)
    whole = [(20 * old + 40 * value) / 60 for old, value in zip((0.9, 0.7), new, strict=True)]
    wanted: dict[str, float | None] = {}
    for name, (first, last) in {
        "everything_old": (0.9, 0.7),
        "everything_new": new,
        "everything": whole,
    }.items():
        stays = space == "all"
        wanted[f"{name}_before"] = pytest.approx(first) if stays else None
        wanted[f"{name}_last"] = pytest.approx(last)
        wanted[f"{name}_change"] = pytest.approx(last - first) if stays else None
    assert found == wanted
    nothing = together_metrics(ROWS, COLUMNS, [{"name": "own", "space": "own"}], HEADLINE)
    assert nothing == dict.fromkeys(wanted)
    assert together_metrics([], COLUMNS, [{"name": "wide", "space": space}], HEADLINE) == dict.fromkeys(
        wanted
    )


def test_which_protocol_has_the_answers_of_all() -> None:
    def chosen(*protocols: tuple[str, str, bool], shown: str = "own") -> str | None:
        given = [{"name": name, "space": space, "known_task": told} for name, space, told in protocols]
        found = old_and_new(COLUMNS, given, {"protocol": shown, "metric": "accuracy"})
        return found.protocol if isinstance(found, OldAndNew) else None

    assert chosen(("s", "seen", False), ("a", "all", False), ("b", "all", False)) == "a"
    assert chosen(("s", "seen", False), ("a", "all", False), ("b", "all", False), shown="b") == "b"
    assert chosen(("s", "seen", False), ("a", "all", True)) == "s"
    assert chosen(("o", "own", False)) is None


def test_why_sets_are_not_scored_together_is_said() -> None:
    wide = [{"name": "wide", "space": "all"}]
    pictures = Column(name="pairs", kind="retrieval", group="known", task=None, samples=10)
    for columns, protocols, reason in (
        (COLUMNS[:1], wide, "no set that belongs to a task"),
        ((pictures, *COLUMNS), wide, "some sets are measured by retrieval"),
        (COLUMNS[1:2], wide, "only one set"),
        (COLUMNS, [{"name": "own", "space": "own"}], "no protocol has the names of all sets"),
    ):
        found = old_and_new(columns, protocols, HEADLINE)
        assert isinstance(found, str)
        assert reason in found
    mean = {"protocol": "own", "metric": "mean_class_accuracy"}
    assert isinstance(old_and_new(COLUMNS, wide, mean), str)
    assert "mean_class_accuracy of several sets is not the" in str(old_and_new(COLUMNS, wide, mean))
    assert isinstance(old_and_new((*COLUMNS, column("x", "everything")), wide, mean), OldAndNew)
    asked = [c.model_copy(update={"kind": "retrieval"}) for c in COLUMNS]
    for kind, metric, of_items in (
        (COLUMNS, "top5", True),
        (asked, "mean_r1", True),
        (asked, "text_to_image_r10", True),
        (asked, "text_to_image_map", False),
    ):
        found = old_and_new(kind, wide, {"protocol": "own", "metric": metric})
        assert isinstance(found, OldAndNew) == of_items
        assert not isinstance(found, OldAndNew) or found.metric == metric


def test_a_score_over_sets_counts_every_item_once_and_needs_all_of_them() -> None:
    def pooled(*given: tuple[float | None, int]) -> float | None:
        cells = Cells.of([v for v, _ in given], [], [[n for _, n in given]], [[True for _ in given]])
        return metric_value(get("everything_last", "stream"), cells)

    assert pooled((0.5, 2), (1.0, 6)) == pytest.approx(7 / 8)
    assert pooled((0.5, 2)) == 0.5
    for missing in ((), ((None, 0),), ((0.5, 2), (None, 0)), ((0.5, 2), (None, 3)), ((0.5, 0),)):
        assert pooled(*missing) is None
