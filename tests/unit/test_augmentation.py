"""Training crops show what the model sees at evaluation, or are those of torchvision's RandomResizedCrop."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageEnhance
from torchvision.transforms import RandomResizedCrop

from everclip.config import AugmentConfig, BackboneConfig, merge_training, resolve_config
from everclip.data.pictures.resizing import Resizing
from everclip.data.sampling.augmentation import augment, random_resized_box, view_box
from everclip.data.sampling.order import generator
from everclip.models.backbone import load_backbone

MODES = ("squash", "shortest", "longest")
SIZES = [(64, 64), (80, 60), (60, 80), (500, 375), (30, 200), (200, 31), (16, 16), (7, 300)]
WHOLE = AugmentConfig(crop_min=1, ratio=1)


def scene(width: int, height: int) -> Image.Image:
    """Return a smooth picture whose every place looks different."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - (x + y) / 2], axis=2).astype(np.uint8))


def evaluated(picture: Image.Image, side: int, mode: str, interpolation: str = "bicubic") -> np.ndarray:
    """Return the picture as open_clip's evaluation transform shows it, `(S, S, 3)`, 0 to 255."""
    form: Any = {"resize_mode": mode, "interpolation": interpolation, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    pixels = image_transform_v2(PreprocessCfg(size=side, **form), is_train=False)(picture)
    return np.asarray((pixels * 255).round().permute(1, 2, 0).to(torch.uint8)).astype(int)


def trained(
    picture: Image.Image, config: AugmentConfig, resizing: Resizing, side: int = 32, key: int = 0
) -> Any:
    return np.asarray(augment(picture, side, config, generator("crop", key), resizing)).astype(int)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
def test_the_largest_crop_is_what_the_model_sees(
    mode: Any, size: tuple[int, int], interpolation: str
) -> None:
    picture = scene(*size)
    seen = evaluated(picture, 32, mode, interpolation)
    found = trained(picture, WHOLE, Resizing(mode, interpolation))
    # The central square is cut before it is resized, and open_clip rounds its place to whole pixels.
    assert np.abs(found - seen).max() <= (10 if mode == "shortest" else 0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
def test_crops_stay_inside_what_the_model_sees_and_keep_nearly_all_of_it(
    mode: Any, size: tuple[int, int]
) -> None:
    config, resizing = AugmentConfig(ratio=4 / 3), Resizing(mode)
    left, top, right, bottom = resizing.visible(*size)
    assert (right - left, bottom - top) == ((min(size),) * 2 if mode == "shortest" else size)
    kept = []
    for key in range(300):
        box = view_box(scene(*size), config, resizing, generator(key).random(4))
        assert left <= box[0] < box[2] <= right + 1e-9
        assert top <= box[1] < box[3] <= bottom + 1e-9
        kept.append((box[2] - box[0]) * (box[3] - box[1]) / ((right - left) * (bottom - top)))
    # Corners that jut out are cut off: less than the 0.9 that was drawn, as the settings say.
    assert np.sqrt(0.9 / (4 / 3)) <= min(kept) < 0.9
    assert max(kept) <= 1


def test_a_square_picture_gives_the_pixels_that_it_always_gave() -> None:
    config = AugmentConfig(crop_min=0.55, ratio=1.3)
    picture = scene(64, 64)
    for key in range(50):
        unit = generator("crop", key).random(12)
        area, ratio = 0.55 + (1 - 0.55) * unit[0], 1.3 ** (2 * unit[1] - 1)
        crop_w, crop_h = min(64, 64 * np.sqrt(area * ratio)), min(64, 64 * np.sqrt(area / ratio))
        left, top = unit[2] * (64 - crop_w), unit[3] * (64 - crop_h)
        box = (float(left), float(top), float(left + crop_w), float(top + crop_h))
        before = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC, box=box)).astype(int)
        for mode in MODES:
            assert (trained(picture, config, Resizing(mode), key=key) == before).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_backbone_says_how_it_resizes(mode: str, interpolation: str) -> None:
    given: Any = {"name": "builtin:tiny", "preprocess": {"resize_mode": mode, "interpolation": interpolation}}
    pixels = load_backbone(BackboneConfig(**given)).pixels
    assert pixels.resizing == Resizing(mode, interpolation, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(3, 300), (300, 3)])
@pytest.mark.parametrize("mode", MODES)
def test_the_thinnest_picture_that_is_read_is_evaluated_and_cropped(mode: str, size: tuple[int, int]) -> None:
    backbone = load_backbone(BackboneConfig(name="builtin:tiny", preprocess={"resize_mode": mode}))  # type: ignore[arg-type]
    seen = backbone.preprocess(scene(*size))
    made = augment(scene(*size), 48, WHOLE, generator("thin"), backbone.pixels.resizing)
    assert (backbone.pixels.tensor(made) - seen).abs().max() < 0.2


def test_padding_has_the_colour_of_the_models_own() -> None:
    made = trained(scene(100, 20), AugmentConfig(), Resizing("longest", fill=7))
    assert (made[[0, 1, -2, -1]] == 7).all()


# -- as published ---------------------------------------------------------------------------------------------


class _Recorder:
    """Stands in for torch's draws inside torchvision, and keeps where in [0, 1) each of them fell.

    Attributes:
        unit: `(10, 4)`: area, shape, top and left of each attempt; only the attempt that fits has a place.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
        self.unit = np.zeros((10, 4))
        draw, at, recorder = np.random.default_rng(seed), iter(range(40)), self

        def drawn(kind: int) -> float:
            """Return a draw of the area or shape (0), or of a place (2)."""
            place = next(at)
            while kind == 0 and place % 4 > 1:  # the attempt before had no place
                place = next(at)
            value = float(draw.random())
            recorder.unit[divmod(place, 4)] = value
            return value

        class Empty:
            def uniform_(self, low: float, high: float) -> torch.Tensor:
                return torch.tensor([float(low) + (float(high) - float(low)) * drawn(0)]).double()

        def randint(low: int, high: int, size: Any) -> torch.Tensor:
            return torch.tensor([low + int(drawn(2) * (high - low))])

        monkeypatch.setattr(torch, "empty", lambda *size: Empty())
        monkeypatch.setattr(torch, "randint", randint)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("least", "ratio"), [(0.9, 4 / 3), (0.08, 4 / 3), (0.5, 1.1)])
def test_published_crops_are_those_of_torchvision(
    size: tuple[int, int], least: float, ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = scene(*size)
    config = AugmentConfig(kind="random-resized-crop", crop_min=least, ratio=ratio)
    for seed in range(40):
        with monkeypatch.context() as patch:
            recorder = _Recorder(patch, seed)
            top, left, height, width = RandomResizedCrop.get_params(picture, [least, 1], [1 / ratio, ratio])
        assert random_resized_box(*size, config, recorder.unit) == (left, top, left + width, top + height)


def test_a_published_crop_sees_the_whole_picture_whatever_the_model_does() -> None:
    config = AugmentConfig(kind="random-resized-crop")
    assert (config.crop_min, config.ratio) == (0.9, 4 / 3)
    picture = scene(500, 375)
    shares = []
    for key in range(200):
        box = random_resized_box(500, 375, config, generator(key).random((10, 4)))
        shares.append((box[2] - box[0]) * (box[3] - box[1]) / (500 * 375))
    assert min(shares) > 0.895
    assert max(shares) <= 1
    for key in range(5):
        made = [trained(picture, config, Resizing(mode), key=key).tobytes() for mode in MODES]
        assert len(set(made)) == 1
    assert trained(picture, config, Resizing(), key=1).tobytes() != made[0]


def test_a_crop_that_was_drawn_for_a_sample_is_drawn_again_for_it() -> None:
    config = AugmentConfig(kind="random-resized-crop", crop_min=0.5, flip=0.5, colour=0.5)
    one, two, other = (trained(scene(90, 40), config, Resizing(), key=key).tobytes() for key in (3, 3, 4))
    assert one == two != other


# -- settings -------------------------------------------------------------------------------------------------


def test_naming_a_kind_of_crop_inherits_no_strengths() -> None:
    base = {"augment": {"crop_min": 0.7, "ratio": 1.2, "rotate": 12, "colour": 0.3}}
    kind = {"kind": "random-resized-crop", "crop_min": 0.9}
    assert merge_training(base, {"augment": kind})["augment"] == kind
    assert merge_training(base, {"augment": {"flip": 0.5}})["augment"] == {**base["augment"], "flip": 0.5}
    used = resolve_config("emoji-time", ["method=zscl-mtil"]).training.augment
    assert used == AugmentConfig(kind="random-resized-crop")
    changed = resolve_config("emoji-time", ["method=zscl-mtil", "training.augment.flip=0.5"]).training.augment
    assert changed == AugmentConfig(kind="random-resized-crop", flip=0.5)
    own = resolve_config("emoji-time", ["training.augment.kind=random-resized-crop"]).training.augment
    assert own == AugmentConfig(kind="random-resized-crop")


@pytest.mark.parametrize("strength", [0.05, 0.3, 1.0])
def test_colours_change_as_those_of_pillow(strength: float) -> None:
    config = AugmentConfig(crop_min=1, ratio=1, colour=strength)
    for key, (picture, side) in enumerate(itertools.product((scene(*size) for size in SIZES), (1, 7, 32))):
        draw = generator("colour", key)
        draw.random(12)
        brightness, contrast, colour = (1 + (2 * draw.random(5)[:3] - 1) * strength).tolist()
        expected = picture.resize((side, side), Image.Resampling.BICUBIC)
        expected = ImageEnhance.Brightness(expected).enhance(brightness)
        expected = ImageEnhance.Contrast(expected).enhance(contrast)
        expected = ImageEnhance.Color(expected).enhance(colour)
        found = augment(picture, side, config, generator("colour", key), Resizing("squash"))
        assert found.tobytes() == expected.tobytes()
