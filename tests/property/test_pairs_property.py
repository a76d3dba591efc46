"""Answers to pairs of images: a brute-force twin and the invariances of the score (a tie is never right)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn
from torch import Tensor

from everclip.evaluation.pairs import PairAnswers, answer_pairs, pair_similarities, pattern_mean

# Few whole numbers, so that ties are frequent and scales and shifts are exact.
SIMILARITIES = hn.arrays(
    np.float64, st.tuples(st.integers(0, 6), st.just(2), st.just(2)), elements=st.integers(-3, 3)
)


def answered(values: np.ndarray, two: list[bool] | None = None) -> PairAnswers:
    return answer_pairs(
        torch.from_numpy(values), None if two is None else torch.tensor(two, dtype=torch.bool)
    )


def same(a: PairAnswers, b: PairAnswers) -> bool:
    return torch.equal(a.text_to_image, b.text_to_image) and torch.equal(a.image_to_text, b.image_to_text)


def brute(s: np.ndarray, two: bool) -> tuple[bool, bool]:
    """Answer one pair by looking for the only largest similarity of each text and image."""

    def chooses(choices: list[float], right: int) -> bool:
        best = [at for at, value in enumerate(choices) if value == max(choices)]
        return best == [right]

    texts = [chooses([s[t, 0], s[t, 1]], t) for t in ((0, 1) if two else (0,))]
    images = [chooses([s[0, i], s[1, i]], i) for i in (0, 1)]
    return all(texts), two and all(images)


def published(s: np.ndarray) -> bool:
    """Whether MMVP's script counts a pair: each text's softmax over the images, and an image needs more than 0.5."""
    shares = np.exp(s) / np.exp(s).sum(axis=1, keepdims=True)
    chosen = [0 if first > 0.5 else 1 for first in shares[:, 0]]
    return chosen == [0, 1]


def test_the_rule_of_mmvp_by_hand() -> None:
    values = np.array(
        [
            [[0.9, 0.1], [0.2, 0.8]],  # both directions
            [[0.9, 0.1], [0.95, 0.97]],  # each text chooses its image; image 1 chooses text 2
            [[0.5, 0.5], [0.2, 0.8]],  # text 1 ties; each image chooses its text
            [[0.6, 0.5], [0.7, 0.7]],  # text 2 ties: right as published, wrong here
            [[0.1, 0.9], [0.8, 0.2]],  # nothing
        ]
    )
    found = answer_pairs(torch.from_numpy(values), patterns=("a", "a", "b", "b", "c"))
    assert found.text_to_image.tolist() == [True, True, False, False, False]
    assert found.image_to_text.tolist() == [True, False, True, False, False]
    assert [published(s) for s in values] == [True, True, False, True, False]
    assert pattern_mean(found) == (pytest.approx(1 / 3), 3)


@settings(max_examples=40)
@given(SIMILARITIES, st.data())
def test_answers_are_those_of_the_brute_force_twin(values: np.ndarray, data: st.DataObject) -> None:
    two = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    found = answered(values, two)
    expected = [brute(s, both) for s, both in zip(values, two, strict=True)]
    assert list(zip(found.text_to_image.tolist(), found.image_to_text.tolist(), strict=True)) == expected
    # Of whole numbers, only equal ones are nearly a tie.
    ties = [
        (s[0, 0] == s[0, 1]) or (both and (s[1, 0] == s[1, 1] or s[0, 0] == s[1, 0] or s[0, 1] == s[1, 1]))
        for s, both in zip(values, two, strict=True)
    ]
    assert found.ambiguous == sum(ties)


@settings(max_examples=40)
@given(SIMILARITIES, st.sampled_from([0.25, 2.0, 64.0]))
def test_the_logit_scale_changes_nothing(values: np.ndarray, scale: float) -> None:
    assert same(answered(values), answered(values * scale))


@settings(max_examples=40)
@given(SIMILARITIES, st.integers(-5, 5), st.integers(0, 1))
def test_a_constant_on_a_texts_similarities_changes_no_choice_of_a_text(
    values: np.ndarray, constant: int, text: int
) -> None:
    shifted = values.copy()
    shifted[:, text] += constant
    assert torch.equal(answered(values).text_to_image, answered(shifted).text_to_image)
    moved = values.copy()
    moved[:, :, text] += constant  # the same for an image and its choice of a text
    assert torch.equal(answered(values).image_to_text, answered(moved).image_to_text)


@settings(max_examples=40)
@given(SIMILARITIES)
def test_swapping_both_images_and_both_texts_changes_nothing(values: np.ndarray) -> None:
    assert same(answered(values), answered(values[:, ::-1, ::-1].copy()))


@settings(max_examples=40)
@given(SIMILARITIES)
def test_swapping_texts_with_images_swaps_the_directions(values: np.ndarray) -> None:
    found, turned = answered(values), answered(values.transpose(0, 2, 1).copy())
    assert torch.equal(found.text_to_image, turned.image_to_text)
    assert torch.equal(found.image_to_text, turned.text_to_image)


@settings(max_examples=40)
@given(SIMILARITIES)
def test_swapping_the_images_alone_never_leaves_a_right_pair_right(values: np.ndarray) -> None:
    found, swapped = answered(values), answered(values[:, :, ::-1].copy())
    assert not bool((found.text_to_image & swapped.text_to_image).any())


def unit(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(draw, dim=-1)


@pytest.mark.parametrize("width", [1, 7, 512])
def test_equal_images_tie_and_a_tie_is_wrong(width: int) -> None:
    texts, image = unit(50, 2, width), unit(50, 1, width, seed=1)
    found = answer_pairs(pair_similarities(texts, image.expand(-1, 2, -1)))
    assert not bool(found.text_to_image.any())
    assert found.ambiguous == 50
    found = answer_pairs(pair_similarities(image.expand(-1, 2, -1), texts))
    assert not bool(found.image_to_text.any())


def test_similarities_are_dot_products_and_each_text_prefers_itself() -> None:
    both = unit(20, 2, 16)
    similarities = pair_similarities(both, both)
    expected = np.einsum("ptd,pid->pti", both.double().numpy(), both.double().numpy())
    assert np.allclose(similarities.numpy(), expected, atol=1e-7)
    found = answer_pairs(similarities)
    assert bool(found.text_to_image.all())
    assert bool(found.image_to_text.all())


@settings(max_examples=40)
@given(SIMILARITIES, st.data())
def test_the_mean_of_patterns_weighs_each_pattern_alike(values: np.ndarray, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(["a", "b", None]), min_size=len(values), max_size=len(values)))
    found = answer_pairs(torch.from_numpy(values), patterns=names)
    shares = []
    for name in ("a", "b"):
        mine = [right for right, own in zip(found.text_to_image.tolist(), names, strict=True) if own == name]
        shares += [sum(mine) / len(mine)] if mine else []
    value, count = pattern_mean(found)
    assert count == len(shares)
    assert value == (pytest.approx(sum(shares) / len(shares)) if shares else None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(3, 2), "expected"),
        (torch.full((1, 2, 2), float("nan")), "not finite"),
        (torch.tensor([[[1.0, 0.0], [0.0, float("inf")]]]), "not finite"),
    ],
)
def test_other_shapes_and_infinite_values_are_refused(values: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        answer_pairs(values)
    with pytest.raises(ValueError, match="1 pairs, but 2"):
        answer_pairs(torch.zeros(1, 2, 2), torch.tensor([True, True]))
