"""Search in many vectors: everclip's index (LanceDB) against exact NumPy, faiss and usearch on the same data.

Vectors and queries are unit vectors of a seeded mixture of Gaussians; each query is near a component, not a stored
vector. One query at a time, one thread if OMP_NUM_THREADS=1. Recall is against exact NumPy. faiss and usearch are no
requirements of everclip: `pip install faiss-cpu usearch`, or their rows are left out. Memory is what building and
asking adds to the resident memory of a process of its own; everclip's and IVF's files on disk are beside it.

Run: python benchmarks/search.py [--rows 1000000] [--width 512] [--queries 1000] [--only everclip] [--write]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import table

AT, COMPONENTS, SPREAD = 10, 1000, 0.7
PAGE = Path(__file__).with_name("SEARCH.md")
Asked = Callable[[Any], list[int]]


def unit(rows: Any) -> Any:
    """Return rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def data(rows: int, width: int, queries: int) -> tuple[Any, Any]:
    """Return stored vectors `(N, D)` and queries `(Q, D)`, float32."""
    draw = np.random.default_rng(0)
    centres = unit(draw.standard_normal((min(COMPONENTS, rows), width), dtype=np.float32))

    def some(count: int) -> Any:
        found = np.empty((count, width), np.float32)
        for start in range(0, count, 50_000):
            size = min(50_000, count - start)
            noise = draw.standard_normal((size, width), dtype=np.float32) * (SPREAD / np.sqrt(width))
            found[start : start + size] = unit(centres[draw.integers(0, len(centres), size)] + noise)
        return found

    return some(rows), some(queries)


def truth(vectors: Any, queries: Any) -> Any:
    """Return the positions of the nearest vectors `(Q, AT)`, exactly."""
    found = []
    for query in queries:
        scores = vectors @ query
        best = np.argpartition(-scores, AT)[:AT]
        found.append(best[np.argsort(-scores[best])])
    return np.stack(found)


# -- the kinds: each builds, and returns a function of a query and the bytes on disk --------------------------


def numpy_exact(vectors: Any, folder: Path) -> tuple[Asked, int]:
    """Compare with every vector."""

    def ask(query: Any) -> list[int]:
        scores = vectors @ query
        best = np.argpartition(-scores, AT)[:AT]
        return list(best[np.argsort(-scores[best])])

    return ask, 0


def _everclip(vectors: Any, folder: Path, exact_below: int) -> tuple[Asked, int]:
    import pyarrow as pa

    from everclip.search import tables
    from everclip.search.ann import keep_ann
    from everclip.search.index import Index, nearest

    index = Index.create(folder, exact_below)
    with index.changing("benchmark") as change:
        change.new_space("space", "v0001", "tower", vectors.shape[1])
        change.serve("space")
        for start in range(0, len(vectors), 20_000):
            part = vectors[start : start + 20_000]
            names = [str(start + i) for i in range(len(part))]
            columns: dict[str, Any] = {f.name: pa.nulls(len(part), f.type) for f in tables.ITEM_FIELDS}
            items = pa.table(columns | {"id": pa.array(names), "sha256": pa.array(names)})
            change.table(tables.ITEMS).add(items)
            change.put_vectors("space", items, part, known=[])
    keep_ann(index, None, lambda line: print(f"  {line}", file=sys.stderr))
    view = index.view()
    held, ann = view.vectors("space"), view.state.spaces["space"].ann
    effort = None if ann is None else (ann.probes, ann.refine)
    size = sum(p.stat().st_size for p in (folder / "index").rglob("*") if p.is_file())
    return lambda query: [int(i) for i in nearest(held, query, AT, effort)], size


def everclip_exact(vectors: Any, folder: Path) -> tuple[Asked, int]:
    """Search everclip's index without an approximate index."""
    return _everclip(vectors, folder, len(vectors))


def everclip_ann(vectors: Any, folder: Path) -> tuple[Asked, int]:
    """Search everclip's index with its approximate index, as it tunes itself."""
    return _everclip(vectors, folder, 0)


def faiss_hnsw(vectors: Any, folder: Path) -> tuple[Asked, int]:
    """Search faiss' graph."""
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 200
    index.add(vectors)
    index.hnsw.efSearch = 128
    return lambda query: [int(i) for i in index.search(query[None], AT)[1][0]], 0


def faiss_ivf(vectors: Any, folder: Path) -> tuple[Asked, int]:
    """Search faiss' partitions."""
    import faiss

    faiss.omp_set_num_threads(1)
    lists = max(1, int(4 * np.sqrt(len(vectors))))
    coarse = faiss.IndexFlatIP(vectors.shape[1])
    index = faiss.IndexIVFFlat(coarse, vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[: 64 * lists])
    index.add(vectors)
    index.nprobe = max(1, lists // 32)
    return lambda query: [int(i) for i in index.search(query[None], AT)[1][0]], 0


def usearch_hnsw(vectors: Any, folder: Path) -> tuple[Asked, int]:
    """Search usearch's graph."""
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=32, expansion_search=128)
    index.add(np.arange(len(vectors)), vectors, threads=1)
    return lambda query: [int(i) for i in index.search(query, AT, threads=1).keys], 0


KINDS: dict[str, tuple[Callable[[Any, Path], tuple[Asked, int]], str]] = {
    "exact NumPy": (numpy_exact, "numpy"),
    "everclip, exact": (everclip_exact, "lancedb"),
    "everclip, approximate": (everclip_ann, "lancedb"),
    "faiss HNSW": (faiss_hnsw, "faiss"),
    "faiss IVF": (faiss_ivf, "faiss"),
    "usearch HNSW": (usearch_hnsw, "usearch"),
}


def resident() -> int:
    """Return the resident memory of this process, in bytes (Linux)."""
    # Not `ru_maxrss`, which a child process inherits from its parent.
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(text.partition("VmRSS:")[2].split()[0])


def measured(kind: str, folder: Path) -> dict[str, float]:
    """Build and ask one kind in this process."""
    vectors = np.load(folder / "vectors.npy", mmap_mode=None)
    queries, expected = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    importlib.import_module(KINDS[kind][1])  # now, so that it does not count as memory of the index
    if kind.startswith("everclip"):
        importlib.import_module("everclip.search.ann")
    before = resident()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as own:
        ask, disk = KINDS[kind][0](vectors, Path(own))
        built = time.perf_counter() - start
        for query in queries[:20]:
            ask(query)
        times, hits = [], 0
        for query, true in zip(queries, expected, strict=True):
            start = time.perf_counter()
            found = ask(query)
            times.append(time.perf_counter() - start)
            hits += len(set(found) & set(true.tolist()))
        million = 1e6 / len(vectors)
        return {
            "build": built,
            "p50": float(np.quantile(times, 0.5)),
            "p99": float(np.quantile(times, 0.99)),
            "recall": hits / expected.size,
            "memory": (resident() - before) * million,
            "disk": disk * million,
        }


def main() -> None:
    """Measure all kinds, each in a process of its own, and print the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--rows", type=int, default=1_000_000)
    words.add_argument("--width", type=int, default=512)
    words.add_argument("--queries", type=int, default=1000)
    words.add_argument("--only", nargs="*", choices=list(KINDS), help="some kinds")
    words.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    words.add_argument("--measure", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    given = words.parse_args()
    if given.measure:
        print(json.dumps(measured(given.measure[0], Path(given.measure[1]))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vectors, queries = data(given.rows, given.width, given.queries)
        for what, rows in (("vectors", vectors), ("queries", queries), ("truth", truth(vectors, queries))):
            np.save(folder / f"{what}.npy", rows)
        del vectors
        lines: list[tuple[str, ...]] = []
        for kind, (_, package) in KINDS.items():
            if (given.only and kind not in given.only) or importlib.util.find_spec(package) is None:
                continue
            command = [sys.executable, __file__, "--measure", kind, name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            sys.stderr.write(done.stderr)
            if done.returncode:
                lines.append((kind, *["failed"] * 6))
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            lines.append(
                (
                    kind,
                    f"{1000 * found['p50']:.2f} ms",
                    f"{1000 * found['p99']:.2f} ms",
                    f"{found['recall']:.4f}",
                    f"{found['build']:.1f} s",
                    f"{found['memory'] / 1e9:.2f} GB",
                    f"{found['disk'] / 1e9:.2f} GB" if found["disk"] else "",
                )
            )
    heads = ("kind", "p50", "p99", f"recall@{AT}", "build", "memory per million", "disk per million")
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    title = (
        f"{given.rows:,} vectors of {given.width}, {given.queries:,} queries one at a time, "
        f"OMP_NUM_THREADS {threads}"
    )
    text = table(title, lines, heads)
    print(text)
    if given.write:
        command = "python benchmarks/search.py " + " ".join(a for a in sys.argv[1:] if a != "--write")
        PAGE.write_text(f"# Search\n\n`{command.strip()}`\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
