"""Mining of blind pairs: the same pairs as a plain Gram matrix finds, whatever the tile."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from everclip.diagnosis import mining
from everclip.diagnosis.bounding import directions, projected
from everclip.diagnosis.mining import cosines_of, mine, spread


def features(count: int, width: int, seed: int, groups: int) -> torch.Tensor:
    """Return rows around a few directions, so that many cosines are large; norms differ."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, width, generator=draw)
    rows = centres[torch.randint(groups, (count,), generator=draw)]
    rows = rows + 0.3 * torch.randn(count, width, generator=draw)
    return rows * (0.5 + torch.rand(count, 1, generator=draw))


def plain(clip: torch.Tensor, reference: torch.Tensor, above: float, below: float) -> list[tuple[int, int]]:
    """Return the pairs of the whole Gram matrices in float64, the largest gap first."""
    grams = []
    for rows in (clip, reference):
        unit = rows.double() / rows.double().norm(dim=1, keepdim=True)
        grams.append((unit @ unit.T).numpy())
    left, right = np.nonzero(np.triu((grams[0] > above) & (grams[1] < below), 1))
    gap = grams[0][left, right] - grams[1][left, right]
    return [(int(left[i]), int(right[i])) for i in np.argsort(-gap, kind="stable")]


@given(
    count=st.integers(2, 40),
    tile=st.integers(1, 50),
    seed=st.integers(0, 5),
    above=st.sampled_from([-1.0, 0.5, 0.9]),
    below=st.sampled_from([0.1, 0.6, 1.1]),
)
def test_the_pairs_are_those_of_the_gram_matrices_for_every_tile(
    count: int, tile: int, seed: int, above: float, below: float
) -> None:
    clip, reference = features(count, 6, seed, 3), features(count, 5, seed + 100, 8)
    found = mine(clip, reference, above, below, tile=tile)
    assert list(zip(found.left.tolist(), found.right.tolist(), strict=True)) == plain(
        clip, reference, above, below
    )
    whole = mine(clip, reference, above, below, tile=count)
    for name in ("left", "right", "clip", "reference"):
        assert np.array_equal(getattr(found, name), getattr(whole, name))  # bit for bit
    assert (found.left < found.right).all()
    assert found.found == len(found)


def wide(count: int, width: int, seed: int, spread: float) -> torch.Tensor:
    """Return rows in a few directions and a little beside them, as a CLIP gives them; `spread` is how much beside."""
    draw = torch.Generator().manual_seed(seed)
    few = torch.randn(count // 4, 20, generator=draw)[torch.randint(count // 4, (count,), generator=draw)]
    few = few + 0.2 * torch.randn(count, 20, generator=draw)
    return few @ torch.randn(20, width, generator=draw) / 4 + spread * torch.randn(
        count, width, generator=draw
    )


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0])
def test_bounds_are_never_below_the_cosines(spread: float) -> None:
    rows = wide(300, 192, 0, spread)
    unit = (rows / rows.norm(dim=1, keepdim=True)).numpy()
    exact = unit.astype(np.float64) @ unit.astype(np.float64).T
    bounds = projected(unit, directions(unit))
    assert (bounds @ bounds.T - exact).min() > -1e-5
    assert np.abs(bounds @ bounds.T - exact).max() < (1e-4 if spread == 0 else 1)  # tight where they can be


@pytest.mark.parametrize(
    ("spread", "above", "bounded"),
    [(0.1, 0.9, True), (0.5, 0.8, True), (0.1, -0.5, False)],  # at -0.5 most pairs are candidates
)
def test_pairs_left_out_by_bounds_are_no_pairs(
    spread: float, above: float, bounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def watched(rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        used.append(len(rows))
        return projected(rows, chosen)

    monkeypatch.setattr(mining, "TILE", 100)  # else bounds are for large data only
    monkeypatch.setattr(mining, "_MANY", 10)  # a small tile's diagonal is a large part of it
    monkeypatch.setattr(mining, "projected", watched)
    clip, reference = wide(500, 200, 1, spread), features(500, 5, 2, 8)
    found = mine(clip, reference, above, 0.6, limit=10**6, tile=90)
    assert list(zip(found.left.tolist(), found.right.tolist(), strict=True)) == plain(
        clip, reference, above, 0.6
    )
    assert len(found) > 100
    assert sum(used) > 500 if bounded else sum(used) < 500  # given up after a few tiles
    whole = mine(clip, reference, above, 0.6, limit=10**6, tile=500)
    assert np.array_equal(found.gap, whole.gap)


def test_many_tiles_keep_the_largest_gaps() -> None:
    """The pairs are cut to the limit again and again, not only at the end."""
    clip, reference = features(90, 6, 3, 2), features(90, 5, 4, 8)
    whole = mine(clip, reference, -1, 1.1)
    for limit in (1, 7, 1000):
        few = mine(clip, reference, -1, 1.1, limit=limit, tile=4)
        assert (few.found, len(few)) == (90 * 89 // 2, limit)
        for name in ("left", "right", "clip", "reference"):
            assert np.array_equal(getattr(few, name), getattr(whole, name)[:limit])


def test_swapping_the_images_renames_the_pairs_and_changes_no_cosine() -> None:
    clip, reference = features(30, 6, 0, 3), features(30, 5, 1, 8)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    found, other = (
        mine(clip, reference, 0.8, 0.5, tile=7),
        mine(clip[order], reference[order], 0.8, 0.5, tile=7),
    )
    names = [tuple(sorted(order[[i, j]].tolist())) for i, j in zip(other.left, other.right, strict=True)]
    assert sorted(names) == sorted(zip(found.left.tolist(), found.right.tolist(), strict=True))
    assert sorted(other.clip) == sorted(found.clip)


def test_the_largest_gaps_are_kept_and_all_are_counted() -> None:
    clip, reference = features(60, 6, 3, 2), features(60, 5, 4, 8)
    whole = mine(clip, reference, 0.5, 0.6)
    few = mine(clip, reference, 0.5, 0.6, limit=5, tile=9)
    assert len(whole) > 20
    assert few.found == whole.found
    assert np.array_equal(few.gap, whole.gap[:5])
    assert np.array_equal(few.left, whole.left[:5])


def test_an_image_is_in_a_few_pairs_only_if_asked() -> None:
    whole = mine(features(60, 6, 3, 2), features(60, 5, 4, 8), 0.5, 0.6)
    found = whole.chosen(spread(whole, per_image=1))
    images = [*found.left.tolist(), *found.right.tolist()]
    assert len(set(images)) == len(images) > 4
    assert (np.diff(found.gap) <= 0).all()


def test_equal_images_are_no_blind_pair_and_half_precision_is_read() -> None:
    rows = features(4, 6, 0, 4).half()
    rows[1] = rows[0]
    assert len(mine(rows, rows, 0.99, 0.6)) == 0
    assert mine(rows, torch.eye(4), 0.99, 0.6).left.tolist() == [0]


def test_embeddings_without_direction_are_refused() -> None:
    good = torch.eye(3)
    for bad in (torch.zeros(3, 2), torch.full((3, 2), float("nan"))):
        with pytest.raises(ValueError, match=r"reference\[0\] is zero or not finite"):
            mine(good, bad)
    with pytest.raises(ValueError, match=r"\(3, 3\) and \(2, 2\)"):
        mine(good, torch.eye(2))
    assert len(mine(torch.empty(0, 3), torch.empty(0, 2))) == 0


def test_given_pairs_have_the_cosines_that_mining_finds() -> None:
    clip, reference = features(60, 6, 3, 2), features(60, 5, 4, 8)
    found = mine(clip, reference, 0.5, 0.6)
    again = cosines_of(clip, reference, found.left, found.right)
    assert np.array_equal(again.clip, found.clip)
    assert np.array_equal(again.reference, found.reference)
