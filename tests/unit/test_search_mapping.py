"""An index moved by a map: only behind its gate, each vector knows what made it, and the rest is embedded later."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_search_store import next_version

from everclip.errors import ConfigError, DataError, LimitError
from everclip.search import adding, map_choosing, map_mlp, mapping, reindexing, tables
from everclip.search.index import Index
from everclip.search.reembedding import ids_by_way
from everclip.search.vector_map import VectorMap
from everclip.search.ways import Budget, Job
from everclip.store.creating import create_store
from everclip.store.indexed import model_of
from everclip.store.versions import Store

SAMPLE = 48


@pytest.fixture(scope="module")
def made(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two versions and the whole micro data indexed by the first; only to be copied."""
    folder = tmp_path_factory.mktemp("mapping")
    store = create_store(folder / "store", str(micro_folder / "model"), method="finetune")
    images = adding.images_of([str(micro_folder / "data.parquet")])[0]
    adding.add(Index.create(store.path), model_of(store), images)
    next_version(store, "visual")
    return store.path


@pytest.fixture
def store(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in {"SAMPLE": SAMPLE, "LEAST": SAMPLE, "BATCH": 16}.items():
        monkeypatch.setattr(mapping, name, value)
    monkeypatch.setattr(map_choosing, "LEAST_QUERIES", 1)
    monkeypatch.setattr(map_mlp, "EPOCHS", 1)
    shutil.copytree(made, tmp_path / "store")
    return Store(tmp_path / "store")


def job(store: Store, recall: float = 0.0, **given: Any) -> Job:
    return Job(Index(store.path), lambda: model_of(store, "v0001"), model_of(store), recall=recall, **given)


def vectors(index: Index, key: str) -> dict[str, Any]:
    view = index.view()
    return tables.vectors_of(view.vectors(key), list(view.contents()))


def embedded(store: Store, tmp_path: Path) -> dict[str, Any]:
    """The vectors of a store whose images are all embedded with its second version."""
    shutil.copytree(store.path, tmp_path / "twin")
    twin = job(Store(tmp_path / "twin"))
    reindexing.reindex(twin)
    return vectors(twin.index, twin.new.key)


def test_a_sample_is_embedded_and_the_rest_is_mapped(store: Store, tmp_path: Path) -> None:
    truth, work = embedded(store, tmp_path), job(store)
    old = work.index.state.serving
    assert old is not None
    before = vectors(work.index, old)
    done = reindexing.reindex(work, "map")
    view, key = work.index.view(), work.new.key
    assert done.switched
    assert view.state.serving == key
    assert done.filled.images == SAMPLE
    assert not view.missing(key)
    after = vectors(work.index, key)
    exact, mapped = (ids_by_way(view, key, how) for how in ("embedded", "mapped"))
    assert (len(exact), len(mapped)) == (SAMPLE, len(before) - SAMPLE)
    assert all(np.array_equal(after[i], truth[i]) for i in exact)
    found = VectorMap.load(work.index.folder / "maps" / f"{key}.safetensors", old, key)
    expected = found(torch.from_numpy(np.stack([before[i] for i in mapped]))).numpy()
    assert np.allclose(np.stack([after[i] for i in mapped]), expected, atol=1e-6)
    assert view.state.spaces[key].how == "map"
    assert reindexing.rollback(work.index)[0].key == old


def test_a_map_that_does_not_pass_changes_no_answer(store: Store, tmp_path: Path) -> None:
    truth, work = embedded(store, tmp_path), job(store, recall=1.0)
    old = work.index.state.serving
    with pytest.raises(LimitError, match=r"the map is not used.*--how reembed"):
        reindexing.reindex(work, "map")
    view = work.index.view()
    assert view.state.serving == old
    assert ids_by_way(view, work.new.key, "mapped") == []
    done = reindexing.reindex(work)
    assert done.filled.images == len(truth) - SAMPLE  # the sample is not embedded twice
    assert all(np.array_equal(row, truth[i]) for i, row in vectors(work.index, work.new.key).items())


def test_mixed_answers_by_the_map_and_ends_as_if_all_had_been_embedded(store: Store, tmp_path: Path) -> None:
    truth, work = embedded(store, tmp_path), job(store, budget=Budget(images=5))
    done = reindexing.reindex(work, "mixed")
    view, key = work.index.view(), work.new.key
    assert done.switched
    assert done.filled.images == SAMPLE + 5
    left = len(truth) - SAMPLE - 5
    assert len(ids_by_way(view, key, "mapped")) == left
    assert any(f"{left:,} vectors are mapped ones" in line for line in done.filled.lines)
    shown = reindexing.way_of("reembed").estimate(work)
    assert shown.images == left
    done = reindexing.reindex(job(store), "mixed")
    assert done.filled.images == left
    assert all(np.array_equal(row, truth[i]) for i, row in vectors(work.index, key).items())


@pytest.mark.slow
def test_the_hottest_items_are_embedded_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = []
    monkeypatch.setattr(mapping, "hottest", lambda work: first)
    work = job(store)
    reindexing.reindex(work, "map")
    first += ids_by_way(work.index.view(), work.new.key, "mapped")[-3:]
    reindexing.reindex(job(store, budget=Budget(images=3)), "mixed")
    assert not set(first) & set(ids_by_way(work.index.view(), work.new.key, "mapped"))


@pytest.mark.slow
def test_the_hottest_are_those_that_captions_find(store: Store) -> None:
    work = job(store)
    reindexing.reindex(work, "map")
    found = mapping.hottest(work)
    assert found
    assert set(found) <= set(work.index.view().contents())


@pytest.mark.slow
def test_a_killed_mapping_goes_on(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, points = job(store), []

    def point(name: str) -> None:
        points.append(name)
        if points.count("in index: batch mapped") == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(mapping, "crash_point", point)
        with pytest.raises(KeyboardInterrupt):
            reindexing.reindex(work, "map")
    view = work.index.view()
    assert view.state.serving != work.new.key
    assert len(ids_by_way(view, work.new.key, "mapped")) == 2 * mapping.BATCH
    again = reindexing.reindex(job(store), "map")
    assert again.switched
    assert again.filled.images == 0
    assert not work.index.view().missing(work.new.key)


@pytest.mark.slow
@pytest.mark.parametrize(("recall", "taken"), [(0.0, "mixed"), (1.0, "reembed")])
def test_choosing_prints_the_ways_side_by_side_and_takes_one(store: Store, recall: float, taken: str) -> None:
    lines: list[str] = []
    work = job(store, recall, tell=lines.append)
    done = reindexing.reindex(work, "choose")
    assert done.switched
    assert done.filled.images == len(work.index.view().contents())
    assert [line.split(":")[0] for line in lines if line.split(":")[0] in ("reembed", "map", "mixed")] == [
        "reembed",
        "map",
        "mixed",
    ]
    assert f"taken: {taken}" in lines
    assert ids_by_way(work.index.view(), work.new.key, "mapped") == []


def test_too_few_items_and_unknown_ways_are_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "LEAST", 10_000)
    with pytest.raises(DataError, match="a map needs at least 10000"):
        reindexing.reindex(job(store), "map")
    with pytest.raises(ConfigError, match="expected one of reembed, map, mixed, choose"):
        reindexing.way_of("guess")
