"""Invariants of the metrics over generated input."""

import math
from random import Random
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everclip.evaluation import classification, representation, retrieval, statistics
from matrices import of, summary

Square = list[list[float]]

# Integers keep sums exact, so that invariants hold to the last bit where they should; zeros, ties are common.
cell = st.integers(0, 100).map(float)


@st.composite
def squares(draw: st.DrawFn, least: int = 1, most: int = 6) -> tuple[Square, list[float]]:
    tasks = draw(st.integers(least, most))
    row = st.lists(cell, min_size=tasks, max_size=tasks)
    return draw(st.lists(row, min_size=tasks, max_size=tasks)), draw(row)


def assert_finite(values: dict[str, float | None]) -> None:
    assert all(value is None or math.isfinite(value) for value in values.values())


@given(squares())
def test_no_nan_and_defined_from_two_tasks(case: tuple[Square, list[float]]) -> None:
    scores, before = case
    values = summary(scores, before)
    assert_finite(values)
    undefined = {name for name, value in values.items() if value is None} - {
        "suite_degradation",
        "suite_relative",
        "worst_retention_drop",
        "backward_transfer_libcontinual",
    }
    always = {"last", "average", "average_seen", "seen_average", "aa", "learning_accuracy", "tic_in_domain"}
    assert not undefined if len(scores) > 1 else undefined.isdisjoint(always)


@given(squares(least=2))
def test_forgetting_is_at_least_minus_backward_transfer(case: tuple[Square, list[float]]) -> None:
    scores, before = case
    values = {name: value or 0.0 for name, value in summary(scores, before).items()}
    assert values["forgetting"] >= values["forgetting_since_learned"] - 1e-9
    assert values["forgetting_since_learned"] >= -values["backward_transfer"] - 1e-9
    assert values["zero_shot_degradation"] >= max(0.0, values["zero_shot_drop_mean"]) - 1e-9
    assert values["zero_shot_drop_mean"] == -values["forward_transfer"]


@given(st.lists(cell, min_size=2, max_size=6))
def test_a_model_that_never_changes(row: list[float]) -> None:
    values = summary([row] * len(row), row, row, row)
    for name in ("forgetting", "forgetting_since_learned", "backward_transfer", "forward_transfer"):
        assert values[name] == 0
    for name in ("zero_shot_degradation", "zero_shot_drop_mean", "suite_degradation", "worst_retention_drop"):
        assert values[name] == 0
    assert values["last"] == values["aa"] == values["learning_accuracy"]


@given(squares(least=2), st.integers(-50, 50))
def test_a_constant_shifts_levels_and_leaves_differences(
    case: tuple[Square, list[float]], shift: int
) -> None:
    scores, before = case
    levels = {"last", "average", "transfer", "average_seen", "seen_average", "aa", "learning_accuracy"}
    levels |= {"tic_in_domain", "tic_backward", "tic_forward"}
    old = summary(scores, before)
    new = summary([[value + shift for value in row] for row in scores], [value + shift for value in before])
    for name, value in old.items():
        if value is not None:
            assert new[name] == pytest.approx(value + shift if name in levels else value, abs=1e-9), name


@given(squares(least=2), st.randoms(use_true_random=False))
def test_permuting_tasks(case: tuple[Square, list[float]], random: Random) -> None:
    scores, _ = case
    order = list(range(len(scores)))
    random.shuffle(order)
    columns = [[row[j] for j in order] for row in scores]
    both = [columns[i] for i in order]
    # Columns alone: what reads no diagonal is unchanged. Rows and columns: what reads no order of time is.
    assert of("last", columns) == of("last", scores)
    assert of("average", columns) == of("average", scores) == of("average", both)
    assert of("learning_accuracy", both) == of("learning_accuracy", scores)


@given(squares(least=2), st.data())
def test_a_missing_cell_never_moves_a_value(case: tuple[Square, list[float]], data: st.DataObject) -> None:
    scores, before = case
    place = st.integers(0, len(scores) - 1)
    i, j = data.draw(place), data.draw(place)
    holed: list[list[float | None]] = [list(row) for row in scores]
    holed[i][j] = None
    full, partial = summary(scores, before), summary(holed, before)
    assert partial["average"] is None
    assert all(value is None or value == full[name] for name, value in partial.items())


@given(st.lists(st.lists(cell, min_size=3, max_size=3), min_size=0, max_size=6))
def test_rectangular(scores: Square) -> None:
    values = summary(scores, [1.0, 2.0, 3.0])
    assert_finite(values)
    if len(scores) not in (0, 3):
        assert [name for name, value in values.items() if value is not None] == ["last"]


@st.composite
def searches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    width = draw(st.integers(1, 3))
    vector = st.lists(st.integers(-1, 1), min_size=width, max_size=width)
    queries = draw(st.lists(vector, min_size=1, max_size=6))
    gallery = draw(st.lists(vector, min_size=1, max_size=9))
    right = st.lists(st.integers(0, len(gallery) - 1), min_size=1, max_size=4, unique=True)
    lists = draw(st.lists(right, min_size=len(queries), max_size=len(queries)))
    return torch.tensor(queries).float(), torch.tensor(gallery).float(), lists


@given(searches(), st.integers(1, 12), st.integers(1, 30))
def test_retrieval_against_sorting(
    case: tuple[torch.Tensor, torch.Tensor, list[list[int]]], k: int, block: int
) -> None:
    q, g, lists = case
    ranks = retrieval.positive_ranks(q, g, retrieval.Positives.from_lists(lists), block_elements=block)
    found = retrieval.top_k(q, g, k, block_elements=block).indices.tolist()
    places = []
    for query, row in enumerate((q @ g.T).tolist()):
        order = sorted(range(len(row)), key=lambda item, row=row: (-row[item], item))
        assert found[query] == order[:k]
        places.append(sorted(order.index(item) + 1 for item in lists[query]))
    assert ranks.ranks.tolist() == [place for query in places for place in query]
    assert retrieval.hits_at_k(ranks, k).tolist() == [query[0] <= k for query in places]
    precision = [np.mean([(n + 1) / place for n, place in enumerate(query)]) for query in places]
    assert retrieval.average_precision(ranks).tolist() == pytest.approx(precision)


@given(searches())
def test_retrieval_bounds(case: tuple[torch.Tensor, torch.Tensor, list[list[int]]]) -> None:
    q, g, lists = case
    ranks = retrieval.positive_ranks(q, g, retrieval.Positives.from_lists(lists))
    hits = [int(retrieval.hits_at_k(ranks, k).sum()) for k in range(1, len(g) + 1)]
    assert hits == sorted(hits)
    assert hits[-1] == len(q)


@given(st.data())
def test_predictions_do_not_depend_on_batch_or_order(data: st.DataObject) -> None:
    classes = data.draw(st.integers(1, 5))
    row = st.lists(st.integers(-2, 2), min_size=classes, max_size=classes)
    scores = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=12))).float()
    labels = torch.arange(len(scores)) % classes
    order = torch.tensor(data.draw(st.permutations(range(len(scores)))))
    size = data.draw(st.integers(1, 12))
    whole = classification.classify(scores)
    assert torch.equal(classification.classify(scores[order]), whole[order])
    parts = [classification.classify(scores[at : at + size]) for at in range(0, len(scores), size)]
    assert torch.equal(torch.cat(parts), whole)
    hits = [classification.top_k_hits(scores, labels, k).sum() for k in range(1, classes + 1)]
    assert hits[0] == (whole == labels).sum()
    assert hits == sorted(hits)
    assert hits[-1] == len(scores)


@given(st.integers(1, 10_000), st.data(), st.floats(0.5, 0.999))
def test_wilson_bounds(n: int, data: st.DataObject, confidence: float) -> None:
    successes = data.draw(st.integers(0, n))
    interval = statistics.wilson(successes, n, confidence)
    assert 0 <= interval.low <= successes / n <= interval.high <= 1
    assert interval.high - interval.low > 0
    mirror = statistics.wilson(n - successes, n, confidence)
    assert (mirror.low, mirror.high) == pytest.approx((1 - interval.high, 1 - interval.low), abs=1e-12)
    wider = statistics.wilson(successes, n, (1 + confidence) / 2)
    assert wider.low <= interval.low
    assert wider.high >= interval.high
    # The bounds are the proportions that a normal test at this level just accepts.
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    for bound in (interval.low, interval.high):
        if 1e-9 < bound < 1 - 1e-9:
            assert abs(successes / n - bound) == pytest.approx(
                z * math.sqrt(bound * (1 - bound) / n), rel=1e-6
            )


outcomes = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=60
)


@settings(max_examples=40)
@given(outcomes, st.integers(0, 2**32), st.booleans(), st.randoms(use_true_random=False))
def test_bootstrap(rows: list[tuple[int, int, int]], seed: int, grouped: bool, random: Random) -> None:
    def run(items: list[tuple[int, int, int]], swap: bool = False) -> statistics.Difference:
        a, b, groups = zip(*items, strict=True)
        first, second = (b, a) if swap else (a, b)
        return statistics.paired_bootstrap(first, second, seed, draws=200, groups=groups if grouped else None)

    result = run(rows)
    assert run(rows) == result
    assert -1 <= result.low <= result.high <= 1
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert run(shuffled) == result
    back = run(rows, swap=True)
    assert back.mean == -result.mean
    assert (back.low, back.high) == pytest.approx((-result.high, -result.low), abs=1e-12)
    assert back.resolved == result.resolved
    if result.resolved:
        assert result.low > 0 or result.high < 0
    if all(a == b for a, b, _ in rows):
        assert result == statistics.Difference(0.0, 0.0, 0.0, False)


@settings(max_examples=40)
@given(st.integers(4, 20), st.integers(2, 5), st.integers(0, 1000))
def test_representation_invariants(n: int, d: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, d, generator=generator).double(), torch.randn(n, d, generator=generator).double()
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator).double())[0]
    order = torch.randperm(n, generator=generator)
    for metric in (representation.linear_cka, representation.rsa_pearson, representation.rsa_spearman):
        value = metric(x, y)
        assert value is not None
        assert -1 - 1e-9 <= value <= 1 + 1e-9
        assert metric(y, x) == pytest.approx(value, abs=1e-9)
        assert metric(x[order], y[order]) == pytest.approx(value, abs=1e-9)
        assert metric(x @ turn, y) == pytest.approx(value, abs=1e-6)
    rank, ratio = representation.effective_rank(x), representation.participation_ratio(x)
    assert rank is not None
    assert ratio is not None
    assert 1 - 1e-9 <= ratio <= rank + 1e-9 <= min(n - 1, d) + 1e-6
    uniformity = representation.uniformity(x)
    assert uniformity is not None
    assert -8 <= uniformity <= 0
    gap, alignment = representation.modality_gap(x, y), representation.alignment(x, y)
    assert gap is not None
    assert alignment is not None
    assert 0 <= gap**2 <= alignment + 1e-9  # Jensen: the centres are nearer than the pairs
