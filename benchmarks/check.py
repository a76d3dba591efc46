"""`everclip check` on generated pictures: pictures per second against a bare Pillow decode loop, and peak memory.

Run: python benchmarks/check.py [pictures]   (default 100000; memory is also measured at a quarter of them)
"""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import table
from PIL import Image

PICTURES = 100_000
_ROWS = 1000
_SIDE = 64


def write(path: Path, count: int) -> None:
    """Write `count` different JPEGs with captions, one in 500 of them a copy saved anew."""
    draw = np.random.default_rng(0)
    schema = pa.schema([("image", pa.binary()), ("caption", pa.string()), ("class_name", pa.string())])
    with pq.ParquetWriter(path, schema) as file:
        for start in range(0, count, _ROWS):
            rows = []
            for number in range(start, min(start + _ROWS, count)):
                coarse = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                if number % 500 != 499:
                    picture = Image.fromarray(coarse).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
                rows.append(_row(picture, number, 60 if number % 500 == 499 else 90))
            file.write_table(pa.Table.from_pylist(rows, schema=schema))


def _row(picture: Image.Image, number: int, quality: int) -> dict[str, object]:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality)
    return {
        "image": data.getvalue(),
        "caption": f"generated picture {number}",
        "class_name": f"class {number % 97}",
    }


def bare(path: Path, threads: int) -> float:
    """Decode everything with Pillow and nothing else; returns seconds."""

    def decode(data: bytes) -> tuple[int, int]:
        return Image.open(io.BytesIO(data)).convert("RGB").size

    def parts() -> Iterator[list[bytes]]:
        for part in pq.ParquetFile(path).iter_batches(_ROWS, columns=["image"]):
            yield part.column(0).to_pylist()

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for part in parts():
            list(pool.map(decode, part, chunksize=50))
    return time.perf_counter() - started


def child(path: Path) -> None:
    """Check in a process of its own; prints seconds, peak memory and what was found."""
    from everclip.cli.check import inspect_sources

    before = _peak()
    started = time.perf_counter()
    found = inspect_sources([str(path)], [], {}, "builtin:tiny")
    seconds = time.perf_counter() - started
    result = {
        "seconds": seconds,
        "peak": _peak(),
        "before": before,
        "rows": found.check.rows,
        "near": found.check.duplicates.surplus["near"],
    }
    print(json.dumps(result))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB


def measure(path: Path, cache: Path) -> dict[str, float]:
    """Run `child`; its cache of verdicts is `cache`."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(path)],
        env={**os.environ, "EVERCLIP_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(count: int = PICTURES) -> str:
    """Measure and return the table."""
    threads = min(8, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        quarter, whole = folder / "quarter.parquet", folder / "whole.parquet"
        write(quarter, count // 4)
        write(whole, count)
        small = measure(quarter, folder / "cache-quarter")
        loop = bare(whole, threads)
        large = measure(whole, folder / "cache")
        again = measure(whole, folder / "cache")
        loop = (loop + bare(whole, threads)) / 2
    growth = (large["peak"] - small["peak"]) / (0.75 * count / 1000)
    rows = [
        (f"bare Pillow decode, {threads} threads", f"{count / loop:,.0f} pictures/s", ""),
        ("check, first time", f"{count / large['seconds']:,.0f} pictures/s", ""),
        ("check against the bare loop", f"{loop / large['seconds']:.2f}", ""),
        ("check, second time (verdicts remembered)", f"{count / again['seconds']:,.0f} pictures/s", ""),
        (f"peak memory at {count // 4:,}", f"{small['peak']:,.0f} MB", ""),
        (f"peak memory at {count:,}", f"{large['peak']:,.0f} MB", "flat"),
        ("of that before the first picture (libraries)", f"{large['before']:,.0f} MB", ""),
        ("growth per 1,000 pictures", f"{growth:.2f} MB", ""),
        ("copies saved anew that were found", f"{large['near']:,.0f} of {count // 500:,}", "all"),
    ]
    title = f"check on {count:,} generated JPEGs of {_SIDE} px (benchmarks/check.py)"
    return table(title, rows, ("what", "measured", "aim"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]))
    else:
        print(main(int(sys.argv[1]) if sys.argv[1:] else PICTURES))
