"""Intervals against tables, brute force and simulation."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

import everclip
from everclip.evaluation import statistics
from everclip.evaluation.statistics import bootstrap_mean, flips, paired_bootstrap, seed_spread, wilson


def test_wilson_against_published_values() -> None:
    # Newcombe 1998, table I, method 3
    for successes, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
    ):
        interval = wilson(successes, n)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-4)
    assert wilson(0, 20).low == 0
    assert wilson(0, 20).high == pytest.approx(0.1611, abs=1e-4)
    assert wilson(20, 20).high == 1


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("n", [1, 2, 7, 100, 12_345, 1_000_000])
def test_wilson_equals_scipys(n: int, confidence: float) -> None:
    for successes in sorted({0, 1, n // 3, n - 1, n}):
        wanted = stats.binomtest(successes, n).proportion_ci(confidence, "wilson")
        found = wilson(successes, n, confidence)
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=0, abs=1e-12)


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_bootstrap_equals_scipys_where_values_are_many(confidence: float) -> None:
    values = np.sort(np.random.default_rng(0).normal(size=60))
    generator = np.random.Generator(np.random.Philox(7))
    wanted = stats.bootstrap(
        (values,), np.mean, n_resamples=500, method="percentile", confidence_level=confidence, rng=generator
    ).confidence_interval
    found = bootstrap_mean(values, seed=7, draws=500, confidence=confidence)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=0, abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_proportion(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        wilson(successes, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_is_a_fraction(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 2, confidence)
    with pytest.raises(ValueError, match="confidence"):
        seed_spread([1.0, 2.0], confidence)
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_mean([1.0, 2.0], seed=0, draws=2, confidence=confidence)


@pytest.mark.parametrize(
    ("n", "quantile"),
    [
        (2, 12.706205),
        (3, 4.302653),
        (4, 3.182446),
        (5, 2.776445),
        (10, 2.262157),
        (31, 2.042272),
        (121, 1.979930),
    ],
)
def test_seed_spread_uses_student_t(n: int, quantile: float) -> None:
    values = np.arange(n, dtype=float)
    spread = seed_spread(values)
    assert spread.mean == pytest.approx(values.mean())
    assert spread.standard_deviation == pytest.approx(np.std(values, ddof=1))
    half = quantile * np.std(values, ddof=1) / math.sqrt(n)
    assert (spread.mean - spread.low, spread.high - spread.mean) == pytest.approx((half, half), rel=1e-6)


def test_one_seed_has_no_spread() -> None:
    assert seed_spread([3.0]) == statistics.Spread(3.0, None, None, None)


def test_t_interval_at_another_level() -> None:
    spread = seed_spread([0.0, 2.0, 4.0], confidence=0.99)
    assert spread.high == pytest.approx(2 + 9.924843 * 2 / math.sqrt(3), rel=1e-6)


@pytest.mark.parametrize("kind", ["hits", "real"])
def test_bootstrap_agrees_with_the_normal_interval(kind: str) -> None:
    generator = np.random.default_rng(0)
    a, b = generator.random((2, 2000))
    if kind == "hits":
        a, b = (a < 0.7).astype(float), (b < 0.6).astype(float)
    result = paired_bootstrap(a, b, seed=1)
    error = 1.959964 * np.std(a - b) / math.sqrt(2000)
    assert result.mean == pytest.approx((a - b).mean())
    assert (result.low, result.high) == pytest.approx(
        (result.mean - error, result.mean + error), abs=0.1 * error
    )


def test_both_ways_of_drawing_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1200 items with 3 distinct differences are drawn as counts; a speck of noise makes them all distinct.
    generator = np.random.default_rng(3)
    a, b = generator.integers(0, 2, (2, 1200)).astype(float)
    counts = paired_bootstrap(a, b, seed=0)
    items = paired_bootstrap(a + 1e-9 * generator.random(1200), b, seed=0)
    assert (counts.low, counts.high) == pytest.approx((items.low, items.high), abs=0.004)
    # Memory is bounded by blocks, and blocks leave no trace.
    monkeypatch.setattr(statistics, "_BLOCK", 5000)
    assert paired_bootstrap(a, b, seed=0) == counts


def test_clusters_widen_the_interval() -> None:
    generator = np.random.default_rng(1)
    image = np.repeat(np.arange(200), 5)
    difference = np.repeat(generator.normal(size=200), 5)
    alone = bootstrap_mean(difference, seed=0, draws=4000)
    together = bootstrap_mean(difference, seed=0, draws=4000, groups=image)
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(math.sqrt(5), rel=0.1)


def test_groups_of_one_change_nothing() -> None:
    values = np.random.default_rng(2).integers(0, 2, 300)
    names = [f"image-{index}" for index in range(300)]
    assert bootstrap_mean(values, seed=4, groups=names) == bootstrap_mean(values, seed=4)


def test_uneven_groups_resample_a_ratio() -> None:
    # Two images, one query of value 1 and nine of value 0: the three resamples have means 1, 0.1 and 0.
    interval = bootstrap_mean([1] + [0] * 9, seed=0, confidence=0.4, groups=[0] + [1] * 9)
    assert (interval.low, interval.high) == pytest.approx((0.1, 0.1))
    wide = bootstrap_mean([1] + [0] * 9, seed=0, confidence=0.9, groups=[0] + [1] * 9)
    assert (wide.low, wide.high) == (0, 1)


def test_equal_models_are_not_resolved() -> None:
    hits = np.random.default_rng(0).integers(0, 2, 100)
    assert paired_bootstrap(hits, hits, seed=0) == statistics.Difference(0.0, 0.0, 0.0, False)


@pytest.mark.parametrize(("wins", "resolved"), [(1, False), (5, False), (6, True), (40, True)])
def test_a_handful_of_images_resolves_nothing(wins: int, resolved: bool) -> None:
    result = paired_bootstrap(np.ones(wins), np.zeros(wins), seed=0)
    assert result.low == result.high == 1
    assert result.resolved is resolved


def test_queries_of_one_image_are_one_piece_of_evidence() -> None:
    assert paired_bootstrap(np.ones(40), np.zeros(40), seed=0).resolved
    assert not paired_bootstrap(
        np.ones(40), np.zeros(40), seed=0, groups=np.repeat(np.arange(4), 10)
    ).resolved


def test_losses_are_resolved_too() -> None:
    assert paired_bootstrap(np.zeros(50), np.ones(50), seed=0).resolved


@pytest.mark.parametrize("grouped", [False, True])
def test_coverage(grouped: bool) -> None:
    """95 % intervals of 300 experiments hold the truth in about 95 % of them."""
    generator = np.random.default_rng(5)
    groups = np.repeat(np.arange(80), 2) if grouped else None
    inside = 0
    for experiment in range(300):
        image = np.repeat(generator.random(80) < 0.3, 2) if grouped else generator.random(160) < 0.3
        interval = bootstrap_mean(image, seed=experiment, draws=400, groups=groups)
        inside += interval.low <= 0.3 <= interval.high
    assert 0.90 <= inside / 300 <= 0.985


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="not paired"):
        paired_bootstrap([1, 0], [1], seed=0)
    with pytest.raises(ValueError, match=r"b\[1\] is not finite"):
        paired_bootstrap([1, 0], [1, math.nan], seed=0)
    with pytest.raises(ValueError, match="not empty"):
        bootstrap_mean([], seed=0)
    with pytest.raises(ValueError, match="groups has shape"):
        bootstrap_mean([1, 2], seed=0, groups=[1])
    with pytest.raises(ValueError, match="draws"):
        bootstrap_mean([1, 2], seed=0, draws=0)
    with pytest.raises(ValueError, match="not paired"):
        flips([1], [1, 0])
    with pytest.raises(ValueError, match="0 and 1"):
        flips([0.5], [1])


def test_flips_edges() -> None:
    assert flips([1, 0], [1, 0]) == statistics.Flips(0.0, 0.0, 0.0)
    assert flips([0, 0], [1, 0]) == statistics.Flips(0.0, 0.5, None)
    assert flips([1, 0], [1, 1]) == statistics.Flips(0.0, 0.5, None)


@pytest.mark.parametrize("turned", [False, True])
def test_a_pair_has_one_interval_whichever_way_it_is_asked_for(turned: bool) -> None:
    draw = np.random.default_rng(3)
    a, b = draw.random(30) < 0.5, draw.random(30) < (0.3 if turned else 0.7)
    one, other = paired_bootstrap(a, b, seed=1, draws=500), paired_bootstrap(b, a, seed=1, draws=500)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)
    assert one.resolved == other.resolved
    ties = paired_bootstrap([1, 0, 0], [0, 1, 0], seed=1), paired_bootstrap([0, 1, 0], [1, 0, 0], seed=1)
    assert (ties[0].low, ties[0].high) == pytest.approx((-ties[1].high, -ties[1].low))


def test_values_that_are_not_numbers_are_refused_by_the_name_of_the_argument() -> None:
    for broken in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match=r"^`?values"):
            seed_spread(broken)


@pytest.mark.parametrize("broken", [[], [math.nan], [[1.0]]])
def test_what_is_refused_is_called_by_its_own_name(broken: list[float]) -> None:
    fine = [1.0]
    for name, call in {
        "a": lambda: paired_bootstrap(broken, fine, seed=0),
        "b": lambda: paired_bootstrap(fine, broken, seed=0),
        "values": lambda: bootstrap_mean(broken, seed=0),
        "values ": lambda: seed_spread(broken),
        "old": lambda: flips(broken, fine),
        "new": lambda: flips(fine, broken),
    }.items():
        with pytest.raises(ValueError, match=rf"^{name.strip()}( must|\[0\])"):
            call()


def test_the_interval_of_no_hits_reaches_above_zero(micro_config: Callable[..., Any]) -> None:
    result = everclip.execute(micro_config("time", "method=zero-shot"))
    cells = [
        c for s in result.rows[0].scores.values() for p in s.values() for c in p.values() if c.value == 0
    ]
    bounded = [c for c in cells if c.high is not None]
    assert bounded
    assert all(c.high > 0 for c in bounded)
