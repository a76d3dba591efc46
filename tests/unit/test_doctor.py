"""The doctor: every check is broken once, and says what is wrong and what to do about it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from doctor_fixtures import only, states
from typer.testing import CliRunner

from everclip.cli.main import app
from everclip.errors import EverclipError
from everclip.learner import Learner
from everclip.prepare.doctor import child, endtoend, examine, folders, trial, variables
from everclip.prepare.doctor.finding import Finding


def test_a_failure_without_a_remedy_cannot_be_told() -> None:
    with pytest.raises(ValueError, match="needs a remedy"):
        Finding("x", "fail", "broken")


# -- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "variable"), [("everclip's cache", "EVERCLIP_CACHE"), ("temporary files", "TMPDIR")]
)
def test_a_folder_that_cannot_be_written_fails(
    name: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(variable, str(tmp_path / "file" / "below"))
    found = only(folders.check_folders(), name)
    assert found.state == "fail"
    assert variable in found.remedy


def test_runs_go_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert only(folders.check_folders(), "runs").state == "ok"
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing behind
    (tmp_path / "runs").write_text("a file in the way")
    found = only(folders.check_folders(), "runs")
    assert (found.state, "output=FOLDER" in found.remedy) == ("fail", True)


@pytest.mark.parametrize(("free", "state"), [(2**20, "fail"), (2**30, "note"), (2**40, "ok")])
def test_room_is_looked_at(free: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda place: type("Usage", (), {"free": free}))
    assert only(folders.check_folders(), "runs").state == state


def test_the_hubs_cache_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert "does not exist" in only(folders.check_folders(), "hub cache").found
    (tmp_path / "hub/models--org--clip").mkdir(parents=True)
    assert only(folders.check_folders(), "hub cache").found.endswith("hub: 1 models")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file"))
    assert only(folders.check_folders(), "hub cache").state == "fail"


# -- variables ------------------------------------------------------------------------------------------------------


@pytest.fixture
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in variables.SHOWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(variables, "usable_cores", lambda: 4)


@pytest.mark.usefixtures("_no_variables")
@pytest.mark.parametrize(
    ("name", "value", "about", "state"),
    [
        ("OMP_NUM_THREADS", "four", "OMP_NUM_THREADS", "fail"),
        ("OMP_NUM_THREADS", "0", "OMP_NUM_THREADS", "fail"),
        ("MKL_NUM_THREADS", "64", "MKL_NUM_THREADS", "note"),
        ("WORLD_SIZE", "8", "launcher", "fail"),
        ("CUDA_VISIBLE_DEVICES", "", "CUDA_VISIBLE_DEVICES", "note"),
    ],
)
def test_variables_that_mislead_are_named(
    name: str, value: str, about: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert states(variables.check_variables()) == {"ok"}
    monkeypatch.setenv(name, value)
    found = variables.check_variables()
    assert only(found, about).state == state
    assert name in only(found, about).remedy
    assert f"{name}={value}" in only(found, "variables").found


# -- the trial ------------------------------------------------------------------------------------------------------


def said(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **more: Any) -> Finding:
    monkeypatch.setattr(endtoend, "run_child", lambda *a: child.ChildResult(document, **more))
    return endtoend.check_end_to_end()[0]


@pytest.mark.parametrize("stage", ["prepare", "learn", "stop", "resume", "classify"])
def test_a_stage_of_the_trial_that_fails_has_its_remedy(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = said({"stage": stage, "error": "DataError: broken", "seconds": 1}, monkeypatch)
    assert (found.state, found.found) == ("fail", f"{stage}: DataError: broken")
    assert found.remedy == endtoend.REMEDIES[stage]


def test_a_trial_that_dies_or_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "a signal (9): Killed" in said({}, monkeypatch, code=-9, errors="x\nKilled").found
    assert "status 1: no torch" in said({}, monkeypatch, code=1, errors="no torch").found
    assert "did not end within 300 seconds" in said({}, monkeypatch, code=None).found
    assert said({"stage": "done", "seconds": 9}, monkeypatch).state == "ok"


def micro_stream(micro_folder: Path) -> Path:
    import yaml

    document = yaml.safe_load((micro_folder / "time.yaml").read_text())
    document["backbone"] = str(micro_folder / "model")
    document["training"] |= {"device": "cpu", "steps": 6}
    path = micro_folder / "trial.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_the_trial_learns_stops_resumes_and_compares(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[str] = []
    monkeypatch.setattr(trial, "classify", lambda learner: None)
    trial.try_all(micro_stream(micro_folder), tmp_path, stages.append)
    assert stages == ["learn", "stop", "resume", "classify"]

    def other(self: Learner, *rest: Any) -> Any:
        cursor = real(self, *rest)
        with torch.no_grad():
            next(iter(self.method.parameters())).add_(1e-6)
        return cursor

    real = Learner.restore
    monkeypatch.setattr(Learner, "restore", other)
    with pytest.raises(
        EverclipError, match="the resumed run ended with other weights than the uninterrupted run: model/"
    ):
        trial.try_all(micro_stream(micro_folder), tmp_path / "again", stages.append)


def test_a_run_that_does_not_stop_is_told(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial.os, "kill", lambda *a: None)
    with pytest.raises(EverclipError, match="the run continued although it was asked to stop"):
        trial.try_all(micro_stream(micro_folder), tmp_path, lambda stage: None)


def test_the_built_in_model_names_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner.create("builtin:tiny", training={"device": "cpu"})
    trial.classify(learner)
    with torch.no_grad():
        for parameter in learner.method.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.02)
    with pytest.raises(EverclipError, match=r"classified \d of 8 drawings correctly, expected at least 6"):
        trial.classify(learner)


def test_the_trials_program_reports_what_went_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "STREAM", "kind: nothing\n")
    trial.main(str(tmp_path))
    document = json.loads(capsys.readouterr().out)
    assert document["stage"] == "prepare"  # before anything was learned
    assert "ConfigError" in document["error"]


@pytest.mark.slow
def test_the_whole_trial_on_the_built_in_emoji() -> None:
    assert endtoend.check_end_to_end()[0].state == "ok"


# -- the program's child, and the verb --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("print('noise'); print('{\"a\": 1}')", child.ChildResult({"a": 1}, 0)),
        ("print('noise')", child.ChildResult({}, 0)),
        ("import sys; print('[1]'); sys.exit('bad')", child.ChildResult({}, 1, "bad")),
        ("import time; time.sleep(60)", child.ChildResult({}, None)),
    ],
)
def test_whatever_a_child_does_is_told(program: str, expected: child.ChildResult) -> None:
    assert child.run_child(["-c", program], seconds=2) == expected


def test_a_childs_environment_is_set_and_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    program = "import json, os; print(json.dumps({k: os.environ.get(k) for k in ('WORLD_SIZE', 'NEW')}))"
    found = child.run_child(["-c", program], 20, {"WORLD_SIZE": None, "NEW": "1"})
    assert found.document == {"WORLD_SIZE": None, "NEW": "1"}


def with_checks(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> Callable[..., Any]:
    monkeypatch.setattr(examine, "CHECKS", (("packages", lambda: list(findings)), ("end to end", lambda: [])))
    return lambda *words: CliRunner().invoke(app, ["doctor", *words])


def test_the_verb_ends_with_one_if_anything_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    well, bad = Finding("a", "ok", "1.0"), Finding("b", "fail", "old", "pip install b")
    done = with_checks(monkeypatch, well, bad)()
    assert done.exit_code == 1
    assert "FAIL  b: old\n        -> pip install b" in done.output
    assert "1 of these do not work" in done.output
    done = with_checks(monkeypatch, well)("--quick")
    assert (done.exit_code, "end to end" in done.output) == (0, False)
    done = with_checks(monkeypatch, well, bad)("--json")
    assert done.exit_code == 1
    document = json.loads(done.output)
    assert document["healthy"] is False
    assert document["checks"]["packages"][1]["remedy"] == "pip install b"


def test_the_doctor_itself_needs_no_torch() -> None:
    program = (
        "import sys, json; import everclip.prepare.doctor.examine, everclip.cli.doctor; "
        "print(json.dumps({'loaded': [m for m in ('torch', 'torchvision', 'numpy', 'open_clip') if m in sys.modules]}))"
    )
    assert child.run_child(["-c", program], 60).document == {"loaded": []}
    assert sys.modules
