"""Pictures whose decoding used to change them: long metadata, many bits, transparency. What is right, case by case."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build import encoded, picture, pixels, text
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from everclip.data.pictures.images import PictureError, decode, inspect, render
from everclip.data.pictures.rendering import Rendering
from everclip.data.pictures.value_range import Range
from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError
from everclip.models.backbone import load_backbone
from everclip.models.limits import limits_of
from everclip.prepare.check.inspect import Inspected
from everclip.prepare.check.inspect import inspect as examine_data


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "cache"))


def save(shown: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (shown if isinstance(shown, Image.Image) else Image.fromarray(shown)).save(file, kind, **options)
    return file.getvalue()


def grey(data: bytes, rendering: Rendering | None = None) -> np.ndarray:
    read_ = decode(data, "x", rendering) if rendering else decode(data, "x")
    return np.asarray(read_)[..., 0].astype(int)


def load(source: Path, **settings: Any) -> Loaded:
    return read(DataSpec(source=str(source), quarantine_limit=1.0, **settings))


def checked(source: Path, **settings: Any) -> Inspected:
    return examine_data(load(source, **settings), limits_of("builtin:tiny"), 0.01)


def codes(found: Inspected) -> dict[str, str]:
    return {finding.code: finding.message for finding in found.check.findings}


# -- B21: small and oblong pictures ----------------------------------------------------------------------------


def test_b21_small_and_oblong_pictures_are_read_up_to_a_hundredfold(tmp_path: Path) -> None:
    sizes = [(1, 1), (1, 64), (64, 1), (3, 1), (1, 100), (1, 101), (4000, 40), (2, 2), (48, 48), (47, 49)]
    for i, size in enumerate(sizes):
        picture(tmp_path / f"img/{size[0]}x{size[1]}.png", "cat", size=size, seed=i)
    Image.new("1", (3, 1), 1).save(tmp_path / "img/bit.png")
    names = sorted(path.name for path in (tmp_path / "img").iterdir())
    rows = "".join(f"img/{name},a thing called {name}\n" for name in names)
    loaded = load(text(tmp_path / "list.csv", "file,caption\n" + rows))
    assert len(loaded.table) == len(names) - 1
    assert [(Path(e.path).name, e.reason) for e in loaded.quarantine.entries] == [
        ("1x101.png", "extreme-aspect")
    ]
    prepare = load_backbone("builtin:tiny").preprocess
    for i in range(len(loaded.table)):
        assert prepare(decode(*loaded.table.encoded(i))).shape == (3, 48, 48)


# -- B22: long metadata, and failures told apart ---------------------------------------------------------------

LONG = "x" * 2_000_000


def _with_text(zipped: bool, international: bool) -> PngInfo:
    info = PngInfo()
    (info.add_itxt if international else info.add_text)("workflow", LONG, zip=zipped)
    return info


def _many_texts() -> PngInfo:
    info = PngInfo()
    for number in range(80):
        info.add_text(f"part {number}", "y" * 1_000_000, zip=True)
    return info


SHOWN = Image.fromarray(pixels("cat"))


@pytest.mark.parametrize(
    "data",
    [
        save(SHOWN, pnginfo=_with_text(True, False)),
        save(SHOWN, pnginfo=_with_text(False, False)),
        save(SHOWN, pnginfo=_with_text(True, True)),
        save(SHOWN, pnginfo=_with_text(False, True)),
        save(SHOWN, pnginfo=_many_texts()),
        save(SHOWN, icc_profile=bytes(2_000_000)),
        save(SHOWN, "WEBP", lossless=True, icc_profile=bytes(2_000_000), exif=b"Exif\0\0" + b"\xff" * 60_000),
    ],
    ids=["ztxt", "text", "itxt zip", "itxt", "eighty texts", "icc", "webp"],
)
def test_b22_a_picture_with_long_metadata_is_read(data: bytes) -> None:
    assert np.array_equal(np.asarray(decode(data, "x")), pixels("cat"))
    assert inspect(data, "x").frames == 1


def test_b22_a_jpeg_with_long_metadata_is_read_and_its_scans_are_counted_in_the_picture_alone() -> None:
    options = {"exif": b"Exif\0\0" + b"\xff\xda" * 30_000, "icc_profile": b"\xff\xda" * 100_000}
    data = save(SHOWN, "JPEG", progressive=True, comment=b"\xff\xda" * 30_000, **options)
    assert decode(data, "x").tobytes() == decode(save(SHOWN, "JPEG", progressive=True), "x").tobytes()
    # Each mark in the metadata would count as one pass over all pixels.
    large = Image.fromarray(pixels("cat", (800, 600)))
    assert decode(save(large, "JPEG", progressive=True, **options), "x").size == (800, 600)


@pytest.mark.parametrize("zipped", [True, False])
def test_b22_the_orientation_in_a_text_chunk_survives(zipped: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes().removeprefix(b"Exif\0\0")
    profile = f"\nexif\n{len(raw) + 6:8d}\n{(b'Exif' + bytes(2) + raw).hex()}\n"
    info = PngInfo()
    info.add_text("workflow", LONG, zip=True)
    info.add_text("Raw profile type exif", profile, zip=zipped)
    assert decode(save(Image.new("RGB", (24, 10)), pnginfo=info), "x").size == (10, 24)


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded()[:-40], "truncated"),
        (encoded(kind="JPEG")[:-40], "truncated"),
        (encoded(kind="WEBP")[:-40], "truncated"),
        (_flipped(encoded(), 60), "damaged"),
        (_flipped(encoded(), 18), "damaged"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "unsupported"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(64), "unsupported"),
        (b"8BPS" + bytes(64), "unsupported"),
        (bytes(128) + b"DICM" + bytes(64), "unsupported"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "not-an-image"),
        (b"<!DOCTYPE html><html>404</html>", "not-an-image"),
    ],
)
def test_b22_every_failure_has_its_own_reason(data: bytes, reason: str) -> None:
    with pytest.raises(PictureError) as caught:
        decode(data, "x")
    assert caught.value.reason == reason
    if reason == "unsupported":
        assert "convert it to PNG or JPEG" in caught.value.detail


def test_b22_a_compression_that_pillow_does_not_know_is_unsupported() -> None:
    data = bytearray(save(SHOWN, "TIFF"))
    at = data.index(struct.pack("<HHI", 259, 3, 1))
    data[at + 8 : at + 10] = struct.pack("<H", 34713)  # Nikon's
    with pytest.raises(PictureError) as caught:
        decode(bytes(data), "x")
    assert caught.value.reason in ("unsupported", "damaged")


def test_b22_what_stands_in_place_of_a_picture_is_named() -> None:
    with pytest.raises(PictureError, match="git lfs pull"):
        decode(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "x")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read_where_pillow_can() -> None:
    assert inspect(save(SHOWN, "AVIF", quality=100), "x").format == "AVIF"


# -- B23: the range of values ----------------------------------------------------------------------------------


def disc(radius: int, low: float = 200, high: float = 3600) -> np.ndarray:
    y, x = np.mgrid[:64, :64]
    noise = np.random.default_rng(radius).normal(0, 40, (64, 64))
    return (np.where((x - 32) ** 2 + (y - 32) ** 2 < radius**2, high, low) + noise).clip(0, 4095)


EIGHT = (disc(12) / 16).astype(np.uint8).astype(int)


def _png16(values: np.ndarray, interlaced: bool = False) -> bytes:
    """Return a PNG with 16 bits a channel, which Pillow cannot write in colour."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + values[y].astype(">u2").tobytes() for y in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    colour = {2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("12 bits in a png", save(disc(12).astype(np.uint16))),
        ("12 bits in a tiff", save(disc(12).astype(np.uint16), "TIFF")),
        ("8 bits in 32", save((disc(12) / 16).astype(np.int32), "TIFF")),
        ("10 bits in 32", save((disc(12) / 4).astype(np.int32), "TIFF")),
        ("14 bits", save((disc(12) * 4).astype(np.uint16))),
        ("16 bits", save((disc(12) * 16).astype(np.uint16))),
        ("20 bits", save((disc(12) * 256).astype(np.int32), "TIFF")),
        ("floats to 4095", save(disc(12).astype(np.float32), "TIFF")),
        ("floats to 1", save((disc(12) / 4095).astype(np.float32), "TIFF")),
        ("floats to 1e-3", save((disc(12) / 4095 / 1024).astype(np.float32), "TIFF")),
        ("floats from -1", save((disc(12) / 2048 - 1).astype(np.float32), "TIFF")),
        ("12 bits in colour", _png16(np.repeat(disc(12)[..., None], 3, axis=2))),
        ("16 bits in colour", _png16(np.repeat(disc(12)[..., None] * 16, 3, axis=2))),
    ],
)
def test_b23_the_range_comes_from_the_values(name: str, data: bytes) -> None:
    assert np.abs(grey(data) - EIGHT).max() <= 2, name


def test_b23_signed_values_keep_their_contrast() -> None:
    shown = grey(save((disc(12) - 2048).astype(np.int32), "TIFF"))
    assert np.abs(shown - EIGHT).max() <= 1


def test_b23_sixteen_bits_with_alpha() -> None:
    colours = np.repeat(disc(12)[..., None], 3, axis=2)
    opaque, clear = np.full((64, 64, 1), 65535.0), np.zeros((64, 64, 1))
    assert np.abs(grey(_png16(np.concatenate([colours, opaque], axis=2))) - EIGHT).max() <= 1
    assert np.abs(grey(_png16(np.concatenate([colours[..., :1], opaque], axis=2))) - EIGHT).max() <= 1
    assert grey(_png16(np.concatenate([colours, clear], axis=2))).min() == 255


def test_b23_defective_pixels_nan_and_infinity_do_not_decide() -> None:
    values = disc(12).astype(np.uint16)
    values[0, :3] = 65535
    assert np.abs(grey(save(values)) - EIGHT)[1:].max() <= 1
    floats = disc(12).astype(np.float32)
    floats[0, :3] = np.nan, np.inf, -np.inf
    shown = grey(save(floats, "TIFF"))
    assert np.abs(shown - EIGHT)[1:].max() <= 1
    assert shown[0, :3].tolist() == [0, 255, 0]


def test_b23_equal_values_are_kept_as_they_are() -> None:
    assert set(grey(save(np.full((8, 8), 200, np.uint16))).ravel()) == {200}
    assert set(grey(save(np.zeros((8, 8), np.uint16))).ravel()) == {0}
    assert set(grey(save(np.full((8, 8), np.nan, np.float32), "TIFF")).ravel()) == {0}


def test_b23_a_tiff_says_its_range_and_which_end_is_white() -> None:
    dark = (disc(12) / 64).astype(np.uint16)
    stated = save(dark, "TIFF", tiffinfo={281: 4095})
    assert grey(stated).max() <= 4
    assert inspect(stated, "x").span == Range("i", False, 12, stated=True)
    upside = save(disc(12).astype(np.uint16), "TIFF", tiffinfo={262: 0})
    assert np.abs(255 - grey(upside) - EIGHT).max() <= 1


def test_b23_big_endian_and_missing_measurements() -> None:
    values = disc(12).astype(np.uint16)
    big = save(values.astype(">u2"), "TIFF")
    assert big.startswith(b"MM")
    assert np.abs(grey(big) - EIGHT).max() <= 1
    gaps = disc(12).astype(np.float32)
    gaps[:20] = -9999
    data = save(gaps, "TIFF", tiffinfo={42113: "-9999"})
    assert np.abs(grey(data)[20:] - EIGHT[20:]).max() <= 1
    assert grey(data)[:20].max() == 0


def _folder(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    for name, values in arrays.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(folder / name)
    return folder


def test_b23_the_pictures_of_a_set_are_read_alike(tmp_path: Path) -> None:
    """A dark picture stays dark beside bright ones; one with larger values is read by its own range."""
    arrays = {f"{kind}/{i}.png": disc(8 + i).astype(np.uint16) for kind in ("cat", "dog") for i in range(8)}
    arrays["cat/dark.png"] = (disc(12) / 16).astype(np.uint16)
    arrays["dog/large.png"] = (disc(12) * 16).astype(np.uint16)
    loaded = load(_folder(tmp_path / "d", arrays))
    shown = {Path(loaded.table.origin(i)).name: decode(*loaded.table.encoded(i)) for i in range(18)}
    assert np.asarray(shown["dark.png"]).max() <= 16
    assert np.abs(np.asarray(shown["large.png"])[..., 0].astype(int) - EIGHT).max() <= 1
    assert any("17 images" in line and "0 to 4095" in line and "data.bits" in line for line in loaded.guesses)
    wide = load(tmp_path / "d", bits=16)
    assert np.asarray(decode(*wide.table.encoded(0))).max() <= 16
    assert not any("guessed from the values" in line for line in wide.guesses)
    assert loaded.table.fingerprint != wide.table.fingerprint


def test_b23_check_takes_no_dark_pictures_for_copies(tmp_path: Path) -> None:
    arrays = {
        f"{k}/{i}.png": disc(6 + 3 * i + 9 * (k == "dog")).astype(np.uint16)
        for k in ("cat", "dog")
        for i in range(3)
    }
    _folder(tmp_path / "d", arrays)
    assert checked(tmp_path / "d").check.duplicates.surplus["pixels"] == 0
    # Even where the user's range makes all of them black.
    blackened = checked(tmp_path / "d", bits=32)
    assert blackened.check.duplicates.surplus == {"bytes": 0, "pixels": 0, "near": 0}
    assert "6 images are blank after conversion" in codes(blackened)["blank"]


# -- B24: transparency -----------------------------------------------------------------------------------------


def drawing(colour: tuple[int, int, int], radius: int = 20) -> Image.Image:
    """A disc on transparency, with noise hidden where nothing is visible."""
    y, x = np.mgrid[:64, :64]
    rgb = np.random.default_rng(radius).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    inside = (x - 32) ** 2 + (y - 32) ** 2 < radius**2
    rgb[inside] = colour
    return Image.fromarray(np.dstack([rgb, np.where(inside, 255, 0).astype(np.uint8)]), "RGBA")


WHITE, BLACK = (255, 255, 255), (20, 20, 20)
MAKE: dict[str, Callable[[Image.Image], bytes]] = {
    "rgba": save,
    "la": lambda p: save(p.convert("LA")),
    "palette": lambda p: save(p.quantize(16)),
    "webp": lambda p: save(p, "WEBP", lossless=True),
    "animated webp": lambda p: save(p, "WEBP", lossless=True, save_all=True, append_images=[p.rotate(9)]),
    "gif": lambda p: save(p, "GIF"),
    "tiff": lambda p: save(p, "TIFF"),
}


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize(("colour", "ground"), [(WHITE, 0), (BLACK, 255), ((240, 240, 240), 0)])
def test_b24_what_lies_on_transparency_keeps_a_contrast(
    kind: str, colour: tuple[int, int, int], ground: int
) -> None:
    shown = grey(MAKE[kind](drawing(colour)))
    assert abs(int(shown[32, 32]) - colour[0]) <= 8
    assert shown[0, 0] == ground


def test_b24_a_background_can_be_chosen_and_the_guess_is_printed(tmp_path: Path) -> None:
    for i, colour in enumerate((WHITE, WHITE, BLACK)):
        path = tmp_path / f"d/{'cat' if i else 'dog'}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing(colour, 10 + 5 * i).save(path)
    loaded = load(tmp_path / "d")
    assert any("2 on black, 1 on white" in line and "data.background" in line for line in loaded.guesses)
    red = load(tmp_path / "d", background="red")
    assert decode(*red.table.encoded(0)).getpixel((0, 0)) == (255, 0, 0)
    assert not any("background" in line for line in red.guesses)
    with pytest.raises((ConfigError, ValueError), match="expected auto, white, black or a colour"):
        DataSpec(source="x", background="wite")


def test_b24_check_names_blanks_and_takes_none_for_a_copy(tmp_path: Path) -> None:
    for i in range(4):
        path = tmp_path / f"d/{'cat' if i % 2 else 'dog'}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing(WHITE, 8 + 5 * i).save(path)
    assert checked(tmp_path / "d").check.duplicates.surplus == {"bytes": 0, "pixels": 0, "near": 0}
    found = checked(tmp_path / "d", background="white")
    assert found.check.duplicates.surplus == {"bytes": 0, "pixels": 0, "near": 0}
    assert "4 images are blank after conversion to RGB with 8 bits: " in codes(found)["blank"]
    assert "0.png" in codes(found)["blank"]
    assert "copies" not in codes(found)


def test_b24_a_copy_in_another_format_is_still_a_copy(tmp_path: Path) -> None:
    (tmp_path / "d/cat").mkdir(parents=True)
    (tmp_path / "d/cat/0.png").write_bytes(save(drawing(BLACK)))
    (tmp_path / "d/cat/1.webp").write_bytes(save(drawing(BLACK), "WEBP", lossless=True))
    picture(tmp_path / "d/dog/0.png")
    assert checked(tmp_path / "d").check.duplicates.surplus["pixels"] == 1


def test_wholly_transparent_pictures_are_blank() -> None:
    hidden = drawing(BLACK)
    hidden.putalpha(0)
    assert inspect(save(hidden), "x").blank


# -- near duplicates across classes ----------------------------------------------------------------------------


def test_near_duplicates_with_two_classes_are_likely_label_errors(tmp_path: Path) -> None:
    picture(tmp_path / "d/cat/a.png", seed=1)
    for i in range(2, 5):
        picture(tmp_path / f"d/cat/{i}.png", seed=i)
        picture(tmp_path / f"d/dog/{i}.png", "dog", seed=i + 20)
    shown = Image.fromarray(pixels("cat", seed=1))
    shown.save(tmp_path / "d/dog/b.jpg", quality=60)
    found = checked(tmp_path / "d")
    message = codes(found)["mislabelled"]
    assert "1 pair of nearly equal images with different classes" in message
    assert "cat/a.png ('cat')" in message
    assert "dog/b.jpg ('dog')" in message


# -- other odd files -------------------------------------------------------------------------------------------


def test_lab_is_read_with_its_colours() -> None:
    lab = Image.new("LAB", (8, 8), (128, 128, 128))
    shown = np.asarray(decode(save(lab, "TIFF"), "x")).reshape(-1, 3).astype(int)
    assert shown.shape == (64, 3)
    assert np.abs(shown - shown.mean()).max() < 8  # grey


def test_the_first_page_of_a_tiff_is_read() -> None:
    pages = [Image.fromarray((disc(12) * scale).astype(np.uint16)) for scale in (1, 16)]
    data = save(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert np.abs(grey(data) - EIGHT).max() <= 1
    assert inspect(data, "x").frames == 2


def test_a_table_of_captions_keeps_the_background_of_each_picture(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(save(drawing(WHITE)))
    source = text(tmp_path / "list.csv", "file,caption\n0.png,a disc\n0.png,a circle\n")
    loaded = load(source, background="#0000ff")
    assert [decode(*loaded.table.encoded(i)).getpixel((0, 0)) for i in (0, 1)] == [(0, 0, 255)] * 2


def test_a_column_of_the_users_called_rendering_is_theirs(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(save(drawing(WHITE)))
    source = text(tmp_path / "list.csv", "file,caption,rendering\n0.png,a disc,3D\n")
    loaded = load(source, background="red")
    assert loaded.table.column("rendering") == ["3D"]
    assert decode(*loaded.table.encoded(0)).getpixel((0, 0)) == (255, 0, 0)


def _tiff16(values: np.ndarray, compressed: bool, order: str) -> bytes:
    """Return a TIFF in colours of 16 bits, which Pillow cannot write."""
    height, width, channels = values.shape
    data = values.astype(order + "u2").tobytes()
    data = zlib.compress(data) if compressed else data
    bits = struct.pack(f"{order}{channels}H", *[16] * channels)
    fields = [(256, width), (257, height), (258, 0), (259, 8 if compressed else 1), (262, 2), (273, 0)]
    fields += [(277, channels), (278, height), (279, len(data))]
    end = 8 + 2 + 12 * len(fields) + 4
    fixed = {258: end, 273: end + len(bits)}
    out = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(fields))
    for tag, value in fields:
        count, kind = (channels, 3) if tag == 258 else (1, 4)
        out += struct.pack(f"{order}HHII", tag, kind, count, fixed.get(tag, value))
    return out + bytes(4) + bits + data


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_b23_a_tiff_in_colours_of_sixteen_bits(compressed: bool, order: str) -> None:
    colours = np.repeat(disc(12)[..., None], 3, axis=2).astype(np.uint16)
    assert np.abs(grey(_tiff16(colours, compressed, order)) - EIGHT).max() <= 1


def test_bits_do_not_apply_to_floating_point_shares() -> None:
    values = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    plain, told = (render(file.getvalue(), "x", Rendering(bits=bits)) for bits in (None, 12))
    assert plain.picture.tobytes() == told.picture.tobytes()
    assert not told.blank
    file = io.BytesIO()
    Image.fromarray(np.rint(values * 1000)).save(file, "TIFF")  # whole levels, kept as floating-point numbers
    found = render(file.getvalue(), "x", Rendering(bits=12)).picture
    assert np.asarray(found).max() == 1000 * 256 // 4096
