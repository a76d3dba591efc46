"""Re-embedding a search index: its speed against the bare encoder, and what is left after many kills.

Speed: the same images are embedded by the bare encoder (read, decoded, encoded, nothing written) and by
`everclip reindex`, in turn; the ratio of both times is what the writing costs. Kills: the re-embedding of a small index
is started again and again and killed (SIGKILL) after a random time, until it is complete. Then every item must have one
vector, and each vector the bits of a re-embedding that nobody disturbed.

Run: python benchmarks/reindex.py [--images 2000] [--rounds 3] [--kills 50] [--model builtin:photo]
"""

from __future__ import annotations

import argparse
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, ratio
from PIL import Image

from everclip.search import adding, reembedding, reindexing, tables
from everclip.search.embedding import BLOCK, SearchModel, embedded
from everclip.search.index import Index
from everclip.search.reembedding import REEMBED, sources_of
from everclip.search.ways import Job
from everclip.store.creating import create_store
from everclip.store.indexed import model_of
from everclip.store.records import Version
from everclip.store.versions import Store

KILLED = """
import sys
from pathlib import Path
from everclip.search import embedding, reembedding
from everclip.search import reindexing
from everclip.search.index import Index
from everclip.search.ways import Job
from everclip.store.indexed import model_of
from everclip.store.versions import Store
reembedding.BLOCK = embedding.TOGETHER = 8
store = Store(Path(sys.argv[1]))
new = model_of(store)
print("begun", flush=True)
reindexing.reindex(Job(Index(store.path), lambda: model_of(store, "v0001"), new), switch=False)
"""


def images(folder: Path, count: int) -> Path:
    """Write JPEGs of 256 pixels with the detail of photographs."""
    folder.mkdir()
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


def bare(index: Index, model: SearchModel) -> float:
    """Return the seconds of embedding all items and writing nothing."""
    view = index.view()
    rows = view.items.count_rows()
    wanted = ["id", "path", "offset", "size", "bytes", "rendering", "sha256"]
    started = time.perf_counter()
    parts = (range(i, min(i + BLOCK, rows)) for i in range(0, rows, BLOCK))
    for _ in embedded(model, (sources_of(tables.taken(view.items, list(p), wanted)) for p in parts)):
        pass
    return time.perf_counter() - started


def refilled(index: Index, job: Job) -> float:
    """Return the seconds of `reembed` into an empty space."""
    with index.changing("benchmark") as change:
        spaces = {key: space for key, space in change.state.spaces.items() if key != job.new.key}
        change.state = change.state.model_copy(update={"spaces": spaces})
    started = time.perf_counter()
    done = REEMBED.fill(job)
    assert not done.left
    return time.perf_counter() - started


def kills(store: Store, wanted: int, longest: float) -> tuple[int, int]:
    """Kill the re-embedding `wanted` times, then let it end; return kills, and processes that wrote something."""
    draw = random.Random(0)
    killed = wrote = 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(store.path)],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        before = _rows(store)
        if killed < wanted:
            try:
                process.wait(draw.uniform(0, longest))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed += 1
        ended = process.wait(600) == 0
        wrote += _rows(store) > before
        if ended:
            return killed, wrote


def _rows(store: Store) -> int:
    view = Index(store.path).view()
    spaces = [key for key in view.state.spaces if key != view.state.serving]
    return int(view.vectors(spaces[0]).count_rows()) if spaces else 0


def held(index: Index, key: str) -> dict[str, Any]:
    """Return id -> vector of a space, checking that each item has exactly one."""
    view = index.view()
    rows = tables.all_rows(view.vectors(key), ["id"]).column("id").to_pylist()
    assert len(rows) == len(set(rows))
    assert set(rows) == set(view.contents())
    return tables.vectors_of(view.vectors(key), rows)


def main() -> None:
    """Measure the speed, then kill."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--images", type=int, default=2000)
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--kills", type=int, default=50)
    words.add_argument("--longest", type=float, default=2.0, help="seconds until a kill, at most")
    words.add_argument("--small", type=int, default=400, help="images of the index that is killed")
    words.add_argument("--model", default="builtin:photo")
    given = words.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        store = store_with(Path(name), given.model, given.images)
        index = Index(store.path)
        job = Job(index, lambda: model_of(store, "v0001"), model_of(store))
        bare(index, job.new)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(given.rounds):
            times[0].append(bare(index, job.new))
            times[1].append(refilled(index, job))
        print(
            f"images per second: bare {given.images / min(times[0]):.1f}, reindex {given.images / min(times[1]):.1f}"
        )
        middle, low, high = ratio(*times)
        print(f"speed of reindex against bare: {middle:.3f} [{low:.3f}, {high:.3f}]")
    if given.kills:
        with tempfile.TemporaryDirectory() as name:
            store = store_with(Path(name), given.model, given.small)
            killed, wrote = kills(store, given.kills, given.longest)
            index, model = Index(store.path), model_of(store)
            broken = held(index, model.key)
            reembedding.BLOCK = 8  # the same batches: others may round differently
            refilled(index, Job(index, lambda: model_of(store, "v0001"), model))
            whole = held(index, model.key)
            same = sum(bool(np.array_equal(broken[i], whole[i])) for i in whole)
            close = max(float(np.abs(broken[i] - whole[i]).max()) for i in whole)
            print(
                f"killed {killed} times ({wrote} processes wrote something): {len(broken):,} of {given.small:,} items "
                f"have one vector each; {same:,} have the same bits as undisturbed (largest difference {close:.1e})"
            )
            assert reindexing.switch(index).version == "v0002"


if __name__ == "__main__":
    main()
