"""Mixtures of features: tokens of two towers, scores between images, shortlists of texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from everclip.diagnosis.mining import mine
from everclip.diagnosis.mixture import joined, matched_bound, mix_pairs, mixed_cosines, reranked
from everclip.errors import ConfigError
from everclip.models.image_encoder import ImageEncoder
from everclip.models.modules.mixture import (
    AdditiveMixture,
    InterleavedMixture,
    interleaved,
    resampled,
    separated,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- tokens ---------------------------------------------------------------------------------------------------


def test_interleaved_tokens_take_turns_and_come_apart_exactly() -> None:
    x, y = drawn(2, 9, 5), drawn(2, 9, 5, seed=1)
    z = interleaved(x, y)
    assert z.shape == (2, 18, 5)
    for i in range(9):
        assert torch.equal(z[:, 2 * i], x[:, i])
        assert torch.equal(z[:, 2 * i + 1], y[:, i])
    assert all(torch.equal(a, b) for a, b in zip(separated(z), (x, y), strict=True))
    with pytest.raises(ValueError, match=r"expected \(B, 2 N, D\)"):
        separated(z[:, 1:])
    with pytest.raises(ValueError, match="expected equal ones"):
        interleaved(x, y[..., :4])


def test_an_additive_mixture_is_one_adapter_of_the_weighted_sum() -> None:
    torch.manual_seed(0)
    clip, vision = drawn(2, 4, 6), drawn(2, 4, 6, seed=1)
    mixture = AdditiveMixture(6, 8, alpha=0.25)
    first, second = mixture.adapter.c_fc, mixture.adapter.c_proj
    hidden = torch.nn.functional.gelu((0.25 * clip + 0.75 * vision) @ first.weight.T + first.bias)
    assert torch.allclose(mixture(clip, vision), hidden @ second.weight.T + second.bias, atol=1e-6)
    mixture.alpha = 1.0
    assert torch.equal(mixture(clip, vision), mixture(clip, 0 * vision))


def test_an_interleaved_mixture_adapts_each_tower_and_trains_both() -> None:
    torch.manual_seed(0)
    mixture = InterleavedMixture(6, 3, 8)
    clip, vision = drawn(2, 4, 6), drawn(2, 4, 3, seed=1)
    out = mixture(clip, vision)
    own, other = separated(out)
    assert torch.equal(own, mixture.clip_adapter(clip))
    assert torch.equal(other, mixture.vision_adapter(vision))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mixture.parameters())


@pytest.mark.parametrize(
    ("clip", "vision", "said"),
    [
        ((2, 9, 6), (2, 4, 6), "9 tokens of the CLIP and 4 of the vision-only tower"),
        ((2, 9, 6), (3, 9, 6), "of the same images"),
        ((2, 9, 6), (9, 6), "of the same images"),
        ((2, 9, 6), (2, 9, 5), "width"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(
    clip: tuple[int, ...], vision: tuple[int, ...], said: str
) -> None:
    for mixture in (AdditiveMixture(6, 8), InterleavedMixture(6, 6, 8)):
        with pytest.raises(ValueError, match=said):
            mixture(drawn(*clip), drawn(*vision))


def test_grids_of_other_sizes_are_resampled_only_if_asked() -> None:
    tokens = drawn(2, 16, 3)
    assert resampled(tokens, 16) is tokens
    constant = torch.full((1, 25, 2), 3.0)
    assert torch.allclose(resampled(constant, 64), torch.full((1, 64, 2), 3.0))
    rows = torch.arange(4.0).repeat_interleave(4)[None, :, None]  # a grid whose rows differ
    larger = resampled(rows, 64).reshape(8, 8)
    assert torch.equal(larger[:, 0], larger[:, 7])
    assert (larger[1:, 0] >= larger[:-1, 0]).all()
    assert AdditiveMixture(3, 4)(drawn(2, 25, 3), resampled(tokens, 25)).shape == (2, 25, 4)
    for wrong in (tokens[:, :15], drawn(2, 17, 3)):  # 17: a class token is still there
        with pytest.raises(ValueError, match="must be a square grid without a class token"):
            resampled(wrong, 16)
    with pytest.raises(ValueError, match="must be a square grid"):
        resampled(tokens, -4)
    with pytest.raises(ValueError, match="alpha is"):
        AdditiveMixture(3, 4, alpha=1.5)


def test_pixels_of_the_other_tower_are_what_its_own_normalisation_gives() -> None:
    from torchvision.transforms import Compose, Normalize, ToTensor

    def encoder(name: str, mean: float, std: float) -> ImageEncoder:
        steps = Compose([ToTensor(), Normalize([mean, 0.4, 0.3], [std, 0.2, 0.1])])
        return ImageEncoder(name, lambda pixels: pixels, steps, name)

    clip, vision = encoder("clip", 0.48, 0.27), encoder("vision", 0.5, 0.5)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8))
    published = vision.normalised_as(clip)
    assert torch.allclose(published.transform(image), clip.transform(image), atol=1e-5)
    assert not torch.allclose(vision.transform(image), clip.transform(image), atol=0.1)
    assert published.notes == ("pixels are normalised as those of clip",)
    assert repr(published.transform) != repr(vision.transform)  # features are cached by it
    plain = ImageEncoder("plain", lambda pixels: pixels, ToTensor(), "plain")
    with pytest.raises(ConfigError, match="plain: its transform has no normalisation"):
        vision.normalised_as(plain)


# -- scores ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.7, 1.0])
def test_joined_features_have_the_mixed_cosines(weight: float) -> None:
    clip, vision = 3 * drawn(20, 7), drawn(20, 5, seed=1)
    features = joined(clip, vision, weight)
    assert torch.allclose(features @ features.T, mixed_cosines(clip, vision, weight), atol=1e-6)
    assert torch.allclose(features.norm(dim=1), torch.ones(20), atol=1e-6)
    x, y = normalize(clip.double(), dim=1), normalize(vision.double(), dim=1)
    expected = weight * (x @ x.T) + (1 - weight) * (y @ y.T)
    assert torch.allclose(mixed_cosines(clip, vision, weight).double(), expected, atol=1e-6)


def test_the_matched_bound_leaves_as_many_pairs_above_it_for_every_tile() -> None:
    clip, vision = drawn(80, 6), drawn(80, 5, seed=1)
    upper = np.triu_indices(80, 1)
    above = int((mixed_cosines(clip, vision, 1.0).numpy()[upper] > 0.7).sum())
    for weight in (0.0, 0.4, 0.9):
        bound = matched_bound(clip, vision, weight, 0.7)
        mixed = mixed_cosines(clip, vision, weight).numpy()[upper]
        assert int((mixed > bound).sum()) >= above > int((mixed > bound + 2**-14).sum())
        assert matched_bound(clip, vision, weight, 0.7, tile=13) == pytest.approx(bound, abs=1e-4)
    assert matched_bound(clip, vision, 1.0, 0.7) == 0.7


def test_a_mixture_with_the_reference_tells_its_pairs_apart() -> None:
    clip, vision = drawn(60, 4), drawn(60, 30, seed=1)
    pairs = mine(clip, vision, 0.8, 0.2)
    assert len(pairs) > 20
    found = [mix_pairs(clip, vision, pairs, weight, 0.8) for weight in (1.0, 0.5, 0.0)]
    assert [each.below_bound for each in found] == [0, len(pairs), len(pairs)]
    assert found[0].apart == 0
    assert found[0].apart < found[1].apart <= found[2].apart
    mixed = mixed_cosines(clip, vision, 0.5)[pairs.left, pairs.right]
    assert found[1].apart == int((mixed <= found[1].bound).sum())


def test_reranking_moves_images_that_look_like_the_best_one() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.1, 0.0]])
    vision = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [1.0, 0.0], [0.0, 1.0]])
    assert reranked(scores, vision, 1.0, shortlist=4).tolist() == [[0, 1, 2, 3]]
    assert reranked(scores, vision, 0.5, shortlist=3).tolist() == [[0, 2, 1]]
    assert reranked(scores, vision, 0.0, shortlist=4).tolist() == [
        [0, 3, 2, 1]
    ]  # image 3 looks the same as 0
    # Two seeds that look different: the third, which is like the first, wins over the second.
    assert reranked(scores, vision, 0.0, shortlist=3, seeds=2)[0, 0].item() in (0, 2)
    assert reranked(scores, vision, 0.5, shortlist=99).shape == (1, 5)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_features_without_direction_are_refused(bad: float) -> None:
    clip = torch.ones(2, 3)
    clip[1] = bad
    for mixture in (joined, mixed_cosines):
        with pytest.raises(ValueError, match="zero or not finite"):
            mixture(clip, torch.ones(2, 4), 0.5)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_wrong_weights_and_shapes_are_refused(weight: float) -> None:
    x = drawn(3, 4)
    for call in (
        lambda: joined(x, x, weight),
        lambda: mixed_cosines(x, x, weight),
        lambda: reranked(x, x, weight),
    ):
        with pytest.raises(ValueError, match="the weight of the CLIP is"):
            call()
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 4\)"):
        joined(x, x[:2], 0.5)
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 4\)"):
        reranked(x, x, 0.5)
    for broken in (float("nan"), float("inf")):
        bad = x.clone()
        bad[0, 0] = broken
        with pytest.raises(ValueError, match="not finite"):
            reranked(bad, drawn(4, 4), 0.5)
        with pytest.raises(ValueError, match="not finite"):
            reranked(drawn(2, 3), bad, 0.5)
    with pytest.raises(ValueError, match="seeds is 3; expected 1 to shortlist=2"):
        reranked(x, drawn(4, 4), 0.5, shortlist=2, seeds=3)
