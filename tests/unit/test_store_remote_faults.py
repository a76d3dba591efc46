"""A store far away when something goes wrong: clocks, cut connections, a damaged cache, odd names, secrets."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from everclip.errors import CheckpointError, ConfigError, RunFolderError
from everclip.remote import files, lease
from everclip.remote.files import RemoteFiles, open_files
from everclip.remote.lease import Holder, leased
from everclip.sealing import sealed
from everclip.serve.live import Live
from everclip.store.creating import create_store
from everclip.store.opening import open_store
from everclip.store.records import Version
from everclip.store.remote import commits
from everclip.store.remote.commits import LEASES, key_of
from everclip.store.remote.tree import Contents
from everclip.store.updating import update
from everclip.store.versions import Store
from everclip.urls import brief_error


@pytest.fixture(scope="module")
def made(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two versions of equal weights below a `file://` URL; only to be copied."""
    folder = tmp_path_factory.mktemp("far") / "store"
    store = create_store(f"file://{folder}", str(micro_folder / "model"))
    with store.changing("update") as action:
        given = {"created": "", "method": "safe", "tensors": {}, "learner": "", "files": {}}
        version = Version(id="v0002", parent="v0001", state="accepted", **given)
        action.version = store.add(store.load(), version, None).id
        store.point_to("v0002")
    return folder


@pytest.fixture
def url(made: Path, tmp_path: Path) -> str:
    shutil.copytree(made, tmp_path / "store")
    return f"file://{tmp_path / 'store'}"


@pytest.fixture
def far(tmp_path: Path) -> RemoteFiles:
    """An empty folder far away."""
    return open_files(f"file://{tmp_path / 'empty'}")


def opened(url: str, cache: Path, name: str = "a", **given: Any) -> Store:
    """Open a store as another machine does."""
    return open_store(url, cache=cache / name, **given)


def promote(store: Store, version: str) -> None:
    with store.changing("promote") as action:
        store.promote(version, action)


def commit_of(url: str, number: int) -> Path:
    return Path(url.removeprefix("file://")) / key_of(number)


# -- leases ---------------------------------------------------------------------------------------------------


class Clock:
    """Stands for `time` in the lease: sleeping takes no time, and something may happen at each second."""

    def __init__(self, each: Callable[[float], None] = lambda now: None) -> None:
        self.now, self._each = 1_000_000.0, each

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._each(self.now)


def held(far: RemoteFiles, until: float) -> Callable[[float], None]:
    """Let another machine hold the lease; return what renews it."""

    def renew(now: float) -> None:
        holder = Holder(
            verb="update",
            host="other",
            process=1,
            since="then",
            token="t",
            kernel="theirs",
            until=until + now,
        )
        far.write("lease/model/000000007.json", sealed(holder).encode())

    renew(0.0)
    return renew


def test_a_lease_that_is_renewed_is_not_taken_over_although_its_clock_is_an_hour_behind(
    far: RemoteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = 1_000_000.0
    renew = held(far, start - 3600)

    def each(now: float) -> None:
        if now % lease.RENEWED == 0 and now < start + 600:  # then it is killed
            renew(now - start)

    monkeypatch.setattr(lease, "time", clock := Clock(each))
    with (
        pytest.raises(RunFolderError, match=r"`update` .* works on this store.* its lease ends within 90 s"),
        leased(far, LEASES["model"], "promote"),
    ):
        pass
    assert clock.now <= start + 2 * lease.RENEWED
    with leased(far, LEASES["model"], "promote", wait=True, say=(lines := []).append) as taken:
        assert (taken.number, str(taken.interrupted)) == (8, "`update` (process 1 on other, since then)")
    assert clock.now >= start + 580 + lease.WATCHED
    assert "`update` (process 1 on other, since then) did not renew its lease" in lines[0]


def test_a_killed_holder_whose_clock_is_a_day_ahead_holds_nobody_up_for_a_day(
    far: RemoteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    held(far, 1_000_000.0 + 86_400)
    monkeypatch.setattr(lease, "time", clock := Clock())
    with (
        pytest.raises(RunFolderError, match=r"`update` .* its lease ends within 90 s"),
        leased(far, LEASES["model"], "promote"),
    ):
        pass
    with leased(far, LEASES["model"], "promote", wait=True, say=(lines := []).append) as taken:
        assert taken.number == 8
    assert lease.SECONDS <= clock.now - 1_000_000.0 <= 2 * lease.SECONDS
    assert lines == ["waiting for `update` (process 1 on other, since then)"]


def test_a_process_of_another_user_that_the_system_hides_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert (lease._runs(os.getpid()), lease._runs(child)) == (True, False)

    def hidden(process: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(lease.os, "kill", hidden)
    assert lease._runs(child)


def test_a_lease_that_another_process_took_and_gave_back_meanwhile_is_no_error(
    far: RemoteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    far.create("lease/model/000000001.json", b"theirs")

    def gone(key: str) -> bytes:
        raise FileNotFoundError(key)

    monkeypatch.setattr(far, "read", gone)
    assert not far.create("lease/model/000000001.json", b"mine")


# -- commits --------------------------------------------------------------------------------------------------


def test_a_damaged_commit_may_be_renamed_in_place_of_removed(url: str, tmp_path: Path) -> None:
    promote(opened(url, tmp_path), "v0001")
    commit_of(url, 3).rename(commit_of(url, 3).with_suffix(".json.damaged"))
    assert opened(url, tmp_path, "b").current.version == "v0002"


def test_who_has_seen_a_commit_that_was_removed_does_not_bring_it_back(url: str, tmp_path: Path) -> None:
    first, second = opened(url, tmp_path, "a"), opened(url, tmp_path, "b")
    promote(first, "v0001")
    second.refresh()
    commit_of(url, 3).unlink()  # as `status` advises for a damaged one
    with opened(url, tmp_path, "c").changing("note"):
        pass
    promote(second, "v0001")  # its own commit 3 is another one
    assert [e.verb for e in opened(url, tmp_path, "d").journal.entries()] == [
        "init",
        "update",
        "note",
        "promote",
    ]
    changing = second.changing("promote")
    second.promote("v0002", changing.__enter__())
    commit_of(url, 4).unlink()
    with pytest.raises(RunFolderError, match="Nothing was published"):
        changing.__exit__(None, None, None)
    promote(second, "v0002")


def test_a_commit_holds_although_what_is_old_cannot_be_removed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "KEPT", 1)
    store = opened(url, tmp_path, say=(lines := []).append)
    write = RemoteFiles.write

    def refused(self: RemoteFiles, key: str, data: bytes) -> None:
        if key.startswith("commits/"):
            raise RunFolderError(f"{key}: cannot be reached (PermissionError: locked for a year).")
        write(self, key, data)

    monkeypatch.setattr(RemoteFiles, "write", refused)
    promote(store, "v0001")
    assert "could not be removed: commits/000000002.json" in lines[-1]
    assert opened(url, tmp_path, "b").current.version == "v0001"


def test_who_was_killed_after_its_commit_was_not_interrupted(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # the lease is never given back, and ends
        patch.setattr(lease, "SECONDS", -1.0)
        patch.setattr(lease.Lease, "renew", lambda self, released=False: None)
        promote(opened(url, tmp_path), "v0001")
    other = opened(url, tmp_path, "b")
    with other.changing_index("index"):
        (other.path / "index").mkdir()
        (other.path / "index" / "part").write_text("1")
    store = opened(url, tmp_path, "c", say=(lines := []).append)
    promote(store, "v0002")
    assert lines == []
    assert [e.outcome for e in store.journal.entries()] == ["done"] * 4


# -- the server -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://", "'s3://' names no place"),
        ("file:///", "'file:///' names no place"),
        ("s3://shops/shop[1]", r"'\[' is a pattern"),
        ("s3://shops/shop?version", r"'\?' is a pattern"),
        ("s3://shops/shop?key=secret", "holds an account, a key or a query"),
    ],
)
def test_a_url_that_means_another_place_is_refused(url: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        open_store(url, cache=tmp_path)
    assert "secret" not in str(error.value)


def test_a_slash_at_the_end_of_a_url_changes_nothing(url: str, tmp_path: Path) -> None:
    store = opened(f"{url}//", tmp_path)
    assert (store.place, store.title) == (url, "store")


def test_a_folder_that_cannot_be_listed_is_no_empty_one(
    far: RemoteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert far.names("lease/model") == []
    far.write("lease/model/000000001.json", b"theirs")
    scandir = os.scandir

    def stale(path: str) -> Any:
        if str(path).endswith("lease/model"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", stale)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    with pytest.raises(RunFolderError, match="lease/model: cannot be reached"):
        far.names("lease/model")


def test_an_upload_waits_a_minute_for_a_server_and_a_refusal_is_said_at_once(
    far: RemoteFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(files.time, "sleep", slept.append)
    upload, left = far._upload, [OSError("no network")] * 7

    def failing(path: Path, key: str) -> None:
        if left:
            raise left.pop()
        upload(path, key)

    monkeypatch.setattr(far, "_upload", failing)
    (tmp_path / "x").write_bytes(b"content")
    far.upload(tmp_path / "x", "data/x")
    assert far.read("data/x") == b"content"
    assert 60 <= sum(slept) <= 90
    left.append(PermissionError("refused"))
    with pytest.raises(RunFolderError, match="PermissionError: refused"):
        far.upload(tmp_path / "x", "data/x")
    assert len(slept) == 7


def test_a_disk_without_hard_links_is_refused(far: RemoteFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(files.os, "link", link)
    with pytest.raises(ConfigError, match="only if there is none, which is not possible here"):
        far.create("lease/x", b"mine")
    assert far.sizes() == {}


def test_no_error_of_a_library_shows_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-session-token\n")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-key")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    said = brief_error(
        ValueError(
            r"header b'a-session-token\n' a-secret-key http://me:pass@host:9000/shops "
            f"https://shops/x?X-Amz-Signature=0123&X-Amz-Credential=me&x=1 {tmp_path}"
        )
    )
    assert said == (
        r"ValueError: header b'***\n' *** http://***@host:9000/shops "
        f"https://shops/x?X-Amz-Signature=***&X-Amz-Credential=***&x=1 {tmp_path}"
    )


def test_a_key_in_the_url_of_the_data_is_in_no_journal(url: str, tmp_path: Path) -> None:
    store = opened(url, tmp_path)
    with pytest.raises(ConfigError, match=r"--data: the URL of s3://bucket/april\.parquet holds an account"):
        update(store, "s3://me:secret@bucket/april.parquet")
    assert [entry.verb for entry in store.journal.entries()] == ["init", "update"]
    assert b"secret" not in (store.path / "journal.sqlite").read_bytes()


def test_a_damaged_file_of_a_version_is_named_with_its_url(url: str, tmp_path: Path) -> None:
    (path,) = Path(url.removeprefix("file://")).glob("data/*/versions/v0002/learner/config.yaml")
    path.write_text("damaged")
    with pytest.raises(CheckpointError, match=f"file://{path}: damaged: version v0002 cannot be used"):
        opened(url, tmp_path).load()


# -- this machine ---------------------------------------------------------------------------------------------


def test_a_download_that_was_cut_off_is_no_damage(tmp_path: Path) -> None:
    contents, sha256 = Contents(tmp_path), "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    given = [b"cont", b"content"]
    assert contents.fetch(sha256, 7, lambda path: path.write_bytes(given.pop(0)) and None) is None
    assert contents.path(sha256).read_bytes() == b"content"
    contents.path(sha256).write_bytes(b"")  # after a power failure
    assert contents.fetch(sha256, 7, lambda path: path.write_bytes(b"content") and None) is None
    assert contents.path(sha256).read_bytes() == b"content"


@pytest.mark.parametrize(
    "kind", ["objects/", "base/open_clip_config.json", "versions/v0002/learner/config.yaml"]
)
def test_what_is_damaged_only_on_this_machine_is_fetched_again(url: str, tmp_path: Path, kind: str) -> None:
    store = opened(url, tmp_path)
    store.load()
    copy = store.copy
    assert copy is not None
    assert copy.commit is not None
    path = next(p for p in sorted(copy.commit.files) if p.startswith(kind))
    content = copy._contents.path(copy.commit.files[path].sha256)
    content.write_bytes(bytes(len(content.read_bytes())))  # the file of the working copy is a link to it
    assert opened(url, tmp_path).load() is not None
    assert store.load() is not None
    assert store.problems("v0002") == []


def test_a_content_that_another_process_removes_from_the_cache_now_is_fetched_again(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, removed = Contents.fetch, []

    def removing(self: Contents, sha256: str, size: int, download: Callable[[Path], None]) -> bytes | None:
        found = fetch(self, sha256, size, download)
        if not removed:
            removed.append(sha256)
            self.drop(sha256)
        return found

    monkeypatch.setattr(Contents, "fetch", removing)
    assert opened(url, tmp_path).current.version == "v0002"
    assert removed


def test_threads_that_fetch_and_follow_take_turns(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(url, tmp_path)
    copy = store.copy
    assert copy is not None
    promote(opened(url, tmp_path, "b"), "v0001")
    place, seen = copy._place, []

    def placing(*given: Any) -> None:
        if not seen:
            seen.append(thread := threading.Thread(target=copy.refresh))
            thread.start()
            thread.join(0.2)
            assert thread.is_alive()
            assert store.current.version == "v0002"
        place(*given)

    monkeypatch.setattr(copy, "_place", placing)
    copy.fetch_folder("base")
    seen[0].join(30)
    assert store.current.version == "v0001"


def test_a_server_goes_on_to_follow_after_an_error_that_nobody_foresaw(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Live(opened(url, tmp_path, "a"), lambda version: SimpleNamespace(id=version))  # type: ignore[arg-type]  # not a model
    mark, errors = live._mark, [RuntimeError("odd")]

    def odd() -> object:
        if errors:
            raise errors.pop()
        return mark()

    monkeypatch.setattr(live, "_mark", odd)
    promote(opened(url, tmp_path, "b"), "v0001")
    live.watch(0.01)
    for _ in range(500):
        if live.current.id == "v0001":
            break
        threading.Event().wait(0.02)
    live.stop()
    assert (live.current.id, errors) == ("v0001", [])
