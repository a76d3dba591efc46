"""The copy of a run far away, without a run: what is published, what is removed, what is taken for newer."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from everclip import execute
from everclip.errors import CheckpointError, ConfigError, RunFolderError
from everclip.learner import Learner
from everclip.learner.row_models import RowModels
from everclip.remote import files, lease
from everclip.remote.files import RemoteFiles, open_files
from everclip.remote.lease import LeaseLostError
from everclip.report import html, write_report
from everclip.training import remote_run
from everclip.training.remote_run import LEASE, CopyLostError, RunCopy
from everclip.training.run_place import changed_run, local_run

Machine = Callable[[str], None]

CONTENT = {"config.yaml": "a: 1", "rows/000.npz": "0", "metrics.jsonl": "{}\n"}


def checkpoint(number: int, text: str = "x") -> dict[str, str]:
    folder = f"checkpoints/{number:08d}"
    return {f"{folder}/{name}": text for name in ("manifest.json", "state.json", "tensors.safetensors")}


@pytest.fixture(autouse=True)
def _in_order_and_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_run, "_AT_ONCE", 1)
    monkeypatch.setattr(lease, "PAUSE", 0.01)


@pytest.fixture
def url(tmp_path: Path, machine: Machine) -> str:
    """Return the URL of `tmp_path / "far"`."""
    return f"file://{tmp_path / 'far'}"


def write(folder: Path, content: dict[str, str]) -> None:
    for path, text in content.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def changed(url: str, act: Callable[[RunCopy], object] = lambda copy: None) -> RunCopy:
    copy = RunCopy(url)
    with copy.changing("run"):
        act(copy)
    return copy


def published(url: str, content: dict[str, str]) -> None:
    changed(url, lambda copy: write(copy.folder, content))


def killed(url: str, content: dict[str, str]) -> None:
    """Leave a copy that is newer than the URL."""

    def act(copy: RunCopy) -> None:
        write(copy.folder, content)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        changed(url, act)


def held(folder: Path) -> dict[str, str]:
    """Return path -> text of the run's files in a folder."""
    found = {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}
    return {p: t for p, t in found.items() if not p.startswith((".everclip", ".copy", ".lock"))}


# -- files that are gone from the copy ------------------------------------------------------------------------


@pytest.mark.parametrize("removed", ["", "rows"])
def test_what_someone_removes_from_a_copy_stays_at_the_url(url: str, tmp_path: Path, removed: str) -> None:
    published(url, CONTENT | checkpoint(1))

    def act(copy: RunCopy) -> None:
        shutil.rmtree(copy.folder / removed)
        write(copy.folder, checkpoint(2))
        copy.publish()

    with pytest.raises(CopyLostError, match="is gone: someone removed it"):
        changed(url, act)
    assert held(tmp_path / "far") == CONTENT | checkpoint(1)
    copy = changed(url)
    assert held(tmp_path / "far") == held(copy.folder) == CONTENT | checkpoint(1)


@pytest.mark.parametrize("removed", ["rows/000.npz", "config.yaml", "metrics.jsonl"])
def test_a_newer_copy_that_was_tidied_is_made_anew(url: str, tmp_path: Path, removed: str) -> None:
    published(url, CONTENT | checkpoint(1))
    killed(url, checkpoint(2))
    copy = RunCopy(url)
    (copy.folder / removed).unlink()
    changed(url)
    assert held(tmp_path / "far") == CONTENT | checkpoint(1)


def test_a_folder_that_cannot_be_read_is_not_taken_for_empty(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(url, CONTENT | {"notes/mine.txt": "x"})
    inner = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("/notes") and "machines" in str(path):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return inner(path)

    with pytest.raises(RunFolderError, match=r"notes: cannot be read \(Input/output error\)"):
        changed(url, lambda copy: monkeypatch.setattr(os, "scandir", scandir))
    assert "notes/mine.txt" in held(tmp_path / "far")


# -- newer, older, mixed --------------------------------------------------------------------------------------


def test_another_machine_of_a_run_takes_what_is_published(url: str, machine: Machine) -> None:
    published(url, CONTENT | checkpoint(1))
    killed(url, checkpoint(2))
    copy = RunCopy(url)
    copy.refresh()
    assert held(copy.folder) == CONTENT | checkpoint(1) | checkpoint(2)
    copy.refresh(published=True)
    assert held(copy.folder) == CONTENT | checkpoint(1)


def test_a_copy_made_while_something_is_published_is_no_mixture(
    url: str, tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(url, CONTENT | {"rows/001.npz": "1"})
    reads = 0

    def act(point: str) -> None:
        nonlocal reads
        if point == "in remote run: uploaded":
            reads += 1
            machine("second")
            RunCopy(url).refresh()
            machine("first")

    monkeypatch.setattr(remote_run, "crash_point", act)
    new = {"rows/000.npz": "2", "rows/001.npz": "3"}  # of equal sizes
    published(url, new)
    assert reads == 2
    machine("second")
    assert held(local_run(url)) == CONTENT | new == held(tmp_path / "far")


def test_a_state_that_is_published_meanwhile_is_fetched_again(
    url: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(url, CONTENT | {"rows/001.npz": "1"})
    machine("second")
    new = {"config.yaml": "a: 2", "rows/001.npz": "3"}
    left = 1

    def act(point: str) -> None:
        nonlocal left
        if point == "in remote run: fetched" and left:
            left = 0
            machine("first")
            published(url, new)
            machine("second")

    monkeypatch.setattr(remote_run, "crash_point", act)
    assert held(local_run(url)) == CONTENT | new


@pytest.mark.parametrize("arrives", [False, True])
def test_a_copy_is_newer_although_the_server_did_not_answer_to_the_token(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    published(url, CONTENT | checkpoint(1))
    inner = RemoteFiles.write

    def cut_off(self: RemoteFiles, key: str, data: bytes) -> None:
        if arrives or "lease" in key:
            inner(self, key, data)
        if "lease" not in key:
            raise RunFolderError(f"{key}: cannot be reached.")

    def act(copy: RunCopy) -> None:
        write(copy.folder, checkpoint(2))
        copy.publish()
        copy.publish()

    with monkeypatch.context() as patch:
        patch.setattr(files._LocalFiles, "write", cut_off)
        with pytest.raises(RunFolderError, match="the same command on this machine publishes it"):
            changed(url, act)
    changed(url)
    assert held(tmp_path / "far") == CONTENT | checkpoint(1) | checkpoint(2)


def test_a_lease_that_is_lost_while_files_are_written_ends_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(url, CONTENT | checkpoint(1))

    def take_over(point: str) -> None:
        newest = max((tmp_path / "far" / LEASE.folder).iterdir())
        shutil.copy(newest, newest.with_name(f"{int(newest.name[:9]) + 1:09d}.json"))

    def act(copy: RunCopy) -> None:
        write(copy.folder, {"metrics.jsonl": "{}\n{}\n"} | checkpoint(2) | {"results.json": "{}"})
        shutil.rmtree(copy.folder / "checkpoints/00000001")

    monkeypatch.setattr(remote_run, "crash_point", take_over)
    with pytest.raises(LeaseLostError):
        changed(url, act)
    assert held(tmp_path / "far") == CONTENT | checkpoint(1) | {"metrics.jsonl": "{}\n{}\n"}


def test_the_result_is_written_when_everything_else_is_done(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished result says that the pages beside it are those of this end: they are not written again."""
    published(url, CONTENT | checkpoint(1) | {"results.json": "old", "diagnosis.html": "old"})
    states = []

    def act(point: str) -> None:
        states.append(held(tmp_path / "far"))

    monkeypatch.setattr(remote_run, "crash_point", act)
    copy = RunCopy(url)
    with copy.changing("run"):
        write(copy.folder, checkpoint(2) | {"results.json": "new", "report.html": "new"})
        (copy.folder / "diagnosis.html").unlink()
    finished = [state for state in states if state["results.json"] == "new"]
    assert finished
    assert all(state == held(copy.folder) for state in finished)
    assert states[-3].keys() >= checkpoint(2).keys()
    assert states[-3]["results.json"] == "old"


def test_what_a_killed_process_left_at_the_url_is_removed(url: str, tmp_path: Path) -> None:
    published(url, CONTENT | checkpoint(1))
    left = {"checkpoints/00000009/tensors.safetensors": "half", "rows/.000.npz.7.tmp": "half"}
    write(tmp_path / "far", left)
    assert held(local_run(url)) == CONTENT | checkpoint(1)
    published(url, checkpoint(2))
    assert held(tmp_path / "far") == CONTENT | checkpoint(1) | checkpoint(2)


def test_half_a_model_of_a_row_is_written_again(tmp_path: Path) -> None:
    learner: Any = SimpleNamespace(
        tensors=lambda optimiser: {"w": torch.ones(2)}, state=lambda cursor: {"n": 1}
    )
    models = RowModels(tmp_path, SimpleNamespace(numbered=list))  # type: ignore[arg-type]
    models.keep(1, learner)
    (tmp_path / "rows/models/001/state.json").unlink()  # its publication ended between the two
    models.keep(1, learner)
    assert models.load(1) is not None


# -- other places ---------------------------------------------------------------------------------------------


def test_a_url_with_other_files_is_refused_and_nothing_is_fetched(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "far", {f"one/{path}": text for path, text in CONTENT.items()})
    monkeypatch.setattr(RemoteFiles, "download", None)
    with pytest.raises(ConfigError, match=r"holds files, but no run .*one/config\.yaml"):
        local_run(url)
    with pytest.raises(ConfigError, match="holds files, but no run"):
        changed(url)


def test_a_report_of_nothing_writes_nothing(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"), changed_run(url, "report"):
        pass
    assert not (tmp_path / "far").exists()


def test_a_report_that_python_writes_is_published(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(folder: Path) -> Path:
        write(folder, {"report.html": "page"})
        return folder / "report.html"

    published(url, CONTENT)
    monkeypatch.setattr(html, "_write_report", draw)
    assert write_report(url).is_file()
    assert held(tmp_path / "far")["report.html"] == "page"


def test_a_full_disk_here_is_not_a_server_that_does_not_answer(
    url: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(url, CONTENT)
    machine("second")

    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    copy = RunCopy(url)
    monkeypatch.setattr(copy._files, "_system", SimpleNamespace(get_file=full, invalidate_cache=lambda: None))
    monkeypatch.setattr(copy._files, "read", lambda key: json.dumps({"token": "x"}).encode())
    with pytest.raises(CheckpointError, match=r"machines/second.*the disk is full"):
        copy.refresh()


def test_a_name_that_is_a_pattern_removes_no_other_file() -> None:
    far = open_files("memory://everclip-patterns/run")
    for key in ("x1", "x*"):
        far.write(key, b"")
    far.remove(["x*"])
    assert far.names("") == ["x1"]


def test_a_cache_that_cannot_be_written_is_named(
    micro_config: Callable[..., Any], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunFolderError, match=r"^EVERCLIP_CACHE: .* is no folder"):
        execute(micro_config("time", output="run").model_copy(update={"output": url}))


def test_a_refused_url_is_that_of_the_argument() -> None:
    with pytest.raises(ConfigError, match=r"^compare: the URL of") as found:
        local_run("s3://KEY:s3cret@bucket/run", "compare")
    assert "s3cret" not in str(found.value)


def test_a_learner_is_not_saved_in_a_folder_named_like_a_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"save: s3://bucket/x is a URL"):
        Learner.save(None, "s3://bucket/x")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
