"""What a start costs per row of sharded data: first reading, reading of images that were checked before, and the index.

Each way reads in a process of its own. Memory is what the process holds privately afterwards (RssAnon), without what is
mapped from files. Linux only.

Run: python benchmarks/start.py [--rows 20000]
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from common import table
from PIL import Image

from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec


def write_shards(folder: Path, rows: int, per_shard: int = 5000) -> None:
    """Write shards of small JPEGs, each with a caption and a date; large enough together to have an index."""
    draw = np.random.default_rng(0)
    for first in range(0, rows, per_shard):
        with tarfile.open(folder / f"{first // per_shard:05}.tar", "w") as archive:
            for i in range(first, min(first + per_shard, rows)):
                file = io.BytesIO()
                Image.fromarray(draw.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(
                    file, "JPEG", quality=90
                )
                about = f'{{"caption": "picture number {i}", "time": "{2000 + i % 20}"}}'.encode()
                for ending, data in (("jpg", file.getvalue()), ("json", about)):
                    member = tarfile.TarInfo(f"{i:08}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def private_bytes() -> int:
    """Return the private memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def one(folder: Path) -> None:
    """Read the shards and print processor seconds, private bytes and rows; before, read a few rows to load all code."""
    read(DataSpec(source=str(folder.with_name("few"))))
    before, started = private_bytes(), time.process_time()
    rows = read(DataSpec(source=str(folder))).table
    seconds, held = time.process_time() - started, private_bytes() - before
    count = len(rows.ids)  # as a task that trains on all rows needs them
    print(seconds, held, private_bytes() - before, count)


def in_process(folder: Path, cache: Path) -> tuple[float, int, int, int]:
    """Run `one` in a process of its own."""
    environment = os.environ | {"EVERCLIP_CACHE": str(cache)}
    words = [sys.executable, __file__, "--one", str(folder)]
    found = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.split()
    return float(found[-4]), int(found[-3]), int(found[-2]), int(found[-1])


def main() -> None:
    """Measure the three ways and print the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--rows", type=int, default=20_000)
    words.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = words.parse_args()
    if given.one is not None:
        one(given.one)
        return
    with tempfile.TemporaryDirectory() as place:
        folder, cache = Path(place) / "shards", Path(place) / "cache"
        for path, count in ((folder, given.rows), (folder.with_name("few"), 4)):
            path.mkdir()
            write_shards(path, count)
        size = sum(path.stat().st_size for path in folder.iterdir())
        found = {"first start": in_process(folder, cache)}
        index = cache / "index"
        disk = sum(path.stat().st_size for path in index.rglob("*") if path.is_file()) / given.rows
        shutil.rmtree(index)
        found["images checked before, no index"] = in_process(folder, cache)
        found["with the index"] = in_process(folder, cache)
    rows = [
        (
            way,
            f"{1e6 * seconds / n:,.1f} µs",
            f"{held / n:,.0f} B",
            f"{named / n:,.0f} B",
            f"{disk:,.0f} B" if "with" in way else "",
        )
        for way, (seconds, held, named, n) in found.items()
    ]
    title = f"What a start costs per row: {given.rows:,} rows, {size / 1e6:,.0f} MB of shards (benchmarks/start.py)"
    print(
        table(
            title, rows, ("start", "processor time", "private memory", "when all rows train", "index on disk")
        )
    )


if __name__ == "__main__":
    main()
