"""Classification against brute force, with many ties."""

import math

import numpy as np
import pytest
import torch

from everclip.evaluation import classification as c


def tied_scores(n: int, classes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 3, (n, classes), generator=generator).float()


@pytest.mark.parametrize("classes", [1, 2, 7, 64, 1000])
def test_ties_go_to_the_lowest_class(classes: int) -> None:
    scores = tied_scores(50, classes)
    expected = [row.index(max(row)) for row in scores.tolist()]
    assert c.classify(scores).tolist() == expected
    assert c.classify(scores.T.contiguous().T).tolist() == expected
    assert [int(c.classify(row[None])) for row in scores] == expected


@pytest.mark.parametrize("k", [1, 2, 5, 100])
def test_top_k_against_sorting(k: int) -> None:
    scores = tied_scores(60, 6)
    labels = torch.arange(60) % 6
    expected = []
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        expected.append(label in sorted(range(6), key=lambda index, row=row: (-row[index], index))[:k])
    assert c.top_k_hits(scores, labels, k).tolist() == expected


def test_top_1_is_accuracy() -> None:
    scores, labels = tied_scores(60, 6), torch.arange(60) % 6
    assert torch.equal(c.classify(scores) == labels, c.top_k_hits(scores, labels, 1))


def test_masked_classes_are_never_chosen() -> None:
    scores = torch.tensor([[-math.inf, -5.0, -9.0]])
    assert c.classify(scores).tolist() == [1]
    assert c.ambiguous(torch.tensor([[-math.inf, 0.5, -math.inf]])).tolist() == [False]


def test_per_class_accuracy() -> None:
    predictions, labels = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0])
    assert c.per_class_accuracy(predictions, labels, 4) == [0.5, 0.5, None, None]


def test_no_items_is_undefined() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert c.expected_calibration_error(torch.zeros(0, 3), none) is None
    assert c.classify(torch.zeros(0, 3)).shape == (0,)
    assert c.top_k_hits(torch.zeros(0, 3), none, 5).shape == (0,)


def brute_force_ece(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for low in range(bins):
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if inside.any():
            total += inside.sum() * abs(hit[inside].mean() - confidence[inside].mean())
    return total / len(labels)


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_against_brute_force(bins: int) -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(400, 5, generator=generator).double()).softmax(dim=1)
    labels = torch.randint(0, 5, (400,), generator=generator)
    expected = brute_force_ece(probabilities.numpy(), labels.numpy(), bins)
    assert c.expected_calibration_error(probabilities, labels, bins) == pytest.approx(expected, abs=1e-12)


def test_calibration_edges() -> None:
    right = torch.eye(3)[[0, 1, 2]]
    assert c.expected_calibration_error(right, torch.tensor([0, 1, 2])) == 0
    assert c.expected_calibration_error(right, torch.tensor([1, 2, 0])) == 1
    # A confidence on the edge of a bin belongs to the lower one: with two bins, 0.5 and 0.9 do not mix.
    edge = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    assert c.expected_calibration_error(edge, torch.tensor([0, 1]), bins=2) == pytest.approx((0.5 + 0.9) / 2)


def test_logits_are_no_probabilities() -> None:
    with pytest.raises(ValueError, match="probabilities"):
        c.expected_calibration_error(torch.tensor([[20.0, 3.0]]), torch.tensor([0]))


def test_ambiguous_counts_the_two_best() -> None:
    cosines = torch.tensor([[0.3, 0.300005, 0.1], [0.3, 0.31, 0.31], [0.3, 0.2, 0.2], [0.3, 0.30002, 0.1]])
    assert c.ambiguous(cosines).tolist() == [True, True, False, False]
    assert c.ambiguous(cosines, tolerance=1e-3).tolist() == [True, True, False, True]
    assert c.ambiguous(torch.rand(3, 1)).tolist() == [False] * 3
    with pytest.raises(ValueError, match="cosine"):
        c.ambiguous(100 * cosines)


def test_ensemble_is_the_mean_of_unit_rows() -> None:
    features = torch.tensor([[10.0, 0.0], [0.0, 0.1]])
    torch.testing.assert_close(c.ensemble_bank(features), torch.tensor([0.5**0.5, 0.5**0.5]))
    single = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(c.ensemble_bank(single), torch.tensor([0.6, 0.8]))


def test_ragged_ensembles_equal_single_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    ragged = [torch.randn(templates, 8, generator=generator) for templates in (1, 80, 7)]
    bank = c.ensemble_banks(ragged)
    assert torch.equal(bank, torch.stack([c.ensemble_bank(rows) for rows in ragged]))
    torch.testing.assert_close(bank.norm(dim=1), torch.ones(3))
    same = torch.randn(4, 5, 8, generator=generator)
    torch.testing.assert_close(c.ensemble_bank(same), c.ensemble_banks(same))


def test_ensemble_has_a_gradient() -> None:
    features = torch.randn(3, 4, requires_grad=True)
    c.ensemble_bank(features)[0].backward()
    assert features.grad is not None
    assert bool((features.grad != 0).any())


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="item 1 has a NaN"):
        c.classify(torch.tensor([[0.0, 1.0], [0.0, math.nan]]))
    with pytest.raises(ValueError, match="C >= 1"):
        c.classify(torch.zeros(3, 0))
    with pytest.raises(ValueError, match="k must be positive"):
        c.top_k_hits(torch.zeros(1, 2), torch.tensor([0]), 0)
    with pytest.raises(ValueError, match="outside"):
        c.top_k_hits(torch.zeros(1, 2), torch.tensor([2]), 1)
    with pytest.raises(ValueError, match="outside"):
        c.per_class_accuracy(torch.tensor([0]), torch.tensor([-1]), 2)
    with pytest.raises(ValueError, match="expected"):
        c.per_class_accuracy(torch.tensor([0, 1]), torch.tensor([0]), 2)
    with pytest.raises(ValueError, match="T >= 1"):
        c.ensemble_bank(torch.zeros(0, 4))
    with pytest.raises(ValueError, match="at least one class"):
        c.ensemble_banks([])


def test_with_one_class_nothing_is_ambiguous() -> None:
    found = c.ambiguous(torch.tensor([[0.5], [0.2]]))
    assert (found.dtype, found.tolist()) == (torch.bool, [False, False])
