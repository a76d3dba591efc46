"""A run folder belongs to one configuration and one process at a time, and a finished run stays as it is."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import resume_harness as harness

import everclip
from everclip.config import resolve_config
from everclip.errors import CheckpointError, ConfigError, RunFolderError
from everclip.learner import Learner
from everclip.running.precision import resolve_precision
from everclip.training.run_folder import RunFolder
from micro import MODEL, write_model

CHANGES = {
    "seed=1": "seed: 0 -> 1",
    "training.lr=0.5": "training.lr: 0.001 -> 0.5",
    "training.steps=4": "training.steps: 3 -> 4",
    "method.merge.kind=running-mean": "method.settings.merge",
    "method=wise-ft": "method.name: 'finetune' -> 'wise-ft'",
    "evaluation.batch_size=7": "evaluation.batch_size: 5 -> 7",
    "scenario.split.validation=0.2": "scenario.split.validation: 0.3 -> 0.2",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_configuration_is_refused_with_the_difference(
    change: str, case_config: Callable[..., Any]
) -> None:
    config = case_config("finetune")
    assert harness.killed_at(config, 1, "after step")
    folder = Path(config.output)
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(RunFolderError, match="belongs to another configuration") as error:
        harness.run(case_config("finetune", change))
    assert CHANGES[change] in str(error.value)
    assert "output=" in str(error.value)
    assert (folder / "config.yaml").read_bytes() == before


def test_the_command_refuses_a_changed_configuration_with_exit_code_4(
    arguments: Callable[..., list[str]], case_config: Callable[..., Any], tmp_path: Path
) -> None:
    assert harness.killed_at(case_config("finetune"), 1, "after step")
    assert harness.command(arguments("finetune", "seed=3"), tmp_path / "said") == 4
    assert "seed: 0 -> 3" in (tmp_path / "said").read_text()


def test_what_decides_no_number_may_change(
    case_config: Callable[..., Any], reference: Callable[..., Path], tmp_path: Path
) -> None:
    config, expected = case_config("finetune"), reference("finetune")
    free = ["checkpoint.every_steps=2", "checkpoint.keep=5", "training.workers=0", "report=true"]
    assert harness.killed_at(case_config("finetune", *free[:2]), 2, "after step")
    assert harness.killed_at(
        case_config("finetune", f"evaluation.cache={tmp_path / 'cache'}"), 1, "after step"
    )
    assert harness.killed_at(case_config("finetune", *free[2:3], "training.workers=3"), 2, "after step")
    harness.run(config)
    harness.assert_same_end(Path(config.output), expected)


@pytest.mark.parametrize("case", ["replay", "wise-ft-classes"])
def test_a_shared_cache_of_features_changes_no_number(
    case: str, case_config: Callable[..., Any], reference: Callable[..., Path], tmp_path: Path
) -> None:
    expected, cache = reference(case), f"evaluation.cache={tmp_path / 'cache'}"
    for output in ("run", "again"):
        config = case_config(case, cache, output=output)
        harness.run(config)
        harness.assert_same_end(Path(config.output), expected)


def test_a_second_process_is_refused_and_harms_nothing(
    arguments: Callable[..., list[str]],
    case_config: Callable[..., Any],
    reference: Callable[..., Path],
    tmp_path: Path,
) -> None:
    config, expected = case_config("finetune"), reference("finetune")
    asked: list[int] = []

    def ask(point: str) -> None:
        if point == "after step" and len(asked) < 1:
            asked.append(harness.command(arguments("finetune"), tmp_path / "said"))

    harness.run(config, ask)
    assert asked == [4]
    said = (tmp_path / "said").read_text()
    assert "another process uses this run folder" in said
    harness.assert_same_end(Path(config.output), expected)


def test_a_folder_is_free_again_after_its_holder_was_killed(case_config: Callable[..., Any]) -> None:
    config = case_config("finetune")
    process = harness.in_child(config, 1, "after step")
    process.join(60)
    assert process.exitcode == -9
    with RunFolder(Path(config.output), resolve_precision(config)[0]):
        pass


def test_the_holder_is_named(case_config: Callable[..., Any]) -> None:
    import os

    config = case_config("finetune")
    with (
        RunFolder(Path(config.output), config),
        pytest.raises(RunFolderError, match=f"process {os.getpid()}"),
        RunFolder(Path(config.output), config),
    ):
        pass


def test_a_finished_run_given_again_does_nothing(case_config: Callable[..., Any]) -> None:
    config = case_config("wise-ft")
    harness.run(config)
    folder = Path(config.output)
    kept = {p: p.stat().st_mtime_ns for p in folder.glob("checkpoints/*/*")}
    passed: list[str] = []
    harness.run(config, passed.append)
    assert {harness.kind_of(p) for p in passed} <= {
        f"{when} renaming {name}" for when in ("before", "after") for name in ("config.yaml", "results.json")
    }
    assert {p: p.stat().st_mtime_ns for p in folder.glob("checkpoints/*/*")} == kept


def test_a_changed_environment_is_flagged(case_config: Callable[..., Any]) -> None:
    config = case_config("finetune")
    assert harness.killed_at(config, 2, "after step")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("everclip.training.environment.fixed", lambda device: {"versions": {"torch": "9.9"}})
        results = harness.run(config)
    assert [e.kind for e in results.events] == ["changed environment"]
    assert "9.9" in results.events[0].message
    # Said once, not at every later start.
    again = json.loads((Path(config.output) / "results.json").read_text())
    assert len(again["events"]) == 1


def test_a_processor_with_other_instructions_is_another_environment(case_config: Callable[..., Any]) -> None:
    config = case_config("finetune")
    assert harness.killed_at(config, 2, "after step")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "ALTIVEC")
        results = harness.run(config)
    assert [e.kind for e in results.events] == ["changed environment"]
    assert "ALTIVEC" in results.events[0].message
    assert results.provenance["instructions"] == "ALTIVEC"


def test_a_learner_of_a_run_that_stopped_inside_a_task_says_so(
    case_config: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = case_config("guard-step-back")
    assert harness.killed_at(config, 5, "after step")
    Learner.load(config.output)
    assert "stopped inside task 2 (step 1 of a phase)" in caplog.text
    harness.run(config)
    caplog.clear()
    Learner.load(config.output)
    assert caplog.text == ""


def test_a_checkpoint_of_another_model_is_refused_in_words(
    case_config: Callable[..., Any], micro_folder: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(micro_folder / "model", tmp_path / "model")
    config = case_config("finetune", f"backbone={place}")
    assert harness.killed_at(config, 3, "after step")
    shutil.rmtree(place)
    document = copy.deepcopy(MODEL)
    document["vision_cfg"]["width"] = 48
    write_model(place, document)
    for again in (lambda: harness.run(config), lambda: Learner.load(config.output)):
        with pytest.raises(CheckpointError, match=r"does not fit the model.*backbone\.clip\.visual"):
            again()
    file = Path(config.output) / "config.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: none"))
    with pytest.raises(ConfigError, match=r"config\.yaml.*seed"):
        Learner.load(config.output)


def test_changed_data_are_refused_by_a_run_that_began_with_others(
    micro_folder: Path, micro_config: Callable[..., Any], tmp_path: Path
) -> None:
    columns = pq.read_table(micro_folder / "data.parquet")
    data = tmp_path / "data.parquet"
    pq.write_table(columns, data)
    config = micro_config("time", f"scenario.data.source={data}", "method=zero-shot")
    everclip.execute(config)
    renamed = pa.array([f"{c} again" for c in columns.column("caption").to_pylist()])
    pq.write_table(columns.set_column(columns.column_names.index("caption"), "caption", renamed), data)
    with pytest.raises(RunFolderError, match="data have changed"):
        everclip.execute(config)


def test_the_configuration_of_a_run_can_be_run_again(
    micro_config: Callable[..., Any], tmp_path: Path
) -> None:
    config = micro_config("time", "method=zero-shot")
    everclip.execute(config)
    again = resolve_config(str(tmp_path / "run" / "config.yaml"))
    settled = config.model_copy(update={"training": config.training.model_copy(update={"precision": "fp32"})})
    assert again.identity() == settled.identity()
    assert everclip.execute(config).status == "finished"  # `auto` and what it was settled to are one run
    assert everclip.execute(again).status == "finished"


def test_looking_at_a_finished_run_does_not_change_it(
    micro_config: Callable[..., Any], tmp_path: Path
) -> None:
    config = micro_config("single", "method=zero-shot")
    everclip.execute(config)
    before = (tmp_path / "run" / "results.json").read_bytes()
    everclip.execute(config)
    assert (tmp_path / "run" / "results.json").read_bytes() == before


def test_a_finished_run_gets_the_report_it_lacks(micro_config: Callable[..., Any], tmp_path: Path) -> None:
    everclip.execute(micro_config("single", "method=zero-shot"))
    assert not (tmp_path / "run" / "report.html").exists()
    everclip.execute(micro_config("single", "method=zero-shot", "report=true"))
    assert (tmp_path / "run" / "report.html").is_file()
