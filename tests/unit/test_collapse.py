"""When a fall to chance is called one."""

import pytest

from everclip.evaluation.results import Row, Score
from everclip.evaluation.statistics import wilson
from everclip.running.collapse import _cause, _fall


def row(right: int, of: int) -> Row:
    """Return a row of a set `known` with so many right answers."""
    interval = wilson(right, of)
    score = Score(value=right / of, low=interval.low, high=interval.high, n=of)
    scores = {"known": {"all": {"accuracy": score}}}
    return Row(index=0, task=None, label="", step=0, samples=0, scores=scores)


@pytest.mark.parametrize(
    ("before", "now", "called"),
    [
        (40, 8, True),  # clearly above chance, now at it
        (12, 0, True),  # perhaps chance before, yet clearly better than now
        (12, 9, False),  # neither is known to differ from chance
        (12, 14, False),
        (40, 30, False),  # forgetting
    ],
)
def test_a_set_collapsed_where_it_lies_at_chance_and_was_clearly_better(
    before: int, now: int, called: bool
) -> None:
    assert (_fall([row(before, 66), row(now, 66)], "known", "all", 1 / 8) is not None) == called


def test_a_method_that_trains_nothing_is_not_told_to_lower_a_rate_that_it_does_not_use() -> None:
    assert "training.lr (it was 0.001" in _cause(trained=10, rate=1e-3)
    assert "training.lr" not in _cause(trained=0, rate=1e-3)
    assert "no weights were trained" in _cause(trained=0, rate=1e-3)
