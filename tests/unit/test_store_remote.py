"""A store far away: two working copies, one writer, killed and damaged; nothing is ever between before and after."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from everclip.errors import CheckpointError, ConfigError, RunFolderError
from everclip.learner.core import Learner
from everclip.remote import files, lease
from everclip.remote.files import open_files
from everclip.remote.lease import leased
from everclip.serve.live import Live
from everclip.store.creating import create_store
from everclip.store.loading import load_any, store_of
from everclip.store.opening import open_store
from everclip.store.pruning import prune
from everclip.store.records import GateLimits
from everclip.store.remote import commits, publishing
from everclip.store.remote.commits import LEASES, key_of
from everclip.store.versions import Store
from moving import moved


def next_version(store: Store) -> str:
    """Let a version serve whose image tower has moved."""
    name = moved(store)
    store.point_to(name)
    return name


@pytest.fixture(scope="module")
def made(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two versions below a `file://` URL; only to be copied."""
    folder = tmp_path_factory.mktemp("far") / "store"
    store = create_store(f"file://{folder}", str(micro_folder / "model"), gates=GateLimits(gain=None))
    with store.changing("update") as action:
        action.version = next_version(store)
    return folder


@pytest.fixture
def url(made: Path, tmp_path: Path) -> str:
    shutil.copytree(made, tmp_path / "store")
    return f"file://{tmp_path / 'store'}"


def opened(url: str, cache: Path, name: str = "a", **given: Any) -> Store:
    """Open a store as another machine does."""
    return open_store(url, cache=cache / name, **given)


def images_of(learner: Learner) -> torch.Tensor:
    pixels = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    with torch.inference_mode():
        return learner.method.eval().encode_images(pixels)["embedding"]


def promote(store: Store, version: str) -> None:
    with store.changing("promote") as action:
        store.promote(version, action)


# -- two machines ---------------------------------------------------------------------------------------------


def test_two_machines_see_each_others_changes(url: str, tmp_path: Path) -> None:
    first, second = opened(url, tmp_path, "a"), opened(url, tmp_path, "b")
    expected = images_of(second.load())
    promote(first, "v0001")
    assert second.current.version == "v0002"
    second.refresh()
    assert (second.current.version, second.current.before) == ("v0001", ["v0001", "v0002"])
    with second.changing("rollback") as action:  # goes on from what the first has published
        second.rollback(action)
    first.refresh()
    assert first.current.version == "v0002"
    assert [entry.verb for entry in first.journal.entries()] == ["init", "update", "promote", "rollback"]
    with first.changing("prune") as action:
        removed = prune(first, 0, True, action)
    assert removed.versions == ["v0001"]
    assert removed.bytes > 10_000  # of contents that this machine never fetched
    second.refresh()
    assert second.ids() == ["v0002"]
    assert torch.equal(images_of(second.load()), expected)
    third = opened(url, tmp_path, "c")
    assert torch.equal(images_of(third.load()), expected)
    assert third.problems("v0002") == []


def test_contents_come_when_they_are_needed_and_leave_after_a_prune(url: str, tmp_path: Path) -> None:
    store = opened(url, tmp_path)
    assert not (store.path / "base").exists()
    assert not (store.path / "objects").exists()
    store.load()
    here = {path.name for path in (store.path / "objects").rglob("*") if path.is_file()}
    of = store.version("v0002")
    assert here == {of.learner, *of.tensors.values()}
    with store.changing("prune") as action:
        prune(store, 0, True, action)
    promote(store, "v0002")  # one more commit: files that only the one before the last names go too
    assert store.copy is not None
    assert store.copy.commit is not None
    named = {file.key for file in store.copy.commit.files.values()}
    assert {key for key in store.copy.files.sizes("data") if "/objects/" in key} == {
        key for key in named if "/objects/" in key
    }
    assert not any("/versions/v0001/" in key for key in named)


@pytest.fixture
def in_memory(made: Path, tmp_path: Path) -> Iterator[str]:
    """The same store on another file system."""
    MemoryFileSystem().put(str(made), f"/{tmp_path.name}/shop", recursive=True)
    yield f"memory://{tmp_path.name}/shop"
    MemoryFileSystem().rm(f"/{tmp_path.name}", recursive=True)


def test_a_version_far_away_is_loaded_by_name(in_memory: str, tmp_path: Path) -> None:
    found = store_of(f"{in_memory}@v0001")
    assert found is not None
    store, version = found
    assert (store.place, store.title, version) == (in_memory, "shop", "v0001")
    promote(store, "v0001")
    assert torch.equal(images_of(load_any(in_memory)), images_of(store.load()))
    assert opened(in_memory, tmp_path).current.version == "v0001"
    with pytest.raises(ConfigError, match="there is something already"):
        create_store(in_memory, "no model is read")
    with pytest.raises(
        ConfigError, match=r"memory://nothing: is no store .* `everclip init memory://nothing"
    ):
        open_store("memory://nothing", cache=tmp_path)


def test_a_server_follows_and_goes_on_if_the_store_cannot_be_reached(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Live(opened(url, tmp_path, "a"), lambda version: SimpleNamespace(id=version))  # type: ignore[arg-type]  # not a model
    promote(opened(url, tmp_path, "b"), "v0001")
    live.look()
    assert live.current.id == "v0001"
    with monkeypatch.context() as patch:
        patch.setattr(files, "_TRIES", 1)
        patch.setattr(files._LocalFiles, "read", refused)
        live.look()
        assert (live.current.id, live.trouble is None) == ("v0001", False)
        assert live.trouble is not None
        assert "STORE: cannot be reached" in live.trouble.reason
    promote(opened(url, tmp_path, "b"), "v0002")
    live.look()
    assert (live.current.id, live.trouble) == ("v0002", None)


def refused(self: Any, key: str) -> bytes:
    raise RunFolderError(f"{self.url}: cannot be reached (no network).")


# -- one writer -----------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_with_the_holder_or_waits(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PAUSE", 0.01)
    first, second = opened(url, tmp_path, "a"), opened(url, tmp_path, "b", say=(lines := []).append)
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        with first.changing("update"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait(10)
    with pytest.raises(
        RunFolderError, match=rf"`update` \(process {os.getpid()} on .*\) works on this store"
    ):
        promote(second, "v0001")
    threading.Timer(0.05, leave.set).start()
    with second.changing("promote", wait=True) as action:
        second.promote("v0001", action)
    thread.join()
    assert [line for line in lines if line.startswith("waiting for `update`")] == lines
    assert [e.verb for e in second.journal.entries()][-2:] == ["update", "promote"]


def test_after_its_end_a_lease_is_taken_over_and_its_holder_publishes_nothing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = opened(url, tmp_path, "a"), opened(url, tmp_path, "b", say=(lines := []).append)
    with monkeypatch.context() as patch:
        patch.setattr(lease, "SECONDS", -1.0)
        entered = first.changing("promote")
        action = entered.__enter__()
    first.promote("v0001", action)
    with (
        second.changing("prune"),
        pytest.raises(RunFolderError, match=r"`prune` .* took over.*Nothing was published"),
    ):
        entered.__exit__(None, None, None)
    assert "`promote`" in lines[0]
    assert "was interrupted" in lines[0]
    second.refresh()
    assert second.current.version == "v0002"
    assert [(e.verb, e.outcome) for e in second.journal.entries()][-2:] == [
        ("promote", "interrupted"),
        ("prune", "done"),
    ]
    first.refresh()  # forgets what it could not publish
    assert first.current.version == "v0002"
    promote(first, "v0001")


def test_without_any_lease_the_second_of_two_changes_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease.Lease, "require", lambda self: None)
    monkeypatch.setattr(lease.Holder, "ended", property(lambda self: True))
    first, second = opened(url, tmp_path, "a"), opened(url, tmp_path, "b")
    with (
        pytest.raises(RunFolderError, match=r"`promote` .* changed the store meanwhile"),
        first.changing("update"),
    ):
        promote(second, "v0001")
    assert opened(url, tmp_path, "c").current.version == "v0001"


def test_the_index_and_the_versions_change_side_by_side_but_for_a_prune(url: str, tmp_path: Path) -> None:
    first, second = opened(url, tmp_path, "a"), opened(url, tmp_path, "b", tables=True)

    def index(content: str) -> None:
        with second.changing_index("index"):
            (second.path / "index").mkdir(exist_ok=True)
            (second.path / "index" / "part").write_text(content)

    with first.changing("promote") as action:
        first.promote("v0001", action)
        index("1")
    third = opened(url, tmp_path, "c", tables=True)
    assert (third.current.version, (third.path / "index" / "part").read_text()) == ("v0001", "1")
    second.refresh()
    assert second.current.version == "v0001"
    changing = first.changing("prune")
    prune(first, 0, True, changing.__enter__())
    index("2")
    with pytest.raises(RunFolderError, match=r"`index` .* changed the store meanwhile"):
        changing.__exit__(None, None, None)
    assert opened(url, tmp_path, "d").ids() == ["v0001", "v0002"]


def test_a_server_that_replaces_files_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(url, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(files._LocalFiles, "_create", lambda self, key, data: self.write(key, data))
        with pytest.raises(ConfigError, match="only if there is none, which is not possible here"):
            promote(store, "v0001")
    assert opened(url, tmp_path, "b").current.version == "v0002"
    monkeypatch.setattr(lease, "EXCLUSIVE", ())
    lines: list[str] = []
    with leased(open_files(url), LEASES["model"], "promote", say=lines.append):
        assert "is not known: let one process at a time" in lines[0]


def test_a_list_of_files_that_the_library_keeps_is_not_trusted(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, calls = open_files(url), []
    monkeypatch.setattr(far._system, "invalidate_cache", lambda: calls.append("forgotten"))
    far.read(key_of(1))
    assert calls == ["forgotten"]


def test_a_lost_answer_is_no_refusal(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    far = open_files(url)
    create, calls = far._create, []

    def lost(key: str, data: bytes) -> None:
        calls.append(key)
        create(key, data)
        if len(calls) == 1:
            raise OSError("connection lost")

    monkeypatch.setattr(far, "_create", lost)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    assert far.create("lease/x", b"mine")
    assert len(calls) == 2
    assert not far.create("lease/x", b"another's")


# -- killed ---------------------------------------------------------------------------------------------------


def killed_at(number: int, act: Callable[[], Any]) -> bool:
    """Run `act` in a child process that ends at its `number`-th crash point; whether it came that far."""
    child = os.fork()
    if child == 0:
        left = number

        def point(name: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)

        import everclip.files
        import everclip.store.versions

        for module in (everclip.files, everclip.store.versions, publishing):
            module.crash_point = point  # type: ignore[attr-defined]
        with suppress(BaseException):
            act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def act(verb: str, url: str, cache: Path) -> None:
    store = open_store(url, cache=cache)
    with store.changing(verb) as action:
        store.promote("v0001", action) if verb == "promote" else prune(store, 0, True, action)


def killed_once(verb: str, number: int, made: Path, tmp_path: Path) -> tuple[bool, str, int]:
    """Kill a verb at a crash point; return whether it was killed, what serves, and the number of versions."""
    folder = tmp_path / str(number) / "store"
    shutil.copytree(made, folder)
    url = f"file://{folder}"
    killed = killed_at(number, lambda: act(verb, url, tmp_path / "killed"))
    after = opened(url, tmp_path, f"after-{number}")
    assert after.problems(after.current.version) == []
    assert after.copy is not None
    assert after.copy.problems() == []
    found = (after.current.version, len(after.ids()))
    assert found in {("v0002", 2), ("v0001", 2) if verb == "promote" else ("v0002", 1)}
    assert (len(after.journal.entries()) == 3) == (found != ("v0002", 2))
    return killed, *found


@pytest.mark.parametrize("number", [1, 8])
def test_killed_while_it_publishes_a_store_is_before_and_the_command_can_be_repeated(
    number: int, made: Path, tmp_path: Path
) -> None:
    assert killed_once("promote", number, made, tmp_path) == (True, "v0002", 2)
    url = f"file://{tmp_path / str(number) / 'store'}"
    act(
        "promote", url, tmp_path / "again"
    )  # at once: the lease of a process that has ended here holds no more
    assert opened(url, tmp_path).current.version == "v0001"


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["promote", "prune"])
def test_killed_anywhere_a_store_is_before_or_after(verb: str, made: Path, tmp_path: Path) -> None:
    number, killed, seen = 0, True, set()
    while killed:
        number += 1
        killed, *found = killed_once(verb, number, made, tmp_path)
        seen.add(tuple(found))
    assert number > 10
    assert len(seen) == 2


def test_what_a_killed_process_left_is_removed(url: str, tmp_path: Path) -> None:
    folder = Path(url.removeprefix("file://"))
    left = folder / "data" / "model-000000001-dead" / "objects" / "x"
    left.parent.mkdir(parents=True)
    left.write_text("never named")
    tree = opened(url, tmp_path).path.parent / "1-killed"
    tree.mkdir()
    tree.with_suffix(".alive").touch()
    promote(opened(url, tmp_path), "v0001")
    assert not left.exists()
    assert not tree.exists()


def test_the_numbers_of_old_commits_stay(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "KEPT", 2)
    store = opened(url, tmp_path)
    for version in ("v0001", "v0002", "v0001"):
        promote(store, version)
    folder = Path(url.removeprefix("file://"))
    sizes = [(folder / key_of(number)).stat().st_size > 0 for number in range(1, 6)]
    assert sizes == [False, False, False, True, True]
    assert opened(url, tmp_path, "b").current.version == "v0001"


# -- damaged --------------------------------------------------------------------------------------------------


def damage(url: str, end: str) -> Path:
    """Change one byte of a file far away."""
    (path,) = [p for p in Path(url.removeprefix("file://")).rglob("*") if str(p).endswith(end)]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def test_a_damaged_tensor_is_named_and_the_parent_serves(url: str, tmp_path: Path) -> None:
    store = opened(url, tmp_path)
    first, second = store.version("v0001"), store.version("v0002")
    own = next(name for name in second.tensors.values() if name not in first.tensors.values())
    path = damage(url, own)
    with pytest.raises(CheckpointError, match=f"tensor .*file://{path}: damaged"):
        store.load()
    with store.changing("rollback") as action:
        store.rollback(action)
    assert images_of(opened(url, tmp_path, "b").load()).isfinite().all()
    path.unlink()
    assert store.copy is not None
    assert store.copy.problems() == [f"file://{path}: missing"]


def test_a_damaged_manifest_is_named_and_the_parent_serves(url: str, tmp_path: Path) -> None:
    path = damage(url, "versions/v0002/version.json")
    store = opened(url, tmp_path, say=(lines := []).append)
    assert lines == [
        f"note: file://{path}: damaged: its content is not the one it was written with (SHA-256)."
    ]
    with pytest.raises(CheckpointError, match=r"version\.json"):
        store.load()
    with store.changing("rollback") as action:
        store.rollback(action)
    assert opened(url, tmp_path, "b").load() is not None


def test_a_damaged_commit_is_named_and_the_one_before_holds_without_it(url: str, tmp_path: Path) -> None:
    promote(opened(url, tmp_path), "v0001")
    path = damage(url, key_of(3))
    with pytest.raises(CheckpointError, match=r"000000003.json.* remove this file: the store is then as it"):
        opened(url, tmp_path, "b")
    path.unlink()
    before = opened(url, tmp_path, "b")
    assert before.current.version == "v0002"
    assert before.load() is not None


# -- the environment ------------------------------------------------------------------------------------------


def test_a_missing_package_and_a_key_in_the_url_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigError, match=r"s3://bucket/shop: .* pip install 'everclip\[scale\]'"):
        open_store("s3://bucket/shop", cache=tmp_path)
    with pytest.raises(ConfigError, match="holds an account") as error:
        open_store("s3://me:secret@bucket/shop", cache=tmp_path)
    assert "secret" not in str(error.value)
