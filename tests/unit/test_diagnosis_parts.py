"""The parts of a diagnosis against brute force, scipy and by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from everclip.diagnosis import neighbours, set_changes, verdict
from everclip.diagnosis.records import SetDiagnosis
from everclip.diagnosis.seen import chosen_rows
from everclip.errors import ConfigError
from everclip.report.paired import Answered, PairedMeasure


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


# -- neighbours and hubs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 512])
def test_the_nearest_are_those_of_a_full_sort_with_ties_by_position(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    gallery = rows(40, 6).repeat(2, 1)  # every item twice, so that each place is a tie
    queries = torch.cat([rows(25, 6, 1), -gallery[:3]])
    units = [torch.nn.functional.normalize(x.double()) for x in (queries, gallery)]
    cosines = (units[0] @ units[1].T).numpy().astype(np.float32)
    expected = np.lexsort((np.broadcast_to(np.arange(80), cosines.shape), -cosines), axis=1)[:, :9]
    assert neighbours.nearest(queries, gallery, 9).tolist() == expected.tolist()


def test_fewer_items_than_asked_for_are_all_returned() -> None:
    assert sorted(neighbours.nearest(rows(2, 3), rows(4, 3, 1), 10)[0].tolist()) == [0, 1, 2, 3]


def test_hubness_is_the_skewness_of_the_counts() -> None:
    found = neighbours.nearest(rows(60, 5), rows(30, 5, 1), 4)
    counts = np.bincount(found.numpy().ravel(), minlength=30)
    of = neighbours.hubness(found, 30)
    assert of is not None
    assert of.skewness == pytest.approx(stats.skew(counts), abs=1e-12)
    assert of.never == pytest.approx((counts == 0).mean())
    assert of.largest == pytest.approx(counts.max() / 60)


def test_hubness_of_one_hub_and_of_even_results() -> None:
    hub = neighbours.hubness(torch.zeros(8, 1, dtype=torch.int64), 8)
    even = neighbours.hubness(torch.arange(8)[:, None], 8)
    assert hub is not None
    assert even is not None
    assert (hub.never, hub.largest, even.skewness, even.never) == (7 / 8, 1, 0, 0)
    assert hub.skewness == pytest.approx(stats.skew([8, *[0] * 7]))
    assert (
        neighbours.hubness(torch.zeros(8, 3, dtype=torch.int64), 3) is None
    )  # every item, whatever the model


def test_results_kept_counts_common_results_in_any_order() -> None:
    before, after = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[3, 1, 9], [7, 8, 9]])
    assert neighbours.results_kept(before, after).tolist() == pytest.approx([2 / 3, 0])


def test_the_chosen_rows_do_not_depend_on_the_order_of_the_data() -> None:
    ids = [f"image {i}" for i in range(50)]
    assert chosen_rows(ids, 50).tolist() == list(range(50))
    chosen = chosen_rows(ids, 12)
    assert len(set(chosen.tolist())) == 12
    assert chosen.tolist() == sorted(chosen.tolist())


# -- classes and groups ---------------------------------------------------------------------------------------


def test_mcnemar_is_that_of_scipy() -> None:
    for lost in range(9):
        for gained in range(9):
            expected = 1.0 if lost + gained == 0 else stats.binomtest(lost, lost + gained, 0.5).pvalue
            assert set_changes.mcnemar(lost, gained) == pytest.approx(expected, abs=1e-12)
    assert 0 < set_changes.mcnemar(3000, 2000) < 1e-40


@pytest.mark.parametrize("level", [0.01, 0.05, 0.4])
def test_benjamini_hochberg_is_that_of_scipy(level: float) -> None:
    p = np.random.default_rng(3).beta(0.5, 2, size=40)
    expected = stats.false_discovery_control(p) <= level
    assert set_changes.benjamini_hochberg(p.tolist(), level) == expected.tolist()
    assert set_changes.benjamini_hochberg([None, 1e-9, None], level) == [False, True, False]


def test_parts_stand_in_order_of_their_loss_with_their_counts() -> None:
    keys = ["a"] * 10 + ["b"] * 4 + ["c"] * 2
    old = np.array([1.0] * 10 + [0, 0, 1, 1] + [0, 1])
    new = np.array([0.0] * 9 + [1] + [1, 1, 1, 1] + [1, 0])
    parts = set_changes.part_changes([k.upper() for k in keys], keys, old, new, 0.95)
    assert [(p.name, p.items, p.lost, p.gained, p.resolved) for p in parts] == [
        ("A", 10, 9, 0, True),
        ("C", 2, 1, 1, False),
        ("B", 4, 0, 2, False),
    ]
    assert [p.new - p.old for p in parts] == pytest.approx([-0.9, 0, 0.5])


def test_outcomes_that_are_no_hits_have_no_test() -> None:
    part = set_changes.part_changes(["a", "a"], ["a", "a"], np.array([0.5, 1]), np.array([0, 0.25]), 0.95)[0]
    assert (part.p, part.resolved, part.lost) == (None, False, 2)


# -- the verdict ----------------------------------------------------------------------------------------------


def judged(name: str, role: str, old: Any, new: Any) -> verdict.Judged:
    answered = Answered(name, "accuracy", False, np.asarray(old, float), np.asarray(new, float))
    record = SetDiagnosis(
        name=name, kind="classification", role=role, score=PairedMeasure(0.95).of_set(answered), flips=[]
    )
    return verdict.Judged(record, answered)


def hits(n: int, right: int) -> np.ndarray:
    return (np.arange(n) < right).astype(float)


def test_a_small_loss_on_many_items_is_safe() -> None:
    of = verdict.judge([judged("known", "kept", hits(4000, 2000), hits(4000, 1996))], 0.01, 0.95)
    assert of.state == "safe"
    assert of.sentence.startswith(
        "Safe: on what the old model knew (known, 4,000 items), the new one changes by −0.1 points"
    )
    assert "a loss above 1.0 points is excluded" in of.sentence


def test_a_large_loss_is_not_safe_and_the_sentence_says_how_large() -> None:
    of = verdict.judge([judged("known", "kept", hits(1000, 600), hits(1000, 500))], 0.01, 0.95)
    assert of.state == "unsafe"
    assert of.sentence.startswith("Not safe: ")
    assert "loses 10.0 points (8.2–11.9)" in of.sentence


def test_few_items_cannot_tell_and_say_how_many_would() -> None:
    few = [judged("known", "kept", hits(100, 60), hits(100, 58))]
    of = verdict.judge(few, 0.01, 0.95)
    assert of.state == "unclear"
    assert of.more_items is not None
    many = math.ceil(of.more_items * 1.3)
    more = [judged("known", "kept", np.repeat(hits(100, 60), many), np.repeat(hits(100, 58), many))]
    assert verdict.judge(more, 0.01, 0.95).state == "unsafe"
    close = [
        judged("known", "kept", hits(100, 60), hits(100, 59))
    ]  # exactly the tolerance: no number decides
    assert "would not decide" in verdict.judge(close, 0.01, 0.95).sentence


def test_one_harmed_set_is_not_safe_even_if_the_mean_is() -> None:
    good = judged("birds", "kept", hits(1000, 500), hits(1000, 600))
    bad = judged("cars", "kept", hits(1000, 600), hits(1000, 540))
    of = verdict.judge([good, bad], 0.01, 0.95)
    assert of.state == "unsafe"
    assert "on cars, the new model loses 6.0 points" in of.sentence
    assert of.worst == "cars"


@pytest.mark.slow
def test_many_sets_do_not_make_a_false_alarm_likely() -> None:
    draw = np.random.default_rng(0)
    alarms = 0
    for _ in range(40):
        sets = []
        for k in range(10):
            old = (draw.random(300) < 0.6).astype(float)
            new = np.where(draw.random(300) < 0.1, 1 - old, old)
            new = np.where((draw.random(300) < 0.02) & (old == new), 0, new)
            sets.append(judged(f"set {k}", "kept", old, new))
        truth = -0.02  # about the expected loss; the tolerance below is larger
        alarms += verdict.judge(sets, 0.05 - truth, 0.95).state == "unsafe"
    assert alarms <= 4


def test_no_known_data_and_equal_answers() -> None:
    new = judged("april", "new", hits(50, 10), hits(50, 30))
    unmeasured = verdict.judge([new], 0.01, 0.95)
    assert unmeasured.state == "unmeasured"
    assert "--data" in unmeasured.sentence
    assert "On new data (april, 50 items), it changes by +40.0 points" in unmeasured.sentence
    equal = [judged("known", "kept", hits(50, 10), hits(50, 10))]
    same = verdict.judge([replace(equal[0], same=True)], 0.01, 0.95)
    assert same.sentence == "Unchanged: both models are right on the same items."
    many = judged("known", "kept", hits(500, 10), hits(500, 10))
    assert verdict.judge([many], 0.01, 0.95).state == "unchanged"
    assert verdict.judge([many, new], 0.01, 0.95).state == "safe"


def test_few_items_of_which_none_changed_do_not_make_an_update_safe() -> None:
    of = verdict.judge([judged("known", "kept", hits(50, 10), hits(50, 10))], 0.01, 0.95)
    assert of.state == "unclear"
    assert (
        "not a single answer changed, but so few items do not tell whether the loss is above 1.0 points"
        in of.sentence
    )
    assert of.more_items is not None
    for times, state in ((0.9, "unclear"), (1.1, "unchanged")):
        many = math.ceil(50 * of.more_items * times)
        assert (
            verdict.judge([judged("known", "kept", hits(many, 9), hits(many, 9))], 0.01, 0.95).state == state
        )
    few = judged("known", "kept", hits(50, 10), hits(50, 10))
    numbers = verdict.numbers_of([few], 0.95)
    assert numbers["loss_high"] == verdict.largest_loss([few], 0.95)
    assert verdict.numbers_of([replace(few, same=True)], 0.95)["loss_high"] == 0
    assert (numbers["loss"], numbers["retention"]) == (0, 1)
    draw = np.random.default_rng(0)
    both = np.array([[1, 1]] * 10 + [[0, 0]] * 40 + [[1, 0], [0, 1]])[
        draw.integers(52, size=(4000, 52))
    ].mean(axis=1)
    assert numbers["retention_low"] == pytest.approx(np.quantile(both[:, 1] / both[:, 0], 0.025), abs=0.02)
    assert 0.6 < numbers["retention_low"] < 0.85


def test_two_lost_items_ask_for_as_many_as_decide() -> None:
    of = verdict.judge([judged("known", "kept", hits(2, 2), hits(2, 0))], 0.01, 0.95)
    assert of.sentence.endswith(
        "do not tell whether the loss is above 1.0 points; about 3.0 times as many items would decide."
    )
    assert verdict.judge([judged("known", "kept", hits(6, 6), hits(6, 0))], 0.01, 0.95).state == "unsafe"


def test_the_largest_loss_is_the_adjusted_wald_interval() -> None:
    old, new = hits(100, 60), hits(100, 55)
    new[99] = 1
    lost, gained, n, z = 5 + 1, 1 + 1, 100 + 2, stats.norm.ppf(0.975)
    expected = (lost - gained) / n + z * math.sqrt((lost + gained - (lost - gained) ** 2 / n) / n**2)
    assert verdict.largest_loss([judged("a", "kept", old, new)], 0.95) == pytest.approx(expected)


def test_a_true_loss_at_the_tolerance_is_rarely_called_safe() -> None:
    draw = np.random.default_rng(1)
    lost, one = draw.binomial(80, 0.05, size=400), judged("a", "kept", hits(80, 80), hits(80, 80))
    safe = [
        verdict.largest_loss([replace(one, answered=replace(one.answered, second=hits(80, 80 - n)))], 0.95)
        <= 0.05
        for n in lost
    ]
    assert np.mean(safe) <= 0.05


def test_many_sets_are_judged_with_draws_in_their_tails(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    one = judged("one", "kept", hits(9, 9), hits(9, 0))

    def change(self: PairedMeasure, sets: Any, value: Any) -> Any:
        used.append(self.draws)
        return one.record.score.change

    monkeypatch.setattr(PairedMeasure, "change", change)
    for count in (1, 100, 10_000):
        verdict._harmed([one] * count, 0.01, 0.95)
    assert sorted(set(used)) == [10_000, 40_000, 100_000]


def test_the_numbers_of_limits_by_hand() -> None:
    sets = [
        judged("a", "kept", hits(100, 80), hits(100, 60)),
        judged("b", "kept", hits(10, 4), hits(10, 6)),
        judged("c", "new", hits(10, 1), hits(10, 3)),
    ]
    numbers = verdict.numbers_of(sets, 0.95)
    assert numbers["retention"] == pytest.approx((0.6 + 0.6) / (0.8 + 0.4))
    assert numbers["loss"] == pytest.approx(0.0)
    assert numbers["worst_loss"] == pytest.approx(0.2)
    assert numbers["gain"] == pytest.approx(0.2)
    assert numbers["b.change"] == pytest.approx(0.2)
    assert numbers["retention_low"] < numbers["retention"] < numbers["retention_high"]
    assert {name for name in numbers if "." not in name} <= set(verdict.NUMBERS)


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("retention<0.98", True),
        ("retention < 95%", False),
        ("retention<=0.97", True),
        ("a.change>-0.5", True),
        ("loss >= 3e-2", True),
        ("loss>0.03", False),
    ],
)
def test_a_limit_is_broken_if_what_it_says_is_true(text: str, broken: bool) -> None:
    numbers = {"retention": 0.97, "loss": 0.03, "a.change": -0.2}
    limit = verdict.Limit.of(text)
    limit.require_possible()
    limit.require_known(numbers)
    assert limit.broken(numbers) == broken


@pytest.mark.parametrize(
    "text", ["retention", "retention=0.98", "<0.98", "retention<much", "retention<0.9.8", ""]
)
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--fail-if: expected NAME<NUMBER"):
        verdict.Limit.of(text)


def test_an_unknown_number_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'retention'"):
        verdict.Limit.of("retenton<0.98").require_possible()
    with pytest.raises(ConfigError, match=r"'birds\.new' is not measured here"):
        verdict.Limit.of("birds.new<0.98").require_known({"bird.new": 1.0})
