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
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from common import table
from PIL import Image

PICTURES = 100_000
_ROWS = 1000
_SIDE = 64

Times = tuple[float, float]
"""Seconds on the clock and of the processor."""


def write(path: Path, count: int) -> None:
    """Write a shard of `count` different JPEGs with captions, one in 500 of them a copy saved anew."""
    draw = np.random.default_rng(0)
    with tarfile.open(path, "w") as file:
        for number in range(count):
            copy = number % 500 == 499
            if not copy:
                coarse = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                picture = Image.fromarray(coarse).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
            data = io.BytesIO()
            picture.save(data, "JPEG", quality=60 if copy else 90)
            caption = f"generated picture {number - copy}".encode()
            for suffix, content in (("jpg", data.getvalue()), ("txt", caption)):
                member = tarfile.TarInfo(f"{number:07d}.{suffix}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))


def bare(path: Path, threads: int) -> Times:
    """Decode everything with Pillow and nothing else."""

    def decode(data: bytes) -> tuple[int, int]:
        return Image.open(io.BytesIO(data)).convert("RGB").size

    def pictures() -> Iterator[bytes]:
        with tarfile.open(path) as file:
            for member in file:
                if member.name.endswith(".jpg"):
                    yield file.extractfile(member).read()  # type: ignore[union-attr]

    started, used = time.perf_counter(), time.process_time()
    found = pictures()
    with ThreadPoolExecutor(threads) as pool:
        while part := list(islice(found, _ROWS)):
            list(pool.map(decode, part, chunksize=50))
    return time.perf_counter() - started, time.process_time() - used


def child(path: Path) -> None:
    """Check in a process of its own; prints times, peak memory and what was found."""
    from everclip.cli.check import inspect_sources
    from everclip.models.limits import limits_of

    limits_of("builtin:tiny")  # loads the libraries
    before = _peak()
    started, used = time.perf_counter(), time.process_time()
    found = inspect_sources([str(path)], [], {}, "builtin:tiny")
    result = {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - used,
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
        quarter, whole = folder / "quarter.tar", folder / "whole.tar"
        write(quarter, count // 4)
        write(whole, count)
        small = measure(quarter, folder / "cache-quarter")
        first = bare(whole, threads)
        large = measure(whole, folder / "cache")
        again = measure(whole, folder / "cache")
        loop = tuple((a + b) / 2 for a, b in zip(first, bare(whole, threads), strict=True))
    growth = (large["peak"] - small["peak"]) / (0.75 * count / 1000)
    rows = [
        (f"bare Pillow decode, {threads} threads", f"{count / loop[0]:,.0f} pictures/s", ""),
        ("check, first time", f"{count / large['seconds']:,.0f} pictures/s", ""),
        ("check, second time (verdicts remembered)", f"{count / again['seconds']:,.0f} pictures/s", ""),
        ("speed against the bare loop, first time", f"{loop[0] / large['seconds']:.2f}", ""),
        ("processor time against the bare loop, first time", f"{large['cpu'] / loop[1]:.1f} x", ""),
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
