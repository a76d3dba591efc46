"""A run folder far away: stopped, killed, cut off, on another machine. It ends bit for bit as one that is here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import resume_harness as harness

from everclip import execute
from everclip.errors import ConfigError, Interrupted, RunFolderError
from everclip.evaluation.results import Results
from everclip.learner import Learner
from everclip.remote import lease
from everclip.remote.files import RemoteFiles
from everclip.remote.lease import leased
from everclip.report import compare
from everclip.training.progress import Progress
from everclip.training.remote_run import LEASE, OWN, RunCopy
from everclip.training.run_place import is_run_far_away, local_run
from everclip.urls import copy_of_run

CASE = "replay"

Machine = Callable[[str], None]
Reference = Callable[..., Path]
Command = Callable[..., tuple[int, str, str]]


class MachineLost(BaseException):
    """Stands for the end of a process that nobody sees coming."""


@pytest.fixture
def far(case_config: Callable[..., Any], tmp_path: Path, machine: Machine) -> Any:
    """Return the configuration of a run whose folder is a URL; the folder behind it is `tmp_path / "far"`."""
    return case_config(CASE).model_copy(update={"output": f"file://{tmp_path / 'far'}"})


def run(config: Any, act: Callable[[str], None] = lambda point: None, extend: bool = False) -> Results:
    """Run with a call at every crash point, also those of publishing."""
    with pytest.MonkeyPatch.context() as patch, harness.at_crash_points(act):
        patch.setattr("everclip.training.remote_run.crash_point", act)
        return execute(config, progress=Progress(quiet=True), extend=extend)


def lost_at(config: Any, wanted: str, number: int) -> None:
    """Run until the machine is lost: nothing is tidied, and its lease is not renewed."""
    left = number

    def act(point: str) -> None:
        nonlocal left
        left -= harness.kind_of(point) == wanted
        if left == 0:
            left = -1
            raise MachineLost

    with pytest.MonkeyPatch.context() as patch:
        # A process that is gone releases nothing; a kernel that is another one cannot be asked.
        patch.setattr(lease.Lease, "renew", lambda self, released=False: None)
        patch.setattr(lease, "_kernel", lambda: "")
        with pytest.raises(MachineLost):
            run(config, act)


def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a lease that is not renewed end soon."""
    monkeypatch.setattr(lease, "PAUSE", 0.01)
    monkeypatch.setattr(lease, "WATCHED", 0.05)
    monkeypatch.setattr(lease, "SECONDS", 0.1)


def test_a_run_far_away_ends_as_one_that_is_here(far: Any, tmp_path: Path, reference: Reference) -> None:
    run(far)
    harness.assert_same_end(tmp_path / "far", reference(CASE))
    harness.assert_same_end(far.folder, reference(CASE))
    assert json.loads((tmp_path / "far/.everclip/state.json").read_text())["token"]
    assert f"output: {far.output}" in (tmp_path / "far/config.yaml").read_text()


@pytest.mark.parametrize(
    ("point", "number"),
    [
        ("after step", 3),
        ("in remote run: uploaded", 1),
        ("in remote run: uploaded", 9),
        ("in remote run: uploaded", 24),
        ("in remote run: published", 2),
        ("in evaluation", 3),
        ("after renaming results.json", 2),
    ],
)
@pytest.mark.parametrize("there", ["first", "second"])
def test_a_lost_machine_changes_nothing(
    far: Any,
    tmp_path: Path,
    reference: Reference,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    number: int,
    there: str,
) -> None:
    monkeypatch.setattr("everclip.training.remote_run._AT_ONCE", 1)  # so that the crash points have an order
    lost_at(far, point, number)
    soon(monkeypatch)
    machine(there)
    run(far)
    harness.assert_same_end(tmp_path / "far", reference(CASE))


def test_a_machine_that_was_left_behind_fetches_what_another_one_published(
    far: Any,
    tmp_path: Path,
    reference: Reference,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost_at(far, "after step", 2)
    soon(monkeypatch)
    machine("second")
    lost_at(far, "after step", 5)
    machine("first")
    fetched: list[str] = []
    inner = RemoteFiles.download
    monkeypatch.setattr(
        RemoteFiles, "download", lambda self, key, path: (fetched.append(key), inner(self, key, path))
    )
    run(far)
    harness.assert_same_end(tmp_path / "far", reference(CASE))
    assert any(key.startswith("checkpoints/") for key in fetched)


def test_a_finished_run_is_not_fetched_again_and_nothing_is_written(
    far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(far)
    before = {
        p: p.stat().st_mtime_ns
        for p in (tmp_path / "far").rglob("*")
        if p.is_file() and "lease" not in str(p)
    }
    monkeypatch.setattr(RemoteFiles, "download", None)
    assert run(far).without_timing() == first.without_timing()
    after = {
        p: p.stat().st_mtime_ns
        for p in (tmp_path / "far").rglob("*")
        if p.is_file() and "lease" not in str(p)
    }
    assert before == after


def test_a_copy_that_someone_changed_is_mended(far: Any, machine: Machine) -> None:
    run(far)
    (far.folder / "results.json").write_text("{}")
    (far.folder / "metrics.jsonl").unlink()
    (far.folder / "mine.txt").write_text("x")
    assert local_run(far.output) == far.folder
    assert Results.read(far.folder).status == "finished"
    assert (far.folder / "metrics.jsonl").is_file()
    assert not (far.folder / "mine.txt").exists()


def test_a_stop_publishes_the_last_checkpoint(
    far: Any, tmp_path: Path, reference: Reference, machine: Machine
) -> None:
    act = harness.signals("after step", 4, harness.signal.SIGTERM)
    with pytest.raises(Interrupted):
        run(far, act)
    assert Results.read(tmp_path / "far").status == "stopped"
    machine("second")
    run(far)
    harness.assert_same_end(tmp_path / "far", reference(CASE))


@pytest.mark.parametrize("removed", ["", "checkpoints"])
def test_a_copy_that_someone_removed_is_not_taken_for_newer(
    far: Any, tmp_path: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch, removed: str
) -> None:
    lost_at(far, "after step", 5)
    soon(monkeypatch)
    before = len(list((tmp_path / "far/checkpoints").iterdir()))
    shutil.rmtree(far.folder / removed)
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, line: said.append(line))
    run(far)
    assert before > 0
    assert any(line.startswith(f"continuing {far.output} at step ") for line in said)
    harness.assert_same_end(tmp_path / "far", reference(CASE))


def test_a_file_that_arrives_in_part_is_asked_for_again(
    far: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(far)
    machine("second")
    inner, left = RemoteFiles.download, 1

    def download(self: RemoteFiles, key: str, path: Path) -> None:
        nonlocal left
        inner(self, key, path)
        if key == "metrics.jsonl" and left:
            left -= 1
            path.write_bytes(path.read_bytes()[:-1])

    monkeypatch.setattr(RemoteFiles, "download", download)
    assert local_run(far.output) == far.folder
    machine("third")
    left = 2
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl: \d+ bytes arrived of \d+"):
        local_run(far.output)


# -- the server does not answer -------------------------------------------------------------------------------


class Outage:
    """A server that does not answer to some uploads."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.down, self.asked = False, 0
        inner = RemoteFiles._tried

        def tried(this: RemoteFiles, key: str, ask: Callable[[], Any], tries: int | None = None) -> Any:
            self.asked += 1
            if self.down and not key.startswith(OWN):
                raise RunFolderError(f"{this.place(key)}: cannot be reached (no route).")
            return inner(this, key, ask, tries)

        patch.setattr(RemoteFiles, "_tried", tried)


def test_a_run_goes_on_while_the_server_does_not_answer(
    far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: Reference
) -> None:
    server, steps = Outage(monkeypatch), 0

    def act(point: str) -> None:
        nonlocal steps
        steps += point == "after step"
        server.down = 2 <= steps < 5

    results = run(far, act)
    (event,) = [e for e in results.events if e.kind == "not published"]
    assert "no route" in event.message
    assert str(far.folder) in event.message
    harness.assert_same_end(tmp_path / "far", reference(CASE), but="events")


def test_an_end_that_could_not_be_published_is_published_by_the_same_command(
    far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, steps = Outage(monkeypatch), 0

    def act(point: str) -> None:
        nonlocal steps
        steps += point == "after step"
        server.down = steps >= 5

    with pytest.raises(
        RunFolderError, match=r"The run is whole in .* the same command on this machine publishes it"
    ):
        run(far, act)
    server.down = False
    steps = -100
    results = run(far, act)
    assert results.status == "finished"
    assert steps == -100, "nothing was learned again"
    assert Results.read(tmp_path / "far").without_timing() == results.without_timing()


# -- one at a time --------------------------------------------------------------------------------------------


def test_a_run_that_another_machine_works_on_is_refused(
    far: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(far)
    machine("second")
    with (
        leased(RunCopy(far.output)._files, LEASE, "run"),
        pytest.raises(RunFolderError, match=r"works on this run\. Wait"),
    ):
        run(far)


def test_a_run_stops_if_another_machine_has_taken_over(
    far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = None

    def act(point: str) -> None:
        nonlocal other
        if point == "after step" and other is None:
            names = sorted((tmp_path / "far" / LEASE.folder).iterdir())
            other = names[-1].with_name(f"{int(names[-1].name[:9]) + 1:09d}.json")
            shutil.copy(names[-1], other)

    with pytest.raises(RunFolderError, match="took over"):
        run(far, act)
    assert other is not None
    assert other.exists(), "the other one's lease is left alone"


# -- reading --------------------------------------------------------------------------------------------------


def test_a_url_is_a_run_folder_for_what_reads_one(
    far: Any,
    tmp_path: Path,
    machine: Machine,
    command: Command,
    reference: Reference,
) -> None:
    run(far)
    machine("second")
    assert is_run_far_away(far.output)
    learner = Learner.load(far.output)
    assert learner.learned == Learner.load(reference(CASE)).learned
    (method,) = compare([far.output, far.output]).methods
    assert [member.folder for member in method.members] == [far.output]
    code, out, err = command("report", far.output)
    assert (code, out.strip()) == (0, f"{far.output}/report.html"), err
    assert (tmp_path / "far/report.html").is_file()
    code, out, err = command("export", far.output, tmp_path / "out")
    assert code == 0, err
    code, out, err = command("compare", far.output, reference(CASE), "--json")
    assert code == 0, err
    code, out, err = command("diagnose", far.output, "-o", tmp_path / "page.html")
    assert code == 0, err


def test_a_run_that_was_copied_there_by_other_means_is_read_and_continued(
    far: Any, tmp_path: Path, case_config: Callable[..., Any], reference: Reference
) -> None:
    here = case_config(CASE, output="here")
    with pytest.raises(Interrupted):
        run(here, harness.signals("after step", 4, harness.signal.SIGTERM))
    shutil.copytree(here.folder, tmp_path / "far")
    assert is_run_far_away(far.output)
    assert Learner.load(far.output).learned == Learner.load(here.folder).learned
    results = tmp_path / "far" / "results.json"
    results.write_text(results.read_text().replace("stopped", "changed"))  # of equal size
    assert "changed" in (local_run(far.output) / "results.json").read_text()
    run(far)
    harness.assert_same_end(tmp_path / "far", reference(CASE))


def test_what_is_no_run_is_said(tmp_path: Path, machine: Machine, far: Any, command: Command) -> None:
    url = f"file://{tmp_path / 'nothing'}"
    code, _, err = command("compare", url)
    assert code == 2
    assert "holds no run" in err
    with pytest.raises(RunFolderError, match="holds no run to extend"):
        run(far, extend=True)
    assert not is_run_far_away(url)


def test_a_path_that_leads_out_of_the_folder_is_refused(
    far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(far)
    inner = RemoteFiles.sizes
    monkeypatch.setattr(
        RemoteFiles, "sizes", lambda self, folder="": {**inner(self, folder), "rows/../../../x": 1}
    )
    with pytest.raises(RunFolderError, match="leads out of the run folder"):
        local_run(far.output)


def test_a_url_with_a_key_is_refused_and_not_shown(command: Command) -> None:
    code, _, err = command("run", "emoji-time", "output=s3://KEY:s3cret@bucket/run")
    assert code == 2
    assert "s3cret" not in err
    assert "AWS_PROFILE" in err


def test_runs_of_equal_names_have_copies_of_their_own() -> None:
    one, two = copy_of_run("s3://bucket/a/run"), copy_of_run("s3://bucket/b/run/")
    assert one.name == two.name == "run"
    assert one.parent != two.parent
    assert copy_of_run("s3://bucket/b/run") == two
    with pytest.raises(ConfigError, match="names no place"):
        RunCopy("s3://")
