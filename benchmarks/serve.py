"""`/embed` and `/search` under load: batches against one by one, a switch of versions under load, and the cold start.

Run: python benchmarks/serve.py [--model builtin:photo] [--seconds 10] [--rounds 2] [--clients 16] [--items 10000]
Both servers are processes of their own on this machine's loopback, each with a store of its own; one is asked after the
other, in turn. Clients are threads of this process that ask as soon as they are answered (a closed loop), so they share
the cores with the server. In the middle of each measurement of the server with batches, its store switches to another
version: every answer must be 200 and name one of both versions. Searches are by text, among generated vectors (an index
holds them for both versions, so that it switches, too).
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from common import table
from PIL import Image

from everclip.search import tables
from everclip.search.index import Index
from everclip.search.reindexing import switch as switch_index
from everclip.store.creating import create_store
from everclip.store.indexed import model_of
from everclip.store.versions import Store

SERVERS = {
    "one by one (`batch=1 wait_ms=0`)": ("batch=1", "wait_ms=0"),
    "batches (`batch=32 wait_ms=3`)": ("batch=32", "wait_ms=3"),
}
HEADERS = {"Content-Type": "application/json"}
SIDE = 224
PATHS = {"text": "/embed", "image": "/embed", "search": "/search"}
"""Kind of request -> where it goes."""
_SWITCH_SECONDS = 60
"""A measurement with a switch goes on until both versions have answered, at most so long."""


@dataclass
class Load:
    """What clients saw: seconds of each answer, and answers that were not 200."""

    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    wall: float = 0.0

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.seconds) / self.wall

    def quantile(self, share: float) -> float:
        """Milliseconds within which this share was answered."""
        return 1000 * float(np.quantile(self.seconds, share))


Loads = dict[tuple[str, str], list[Load]]


def two_versions(folder: Path, model: str, items: int) -> Store:
    """Make a store whose v0002 has slightly other weights, with an index of so many generated vectors of both."""
    store = create_store(folder, model)
    learner = store.load()
    for parameter in learner.method.parameters():
        parameter.data.mul_(1.001)
    second = store.version("v0001").model_copy(
        update={"id": "v0002", "parent": "v0001", "towers": learner.method.backbone.fingerprints()}
    )
    store.add(learner, second, None)
    _index(store, items)
    return store


def _index(store: Store, items: int) -> None:
    draw, names = np.random.default_rng(0), [str(i) for i in range(items)]
    columns = {f.name: pa.nulls(items, f.type) for f in tables.ITEM_FIELDS}
    rows = pa.table(columns | {"id": pa.array(names), "sha256": pa.array(names)})
    with Index.create(store.path).changing("benchmark") as change:
        change.table(tables.ITEMS).add(rows)
        for version in ("v0001", "v0002"):
            model = model_of(store, version)
            vectors = draw.standard_normal((items, model.width), dtype=np.float32)
            change.new_space(model.key, version, model.tower, model.width)
            change.put_vectors(
                model.key, rows, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), known=[]
            )
        change.serve(model_of(store, "v0001").key)


def switched(store: Store) -> None:
    """Let the other version serve, and its vectors answer searches."""
    other = {"v0001": "v0002", "v0002": "v0001"}[store.current.version]
    store.point_to(other)
    switch_index(Index(store.path), other)


def _copy(store: Store, number: int) -> Store:
    return Store(Path(shutil.copytree(store.path, store.path.with_name(str(number)))))


@contextmanager
def server(store: Store, settings: tuple[str, ...]) -> Iterator[tuple[int, float]]:
    """Run a server; yields its port and the seconds until it answered."""
    started = time.perf_counter()
    words = ("serve", str(store.path), "--port", "0", "log_level=error", "poll_seconds=0.2", *settings)
    process = subprocess.Popen(
        [sys.executable, "-m", "everclip", *words], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r":(\d+)$", line.strip())
        assert found is not None, line
        port = int(found[1])
        while ask(http.client.HTTPConnection("127.0.0.1", port), "GET", "/healthz")[0] != 200:
            time.sleep(0.01)
        yield port, time.perf_counter() - started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None
) -> tuple[int, bytes]:
    """Ask once."""
    connection.request(method, path, body, HEADERS if body else {})
    answer = connection.getresponse()
    return answer.status, answer.read()


def load(port: int, kind: str, clients: int, seconds: float, middle: threading.Timer | None) -> Load:
    """Ask with so many clients for so many seconds."""
    bodies = requests(kind)
    found, until = Load(), time.perf_counter() + seconds
    last = until + (_SWITCH_SECONDS if middle is not None else 0)

    def goes_on(now: float) -> bool:
        return now < until or (now < last and len(found.versions) < 2)

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        turn = number
        while goes_on(began := time.perf_counter()):
            status, text = ask(connection, "POST", PATHS[kind], bodies[turn % len(bodies)])
            found.seconds.append(time.perf_counter() - began)
            if status != 200:
                found.wrong.append(text.decode()[:200])
            elif named := re.search(rb'"version":"(v\d+)"', text):
                found.versions.add(named[1].decode())
            turn += 1

    threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
    began = time.perf_counter()
    if middle is not None:
        middle.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.wall = time.perf_counter() - began
    return found


def requests(kind: str) -> list[bytes]:
    """Return bodies of requests of one text, one image or one search each."""
    if kind == "search":
        return [json.dumps({"texts": [f"a photo of thing {n}"], "top": 10}).encode() for n in range(64)]
    if kind == "text":
        return [
            json.dumps({"texts": [f"a photo of thing {n}"], "format": "base64"}).encode() for n in range(64)
        ]
    draw, bodies = np.random.default_rng(0), []
    for _ in range(16):
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(file, "JPEG")
        bodies.append(
            json.dumps({"images": [base64.b64encode(file.getvalue()).decode()], "format": "base64"}).encode()
        )
    return bodies


def measured(stores: dict[str, Store], options: argparse.Namespace) -> tuple[Loads, list[float]]:
    """Measure both servers in turn; return the loads by kind and server, and the seconds of each start."""
    loads: Loads = {}
    with ExitStack() as stack:
        started = {name: stack.enter_context(server(stores[name], SERVERS[name])) for name in SERVERS}
        for number in range(options.rounds):
            for kind in PATHS:
                for name in list(SERVERS) if number % 2 == 0 else list(reversed(SERVERS)):
                    port, store = started[name][0], stores[name]
                    load(port, kind, options.clients, 1.0, None)  # warm up
                    switch = threading.Timer(options.seconds / 2, switched, (store,))
                    middle = switch if "batch=1" not in SERVERS[name] else None
                    found = load(port, kind, options.clients, options.seconds, middle)
                    loads.setdefault((kind, name), []).append(found)
                    told = f"{found.rate:.1f}/s, {len(found.wrong)} not 200, answered by {sorted(found.versions)}"
                    print(f"{kind}, {name}: {told}", flush=True)
    return loads, [start for _, start in started.values()]


def main() -> None:
    """Measure and print the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", default="builtin:photo")
    words.add_argument("--seconds", type=float, default=10.0)
    words.add_argument("--rounds", type=int, default=2)
    words.add_argument("--clients", type=int, default=16)
    words.add_argument("--items", type=int, default=10_000, help="vectors of the index")
    options = words.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first = two_versions(Path(folder) / "0", options.model, options.items)
        stores = {
            name: Store(Path(folder) / str(n)) if n == 0 else _copy(first, n)
            for n, name in enumerate(SERVERS)
        }
        loads, starts = measured(stores, options)
    rows = []
    for (kind, name), found in sorted(loads.items()):
        both = Load([s for of in found for s in of.seconds], [w for of in found for w in of.wrong])
        switches = sum(len(of.versions) == 2 for of in found)
        rows.append(
            (
                kind,
                name,
                " / ".join(f"{of.rate:.1f}" for of in found),
                f"{both.quantile(0.5):.0f}",
                f"{both.quantile(0.99):.0f}",
                f"{len(both.seconds):,}",
                str(len(both.wrong)),
                str(switches),
            )
        )
    header = (
        "one ... per request",
        "server",
        "requests/s per round",
        "p50 ms",
        "p99 ms",
        "requests",
        "not 200",
        "switches",
    )
    print(
        table(
            f"{options.model}, {options.clients} clients, {options.seconds:g} s each, {options.items:,} vectors",
            rows,
            header,
        )
    )
    print(f"Cold start (process to first answer): median {statistics.median(starts):.1f} s of {len(starts)}.")


if __name__ == "__main__":
    main()
