"""SIGKILL at the crash points of `update`, `index` and `reindex` of a store far away: it is before or after."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from everclip.search import tables
from everclip.search.index import Index, View
from everclip.store.creating import create_store
from everclip.store.opening import open_store
from everclip.store.records import GateLimits
from everclip.store.versions import Store
from far import ITEMS, behind, images_in

pytestmark = pytest.mark.slow

BEFORE_LEASE = 2
"""Crash points until a process is named as the holder."""

SCRIPT = Path(__file__).parents[1] / "killing.py"


def kill(made: Path, folder: Path, *arguments: object) -> list[tuple[int, str]]:
    """Kill a command at its crash points; return their numbers and names. The repeated command worked each time."""
    ended = subprocess.run(
        [sys.executable, SCRIPT, made, folder, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    for number, name, code in found:
        said = (folder / str(number) / "again.log").read_text()
        assert code == 0, f"{name}: {said}"
    return [(number, name) for number, name, _ in found]


def whole(folder: Path, cache: Path) -> Store:
    """Return a store whose every file is there and undamaged."""
    store = open_store(f"file://{folder}", cache=cache, tables=True)
    assert store.copy is not None
    assert store.copy.problems() == []
    for version in store.ids():
        assert store.problems(version) == []
    return store


@pytest.fixture(scope="module")
def made(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store below a `file://` URL, without an index; only to be copied."""
    folder = tmp_path_factory.mktemp("far") / "store"
    off = GateLimits(retention=None, gain=None, negative_flips=None, latency=None)
    training = {"steps": 1, "batch_size": 8}
    create_store(f"file://{folder}", str(micro_folder / "model"), training=training, gates=off)
    return folder


def test_a_killed_update_leaves_a_store_before_or_after(
    made: Path, micro_folder: Path, tmp_path: Path
) -> None:
    seen = set()
    for number, name in kill(made, tmp_path, "update", "STORE", "--data", micro_folder / "reference.parquet"):
        store = whole(tmp_path / str(number) / "left", tmp_path / "cache")
        found = (store.current.version, store.ids(), [e.verb for e in store.journal.entries()])
        before, after = ("v0001", ["v0001"], ["init"]), ("v0002", ["v0001", "v0002"], ["init", "update"])
        assert found in (before, after), name
        seen.add(found[0])
        again = whole(tmp_path / str(number) / "store", tmp_path / "cache")
        assert again.current.version == ("v0002" if found == before else "v0003"), name
        told = "interrupted" in {e.outcome for e in again.journal.entries()}
        assert told == (found == before and number > BEFORE_LEASE), name
    assert seen == {"v0001", "v0002"}


def items_of(view: View, key: str) -> set[str]:
    """Return the items of an index, each of which has exactly one vector in a space."""
    contents, held = view.contents(), view.held(key)
    assert contents == held
    assert view.vectors(key).count_rows() == view.items.count_rows() == len(contents)
    return set(contents)


def test_a_killed_index_holds_whole_batches_and_goes_on(
    made: Path, micro_folder: Path, tmp_path: Path
) -> None:
    seen = set()
    images = images_in(made.parent, micro_folder)
    for number, name in kill(made, tmp_path, "index", "STORE", images):
        store = whole(tmp_path / str(number) / "left", tmp_path / "cache")
        count = 0
        if (store.path / "index" / "serving").is_file():
            state = Index(store.path).state
            if state.serving is not None:
                count = len(items_of(Index(store.path).view(), state.serving))
        assert count in (0, 8, 16, ITEMS), name
        seen.add(count)
        again = whole(tmp_path / str(number) / "store", tmp_path / "cache")
        view = Index(again.path).view()
        assert len(items_of(view, view.state.serving or "")) == ITEMS, name
        said = (tmp_path / str(number) / "again.log").read_text()
        assert f"{ITEMS - count} added" in said, name  # nothing twice
    assert seen >= {0, ITEMS}


def test_a_killed_reindex_answers_whole_with_one_version(
    micro_folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    seen = set()
    made = behind(tmp_path_factory.mktemp("far"), micro_folder)
    for number, name in kill(made, tmp_path, "reindex", "STORE"):
        store = whole(tmp_path / str(number) / "left", tmp_path / "cache")
        view = Index(store.path).view()
        assert view.state.space is not None
        assert len(items_of(view, view.state.serving or "")) == ITEMS, name
        seen.add(view.state.space.version)
        for space in view.state.spaces.values():  # what is there of the new one is whole, too
            rows = tables.all_rows(view.vectors(space.key), ["id"]).column("id").to_pylist()
            assert len(rows) == len(set(rows)), name
        again = Index(whole(tmp_path / str(number) / "store", tmp_path / "cache").path).view()
        assert again.state.space is not None
        assert again.state.space.version == "v0002", name
        assert len(items_of(again, again.state.serving or "")) == ITEMS, name
    assert seen == {"v0001", "v0002"}
