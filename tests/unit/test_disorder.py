"""Spatial disorder: what turns together changes nothing, what turns apart is seen, and small sets are not judged."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from everclip.evaluation import disorder
from everclip.evaluation.representation import rotation_angles


def cloud(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turn(d: int, seed: int) -> Tensor:
    return torch.linalg.qr(cloud(d, d, seed))[0]


def test_nothing_moved() -> None:
    pairs = cloud(40, 6), cloud(40, 6, 1)
    assert disorder.pair_angle_change(pairs, pairs) == 0
    assert disorder.procrustes_deviation(pairs, pairs) == pytest.approx(0, abs=1e-9)
    assert disorder.rotation_histogram(pairs[0], pairs[0]) == [40] + [0] * 35


def test_a_common_rotation_moves_items_but_no_pair() -> None:
    pairs, common = (cloud(40, 6), cloud(40, 6, 1)), turn(6, 2)
    turned = pairs[0] @ common, pairs[1] @ common
    assert sum(disorder.rotation_histogram(pairs[0], turned[0])[2:]) > 30
    assert disorder.pair_angle_change(pairs, turned) == pytest.approx(0, abs=1e-6)
    assert disorder.procrustes_deviation(pairs, turned) == pytest.approx(0, abs=1e-9)


def test_two_rotations_deviate_by_their_difference() -> None:
    pairs, maps = (cloud(40, 6), cloud(40, 6, 1)), (turn(6, 2), turn(6, 3))
    turned = pairs[0] @ maps[0], pairs[1] @ maps[1]
    expected = float((maps[0] - maps[1]).norm())
    assert expected > 1
    assert disorder.procrustes_deviation(pairs, turned) == pytest.approx(expected)
    # Opposite directions are the farthest that two rotations can be from each other.
    opposite = pairs[0], -pairs[1]
    assert disorder.procrustes_deviation(pairs, opposite) == pytest.approx(2 * math.sqrt(6))


def test_the_rotation_is_the_best_one() -> None:
    before, after = cloud(30, 4), cloud(30, 4) + 0.3 * cloud(30, 4, 1)
    unit = [rows / rows.norm(dim=1, keepdim=True) for rows in (before, after)]
    left, _, right = np.linalg.svd(unit[0].numpy().T @ unit[1].numpy())
    best = torch.from_numpy(left @ right)
    # Texts that do not move have the identity as their rotation.
    texts = cloud(30, 4, 2)
    expected = float((best - torch.eye(4)).norm())
    assert disorder.procrustes_deviation((before, texts), (after, texts)) == pytest.approx(expected)
    for seed in range(20):
        other = best @ torch.linalg.matrix_exp(0.1 * (cloud(4, 4, seed) - cloud(4, 4, seed).T))
        assert (unit[0] @ best - unit[1]).norm() < (unit[0] @ other - unit[1]).norm()


def test_pair_angles_written_out() -> None:
    angles = {"before": (10.0, 80.0), "after": (40.0, 60.0)}
    flat = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    sides = {
        when: torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in found])
        for when, found in angles.items()
    }
    change = disorder.pair_angle_change((flat, sides["before"]), (3 * flat, sides["after"]))
    assert change == pytest.approx((30 + 20) / 2, abs=1e-4)


def test_rotations_are_compared_where_images_and_texts_determine_them() -> None:
    """Texts span 4 of 6 dimensions, as in a model whose text projection has a lower rank."""
    images, plane = cloud(40, 6), turn(6, 4)[:, :4]
    texts = (cloud(40, 4, 1) @ plane.T).float().double()  # with the rounding of features in fp32
    common, other = turn(6, 2), turn(6, 3)
    pairs = images, texts
    assert disorder.procrustes_deviation(pairs, pairs) == pytest.approx(0, abs=1e-6)
    turned = images @ common, (texts @ common).float().double()
    assert disorder.procrustes_deviation(pairs, turned) == pytest.approx(0, abs=1e-4)
    apart = images @ other, texts @ common
    expected = float((plane.T @ (other - common)).norm())
    assert expected > 1
    assert disorder.procrustes_deviation(pairs, apart) == pytest.approx(expected, rel=1e-5)


def test_without_a_common_direction_there_is_no_deviation() -> None:
    images, texts = cloud(2, 6), cloud(2, 6, 1)
    with pytest.warns(
        RuntimeWarning, match="procrustes_deviation is undefined: images and texts span no common"
    ):
        assert disorder.procrustes_deviation((images, texts), (images, texts)) is None
    opposite = torch.tensor([[1.0, 0, 0], [1, 0, 0]]), torch.tensor([[0.0, 1, 0], [0, -1, 0]])
    # Items that come from one direction and go two opposite ways determine no rotation at all.
    with pytest.warns(RuntimeWarning, match="span no common direction"):
        assert disorder.procrustes_deviation((opposite[0], opposite[0]), (opposite[1], opposite[1])) is None


def test_angles_are_counted_in_their_bins() -> None:
    degrees = [0.0, 4.9, 5.1, 92.0, 93.0, 180.0]
    after = torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in degrees])
    before = torch.tensor([[1.0, 0.0]]).expand(len(degrees), 2)
    expected = [0] * 36
    expected[0], expected[1], expected[18], expected[35] = 2, 1, 2, 1
    assert disorder.rotation_histogram(before, after) == expected
    found = rotation_angles(before, after)
    assert found is not None
    assert found.tolist() == pytest.approx(degrees, abs=1e-3)


def test_other_items_or_a_zero_row_are_not_compared() -> None:
    a, b = cloud(9, 4), cloud(8, 4)
    with pytest.raises(ValueError, match="rows must match"):
        disorder.pair_angle_change((a, a), (b, b))
    with pytest.raises(ValueError, match="rows must match"):
        disorder.procrustes_deviation((a, a), (a, b))
    a[3] = 0
    with pytest.warns(RuntimeWarning, match="row 3 is zero"):
        assert disorder.rotation_histogram(a, a) == []
    with pytest.warns(RuntimeWarning, match="row 3 is zero"):
        assert disorder.procrustes_deviation((a, a), (a, a)) is None
