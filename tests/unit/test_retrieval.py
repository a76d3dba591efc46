"""Retrieval against a brute-force twin on features with many ties, and the edges of the relation."""

import math
from typing import Any

import pytest
import torch

from everclip.evaluation import retrieval as r
from everclip.evaluation.retrieval import Positives


def tied(rows: int, width: int, seed: int) -> torch.Tensor:
    """Small integers: dot products are exact, and many are equal, zero or negative."""
    return torch.randint(-1, 2, (rows, width), generator=torch.Generator().manual_seed(seed)).float()


def brute_order(query: list[float], gallery: list[list[float]], columns: list[int]) -> list[int]:
    def score(item: int) -> float:
        return sum(a * b for a, b in zip(query, gallery[item], strict=True))

    return sorted(columns, key=lambda item: (-score(item), item))


def brute_metrics(orders: list[list[int]], positives: list[list[int]], k: int) -> dict[str, Any]:
    hits, precisions, best = [], [], []
    for order, right in zip(orders, positives, strict=True):
        found, precision = 0, 0.0
        for place, item in enumerate(order, start=1):
            if item in right:
                found += 1
                precision += found / place
        precisions.append(precision / len(right))
        top = order[:k]
        hits.append(any(item in right for item in top))
        best.append(min(order.index(item) for item in right) + 1)
    return {"hits": hits, "ap": precisions, "best": best}


def relation(queries: int, gallery: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, min(5, gallery) + 1, (queries,), generator=generator).tolist()
    return [torch.randperm(gallery, generator=generator)[:size].tolist() for size in sizes]


@pytest.mark.parametrize("block", [1, 40, r.BLOCK_ELEMENTS])
@pytest.mark.parametrize(("queries", "gallery"), [(7, 1), (9, 4), (23, 31)])
def test_against_brute_force(queries: int, gallery: int, block: int) -> None:
    q, g = tied(queries, 3, seed=queries), tied(gallery, 3, seed=99)
    lists = relation(queries, gallery, seed=1)
    orders = [brute_order(row, g.tolist(), list(range(gallery))) for row in q.tolist()]
    ranks = r.positive_ranks(q, g, Positives.from_lists(lists), block_elements=block)
    for k in (1, 2, 5, 1000):
        expected = brute_metrics(orders, lists, k)
        assert r.hits_at_k(ranks, k).tolist() == expected["hits"]
        assert r.average_precision(ranks).tolist() == pytest.approx(expected["ap"])
        assert r.best_ranks(ranks).tolist() == expected["best"]
        best = r.top_k(q, g, k, block_elements=block)
        assert best.indices.tolist() == [order[:k] for order in orders]
        assert torch.equal(best.scores, (q @ g.T).gather(1, best.indices))


@pytest.mark.parametrize("as_mask", [True, False])
def test_columns_restrict_the_gallery(as_mask: bool) -> None:
    q, g = tied(12, 3, seed=0), tied(20, 3, seed=1)
    kept = [17, 2, 5, 3, 11]
    lists = [[index % 20, (index + 3) % 20] for index in range(12)]
    columns = torch.tensor(kept)
    if as_mask:
        columns = torch.zeros(20, dtype=torch.bool).index_fill(0, columns, True)
    orders = [brute_order(row, g.tolist(), sorted(kept)) for row in q.tolist()]
    assert r.top_k(q, g, 3, columns=columns).indices.tolist() == [order[:3] for order in orders]
    ranks = r.positive_ranks(q, g, Positives.from_lists(lists), columns=columns, empty="exclude")
    left = {q: [item for item in items if item in kept] for q, items in enumerate(lists)}
    left = {q: items for q, items in left.items() if items}
    assert ranks.queries.tolist() == list(left)
    expected = brute_metrics([orders[q] for q in left], list(left.values()), k=2)
    assert r.average_precision(ranks).tolist() == pytest.approx(expected["ap"])
    assert r.best_ranks(ranks).tolist() == expected["best"]


def test_a_tie_with_a_lower_negative_counts_against() -> None:
    q, g = torch.ones(2, 1), torch.ones(3, 1)
    ranks = r.positive_ranks(q, g, Positives.from_lists([[0], [2]]))
    assert ranks.ranks.dtype == torch.int64
    assert r.best_ranks(ranks).tolist() == [1, 3]


def test_minus_zero_is_zero() -> None:
    g = torch.tensor([[-0.0], [0.0]])
    assert r.top_k(torch.tensor([[1.0], [-1.0]]), g, 2).indices.tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("copies", [3, 5000])
def test_equal_vectors_tie_wherever_they_stand(copies: int) -> None:
    """A float32 product gives equal columns different last bits at the edge of a tile; ours must not."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.nn.functional.normalize(torch.randn(1, 67, generator=generator), dim=1)
    gallery = vector.expand(copies, -1).contiguous()
    queries = torch.randn(9, 67, generator=generator)
    best = r.top_k(queries, gallery, copies)
    assert best.indices.tolist() == [list(range(copies))] * 9


@pytest.mark.parametrize("block", [1, 100, 1 << 14, r.BLOCK_ELEMENTS])
def test_blocks_and_order_change_nothing(block: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, g = torch.randn(300, 33, generator=generator), torch.randn(70, 33, generator=generator)
    lists = relation(300, 70, seed=2)
    whole = r.positive_ranks(q, g, Positives.from_lists(lists), block_elements=1 << 30)
    assert torch.equal(
        whole.ranks, r.positive_ranks(q, g, Positives.from_lists(lists), block_elements=block).ranks
    )
    # To the last bit: a float32 product of one row is summed in another order than that of a block.
    scores = r.top_k(q, g, 70, block_elements=1 << 30).scores
    assert torch.equal(scores, r.top_k(q, g, 70, block_elements=block).scores)
    shuffle = torch.randperm(300, generator=generator)
    moved = Positives.from_lists([lists[index] for index in shuffle])
    assert torch.equal(r.best_ranks(whole)[shuffle], r.best_ranks(r.positive_ranks(q[shuffle], g, moved)))
    columns = torch.randperm(70, generator=generator)
    place = columns.argsort().tolist()
    renamed = Positives.from_lists([[place[item] for item in items] for items in lists])
    assert torch.equal(whole.ranks, r.positive_ranks(q, g[columns], renamed).ranks)


def test_rank_statistics() -> None:
    g = torch.eye(4)
    q = torch.tensor([[4.0, 3, 2, 1]] * 4)
    ranks = r.positive_ranks(q, g, Positives.from_lists([[0], [1], [1, 3], [3]]))
    assert r.best_ranks(ranks).tolist() == [1, 2, 2, 4]
    assert r.median_rank(ranks) == 2
    assert r.hits_at_k(ranks, 2).tolist() == [True, True, True, False]
    even = r.positive_ranks(q[:2], g, Positives.from_lists([[0], [3]]))
    assert r.median_rank(even) == 2.5


def test_no_queries_is_undefined() -> None:
    ranks = r.positive_ranks(
        torch.zeros(2, 3), torch.zeros(4, 3), Positives.from_lists([[], []]), empty="exclude"
    )
    assert r.hits_at_k(ranks, 1).shape == (0,)
    assert r.median_rank(ranks) is None
    assert r.mean_average_precision(ranks) is None
    assert r.top_k(torch.zeros(0, 3), torch.zeros(4, 3), 2).indices.shape == (0, 2)


def test_a_query_without_positive_is_named_or_excluded() -> None:
    q, g = tied(3, 2, seed=0), tied(4, 2, seed=1)
    lists = [[0], [], [2, 1]]
    with pytest.raises(ValueError, match="query 1 has no positive"):
        r.positive_ranks(q, g, Positives.from_lists(lists))
    some = r.positive_ranks(q, g, Positives.from_lists(lists), empty="exclude")
    alone = r.positive_ranks(q[[0, 2]], g, Positives.from_lists([[0], [2, 1]]))
    assert some.queries.tolist() == [0, 2]
    assert torch.equal(some.ranks, alone.ranks)
    assert torch.equal(some.offsets, alone.offsets)


def test_positives_by_key() -> None:
    positives = Positives.from_keys(["b", "a", "z"], ["a", "b", "b"])
    assert positives.offsets.tolist() == [0, 2, 3, 3]
    assert positives.indices.tolist() == [1, 2, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    """A model of NaN would otherwise be perfect: nothing is greater than NaN."""
    q, g = torch.ones(2, 3), torch.ones(4, 3)
    broken = g.clone()
    broken[3, 1] = bad
    with pytest.raises(ValueError, match="gallery item 3"):
        r.positive_ranks(q, broken, Positives.from_lists([[0], [1]]))
    with pytest.raises(ValueError, match="query 3"):
        r.top_k(broken, g, 1)


def test_bad_input() -> None:
    q, g = torch.ones(2, 3), torch.ones(4, 3)
    good = Positives.from_lists([[0], [1]])
    with pytest.raises(ValueError, match="query 1 lists gallery item 3 more than once"):
        Positives.from_lists([[0], [3, 1, 3]])
    with pytest.raises(ValueError, match="negative"):
        Positives.from_lists([[-1]])
    with pytest.raises(ValueError, match="offsets"):
        Positives(torch.tensor([0, 2]), torch.tensor([1]))
    with pytest.raises(ValueError, match="gallery item 4 of a gallery of 4"):
        r.positive_ranks(q, g, Positives.from_lists([[0], [4]]))
    with pytest.raises(ValueError, match="2 queries, but positives for 1"):
        r.positive_ranks(q, g, Positives.from_lists([[0]]))
    with pytest.raises(ValueError, match="expected"):
        r.positive_ranks(q, torch.ones(4, 2), good)
    with pytest.raises(ValueError, match="mask"):
        r.top_k(q, g, 1, columns=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="outside"):
        r.top_k(q, g, 1, columns=torch.tensor([4]))
    with pytest.raises(ValueError, match="k must be positive"):
        r.top_k(q, g, 0)
    with pytest.raises(ValueError, match="k must be positive"):
        r.hits_at_k(r.positive_ranks(q, g, good), 0)
