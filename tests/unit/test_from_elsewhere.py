"""Relative paths of backbone, tables of features and stream: a run continues and loads from any working directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from everclip.config import BackboneConfig
from everclip.errors import ConfigError
from everclip.learner import Learner
from everclip.models.locate import builtin_folder, locate
from everclip.run import execute

SETTINGS = {"steps": 3, "device": "cpu", "threads": 1}


@pytest.fixture
def home(micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that a run needs; it is the working directory."""
    shutil.copytree(micro_folder, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "home"


def start(**settings: Any) -> None:
    penalties = {"table-distill": {"image": "images.parquet"}}
    execute(
        "time.yaml",
        backbone="model",
        method={"penalties": penalties},
        training=SETTINGS,
        output="run",
        report=False,
        **settings,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return Learner.load(folder).method.state_dict()


def test_a_run_that_stopped_continues_from_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start()
    whole = weights(home / "run")
    shutil.rmtree(home / "run")
    logged = 0

    def fail(where: str) -> None:
        nonlocal logged
        logged += where == "after step"
        if logged == 5:  # inside the second task: the table is read again
            raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr("everclip.run.crash_point", fail)
        with pytest.raises(RuntimeError, match="killed"):
            start(checkpoint={"every_steps": 1})
    monkeypatch.chdir(home.parent / "elsewhere")
    results = execute(str(home / "run" / "config.yaml"), output=str(home / "run"))
    assert results.status == "finished"
    continued = weights(home / "run")
    assert continued.keys() == whole.keys()
    assert all(torch.equal(continued[name], whole[name]) for name in whole)
    stored = yaml.safe_load((home / "run" / "config.yaml").read_text())
    assert stored["directory"] == str(home)
    assert stored["backbone"]["name"] == "model"  # as written: the configuration is the same


def test_a_learner_of_a_run_learns_on_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start()
    monkeypatch.chdir(home.parent / "elsewhere")
    learner = Learner.load(home / "run")
    learner.remember()
    learner.learn(learner.tasks[0].__class__(**{**vars(learner.tasks[0]), "index": learner.next_index}))
    saved = learner.save(home.parent / "saved")
    assert saved.is_dir()
    monkeypatch.chdir("/")
    again = weights(home.parent / "saved")
    assert all(torch.equal(again[name], tensor) for name, tensor in learner.method.state_dict().items())


def test_a_saved_learner_with_weights_at_a_relative_path_loads_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    source = next(builtin_folder("builtin:tiny").glob("*.safetensors"))
    shutil.copy(source, "mine.safetensors")
    Learner.create({"name": "builtin:tiny", "weights": "mine.safetensors"}, "zero-shot").save("kept")
    monkeypatch.chdir("elsewhere")
    assert Learner.load(tmp_path / "kept").encode(texts="a cat")["texts"].shape[0] == 1


def test_the_working_directory_comes_first_and_what_is_nowhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    began = tmp_path / "began"
    began.mkdir()
    (began / "w.safetensors").write_bytes(b"there")
    config = BackboneConfig(name="RN50", weights="w.safetensors")
    assert locate(config, str(began)).weights == began / "w.safetensors"
    with pytest.raises(ConfigError, match="no such file"):
        locate(config)
    (tmp_path / "w.safetensors").write_bytes(b"here")
    assert locate(config, str(began)).weights == Path("w.safetensors")
    # A tag stays a tag, whatever files there are.
    (began / "openai").write_bytes(b"a file")
    with pytest.raises(ConfigError, match=r"hub|cache"):
        locate(BackboneConfig(name="RN50", weights="openai"), str(began))
