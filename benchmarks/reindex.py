"""Re-embedding a search index: its speed against the bare encoder, and what is left after many kills.

Speed: the same images are embedded by the bare encoder (read, decoded, encoded, nothing written) and by
`everclip reindex`, in turn; the ratio of both times is what finding the work and writing cost. Kills: the re-embedding
of a small index is started again and again and killed (SIGKILL) at a random moment. Each process logs what it embeds.
At the end every item must have one vector, no item may be embedded again after its block was written, and each vector
must have the bits of a re-embedding that nobody disturbed.

Run: python benchmarks/reindex.py [--images 2000] [--rounds 3] [--kills 50] [--model builtin:photo] [--write]
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import alternate, machine, ratio
from PIL import Image

from everclip.search import adding, embedding, engines, reembedding, reindexing, tables
from everclip.search.embedding import SearchModel, embedded
from everclip.search.engines import IMAGE, sources_of
from everclip.search.index import Index
from everclip.search.reembedding import REEMBED
from everclip.search.ways import Job
from everclip.store.creating import create_store
from everclip.store.indexed import model_of
from everclip.store.records import Version
from everclip.store.versions import Store

PAGE = Path(__file__).with_name("REINDEX.md")
SMALL_BLOCK = 8
"""Images of a block, and of a write, of the index that is killed: so that a kill meets every moment."""


def images(folder: Path, count: int) -> Path:
    """Write JPEGs of 256 pixels with the detail of photographs."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    noise = draw.normal(0, 8, (256, 256, 1)).astype(np.float32)
    for i in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((256, 256))
        file = io.BytesIO()
        pixels = (np.asarray(coarse, np.float32) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=88)
        (folder / f"{i:06}.jpg").write_bytes(file.getvalue())
    return folder


def store_with(folder: Path, model: str, count: int) -> Store:
    """Make a store with an index of images, and a second version whose image tower has moved a little."""
    store = create_store(folder / "store", model, method="finetune")
    for part in adding.images_of([str(images(folder / "images", count))]):
        adding.add(Index.create(store.path), model_of(store), part)
    learner = store.load()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for values in learner.method.backbone.clip.visual.parameters():
            values.mul_(1 + 0.01 * torch.randn(values.shape, generator=draw))
    version = Version(
        id="v0002",
        parent="v0001",
        created="",
        state="accepted",
        method="finetune",
        tensors={},
        learner="",
        files={},
        towers=learner.method.backbone.fingerprints(),
    )
    store.add(learner, version, None)
    store.point_to("v0002")
    return store


def bare(index: Index, model: SearchModel) -> None:
    """Embed all items and write nothing."""
    view = index.view()
    rows, size = view.items.count_rows(), embedding.BLOCK
    parts = (range(i, min(i + size, rows)) for i in range(0, rows, size))
    for _ in embedded(model, (sources_of(tables.taken(view.items, list(p), IMAGE)) for p in parts)):
        pass


def refilled(index: Index, job: Job) -> None:
    """Re-embed all items into an empty space."""
    emptied(index, job.new.key)
    done = REEMBED.fill(job)
    assert not done.left


def emptied(index: Index, key: str) -> None:
    """Remove a space."""
    with index.changing("benchmark") as change:
        spaces = {k: space for k, space in change.state.spaces.items() if k != key}
        change.state = change.state.model_copy(update={"spaces": spaces})


def job_of(store: Store) -> Job:
    """Return the work of moving an index from v0001 to v0002."""
    return Job(Index(store.path), lambda: model_of(store, "v0001"), model_of(store, "v0002"))


def small_blocks() -> None:
    """Embed and write few images at a time, in this process."""
    reembedding.BLOCK = embedding.TOGETHER = SMALL_BLOCK


def reindex_and_log(path: str, log: str, threads: int, ready: Connection) -> None:
    """Re-embed in a process that may be killed; the log gets a line with the ids of each block that was embedded."""
    small_blocks()
    torch.set_num_threads(threads)
    embed = engines.embedded

    def logged(*given: Any) -> Iterator[embedding.Embedded]:
        with open(log, "a", encoding="utf-8") as file:
            for found in embed(*given):
                file.write(" ".join(Path(i).name for i in found.ids) + "\n")
                file.flush()
                yield found

    engines.embedded = logged
    job = job_of(Store(Path(path)))
    ready.send("begun")
    reindexing.reindex(job, switch=False)


@dataclass
class Kills:
    """What happened over all processes.

    Attributes:
        kills: processes that were killed.
        wrote: processes that wrote something.
        embedded: images that were embedded, counting repetitions.
        written: images whose vector was written.
        again: images that were embedded although their vector had been written.
        lost: blocks that were embedded and not written when the process was killed.
        most_lost: of one process.
        wrong: items without a vector or with several, or whose bits differ, when nothing was left to embed.
        passes: re-embeddings that were completed.
    """

    kills: int = 0
    wrote: int = 0
    embedded: int = 0
    written: int = 0
    again: int = 0
    lost: int = 0
    most_lost: int = 0
    wrong: int = 0
    passes: int = 0

    def note(self, log: Path, before: set[str], after: set[str]) -> None:
        """Note what a process did: its log, and the items that had a vector before and after it."""
        blocks = (
            [line.split() for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
        )
        log.unlink(missing_ok=True)
        lost = sum(not set(block) <= after for block in blocks)
        self.embedded += sum(map(len, blocks))
        self.again += sum(i in before for block in blocks for i in block)
        self.written += len(after - before)
        self.wrote += after > before
        self.lost += lost
        self.most_lost = max(self.most_lost, lost)


def killed(store: Store, wanted: int, longest: float, expected: dict[str, Any]) -> Kills:
    """Kill re-embeddings `wanted` times; what they complete is checked, and emptied for the next ones.

    Args:
        store: with an index whose items have no vector of v0002.
        wanted: number of kills.
        longest: seconds of work until a kill, at most.
        expected: id -> the vector that an undisturbed re-embedding gave.
    """
    draw, found = random.Random(0), Kills()
    context = multiprocessing.get_context(
        "forkserver"
    )  # which has imported everything, so a start takes no seconds
    # Not LanceDB: it starts threads, which do not survive a fork.
    context.set_forkserver_preload(["everclip.search.reindexing", "everclip.store.indexed", __name__])
    index, key, log = Index(store.path), model_of(store, "v0002").key, store.path.parent / "log"
    given = str(store.path), str(log), torch.get_num_threads()
    while found.kills < wanted or _names(index, key) or not found.passes:
        before = _names(index, key)
        ours, theirs = context.Pipe()
        process = context.Process(target=reindex_and_log, args=(*given, theirs))
        process.start()
        theirs.close()
        ours.recv()
        if found.kills < wanted:
            process.join(draw.uniform(0, longest))
        if found.kills < wanted and process.is_alive():
            process.kill()
            found.kills += 1
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), f"ended with {process.exitcode}"
        after = _names(index, key)
        found.note(log, before, after)
        if process.exitcode == 0:
            found.passes += 1
            found.wrong += _wrong(index, key, expected)
            emptied(index, key)
    return found


def _names(index: Index, key: str) -> set[str]:
    return {Path(i).name for i in index.view().held(key)}


def _wrong(index: Index, key: str, expected: dict[str, Any]) -> int:
    """Count the items that have not exactly one vector with the expected bits."""
    rows = tables.all_rows(index.view().vectors(key), ["id", "vector"])
    ids = rows.column("id").to_pylist()
    vectors = dict(zip(ids, tables.numpy_of(rows.column("vector")), strict=True))
    right = sum(ids.count(i) == 1 and np.array_equal(vectors[i], expected[i]) for i in vectors)
    return len(expected.keys() | vectors.keys()) - right


def speed(folder: Path, model: str, images: int, rounds: int) -> list[str]:
    """Measure the speed; return lines about it."""
    store = store_with(folder, model, images)
    job = job_of(store)
    times = alternate(lambda: bare(job.index, job.new), lambda: refilled(job.index, job), rounds)
    lines = [f"images per second: bare {images / min(times[0]):.1f}, reindex {images / min(times[1]):.1f}"]
    if rounds == 1:
        return [*lines, f"speed of reindex against bare: {times[0][0] / times[1][0]:.3f} (one round)"]
    middle, low, high = ratio(*times)
    return [*lines, f"speed of reindex against bare: {middle:.3f} [{low:.3f}, {high:.3f}], {rounds} rounds"]


def kill_many(folder: Path, model: str, images: int, wanted: int) -> list[str]:
    """Kill re-embeddings; return lines about what was left."""
    small_blocks()
    store = store_with(folder, model, images)
    job = job_of(store)
    started = time.perf_counter()
    refilled(job.index, job)
    took = time.perf_counter() - started
    ids = list(job.index.view().contents())
    expected = tables.vectors_of(job.index.view().vectors(job.new.key), ids)
    emptied(job.index, job.new.key)
    found = killed(store, wanted, 2 * took / wanted * 2, expected)
    refilled(job.index, job)
    assert reindexing.switch(job.index, "v0002").version == "v0002"
    blocks = -(-images // SMALL_BLOCK)
    return [
        f"killed {found.kills} times ({found.wrote} processes wrote something, {found.passes} re-embeddings of "
        f"{images:,} items in {blocks} blocks were completed)",
        f"embedded again although written: {found.again:,} of {found.written:,} images",
        f"blocks in flight that a kill lost: {found.lost:,}, at most {found.most_lost} per kill "
        f"({found.embedded:,} images embedded, {found.written:,} written)",
        f"items missing, twice, or with other bits than undisturbed: {found.wrong:,} of {found.passes * images:,}",
    ]


def main() -> None:
    """Measure the speed, then kill."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--images", type=int, default=2000)
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--kills", type=int, default=50)
    words.add_argument("--small", type=int, default=400, help="images of the index that is killed")
    words.add_argument("--model", default="builtin:photo")
    words.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    given = words.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as name:
        if given.rounds:
            lines += speed(Path(name) / "speed", given.model, given.images, given.rounds)
        if given.kills:
            lines += kill_many(Path(name) / "kills", given.model, given.small, given.kills)
    text = "\n".join(lines)
    print(f"{machine()}\n{text}")
    if given.write:
        command = "python benchmarks/reindex.py " + " ".join(a for a in sys.argv[1:] if a != "--write")
        items = "\n".join(f"* {line}" for line in lines)
        about = (
            f"# Re-embedding a search index\n\n`{given.model}`, {given.images:,} JPEGs of 256 x 256. Bare: read, "
            "decoded and encoded in blocks, nothing written; both in turn. Kills: SIGKILL at a random moment of the "
            f"work, with blocks of {SMALL_BLOCK} images, each written on its own.\n\n{items}\n\n"
            f"Machine: {machine()}. Run: `{command.strip()}`.\n"
        )
        PAGE.write_text(about, encoding="utf-8")


if __name__ == "__main__":
    main()
