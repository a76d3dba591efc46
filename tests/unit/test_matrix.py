"""Missing cells, odd shapes and bad input of the score matrix; the values are held by the golden tests."""

import math

import pytest

from everclip.evaluation import matrix

SQUARE = [[80.0, 38, 52], [70, 82, 49], [75, 76, 90]]
BEFORE = [30.0, 40, 50]
NEEDS_BEFORE = {"forward_transfer", "zero_shot_degradation", "zero_shot_drop_mean"}
SUITE = {"suite_degradation", "suite_relative", "worst_set_drop"}


def with_hole(row: int, column: int) -> list[list[float | None]]:
    scores: list[list[float | None]] = [list(values) for values in SQUARE]
    scores[row][column] = None
    return scores


def defined(values: dict[str, float | None]) -> set[str]:
    return {name for name, value in values.items() if value is not None}


def test_everything_is_defined_on_a_full_matrix() -> None:
    values = matrix.summary(SQUARE, BEFORE, [60.0, 70.0], [50.0, 71.0])
    assert defined(values) == set(values)
    assert values["suite_degradation"] == pytest.approx(4.5)
    assert values["suite_relative"] == pytest.approx(60.5 / 65)
    assert values["worst_set_drop"] == 10


def test_names_are_stable_and_undefined_is_none() -> None:
    full = matrix.summary(SQUARE, BEFORE, [1.0], [1.0])
    assert matrix.summary([], None).keys() == full.keys()
    assert defined(matrix.summary([], None)) == set()
    assert defined(full) - defined(matrix.summary(SQUARE, None)) == NEEDS_BEFORE | SUITE


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
                "backward_transfer",
            }
            | {"forward_transfer", "learning_accuracy", "tic_in_domain", "tic_backward"}
            | {"zero_shot_drop_mean", "backward_transfer_libcontinual"},
        ),
        # The last diagonal cell: what compares earlier tasks does not name it.
        (
            (2, 2),
            {"transfer", "forgetting", "forgetting_since_learned", "backward_transfer", "forward_transfer"}
            | {"zero_shot_degradation", "zero_shot_drop_mean", "tic_backward", "tic_forward"}
            | {"backward_transfer_libcontinual"},
        ),
        # A cell that zero-shot forgetting reads and forgetting since learned does not.
        (
            (0, 1),
            {"last", "aa", "average_seen", "seen_average", "forgetting_since_learned", "backward_transfer"}
            | {"learning_accuracy", "tic_in_domain", "tic_backward", "backward_transfer_libcontinual"},
        ),
    ],
)
def test_a_missing_cell_undefines_exactly_what_names_it(cell: tuple[int, int], survivors: set[str]) -> None:
    full = matrix.summary(SQUARE, BEFORE)
    holed = matrix.summary(with_hole(*cell), BEFORE)
    assert defined(holed) == survivors
    assert all(holed[name] == full[name] for name in survivors)


def test_a_missing_cell_before_training() -> None:
    # Column 0 has no zero-shot term, column 2 has.
    assert matrix.forward_transfer(SQUARE, [None, 40, 50]) == matrix.forward_transfer(SQUARE, BEFORE)
    assert matrix.forward_transfer(SQUARE, [30, 40, None]) is None
    assert matrix.zero_shot_degradation(SQUARE, [30, 40, None]) is None


@pytest.mark.parametrize(
    "scores", [SQUARE[:1], SQUARE[:2], [*SQUARE, SQUARE[0]]], ids=["joint", "early", "tall"]
)
def test_rectangular_matrices_have_last_only(scores: list[list[float]]) -> None:
    values = matrix.summary(scores, BEFORE)
    assert defined(values) == {"last"}
    assert values["last"] == pytest.approx(sum(scores[-1]) / 3)


def test_explicit_rows_need_no_square() -> None:
    assert matrix.aa(SQUARE[:2], row=1) == 76
    assert matrix.forgetting(SQUARE[:2], row=1) == 10
    assert matrix.forgetting(SQUARE, row=0) is None
    with pytest.raises(ValueError, match="row 2 of a matrix with 2 rows"):
        matrix.aa(SQUARE[:2], row=2)


def test_seen_average_weighs_tasks_and_average_seen_rows() -> None:
    scores = [[10.0, 0.0], [30.0, 50.0]]
    assert matrix.seen_average(scores) == ((10 + 30) / 2 + 50) / 2
    assert matrix.average_seen(scores) == (10 + (30 + 50) / 2) / 2


def test_one_task() -> None:
    values = matrix.summary([[70.0]], [60.0])
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
    assert matrix.backward_transfer_libcontinual([[1.0, 2.0], [3.0, 4.0]]) is None


def test_an_exact_zero_is_a_score() -> None:
    scores = [[50.0, 0.0, 20.0], [50, 50, 40], [50, 50, 50]]
    assert matrix.transfer(scores) == 15  # the reference drops the zero and says 30
    assert matrix.last([[0.0]]) == 0
    assert matrix.forward_transfer(scores, [0, 0, 0]) == 20


def test_forgetting_differs_from_forgetting_since_learned_if_zero_shot_was_better() -> None:
    scores = [[50.0, 60.0, 0.0], [50, 55, 0], [50, 50, 70]]
    assert matrix.forgetting(scores) == 5
    assert matrix.forgetting_since_learned(scores) == 2.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_scores_are_named(bad: float) -> None:
    scores = [[1.0, 2.0], [3.0, bad]]
    with pytest.raises(ValueError, match="row 1, column 1"):
        matrix.summary(scores, None)
    with pytest.raises(ValueError, match="row 1, column 1"):
        matrix.backward_transfer(scores)  # does not use the cell, and yet must not accept it
    with pytest.raises(ValueError, match="before training, column 0"):
        matrix.forward_transfer([[1.0]], [bad])
    with pytest.raises(ValueError, match="row 1, column 0"):
        matrix.suite_degradation([1.0], [bad])
    with pytest.raises(ValueError, match="row 0, column 0"):
        matrix.suite_relative([bad], None)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="row 1 has 1 columns"):
        matrix.last([[1.0, 2.0], [3.0]])
    with pytest.raises(ValueError, match="before has 1 columns"):
        matrix.forward_transfer(SQUARE, [1.0])
    with pytest.raises(ValueError, match="columns"):
        matrix.worst_set_drop([1.0], [1.0, 2.0])


def test_suite_edges() -> None:
    assert matrix.suite_relative([0.0], [1.0]) is None
    assert matrix.suite_degradation([50.0, None], [50.0, 50.0]) is None
    assert matrix.worst_set_drop([50.0, None], [50.0, 50.0]) is None
    assert matrix.worst_set_drop([50.0, 40.0], [60.0, 41.0]) == -1
    assert matrix.suite_degradation([], []) is None
    assert matrix.worst_set_drop(None, [1.0]) is None


def test_anytime_area() -> None:
    assert matrix.anytime_area([0, 10, 40], [0.0, 1.0, 1.0]) == pytest.approx((5 + 30) / 40)
    assert matrix.anytime_area([5, 7, 20], [0.3, 0.3, 0.3]) == pytest.approx(0.3)
    assert matrix.anytime_area([5], [0.3]) is None
    assert matrix.anytime_area([0, 1], [None, 0.3]) is None
    assert matrix.anytime_area([3, 5], [0.2, 0.6]) == pytest.approx(0.4)
    assert matrix.anytime_area([3, 5, 6], [0.2, 0.6, None]) is None
    assert matrix.anytime_area([1, 2, 4, 8], [0.1, 0.3, 0.2, 0.6]) == pytest.approx((0.2 + 0.5 + 1.6) / 7)
    for falling in ([0, 0], [2, 1], [0, 3, 3], [0, 3, 2]):
        with pytest.raises(ValueError, match="increase"):
            matrix.anytime_area(falling, [0.1, 0.2, 0.3][: len(falling)])
    with pytest.raises(ValueError):
        matrix.anytime_area([0, 1, 2], [0.1, 0.2])


def test_class_forgetting_skips_classes_never_right_before() -> None:
    assert matrix.class_forgetting([[0.5, 0.0, None], [0.2, 0.9, 0.4]]) == pytest.approx(0.3)
    assert matrix.class_forgetting([[0.2, 0.0], [0.5, 0.0], [0.3, 0.1]]) == pytest.approx(0.2)
    assert matrix.class_forgetting([[0.5], [0.2], [0.4]]) == pytest.approx(0.1)
    assert matrix.class_forgetting([[0.5, 0.4], [0.6, None], [0.1, 0.9]]) == pytest.approx((0.5 - 0.5) / 2)
    assert matrix.class_forgetting([[None, 0.01], [0.9, 0.0]]) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="row 1 has 1 columns, row 0 has 2"):
        matrix.class_forgetting([[0.1, 0.2], [0.1]])
    assert matrix.class_forgetting([[0.5, 0.0]]) is None
    assert matrix.class_forgetting([]) is None
    assert matrix.class_forgetting([[0.5], [None]]) is None
