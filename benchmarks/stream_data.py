"""Batches out of shards: everclip against the bare pipelines of `webdataset` and `datasets`, and plain Pillow.

All read the same `.tar` shards of JPEGs, with the same transform, batch size and number of workers, once through.
everclip prepares batches in threads; the others in processes of torch's DataLoader. `webdataset` is not a requirement
of everclip: `pip install webdataset`, or its row is left out.

Run: python benchmarks/stream_data.py [--shards 8] [--per-shard 1000] [--workers 1] [--rounds 3] [--write]
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import resource
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ratio, table
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from everclip.config import CaptionConfig
from everclip.contracts import Source, Stream
from everclip.data.pictures.images import ImageStore, PixelFormat
from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.data.sampling.batches import BatchMaker
from everclip.data.table import Table

BATCH, SIDE, BUFFER = 64, 224, 1024
PAGE = Path(__file__).with_name("STREAM_DATA.md")
TRANSFORM: Any = image_transform_v2(PreprocessCfg(size=SIDE), is_train=False)


def write_shards(folder: Path, shards: int, per_shard: int) -> None:
    """Write shards of JPEGs of 256 pixels with the detail of photographs, each with a caption."""
    draw = np.random.default_rng(0)
    noise = draw.normal(0, 8, (300, 300, 1)).astype(np.float32)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as archive:
            for i in range(per_shard):
                coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
                    (256, 256)
                )
                x, y = draw.integers(0, 44, 2)
                pixels = (np.asarray(coarse, np.float32) + noise[x : x + 256, y : y + 256]).clip(0, 255)
                file = io.BytesIO()
                Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=88)
                key = f"{shard:05}-{i:06}"
                for ending, data in (("jpg", file.getvalue()), ("txt", f"picture {key}".encode())):
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def maker(window: int | None) -> BatchMaker:
    """Return everclip's maker of batches with the evaluation transform, without a cache of decoded images."""
    return BatchMaker(
        PixelFormat(SIDE, (0.5,) * 3, (0.25,) * 3),
        TRANSFORM,
        lambda texts: torch.zeros(len(texts), 1, dtype=torch.int64),
        None,
        CaptionConfig(),
        0,
        ImageStore(0),
        window=window,
    )


def of_everclip(data: Table, window: int | None, workers: int, start: int = 0) -> Iterator[dict[str, Any]]:
    """Yield batches of one epoch, from step `start` on."""
    streams = {"main": Stream((Source(data),), BATCH)}
    for batch in maker(window).batches(streams, "bench", start, len(data) // BATCH, workers):
        yield batch["main"]


def of_webdataset(paths: list[str], workers: int) -> Iterable[Any]:
    """Return the batches of a bare `webdataset` pipeline: shards shuffled, then a buffer of samples."""
    import webdataset as wds

    pipeline = (
        wds.WebDataset(paths, shardshuffle=len(paths))
        .shuffle(BUFFER)
        .decode("pilrgb")
        .to_tuple("jpg", "txt")
        .map_tuple(TRANSFORM, str)
        .batched(BATCH)
    )
    return wds.WebLoader(pipeline, batch_size=None, num_workers=workers)  # type: ignore[no-any-return]


def of_datasets(paths: list[str], workers: int) -> Iterable[Any]:
    """Return the batches of a bare `datasets` pipeline, streamed."""
    import datasets

    def loaded(row: dict[str, Any]) -> dict[str, Any]:
        return {"image": TRANSFORM(row["jpg"].convert("RGB")), "text": row["txt"]}

    stream = datasets.load_dataset("webdataset", data_files=paths, split="train", streaming=True)
    rows = stream.shuffle(seed=0, buffer_size=BUFFER).map(loaded, remove_columns=stream.column_names)
    return torch.utils.data.DataLoader(rows, BATCH, num_workers=workers)


def spent() -> float:
    """Return the processor seconds of this process and of its ended workers."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(f.ru_utime + f.ru_stime for f in found)


def measured(make: Callable[[], Iterable[Any]]) -> tuple[float, float]:
    """Return seconds on the clock (from the first batch on) and of the processor per batch, for one epoch."""
    processor, count, begun = spent(), 0, 0.0
    for count, _ in enumerate(make(), 1):  # noqa: B007
        begun = begun or time.perf_counter()
    return (time.perf_counter() - begun) / (count - 1), (spent() - processor) / count


def plain(paths: list[str]) -> float:
    """Return the processor seconds of plain Pillow per batch: decode from memory, resize, to a tensor."""
    held = []
    with tarfile.open(paths[0]) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None and member.name.endswith(".jpg"):
                held.append(file.read())
    started = time.process_time()
    for data in held:
        TRANSFORM(Image.open(io.BytesIO(data)).convert("RGB"))
    return (time.process_time() - started) / len(held) * BATCH


def resumes(data: Table, workers: int) -> bool:
    """Whether an epoch that is left in the middle of a shard continues to the sample, with more workers."""
    whole = [batch["id"] for batch in of_everclip(data, BUFFER, workers)]
    middle = len(whole) // 2 + 1
    return [batch["id"] for batch in of_everclip(data, BUFFER, workers + 2, middle)] == whole[middle:]


def main() -> str:
    """Measure and return the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--shards", type=int, default=8)
    words.add_argument("--per-shard", type=int, default=1000)
    words.add_argument("--workers", type=int, default=1)
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    chosen = words.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EVERCLIP_CACHE"] = f"{folder}/cache"
        write_shards(Path(folder), chosen.shards, chosen.per_shard)
        found = compared(Path(folder), chosen.workers, chosen.rounds)
    count = chosen.shards * chosen.per_shard
    title = (
        f"{count:,} JPEGs of 256 pixels in {chosen.shards} shards, batches of {BATCH}, {chosen.workers} workers "
        "(benchmarks/stream_data.py)"
    )
    page = table(
        title, found, ("what", "samples/s", "samples per processor second", "ours / it: clock", "processor")
    )
    if chosen.write:
        PAGE.write_text(page, encoding="utf-8")
    return page


def compared(folder: Path, workers: int, rounds: int) -> list[tuple[str, ...]]:
    """Return the rows of the table; the pipelines take turns."""
    paths = [str(path) for path in sorted(folder.glob("*.tar"))]
    data = read(DataSpec(source=f"{folder}/*.tar")).table
    acts: dict[str, Callable[[], Iterable[Any]]] = {
        "everclip, window of 1,024": lambda: of_everclip(data, BUFFER, workers),
        "everclip, whole permutation": lambda: of_everclip(data, None, workers),
        "datasets, buffer of 1,024": lambda: of_datasets(paths, workers),
    }
    if importlib.util.find_spec("webdataset") is not None:
        acts["webdataset, buffer of 1,024"] = lambda: of_webdataset(paths, workers)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in acts}
    pillow = []
    for number in range(rounds):
        for name in list(acts) if number % 2 == 0 else list(reversed(acts)):
            times[name].append(measured(acts[name]))
        pillow.append(plain(paths))
    ours = times["everclip, window of 1,024"]
    rows = []
    for name, found in times.items():
        clock, processor = ([pair[i] for pair in found] for i in (0, 1))
        shown = [f"{BATCH / statistics.median(values):.0f}" for values in (clock, processor)]
        both = []
        for i, values in enumerate((clock, processor)):
            middle, low, high = ratio(values, [pair[i] for pair in ours])
            both.append("" if name.startswith("everclip") else f"{middle:.2f} ({low:.2f}-{high:.2f})")
        rows.append((name, *shown, *both))
    alone = statistics.median(pillow)
    against = alone / statistics.median([pair[1] for pair in ours])
    rows.append(
        (
            "plain Pillow + torchvision, one core, from memory",
            "",
            f"{BATCH / alone:.0f}",
            "",
            f"{against:.2f}",
        )
    )
    exact = "yes" if resumes(data, workers) else "NO"
    rows.append((f"everclip resumes to the sample, {workers} to {workers + 2} workers", exact, "", "", ""))
    return rows


if __name__ == "__main__":
    print(main())
