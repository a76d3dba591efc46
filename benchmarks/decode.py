"""Decode + evaluation transform of photographs against a plain Pillow + torchvision loop: same files, same threads.

Run: python benchmarks/decode.py [pictures]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import alternate, ratio, table
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from everclip.data.pictures.images import decode
from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec

PICTURES, ROUNDS, BLOCK = 2000, 4, 64
WORKERS = 2


def write_pictures(folder: Path, count: int) -> None:
    """Write JPEGs of about 500 x 375 with the detail of photographs, and the table that names them."""
    draw = np.random.default_rng(0)
    rows = []
    for i in range(count):
        width, height = 500 - int(draw.integers(40)), 375 - int(draw.integers(40))
        coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height))
        noise = draw.normal(0, 8, (height, width, 1))
        pixels = (np.asarray(coarse, np.float32) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:05}.jpg", quality=88)
        rows.append({"image": f"{i:05}.jpg", "caption": f"picture {i}"})
    pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")


def in_blocks(load: Callable[[int], torch.Tensor], count: int) -> Callable[[], None]:
    """Return a function that loads all pictures in threads and stacks them into batches."""

    def run() -> None:
        with ThreadPoolExecutor(WORKERS) as pool:
            for start in range(0, count, BLOCK):
                torch.stack(list(pool.map(load, range(start, min(start + BLOCK, count)))))

    return run


def main() -> str:
    """Measure and return the table."""
    torch.set_num_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else PICTURES
    transform: Any = image_transform_v2(PreprocessCfg(size=224), is_train=False)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), count)
        data = read(DataSpec(source=folder)).table
        paths = sorted(Path(folder).glob("*.jpg"))

        def plain(i: int) -> torch.Tensor:
            with Image.open(paths[i]) as picture:
                return transform(picture.convert("RGB"))  # type: ignore[no-any-return]

        def ours(i: int) -> torch.Tensor:
            return transform(decode(data.value("image", i), data.name))  # type: ignore[no-any-return]

        assert all(torch.equal(plain(i), ours(i)) for i in range(min(count, 50)))
        baseline, mine = alternate(in_blocks(plain, count), in_blocks(ours, count), ROUNDS)
    middle, low, high = ratio(baseline, mine)
    rows = [
        (
            "plain loop: open, convert, transform",
            f"{count / sorted(baseline)[ROUNDS // 2]:.0f} pictures/s",
            "",
        ),
        (
            "everclip: bounded, upright, from its table",
            f"{count / sorted(mine)[ROUNDS // 2]:.0f} pictures/s",
            "",
        ),
        ("ratio", f"{middle:.3f} ({low:.3f}-{high:.3f})", ">= 0.95"),
    ]
    title = f"Decode and evaluation transform of {count:,} JPEGs, {WORKERS} threads (benchmarks/decode.py)"
    return table(title, rows, ("what", "median (quartiles)", "aim"))


if __name__ == "__main__":
    print(main())
