"""Every kind of file in a store, damaged: one message that names it, never a traceback, and `status` says it too."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import sqlite3
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from everclip.errors import CheckpointError, ConfigError
from everclip.models.tokenizers import build_tokenizer
from everclip.sealing import sealed
from everclip.search import adding, tables
from everclip.search.index import Index
from everclip.store.creating import create_store
from everclip.store.indexed import model_of
from everclip.store.journal import DiskFullError, Journal
from everclip.store.paths import MANIFEST
from everclip.store.records import Version
from everclip.store.versions import Store

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a probe, seven versions of one model, and an index of eight images; only to be copied."""
    folder = tmp_path_factory.mktemp("damage")
    pq.write_table(pq.read_table(micro_folder / "data.parquet").slice(0, 8), folder / "few.parquet")
    model = str(micro_folder / "model")
    store = create_store(folder / "store", model, method="finetune", probes=[str(folder / "few.parquet")])
    adding.add(Index.create(store.path), model_of(store), adding.images_of([str(folder / "few.parquet")])[0])
    first = store.version("v0001")
    for number in range(2, 8):
        state = "rejected" if number == 3 else "accepted"
        of = Version(**{**first.model_dump(), "id": f"v{number:04d}", "state": state})
        shutil.copytree(store.folder("v0001"), store.path / "versions" / of.id)
        (store.folder(of.id) / MANIFEST).write_text(sealed(of))
        if state == "accepted":
            store.point_to(of.id)
    return store.path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    shutil.copytree(made, tmp_path / "store")
    return Store(tmp_path / "store")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("file", ["merges.txt.gz", "open_clip_model.safetensors", "open_clip_config.json"])
@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_a_damaged_first_model_is_named(
    file: str, damage: Callable[[Path], None], store: Store, call: Call
) -> None:
    damage(store.path / "base" / file)
    code, _, err = call("search", store.path, "red")
    assert (code, f"base/{file}: " in err, "Every version of the store needs it" in err) == (5, True, True)
    assert f"base/{file}: " in call("status", store.path)[1]


def test_a_damaged_vocabulary_of_any_model_is_named(micro_folder: Path, tmp_path: Path) -> None:
    """The end of a file in gzip raises EOFError, which a command line takes for the end of its input."""
    shutil.copy(micro_folder / "model/merges.txt.gz", tmp_path)
    cut(tmp_path / "merges.txt.gz")
    with pytest.raises(ConfigError, match=r"merges.txt.gz: is no readable vocabulary"):
        build_tokenizer({}, tmp_path)


def test_a_record_that_is_deep_json_is_damaged(store: Store) -> None:
    (store.path / "current").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="current: cannot be read"):
        _ = store.current


def test_a_damaged_probe_is_named(store: Store) -> None:
    (name,) = store.settings.probes
    assert len(store.probe(name)) == 8
    path = store.path / f"probes/{name}.parquet"
    whole = path.read_bytes()
    other = pq.read_table(path).slice(1)
    pq.write_table(other, path)  # a good file with other rows
    with pytest.raises(CheckpointError, match=rf"{name}.parquet: damaged"):
        store.probe(name)
    path.write_bytes(whole[:100])
    old = store.settings.model_copy(update={"files": {}})  # of an earlier release, which knew no sums
    store.settings = old
    with pytest.raises(CheckpointError, match=rf"{name}.parquet: cannot be read"):
        store.probe(name)


def test_promote_mends_a_damaged_pointer(store: Store, call: Call) -> None:
    (store.path / "current").write_text("{")
    code, _, err = call("rollback", store.path)
    assert (code, f"`everclip promote {store.path} VERSION` writes it anew" in err) == (5, True)
    code, out, err = call("promote", store.path, "v0002")
    assert (code, "v0002 serves" in out, "not known any more" in out + err) == (0, True, True)
    assert store.current.before == []


@pytest.mark.parametrize("verb", [("search", "red"), ("status",), ("index", "--remove", "0-0")])
def test_a_damaged_table_of_the_index_is_one_message(verb: tuple[str, ...], store: Store, call: Call) -> None:
    for data in (store.path / "index/tables").glob("*.lance/data/*"):
        cut(data)
    code, out, err = call(verb[0], store.path, *verb[1:])
    assert (code, "damaged (" in out + err) == (0 if verb == ("status",) else 5, True), err
    assert "index the images again" in out + err


def test_status_says_that_the_state_of_the_index_is_damaged(store: Store, call: Call) -> None:
    cut(store.path / "index/serving")
    code, out, _ = call("status", store.path)
    assert (code, "index/serving: cannot be read" in out, "init v0001" in out) == (0, True, True)


def test_a_damaged_manifest_hides_no_other_version_and_is_pruned_on_demand(store: Store, call: Call) -> None:
    cut(store.path / "versions/v0002/version.json")
    code, out, err = call("versions", store.path)
    assert (code, "v0002/version.json" in err, len(out.splitlines())) == (5, True, 6)
    code, _, err = call("prune", store.path, "--keep", "0")
    assert (code, "v0002 cannot be read" in err) == (5, True)
    assert len(store.ids()) == 7  # nothing was removed before it was noticed
    assert call("prune", store.path, "--rejected")[0] == 0
    assert not {"v0002", "v0003"} & set(store.ids())


def test_prune_makes_room_on_a_full_disk(store: Store, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal has no room for the line that says that it begins."""
    shutil.rmtree(store.path / "index")
    begin, full = Journal.begin, [True]

    def refused(self: Journal, verb: str, version: str | None = None, detail: str = "") -> int:
        if full[0]:
            raise DiskFullError("journal.sqlite: the disk is full.")
        return begin(self, verb, version, detail)

    def freed(path: Path) -> None:
        full[0] = False
        remove(path)

    remove = shutil.rmtree
    monkeypatch.setattr(Journal, "begin", refused)
    code, _, err = call("rollback", store.path)
    assert (code, "the disk is full" in err) == (5, True)
    monkeypatch.setattr("everclip.store.pruning.shutil.rmtree", freed)
    assert call("prune", store.path, "--keep", "0", "--rejected")[0] == 0
    assert store.ids() == ["v0007"]
    last = store.journal.entries()[-1]
    assert (last.verb, last.outcome, last.detail[:14]) == ("prune", "done", "removed v0001,")


def test_a_full_disk_is_no_damage_of_the_journal(store: Store) -> None:
    with sqlite3.connect(store.path / "journal.sqlite") as database:
        pages = database.execute("PRAGMA page_count").fetchone()[0]

    def small(path: Path, timeout: float) -> sqlite3.Connection:
        connection = connect(path, timeout=timeout)
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    connect = sqlite3.connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("everclip.store.journal.sqlite3.connect", small)
        with pytest.raises(CheckpointError, match=r"journal.sqlite: the disk is full.*everclip prune"):
            store.journal.begin("update", detail="x" * 100_000)


def test_a_message_of_the_library_is_one_line_without_its_source() -> None:
    said = "lance error: LanceError(IO): size is too small, /build/lance-io/src/local.rs:273:40\nmore"
    assert tables.message_of(RuntimeError(said)) == "lance error: LanceError(IO): size is too small"
    full = "lance error: LanceError(IO): No space left on device (os error 28), /build/x.rs:1:9"
    assert tables.message_of(RuntimeError(full)) == "the disk is full"
    assert tables.message_of(RuntimeError()) == "RuntimeError"


def test_the_way_back_after_prune_leads_to_another_version(store: Store, call: Call) -> None:
    shutil.rmtree(store.path / "index")
    for version in ("v0006", "v0007", "v0005", "v0007"):
        store.point_to(version)
    shutil.rmtree(store.path / "versions/v0005")  # by hand
    assert call("prune", store.path, "--keep", "1")[0] == 0
    assert store.ids() == ["v0003", "v0006", "v0007"]
    assert store.current.before == ["v0006", "v0007", "v0006"]
    assert call("prune", store.path, "--keep", "0")[0] == 0
    assert store.ids() == ["v0003", "v0007"]
    assert store.current.before == []
    code, _, err = call("rollback", store.path)
    assert (code, "no version served before v0007" in err) == (2, True)


def test_prune_keeps_as_many_accepted_versions_as_it_says(store: Store, call: Call) -> None:
    shutil.rmtree(store.path / "index")
    assert call("prune", store.path, "--keep", "2")[0] == 0
    assert store.ids() == ["v0003", "v0005", "v0006", "v0007"]
    assert call("prune", store.path, "--keep", "0", "--rejected")[0] == 0
    assert store.ids() == ["v0007"]


@pytest.fixture
def call(command: Call) -> Call:
    """Return a function (*arguments) -> (exit code, standard output, standard error)."""
    return command


@contextmanager
def heeding_permissions() -> Iterator[None]:
    """Let this thread heed the permissions of files, also if it is root's (see capabilities(7))."""
    system, head = ctypes.CDLL(None, use_errno=True), struct.pack("Ii", 0x20080522, 0)
    held = ctypes.create_string_buffer(24)
    assert system.capget(ctypes.create_string_buffer(head), held) == 0
    effective, *others = struct.unpack("6I", held.raw)
    without = struct.pack("6I", effective & ~0b110, *others)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert system.capset(ctypes.create_string_buffer(head), ctypes.create_string_buffer(without)) == 0
    try:
        yield
    finally:
        assert system.capset(ctypes.create_string_buffer(head), held) == 0


def bytes_of(folder: Path) -> dict[str, str]:
    """Return path -> hash of the files of a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are of Linux")
def test_a_store_in_a_read_only_folder_answers_and_refuses_changes(
    made: Path, store: Store, call: Call
) -> None:
    data, path = made.parent / "few.parquet", store.path
    paths = [path, *path.rglob("*")]
    before = bytes_of(path)
    for one in paths:
        one.chmod(0o555 if one.is_dir() else 0o444)
    try:
        with heeding_permissions():
            for words in (("status",), ("versions",), ("search", "red"), ("reindex", "--dry-run")):
                assert call(words[0], path, *words[1:])[0] == 0, words
            assert call("update", path, "--data", data, "--dry-run", "training.steps=1")[0] == 0
            for words in (
                ("update", "--data", data),
                ("promote", "v0002"),
                ("rollback",),
                ("prune", "--rejected"),
                ("index", data, "--replace"),
                ("reindex", "--to", "v0002"),
                ("reindex", "--tidy"),
            ):
                code, _, err = call(words[0], path, *words[1:])
                assert (code, "Permission denied" in err, err.count("\n")) == (4, True, 1), (words, err)
    finally:
        for one in paths:
            one.chmod(0o755)
    assert bytes_of(path) == before
