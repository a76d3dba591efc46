"""Decoding refuses what is no picture, and augmentation is a function of its key."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageOps

from everclip.config import AugmentConfig
from everclip.data.pictures import images
from everclip.data.pictures.images import ImageStore, PictureError, PixelFormat, decode, inspect
from everclip.data.reading.quarantine import REASONS
from everclip.data.sampling.augmentation import augment
from everclip.data.sampling.order import generator
from everclip.data.table import Table
from everclip.errors import DataError

STRONG = AugmentConfig(
    crop_min=0.3, ratio=2.0, flip=0.5, rotate=90, colour=0.8, hue=0.5, grey=0.3, zoom_out=0.5
)


def encode(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def photo(width: int = 40, height: int = 28) -> Image.Image:
    pixels = generator("photo").integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# -- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a",
        b"not a picture at all",
        b"%PDF-1.7 something",
        encode(photo())[:60],
        encode(photo(200, 200), "JPEG")[:400],
        encode(photo(64, 64), "WEBP")[:100],
        b"\x89PNG\r\n\x1a\n" + bytes(40),
    ],
    ids=["zero bytes", "gif head", "text", "pdf", "cut png", "cut jpeg", "cut webp", "empty png"],
)
def test_what_is_no_picture_is_refused_and_named(data: bytes) -> None:
    with pytest.raises(DataError, match="birds, id 17: not a readable image"):
        decode(data, "birds, id 17")


def test_a_huge_picture_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encode(Image.new("1", (9000, 9000)), optimize=True)
    assert len(bomb) < 20_000
    monkeypatch.setattr(Image.Image, "convert", lambda *a: pytest.fail("was decoded"))
    with pytest.raises(DataError, match=r"birds, id 17: image of 9000 x 9000 pixels; at most 64,000,000"):
        decode(bomb, "birds, id 17")


def test_pillows_own_bomb_check_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="id 17: not a readable image"):
        decode(encode(photo()), "id 17")


def test_formats_that_run_code_or_read_other_files_are_not_opened() -> None:
    with pytest.raises(DataError, match="not a readable image"):
        decode(encode(photo(), "EPS"), "id 17")


# -- what is read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_lossless_formats_agree(kind: str) -> None:
    picture = Image.new("RGB", (9, 7), (10, 200, 30))
    options = {"lossless": True} if kind == "WEBP" else {}
    read = decode(encode(picture, kind, **options), "x")
    assert (read.mode, read.size) == ("RGB", (9, 7))
    assert read.getpixel((4, 3)) == (10, 200, 30)


def test_transparency_is_laid_on_white() -> None:
    picture = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    picture.putpixel((0, 0), (255, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 128))
    read = decode(encode(picture), "x")
    assert read.getpixel((3, 3)) == (255, 255, 255)
    assert read.getpixel((0, 0)) == (255, 0, 0)
    assert read.getpixel((1, 0)) == (127, 127, 127)


def test_grey_with_alpha_is_laid_on_white() -> None:
    assert decode(encode(Image.new("LA", (2, 2), (0, 0))), "x").getpixel((0, 0)) == (255, 255, 255)


def test_a_palette_keeps_its_colours_and_its_transparent_entry_becomes_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putdata([0, 1])
    assert decode(encode(picture), "x").getpixel((1, 0)) == (200, 100, 50)
    clear = decode(encode(picture, transparency=1), "x")
    assert [clear.getpixel((i, 0)) for i in (0, 1)] == [(10, 20, 30), (255, 255, 255)]


def test_cmyk_becomes_rgb() -> None:
    read = decode(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), "x")
    assert read.mode == "RGB"
    red, green, blue = read.getpixel((4, 4))  # type: ignore[misc]
    assert red > 240
    assert max(green, blue) < 15


def test_sixteen_bits_keep_their_tones() -> None:
    ramp = np.array([[0, 64 * 257, 128 * 257, 255 * 257]], dtype=np.uint16)
    read = np.asarray(decode(encode(Image.fromarray(ramp)), "x"))[0, :, 0].astype(int)
    assert np.abs(read - [0, 64, 128, 255]).max() <= 1


def test_the_first_picture_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (3, 3), c) for c in ((255, 0, 0), (0, 0, 255))]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, "x").getpixel((1, 1)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright_as_pillow_does(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(24, 10), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    read = decode(data, "x")
    assert (read.size, read.tobytes()) == (expected.size, expected.tobytes())
    assert inspect(data, "x").picture.size == read.size == ((10, 24) if orientation > 4 else (24, 10))


def test_a_turned_palette_keeps_its_transparent_entry() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putdata([0, 1])
    exif = Image.Exif()
    exif[0x0112] = 6
    read = decode(encode(picture, transparency=1, exif=exif), "x")
    assert [read.getpixel((0, i)) for i in (0, 1)] == [(10, 20, 30), (255, 255, 255)]


def test_exif_that_cannot_be_read_says_nothing() -> None:
    data = encode(photo(9, 7), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + bytes(9))
    assert decode(data, "x").size == (9, 7)


def test_an_adobe_cmyk_is_not_inverted() -> None:
    # Photoshop stores CMYK upside down and says so in the Adobe marker; Pillow writes the same.
    data = encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG", quality=100)
    assert b"Adobe" in data
    assert min(decode(data, "x").getpixel((4, 4))) > 250  # type: ignore[type-var,arg-type]


@pytest.mark.parametrize(
    ("picture", "kind", "expected"),
    [
        (Image.new("1", (4, 4), 1), "PNG", (255, 255, 255)),
        (Image.new("1", (4, 4), 1), "TIFF", (255, 255, 255)),
        (Image.new("L", (4, 4), 77), "JPEG", (77, 77, 77)),
        (Image.new("LA", (4, 4), (0, 255)), "PNG", (0, 0, 0)),
        (Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF", (127, 127, 127)),
        (Image.fromarray(np.full((4, 4), 200, np.float32)), "TIFF", (200, 200, 200)),
        (Image.fromarray(np.full((4, 4), 128 * 257, np.uint16)), "TIFF", (128, 128, 128)),
        (Image.new("YCbCr", (4, 4), (128, 128, 128)), "JPEG", (128, 128, 128)),
    ],
    ids=["1 png", "1 tiff", "grey", "la", "float share", "float level", "16 bit tiff", "ycbcr"],
)
def test_odd_modes_keep_their_tones(picture: Image.Image, kind: str, expected: tuple[int, ...]) -> None:
    read = decode(encode(picture, kind), "x")
    assert (read.mode, read.getpixel((2, 2))) == ("RGB", expected)


@pytest.mark.parametrize(("kind", "frames"), [("GIF", 3), ("WEBP", 3), ("PNG", 3), ("TIFF", 3), ("JPEG", 1)])
def test_frames_are_counted_and_the_first_is_taken(kind: str, frames: int) -> None:
    pictures = [photo(16, 12), Image.new("RGB", (16, 12), "red"), Image.new("RGB", (16, 12), "blue")]
    data = encode(
        pictures[0], kind, **({} if kind == "JPEG" else {"save_all": True, "append_images": pictures[1:]})
    )
    found = inspect(data, "x")
    assert (found.frames, found.format, found.picture.size) == (frames, kind, (16, 12))
    assert found.picture.tobytes() == decode(data, "x").tobytes()


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_frames_without_end_are_not_walked(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [Image.new("L", (4, 4), i * 9) for i in range(12)]
    data = encode(pictures[0], kind, save_all=True, append_images=pictures[1:])
    assert inspect(data, "x").frames == 12
    monkeypatch.setattr(images, "MAX_FRAMES", 5)
    assert inspect(data, "x").frames == 5


@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded(
    progressive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(photo(200, 200), "JPEG", progressive=progressive)
    scans = data.count(b"\xff\xda")
    monkeypatch.setattr(images, "MAX_SCAN_PIXELS", 200 * 200 * scans)
    assert decode(data, "x").size == (200, 200)
    if not progressive:
        # One component in the first scan: the decoder then waits for more scans, however many there are.
        start = data.index(b"\xff\xda")
        data = data[: start + 2] + b"\x00\x08\x01\x01\x00\x00\x3f\x00" + data[start + 14 :]
    with pytest.raises(PictureError, match=r"in \d+ scans") as caught:
        decode(data.replace(b"\xff\xd9", b"\xff\xda" * 3), "x")
    assert caught.value.reason == "too-large"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero-bytes"),
        (b"not a picture at all", "not-an-image"),
        (b"%PDF-1.7 something", "not-an-image"),
        (encode(photo(), "EPS"), "not-an-image"),
        (encode(photo(200, 200), "JPEG")[:400], "truncated"),
        (encode(photo())[:60], "truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "truncated"),
        (encode(Image.new("1", (9000, 9000))), "too-large"),
        (encode(Image.new("1", (2, 300))), "extreme-aspect"),
    ],
)
def test_every_refusal_has_a_reason(data: bytes, reason: str) -> None:
    for look in (decode, inspect):
        with pytest.raises(PictureError) as caught:
            look(data, "x")
        assert caught.value.reason == reason
        assert reason in REASONS


# -- the store ------------------------------------------------------------------------------------------------


def test_the_store_keeps_pictures_up_to_its_bound(
    table: Callable[..., Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = images.decode
    monkeypatch.setattr(images, "decode", lambda data, name: calls.append(name) or real(data, name))
    toy, store = table(4), ImageStore(max_bytes=2 * 12 * 12 * 3)
    for _ in range(2):
        for position in range(4):
            assert store.get(toy, position).size == (12, 12)
    assert calls == [f"toy, id s{i}" for i in (0, 1, 2, 3, 2, 3)]


def test_a_picture_that_cannot_be_read_is_named_by_table_and_id(table: Callable[..., Table]) -> None:
    broken = table(3).with_column("image", [b"x", b"", b"y"])
    with pytest.raises(DataError, match="toy, id s1: not a readable image"):
        ImageStore().get(broken, 1)


# -- pixels and augmentation ----------------------------------------------------------------------------------


def test_pixels_are_normalised_per_channel() -> None:
    pixels = PixelFormat(2, (0.5, 0.25, 0.0), (0.5, 0.25, 1.0)).tensor(Image.new("RGB", (2, 2), (255, 0, 51)))
    assert pixels.shape == (3, 2, 2)
    assert torch.allclose(pixels[:, 0, 0], torch.tensor([1.0, -1.0, 0.2]))


def test_a_batch_has_the_bits_of_its_pictures() -> None:
    form = PixelFormat(16, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    mean, std = (np.asarray(values, np.float32) for values in (form.mean, form.std))
    views = [photo(40 + i, 28).resize((16, 16)) for i in range(5)]
    written_out = [
        ((np.asarray(view, np.float32) / np.float32(255) - mean) / std).transpose(2, 0, 1) for view in views
    ]
    assert np.array_equal(form.tensors(views).numpy(), np.stack(written_out))
    assert np.array_equal(form.tensor(views[1]).numpy(), written_out[1])
    assert form.tensors([]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("config", [AugmentConfig(), STRONG])
@pytest.mark.parametrize("size", [(40, 28), (1, 1), (3, 300), (16, 16)])
def test_augmentation_is_a_function_of_its_key_and_of_bounded_size(
    config: AugmentConfig, size: tuple[int, int]
) -> None:
    picture = photo(*size)
    before = picture.tobytes()
    for key in range(8):
        one, two = (augment(picture, 16, config, generator("aug", key)) for _ in range(2))
        assert one.tobytes() == two.tobytes()
        assert (one.size, one.mode) == ((16, 16), "RGB")
    assert picture.tobytes() == before, "the stored picture was changed"


def test_other_keys_give_other_pictures() -> None:
    made = {augment(photo(), 16, STRONG, generator("aug", key)).tobytes() for key in range(20)}
    assert len(made) == 20


def test_without_augmentation_a_square_picture_is_only_resized() -> None:
    still = AugmentConfig(crop_min=1.0, ratio=1.0)
    square = photo(32, 32)
    made = augment(square, 16, still, generator("any"))
    assert made.tobytes() == square.resize((16, 16), Image.Resampling.BICUBIC).tobytes()


@pytest.mark.parametrize(
    ("setting", "changed"),
    [("flip", 1.0), ("rotate", 45), ("colour", 0.9), ("hue", 0.5), ("grey", 1.0), ("zoom_out", 1.0)],
)
def test_every_setting_does_something(setting: str, changed: float) -> None:
    still = AugmentConfig(crop_min=1.0, ratio=1.0)
    moved = still.model_copy(update={setting: changed})
    made = [augment(photo(32, 32), 16, config, generator("one")).tobytes() for config in (still, moved)]
    assert made[0] != made[1]


def test_grey_drops_the_colour() -> None:
    grey = np.asarray(augment(photo(), 16, AugmentConfig(grey=1.0), generator("g")))
    assert (grey[..., 0] == grey[..., 1]).all()
    assert (grey[..., 1] == grey[..., 2]).all()


def of_colour(colour: str) -> Table:
    images = pa.array([encode(Image.new("RGB", (8, 8), colour))] * 3, pa.binary())
    return Table(pa.table({"id": ["0", "1", "2"], "image": images}))


def test_equal_ids_in_two_tables_are_two_pictures() -> None:
    store, red, blue = ImageStore(), of_colour("red"), of_colour("blue")
    assert store.get(red, 0).getpixel((0, 0)) == (255, 0, 0)
    assert store.get(blue, 0).getpixel((0, 0)) == (0, 0, 255)
    assert store.get(red.select([2, 0]), 1) is store.get(red, 0)


def test_a_picture_longer_than_it_is_wide_by_far_is_refused() -> None:
    with pytest.raises(DataError, match="100-fold"):
        decode(encode(Image.new("RGB", (1, 8000))), "strip")
