"""Distillation from tables of features, in a run, in the example of the guide, and in a saved learner."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch

import everclip
from everclip.contracts import Task
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.learner import Learner


def test_a_run_from_a_file(
    micro_folder: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    some = tmp_path / "some.parquet"
    pq.write_table(pq.read_table(micro_folder / "images.parquet").slice(0, 90), some)
    penalty = f"{{table-distill: {{image: {some}, missing: skip, weight: 2}}}}"
    words = [
        "run",
        micro_folder / "time.yaml",
        f"backbone={micro_folder / 'model'}",
        f"output={tmp_path / 'run'}",
        "training.steps=3",
        "training.device=cpu",
        f"method.penalties={penalty}",
    ]
    code, _, log = command(*words)
    assert code == 0, log
    assert "have no feature in some.parquet and are skipped" in log
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    counted = [row["notes"].get("table-distill", {}).get("image", {}) for row in results["rows"][1:]]
    assert any(counts.get("without_feature") for counts in counted)
    assert results["method"]["cost"]["trainable_parameters"] > 0
    code, _, log = command(
        *words[:-1], f"output={tmp_path / 'other'}", f"method.penalties={penalty.replace('skip', 'error')}"
    )
    assert code == 3
    assert "The key of each is its image_id" in log
    assert not (tmp_path / "other" / "results.json").exists()


def test_the_example_of_the_guide(
    micro_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., tuple[int, str, str]],
) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "keeping.md").read_text(encoding="utf-8")
    section = guide.partition("## Distil from a table of features")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    words = shlex.split(section.partition("```sh\n")[2].partition("```")[0])
    create = timm.create_model
    small = {"model_name": "resnet10t", "pretrained": False, "num_classes": 0}
    monkeypatch.setattr(timm, "create_model", lambda name, **named: create(**small))
    monkeypatch.chdir(tmp_path)
    shutil.copy(micro_folder / "single.yaml", "my.yaml")
    exec(compile(code, "docs/keeping.md", "exec"), {})
    micro = [f"backbone={micro_folder / 'model'}", "training.steps=2", "training.device=cpu", "output=run"]
    status, _, log = command(*words[1:], *micro)
    assert status == 0, log


def test_a_saved_learner_predicts_without_the_table_and_learns_on_with_its_head(
    micro_folder: Path, tmp_path: Path
) -> None:
    task = Task(0, "first", Table(pq.read_table(micro_folder / "data.parquet")).select(range(48)))
    path = tmp_path / "moved.parquet"
    path.write_bytes((micro_folder / "images.parquet").read_bytes())
    learner = Learner.create(
        str(micro_folder / "model"),
        training={"steps": 3, "batch_size": 8, "device": "cpu"},
        penalties={"table-distill": {"image": str(path)}},
    )
    learner.learn(task)
    saved, name = tmp_path / "saved", "penalty_modules.table-distill.image.weight"
    learner.save(saved)
    path.unlink()
    loaded = Learner.load(saved)
    picture = task.train.value("image", 0)
    assert torch.equal(loaded.encode([picture])["images"], learner.encode([picture])["images"])
    assert torch.equal(loaded.method.get_parameter(name), learner.method.get_parameter(name))
    with pytest.raises(ConfigError, match=r"moved\.parquet"):
        loaded.learn(Task(1, "second", task.train))
    everclip.write_feature_table(path, task.train.identities(), np.ones((48, 5)))
    with pytest.raises(ConfigError, match="5 values, and the head of this run was trained for 8"):
        Learner.load(saved).learn(Task(1, "second", task.train))
    path.write_bytes((micro_folder / "images.parquet").read_bytes())
    again, second = Learner.load(saved), Task(1, "second", task.train)
    again.learn(second)
    learner.learn(second)
    assert all(torch.equal(v, learner.method.state_dict()[k]) for k, v in again.method.state_dict().items())
