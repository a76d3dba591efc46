"""The rule between two presets, on trials that were made up: wins, ties, short trials, and what was not measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from everclip.evaluation.statistics import Difference
from everclip.prepare.suggest.trials import Gap, Side, Trial
from everclip.prepare.suggest.verdict import UNSEEN, decide


def side(change: float, error: float = 0.02, before: float = 0.3) -> Side:
    resolved = abs(change) > error
    return Side(before, before + change, change, change - error, change + error, resolved, 200)


def difference(mean: float, error: float = 0.02) -> Difference:
    return Difference(mean, mean - error, mean + error, abs(mean) > error)


def closed(together: float, new: float = 0.1) -> Trial:
    return Trial("rail", side(together), side(new), side(0.0), None, 4.0)


def trained(together: float, new: float = 0.1, old: float = 0.0, steps: int = 200) -> Trial:
    return Trial("safe", side(together), side(new), side(old), None, 60.0, steps, 200, 1e-3)


def gap(mean: float, retention: Difference | None = None) -> Gap:
    return Gap(difference(mean), difference(mean), difference(mean), retention)


def test_a_resolved_difference_decides_either_way() -> None:
    won = decide(closed(0.03), trained(0.12, 0.2, 0.08), gap(0.09))
    assert won.method == "safe"
    assert "old and new together 30.0 -> 42.0 % (new 30.0 -> 50.0 %, old 30.0 -> 38.0 %)" in won.reason
    assert "safe against rail +9.0 points, +7.0 to +11.0" in won.reason
    lost = decide(closed(0.10), trained(-0.05, 0.2, -0.2), gap(-0.15))
    assert lost.method == "rail"
    assert "safe against rail -15.0 points" in lost.reason


def test_of_equals_the_cheaper_is_proposed() -> None:
    found = decide(closed(0.10), trained(0.09), gap(-0.01))
    assert found.method == "rail"
    assert "rail is not worse and costs less (4 s against 60 s)" in found.reason
    assert decide(closed(0.10), trained(0.10), gap(0.0)).method == "rail"


def test_what_looks_better_and_is_not_resolved_decides_nothing() -> None:
    found = decide(closed(0.10), trained(0.115), gap(0.015))
    assert found.method is None
    assert "safe looks better, but this may be chance" in found.reason


@pytest.mark.parametrize("ahead", [-0.15, -0.01, 0.0])
@pytest.mark.parametrize("weak", [{"steps": 99}, {"rate_known": False}], ids=str)
def test_a_weak_trial_never_loses(ahead: float, weak: dict[str, int]) -> None:
    found = decide(closed(0.15), replace(trained(0.15 + ahead), **weak), gap(ahead))
    assert found.method is None
    # 60 s for 99 steps: 100 take 61 s.
    assert ("only 99 of its 200 steps (half of them need --trial-seconds=70)" in found.reason) == (
        "steps" in weak
    )
    assert ("learning rate of safe was not measured" in found.reason) == ("rate_known" in weak)
    assert "may gain more" in found.reason


def test_a_short_trial_may_win() -> None:
    assert decide(closed(0.03), trained(0.12, steps=99), gap(0.09)).method == "safe"
    assert not trained(0.1, steps=100).short  # half of the steps are enough to lose, too
    assert decide(closed(0.15), trained(0.0, steps=100), gap(-0.15)).method == "rail"


@pytest.mark.parametrize("both", [0.0, 0.01, -0.1])
def test_what_gains_nothing_is_not_proposed(both: float) -> None:
    found = decide(closed(both), trained(both), gap(0.0))
    assert found.method is None
    assert "its gain is not resolved" in found.reason
    # Better than the other, and no better than before.
    assert decide(closed(-0.2), trained(0.01), gap(0.21)).method is None


def test_one_trial_alone_decides_nothing() -> None:
    found = decide(closed(0.2), why="safe diverged")
    assert found.method is None
    assert found.reason.endswith("safe diverged")
    assert decide(closed(0.2)).method is None


def test_without_old_classes_new_ones_decide_and_the_reason_says_what_was_not_seen() -> None:
    first, second = (
        replace(trial, old=None, new=trial.together) for trial in (closed(0.05), trained(0.20, 0.20))
    )
    ahead = Gap(difference(0.15), difference(0.15), None, None)
    found = decide(first, second, ahead)
    assert found.method == "safe"
    assert f"{UNSEEN}, and rail changes no weight of the model" in found.reason
    assert "old" not in found.reason
    tied = decide(
        replace(first, together=side(0.2)), second, Gap(difference(0.0), difference(0.0), None, None)
    )
    assert tied.method == "rail"
    assert UNSEEN not in tied.reason


def test_a_loss_on_the_retention_suite_keeps_a_gain_from_deciding() -> None:
    first, second = (
        replace(trial, retention=side(change))
        for trial, change in ((closed(0.05), 0.0), (trained(0.2), -0.2))
    )
    found = decide(first, second, gap(0.15, difference(-0.2)))
    assert found.method is None
    assert "retention 30.0 -> 10.0 %" in found.reason
    assert "loses more on the retention suite" in found.reason
    assert decide(first, second, gap(0.15, difference(0.01))).method == "safe"
    assert decide(closed(0.2), trained(0.0), gap(-0.2, difference(0.2))).method is None
