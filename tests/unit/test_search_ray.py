"""Embedding on Ray Data: the same vectors as in this process, and the same resume."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from everclip.errors import ConfigError, DataError, ProcessLostError
from everclip.search import adding, ray_engine, reindexing, tables
from everclip.search.embedding import Embedded, SearchModel
from everclip.search.index import Index
from everclip.search.ray_engine import RayEngine
from everclip.search.ways import Budget, Job
from everclip.store.indexed import model_at, model_of
from everclip.store.versions import Store
from serving import two_versions

ROOT = Path(__file__).parents[2]
BLOCK = 8

# -- what needs no Ray ----------------------------------------------------------------------------------------


def test_a_block_comes_back_as_it_was() -> None:
    rows = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    found = Embedded(["a", "c"], rows, ["1", "3"], ["c"], {"b": "missing-file: no such file"})
    nothing = Embedded([], np.zeros((0, 5), np.float32), [], [], {"a": "why", "b": "why not"})
    both = pa.concat_tables([ray_engine.as_table(7, found, 5), ray_engine.as_table(0, nothing, 5)])
    (number, back), (other, empty) = ray_engine.from_table(both)
    assert (number, other) == (7, 0)
    assert np.array_equal(back.vectors, rows)
    assert back.vectors.dtype == np.float32
    for name in ("ids", "contents", "changed", "failed"):
        assert getattr(back, name) == getattr(found, name)
    assert (empty.ids, empty.failed, empty.vectors.shape) == ([], nothing.failed, (0, 5))


def test_an_actor_that_cannot_work_says_why() -> None:
    setup = ray_engine.Setup(Path("x"), partial(model_at, Path("no-store"), "v0001"), "key", 1, 1, None)
    block = ray_engine.problem_table("").select(["block"])
    found = next(ray_engine.Actor(setup)(block.append_column("rows", [[[0, 1]]])))
    with pytest.raises(
        ConfigError, match=r"an actor cannot work on .+: no-store: is no store .+ by the same paths"
    ):
        next(ray_engine.from_table(found))


class NoRay:
    """In the place of the module `ray`: no cluster can be joined or started."""

    def __init__(self, error: Exception) -> None:
        self.error, self.closed = error, 0

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: Any) -> None:
        raise self.error

    def shutdown(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        (None, OSError("no room\nmore"), r"Ray did not start \(no room\)"),
        (None, Exception(), r"Ray did not start \(Exception\)"),
        ("head:6379", ConnectionError("refused"), r"RAY_ADDRESS=head:6379 cannot be joined \(refused\)"),
    ],
)
def test_a_cluster_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, address: str | None, error: Exception, message: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    ray = NoRay(error)
    with pytest.raises(ProcessLostError, match=message):
        ray_engine.joined(ray)
    assert ray.closed == ray_engine.TRIES


class Recorded(ray_engine.Actor):
    """An actor without a model, that was made long ago."""

    def __init__(self, width: int, rate: float) -> None:
        self.rate, self.images, self.began, self.problem = rate, 0, 0.0, ""
        self.model, self.items = SimpleNamespace(width=width), None


def test_an_actor_does_not_make_up_for_the_time_in_which_it_loaded_its_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 100.0 + sum(slept), sleep=slept.append)
    monkeypatch.setattr(ray_engine, "time", clock)
    block = Embedded(["a", "b"], np.zeros((2, 3), np.float32), ["1", "2"], [], {})
    monkeypatch.setattr(ray_engine, "embedded", lambda model, sources: iter([block, block]))
    given = pa.table({"block": [0, 1], "rows": [[0, 1], [2, 3]]})
    assert len(list(Recorded(3, rate=4.0)(given))) == 2
    assert slept == [0.5, 0.5]


@pytest.mark.parametrize(
    ("machines", "actors", "gpus", "expected"),
    [
        ([(2, 0)], None, 0, (1, 2)),
        ([(2, 0)], 2, 0, (2, 1)),
        ([(16, 0)] * 4, None, 0, (4, 16)),
        ([(64, 0), (32, 0), (0, 0)], None, 0, (2, 32)),
        ([(64, 0), (32, 0)], 3, 0, (3, 32)),
        ([(96, 8.0)], None, 1, (8, 12)),
        ([(96, 8.0), (32, 0)], None, 1, (8, 12)),
        ([(96, 0.3)], None, 0.1, (3, 32)),
        ([(96, 8.0)], 4, 2, (4, 24)),
    ],
)
def test_actors_share_a_cluster(
    machines: list[tuple[int, float]], actors: int | None, gpus: float, expected: tuple[int, int]
) -> None:
    assert ray_engine.shares(machines, actors, gpus) == expected


@pytest.mark.parametrize(("actors", "gpus"), [(3, 0), (None, 2), (2, 1)])
def test_what_a_cluster_cannot_hold_is_refused(actors: int | None, gpus: float) -> None:
    with pytest.raises(ConfigError, match="the cluster has 2 cores and 1 GPUs"):
        ray_engine.shares([(2, 1.0)], actors, gpus)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'everclip\[scale\]'"):
        RayEngine(tmp_path, lambda: None)  # type: ignore[arg-type, return-value]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


# -- two actors of Ray on this machine ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of two cores, and of a GPU in name only, on this machine, for all tests of this file."""
    pytest.importorskip("ray")
    ray = ray_engine.ray_data()
    ray_engine.joined(ray, 2, 100 * 1024 * 1024, gpus=1)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.shutdown()


@pytest.fixture
def store(micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of two versions, whose index holds 40 items, embedded in blocks of 8."""
    store = Store(two_versions(tmp_path / "store", micro_folder / "model"))
    rows = pq.read_table(micro_folder / "data.parquet").slice(0, 40)
    pq.write_table(rows, tmp_path / "data.parquet")
    adding.add(
        Index.create(store.path), model_of(store), adding.images_of([str(tmp_path / "data.parquet")])[0]
    )
    monkeypatch.setattr("everclip.search.reembedding.BLOCK", BLOCK)
    monkeypatch.setattr("everclip.search.embedding.TOGETHER", BLOCK)
    return store


def on_ray(store: Store, **given: Any) -> Job:
    engine = RayEngine(store.path, partial(model_at, store.path, "v0002"), actors=2)
    return Job(
        Index(store.path), lambda: model_of(store, "v0001"), model_of(store, "v0002"), engine=engine, **given
    )


def here(store: Store, **given: Any) -> Job:
    return Job(Index(store.path), lambda: model_of(store, "v0001"), model_of(store, "v0002"), **given)


def undisturbed(store: Store, folder: Path, **given: Any) -> dict[str, Any]:
    """Return the vectors of a re-embedding in this process, of a copy of a store."""
    shutil.copytree(store.path, folder)
    other = Store(folder)
    reindexing.reindex(here(other, **given))
    return vectors(other)


def vectors(store: Store) -> dict[str, Any]:
    view = Index(store.path).view()
    key = model_of(store, "v0002").key
    rows = tables.all_rows(view.vectors(key), ["id"]).column("id").to_pylist()
    assert len(rows) == len(set(rows))
    return tables.vectors_of(view.vectors(key), rows)


def same_bits(some: dict[str, Any], others: dict[str, Any]) -> bool:
    return some.keys() == others.keys() and all(np.array_equal(some[i], others[i]) for i in some)


@pytest.mark.slow
def test_two_actors_give_the_same_vectors_and_either_engine_continues(
    cluster: None, store: Store, tmp_path: Path
) -> None:
    expected = undisturbed(store, tmp_path / "other")
    lines: list[str] = []
    first = reindexing.reindex(on_ray(store, budget=Budget(images=2 * BLOCK), tell=lines.append))
    assert (first.filled.images, first.filled.left) == (2 * BLOCK, 40 - 2 * BLOCK)
    assert any("16 of 16 images embedded again" in line for line in lines)
    second = reindexing.reindex(here(store, budget=Budget(images=BLOCK)))
    assert (second.filled.images, second.filled.left) == (BLOCK, 40 - 3 * BLOCK)
    started = time.monotonic()
    third = reindexing.reindex(on_ray(store, rate=4.0))
    assert (third.filled.images, third.switched) == (40 - 3 * BLOCK, True)
    assert time.monotonic() - started >= BLOCK / 4
    assert same_bits(vectors(store), expected)


@pytest.mark.slow
def test_a_broken_image_is_set_aside_by_an_actor(
    cluster: None, store: Store, png: Callable[..., bytes]
) -> None:
    files = []
    for number in range(6):
        files.append(store.path.parent / f"image {number}.png")
        files[-1].write_bytes(png((40 * number, 90, 7)))
    names = [f"{file.parent.name}/{file.name}" for file in files]  # below the folder that holds theirs
    old = model_of(store, "v0001")
    for part in adding.images_of([str(file) for file in files]):
        adding.add(Index(store.path), old, part)
    files[1].write_bytes(b"no image")
    files[2].write_bytes(files[3].read_bytes())
    expected = undisturbed(store, store.path.parent / "other", limit=0.1)
    with pytest.raises(DataError, match=r"1 of 46 images cannot be read"):
        reindexing.reindex(on_ray(store))
    assert Index(store.path).state.space.version == "v0001"  # type: ignore[union-attr]
    done = reindexing.reindex(here(store, limit=0.1))
    assert (done.filled.images, done.switched) == (0, True)
    assert list(done.filled.failed) == [names[1]]
    assert "not-an-image" in done.filled.failed[names[1]]
    assert Index(store.path).state.space.set_aside == done.filled.failed  # type: ignore[union-attr]
    held = vectors(store)
    assert same_bits(held, expected)
    assert np.array_equal(held[names[2]], held[names[3]])


def lethal(store: Path, version: str, deaths: Path, most: int) -> SearchModel:
    """Load a model whose process is killed by its second block, until there have been so many deaths."""
    model, blocks = model_at(store, version), [0]

    def of_pixels(model: SearchModel, pixels: torch.Tensor) -> Any:
        blocks[0] += 1
        if blocks[0] == 2 and len(os.listdir(deaths)) < most:
            (deaths / uuid.uuid4().hex).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return kept(model, pixels)

    kept, SearchModel.of_pixels = SearchModel.of_pixels, of_pixels  # type: ignore[method-assign]
    return model


def with_lethal(store: Store, deaths: Path, most: int) -> Job:
    deaths.mkdir()
    engine = RayEngine(store.path, partial(lethal, store.path, "v0002", deaths, most), actors=1, gpus=0.5)
    return Job(Index(store.path), lambda: model_of(store, "v0001"), model_of(store, "v0002"), engine=engine)


@pytest.mark.slow
def test_an_actor_on_a_gpu_that_is_killed_is_started_again_but_not_for_ever(
    cluster: None, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = undisturbed(store, tmp_path / "other")
    monkeypatch.setattr(ray_engine, "RESTARTS", 1)
    with pytest.raises(ProcessLostError, match=r"an actor failed \(.+repeat the command"):
        reindexing.reindex(with_lethal(store, tmp_path / "always", 1000))
    assert len(os.listdir(tmp_path / "always")) == 2
    assert Index(store.path).state.space.version == "v0001"  # type: ignore[union-attr]
    done = reindexing.reindex(with_lethal(store, tmp_path / "once", 1))
    assert len(os.listdir(tmp_path / "once")) == 1
    assert done.switched
    assert same_bits(vectors(store), expected)


KILLED = """
import os, signal, sys
from functools import partial
from pathlib import Path
from everclip.search import embedding, ray_engine, reembedding, reindexing
from everclip.search.index import Index
from everclip.search.ray_engine import RayEngine
from everclip.search.ways import Job
from everclip.store.indexed import model_at, model_of
from everclip.store.versions import Store
left = 2
def point(name):
    global left
    left -= name == "in index: batch embedded again"
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
reembedding.crash_point = point
reembedding.BLOCK = embedding.TOGETHER = 8
ray_engine.OBJECTS = 100 * 1024 * 1024
store = Store(Path(sys.argv[1]))
new = model_of(store, "v0002")
with RayEngine(store.path, partial(model_at, store.path, "v0002"), actors=2) as engine:
    reindexing.reindex(Job(Index(store.path), lambda: model_of(store, "v0001"), new, engine=engine))
"""


def descendants(mark: str) -> list[str]:
    """Return the command lines of processes whose environment holds a mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                command = path.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
                found.append(f"{path.parent.name} {command}")
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.slow
def test_a_killed_driver_leaves_no_process_and_the_next_one_goes_on(
    cluster: None, store: Store, tmp_path: Path
) -> None:
    expected = undisturbed(store, tmp_path / "other")
    mark = uuid.uuid4().hex
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "EVERCLIP_TEST_MARK": mark}
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, store.path],
        env=environment,
        timeout=550,
        check=False,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-3000:]
    held = vectors(store)
    assert len(held) == 2 * BLOCK
    deadline = time.monotonic() + 60
    while descendants(mark) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert descendants(mark) == []
    done = reindexing.reindex(on_ray(store))
    assert (done.filled.images, done.switched) == (40 - len(held), True)  # nothing twice, nothing missing
    assert same_bits(vectors(store), expected)
