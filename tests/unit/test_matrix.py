"""Missing cells, odd shapes and bad input of the score matrix; the values are held by the golden tests."""

import math

import numpy as np
import pytest

from everclip.evaluation.cells import Cells, compute, mean, metric_value
from everclip.metrics import get, metrics
from matrices import of, summary

SQUARE = [[80.0, 38, 52], [70, 82, 49], [75, 76, 90]]
BEFORE = [30.0, 40, 50]
NEEDS_BEFORE = {"forward_transfer", "zero_shot_degradation", "zero_shot_drop_mean"}
SUITE = {"suite_degradation", "suite_relative", "worst_retention_drop"}


def with_hole(row: int, column: int) -> list[list[float | None]]:
    scores: list[list[float | None]] = [list(values) for values in SQUARE]
    scores[row][column] = None
    return scores


def defined(values: dict[str, float | None]) -> set[str]:
    return {name for name, value in values.items() if value is not None}


def test_everything_is_defined_on_a_full_matrix() -> None:
    values = summary(SQUARE, BEFORE, [60.0, 70.0], [50.0, 71.0])
    assert defined(values) == set(values)
    assert values["suite_degradation"] == pytest.approx(4.5)
    assert values["suite_relative"] == pytest.approx(60.5 / 65)
    assert values["worst_retention_drop"] == 10


def test_names_are_stable_and_undefined_is_none() -> None:
    full = summary(SQUARE, BEFORE, [1.0], [1.0])
    assert summary([], None).keys() == full.keys()
    assert defined(summary([], None)) == set()
    assert defined(full) - defined(summary(SQUARE, None)) == NEEDS_BEFORE | SUITE


@pytest.mark.parametrize(
    ("cell", "survivors"),
    [
        # After the first task, a cell above the diagonal: only the learned part of the matrix is left.
        (
            (0, 2),
            {
                "last",
                "aa",
                "average_seen",
                "seen_average",
                "forgetting",
                "forgetting_since_learned",
                "forgetting_first",
                "backward_transfer",
            }
            | {"forward_transfer", "learning_accuracy", "tic_in_domain", "tic_backward"}
            | {"zero_shot_drop_mean", "backward_transfer_libcontinual"},
        ),
        # The last diagonal cell: what compares earlier tasks does not name it.
        (
            (2, 2),
            {"transfer", "forgetting", "forgetting_since_learned", "backward_transfer", "forward_transfer"}
            | {"forgetting_first"}
            | {"zero_shot_degradation", "zero_shot_drop_mean", "tic_backward", "tic_forward"}
            | {"backward_transfer_libcontinual"},
        ),
        # A cell that zero-shot forgetting reads and forgetting since learned does not.
        (
            (0, 1),
            {"last", "aa", "average_seen", "seen_average", "forgetting_since_learned", "backward_transfer"}
            | {"learning_accuracy", "tic_in_domain", "tic_backward", "backward_transfer_libcontinual"}
            | {"forgetting_first"},
        ),
    ],
)
def test_a_missing_cell_undefines_exactly_what_names_it(cell: tuple[int, int], survivors: set[str]) -> None:
    full = summary(SQUARE, BEFORE)
    holed = summary(with_hole(*cell), BEFORE)
    assert defined(holed) == survivors
    assert all(holed[name] == full[name] for name in survivors)


def test_a_missing_cell_before_training() -> None:
    # Column 0 has no zero-shot term, column 2 has.
    assert of("forward_transfer", SQUARE, [None, 40, 50]) == of("forward_transfer", SQUARE, BEFORE)
    assert of("forward_transfer", SQUARE, [30, 40, None]) is None
    assert of("zero_shot_degradation", SQUARE, [30, 40, None]) is None


@pytest.mark.parametrize(
    "scores", [SQUARE[:1], SQUARE[:2], [*SQUARE, SQUARE[0]]], ids=["joint", "early", "tall"]
)
def test_rectangular_matrices_have_last_only(scores: list[list[float]]) -> None:
    values = summary(scores, BEFORE)
    assert defined(values) == {"last"}
    assert values["last"] == pytest.approx(sum(scores[-1]) / 3)


def test_seen_average_weighs_tasks_and_average_seen_rows() -> None:
    scores = [[10.0, 0.0], [30.0, 50.0]]
    assert of("seen_average", scores) == ((10 + 30) / 2 + 50) / 2
    assert of("average_seen", scores) == (10 + (30 + 50) / 2) / 2


def test_one_task() -> None:
    values = summary([[70.0]], [60.0])
    assert {name: value for name, value in values.items() if value is not None} == {
        "last": 70,
        "average": 70,
        "average_seen": 70,
        "seen_average": 70,
        "aa": 70,
        "learning_accuracy": 70,
        "tic_in_domain": 70,
    }


def test_two_tasks_have_no_libcontinual_pair() -> None:
    assert of("backward_transfer_libcontinual", [[1.0, 2.0], [3.0, 4.0]]) is None


def test_an_exact_zero_is_a_score() -> None:
    scores = [[50.0, 0.0, 20.0], [50, 50, 40], [50, 50, 50]]
    assert of("transfer", scores) == 15  # the reference drops the zero and says 30
    assert of("last", [[0.0]]) == 0
    assert of("forward_transfer", scores, [0, 0, 0]) == 20


def test_forgetting_differs_from_forgetting_since_learned_if_zero_shot_was_better() -> None:
    scores = [[50.0, 60.0, 0.0], [50, 55, 0], [50, 50, 70]]
    assert of("forgetting", scores) == 5
    assert of("forgetting_since_learned", scores) == 2.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_scores_are_named(bad: float) -> None:
    with pytest.raises(ValueError, match="row 2, column 1"):
        Cells.of([0.0, 0.0], [[1.0, 2.0], [3.0, bad]])
    with pytest.raises(ValueError, match="row 0, column 0"):
        Cells.of([bad], [[1.0]])


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="row 2 has 1 columns, the first has 2"):
        Cells.of(None, [[1.0, 2.0], [3.0]])
    with pytest.raises(ValueError, match="row 1 has 3 columns, the first has 1"):
        Cells.of([1.0], SQUARE)


def test_draws_give_what_each_gives_alone() -> None:
    generator = np.random.default_rng(0)
    drawn = generator.random((5, 4, 3))
    held = Cells.of(drawn[0, 0].tolist(), drawn[0, 1:].tolist())
    for name, entry in metrics("stream").items():
        together = compute(entry, held.with_scores(drawn))
        alone = [compute(entry, held.with_scores(one)) for one in drawn]
        assert together.shape == (5,), name
        assert together == pytest.approx(np.array(alone), abs=1e-12, nan_ok=True), name


def test_the_order_of_tasks_cannot_change_a_mean() -> None:
    values = np.array([0.1, 0.2, 0.3, 1e-17, 0.7])
    assert mean(values) == mean(values[::-1]) == mean(values[[2, 0, 4, 3, 1]])
    assert math.isnan(mean(np.zeros(0)))
    assert mean(np.arange(6.0).reshape(2, 3), axes=2) == 2.5


def suite(name: str, before: list[float | None], after: list[float | None]) -> float | None:
    return metric_value(get(name, "stream"), Cells.of(before, [after]))


def test_suite_edges() -> None:
    assert suite("suite_relative", [0.0], [1.0]) is None
    assert suite("suite_degradation", [50.0, None], [50.0, 50.0]) is None
    assert suite("worst_retention_drop", [50.0, None], [50.0, 50.0]) is None
    assert suite("worst_retention_drop", [50.0, 40.0], [60.0, 41.0]) == -1
    assert suite("suite_degradation", [], []) is None
    assert suite("worst_retention_drop", [], []) is None
