"""Makes broken files from sound ones and reads them; a process of its own, so that a crash or a hang is seen.

Run: python tests/property/broken_files.py FOLDER COUNT     prints {format: {outcome: files}} as JSON
"""

from __future__ import annotations

import faulthandler
import io
import json
import resource
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from everclip.data.pictures.images import PictureError
from everclip.data.reading.facts import facts_of
from everclip.data.reading.quarantine import REASONS
from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.errors import DataError

PATIENCE = 60
"""Seconds for one file of a few kilobytes, on a busy machine; then the process ends with a traceback."""

MEMORY = 8 * 1024**3
"""Bytes of address space: a file that asks for more than that is a bomb."""

SPECIAL = tuple(
    bytes.fromhex(word)
    for word in ("00000000", "ffffffff", "7fffffff", "ffffff7f", "80000000", "0000", "ffd8")
)
"""What lengths, counts and markers are overwritten with."""


def _pixels(draw: np.random.Generator, mode: str = "RGB", side: int = 32) -> Image.Image:
    flat = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return flat.resize((side, side - 6), Image.Resampling.BICUBIC).convert(mode)


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def sound(kind: str) -> list[bytes]:
    """Return sound files of a format, in its several variants."""
    draw = np.random.default_rng(1)
    picture, other = _pixels(draw), _pixels(draw)
    exif = Image.Exif()
    exif[0x0112] = 6
    moving = {"save_all": True, "append_images": [other, picture]}
    grey16 = Image.fromarray(draw.integers(0, 2**16, (20, 24), dtype=np.uint16))
    variants: dict[str, Callable[[], list[bytes]]] = {
        "jpeg": lambda: [
            _encoded(picture, "JPEG"),
            _encoded(picture, "JPEG", progressive=True, exif=exif),
            _encoded(picture.convert("CMYK"), "JPEG"),
        ],
        "png": lambda: [
            _encoded(picture, "PNG"),
            _encoded(picture.convert("P"), "PNG", transparency=3),
            _encoded(picture.convert("LA"), "PNG", exif=exif),
            _encoded(grey16, "PNG"),
            _encoded(picture, "PNG", **moving),
        ],
        "webp": lambda: [
            _encoded(picture, "WEBP"),
            _encoded(picture.convert("RGBA"), "WEBP", lossless=True, exif=exif),
            _encoded(picture, "WEBP", **moving),
        ],
        "tiff": lambda: [
            _encoded(picture, "TIFF", compression="tiff_deflate"),
            _encoded(grey16, "TIFF"),
            _encoded(picture.convert("L").convert("F"), "TIFF"),
            _encoded(picture.convert("L").convert("I"), "TIFF"),
            _encoded(picture, "TIFF", **moving),
        ],
        "gif": lambda: [_encoded(picture, "GIF"), _encoded(picture, "GIF", **moving)],
        "tar": lambda: [
            _tar(draw, form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
        ],
        "parquet": lambda: [_parquet(draw, c) for c in ("none", "snappy", "zstd")],
        "csv": lambda: [_csv(b"\n"), _csv(b"\r\n")],
    }
    return variants[kind]()


KINDS = ("jpeg", "png", "webp", "gif", "tar", "parquet", "csv", "tiff")


def _tar(draw: np.random.Generator, form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for i in range(3):
            long = "a" * (120 if i == 2 and form != tarfile.USTAR_FORMAT else 1)
            parts = {"png": _encoded(_pixels(draw), "PNG"), "txt": b"a thing", "json": b'{"year": 2024}'}
            for ending, data in parts.items():
                info = tarfile.TarInfo(f"{long}/{i:03}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _parquet(draw: np.random.Generator, compression: str) -> bytes:
    images = [_encoded(_pixels(draw, side=16), "PNG") for _ in range(6)]
    columns = {
        "image": pa.array(images, pa.binary()),
        "caption": [f"thing {i}" for i in range(6)],
        "time": range(6),
    }
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=2, compression=compression)
    return file.getvalue()


def _csv(end: bytes) -> bytes:
    rows = [
        b"image,caption,label,year",
        *[b'p/%d.png,"a ""thing"", %d",cat,2024' % (i % 3, i) for i in range(12)],
    ]
    return end.join([*rows, b""])


def broken(data: bytes, others: list[bytes], draw: np.random.Generator) -> bytes:
    """Return a file with one to four wounds."""
    wounded = bytearray(data)
    for _ in range(int(draw.integers(1, 5))):
        size = len(wounded)
        if not size:
            break
        at, length = int(draw.integers(size)), int(draw.integers(1, 1 + min(64, size)))
        kind = int(draw.integers(7))
        if kind == 0:  # a flipped bit
            wounded[at] ^= 1 << int(draw.integers(8))
        elif kind == 1:  # noise
            wounded[at : at + length] = draw.bytes(length)
        elif kind == 2:  # cut short
            del wounded[at:]
        elif kind == 3:  # a piece is missing
            del wounded[at : at + length]
        elif kind == 4:  # a piece stands twice
            wounded[at:at] = wounded[at : at + length]
        elif kind == 5:  # a length, a count or a marker is another
            special = SPECIAL[int(draw.integers(len(SPECIAL)))]
            wounded[at : at + len(special)] = special
        else:  # spliced with another file
            other = others[int(draw.integers(len(others)))]
            wounded[at:] = other[int(draw.integers(len(other))) :]
    return bytes(wounded)


def outcome(kind: str, data: bytes, folder: Path) -> str:
    """Read a broken file; return `read`, `partly read`, or why it was set aside."""
    if kind in ("jpeg", "png", "webp", "gif", "tiff"):
        try:
            facts_of(data, "picture", b"")
        except PictureError as error:
            return error.reason if error.reason in REASONS else f"no such reason: {error.reason}"
        return "read"
    path = folder / f"data.{kind}"
    path.write_bytes(data)
    try:
        loaded = read(DataSpec(source=str(path), quarantine_limit=1.0))
    except DataError:
        return "refused"
    assert all(entry.reason in REASONS for entry in loaded.quarantine.entries)
    assert len(loaded.table) == len(loaded.facts) == len(loaded.table.column("image"))
    return "partly read" if loaded.quarantine.entries else "read"


def main(folder: Path, count: int) -> dict[str, dict[str, int]]:
    """Break and read `count` files of every format."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    (folder / "p").mkdir(exist_ok=True)
    for i in range(3):
        (folder / f"p/{i}.png").write_bytes(sound("png")[i])
    sounds = {kind: sound(kind) for kind in KINDS}
    everything = [data for files in sounds.values() for data in files]
    found: dict[str, dict[str, int]] = {}
    for kind in KINDS:
        outcomes: Counter[str] = Counter()
        for number in range(count):
            draw = np.random.default_rng([KINDS.index(kind), number])
            data = broken(sounds[kind][number % len(sounds[kind])], everything, draw)
            (folder / "last").write_bytes(data)  # what is at work when the process ends without a word
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            try:
                outcomes[outcome(kind, data, folder)] += 1
            except Exception as error:
                raise AssertionError(f"{kind} {number}: {type(error).__name__} is none of ours") from error
        found[kind] = dict(outcomes)
    faulthandler.cancel_dump_traceback_later()
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
