"""What `init-config` proposes: it keeps the sides that the data mark, says what is missing, and runs to its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from build import encoded, picture, tar, text

from everclip.config import resolve_config
from everclip.errors import DataError
from everclip.evaluation.results import Results
from everclip.prepare.init_config.candidates import Wish
from everclip.prepare.init_config.propose import Proposal, propose
from everclip.prepare.init_config.yaml_text import yaml_of
from everclip.run import execute
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario


def classes(folder: Path, names: Iterable[str], count: int, seed: int = 0) -> Path:
    for number, name in enumerate(names):
        for i in range(count):
            picture(folder / name / f"{name}{i}.png", "cat", (16, 16), seed + 50 * number + i)
    return folder


def written(proposal: Proposal, file: Path) -> ListScenario:
    """Return the scenario that the printed YAML builds."""
    file.write_text(yaml_of(proposal, file.name))
    return load_scenario(resolve_config(str(file)).scenario)


def files(scenario: ListScenario, *parts: str) -> set[str]:
    """Return the files of the pictures of `train`, `val` or `test`, relative to nothing."""
    tables = {
        "train": [task.train for task in scenario.tasks],
        "val": [task.val for task in scenario.tasks if task.val is not None],
        "test": [s.data for s in scenario.eval_sets],
    }
    return {t.origin(i) for part in parts for t in tables[part] for i in range(len(t))}


def run(proposal: Proposal, folder: Path, micro_folder: Path) -> Results:
    """Run the printed YAML with the smallest model."""
    file = folder / "proposed.yaml"
    file.write_text(yaml_of(proposal, file.name))
    return execute(
        str(file),
        f"backbone={micro_folder / 'model'}",
        "method=finetune",  # its losses are looked at
        "training.epochs=null",
        "training.steps=2",
        "training.threads=1",
        "training.device=cpu",
        f"output={folder / 'run'}",
        "report=false",
    )


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines for name in ("labels", "contrastive", "captions") if name in line]


def kaggle(folder: Path) -> Path:
    classes(folder / "training_set/training_set", ["cats", "dogs"], 8)
    classes(folder / "test_set/test_set", ["cats", "dogs"], 4, 500)
    return folder


def case_names(folder: Path) -> Path:
    classes(folder / "train", ["ant", "bee", "cat"], 6)
    classes(folder / "val", ["ant", "bee", "cat"], 3, 400)
    classes(folder / "test", ["ant", "bee", "cat"], 3, 700)
    return folder


def numbered_shards(folder: Path) -> Path:
    for side, count in (("train", 8), ("test", 4)):
        members: list[tuple[str, str | bytes]] = []
        for k in range(3):
            for i in range(count):
                members += [(f"s{k}{i:03d}.png", encoded("cat", (16, 16), 100 * len(side) + 20 * k + i))]
                members += [(f"s{k}{i:03d}.cls", str(k))]
        tar(folder / side / "0.tar", members)
    text(folder / "classnames.txt", "cat\ndog\nbird\n")
    return folder


def pairs(folder: Path) -> Path:
    for i in range(24):
        picture(folder / f"{i:03d}.jpg", "tram", (16, 16), i)
        text(folder / f"{i:03d}.txt", f"{i} trams\n")  # the smallest model reads ten letters
    return folder


MADE: dict[str, Callable[[Path], Path]] = {
    "kaggle": kaggle,
    "three sides": case_names,
    "numbered shards": numbered_shards,
    "pairs": pairs,
    "class folders": lambda folder: classes(folder, ["ant", "bee"], 12),
}


@pytest.mark.parametrize("name", MADE)
def test_a_proposal_runs_and_learns(name: str, tmp_path: Path, micro_folder: Path) -> None:
    proposal = propose([{"source": str(MADE[name](tmp_path / "data"))}])
    results = run(proposal, tmp_path, micro_folder)
    assert results.status == "finished"
    assert min(losses(tmp_path)) > 0
    assert "everything" in [column.name for column in results.columns]


def test_b04_marked_test_pictures_are_never_trained_on(tmp_path: Path) -> None:
    proposal = propose([{"source": str(kaggle(tmp_path / "data"))}])
    scenario = written(proposal, tmp_path / "p.yaml")
    assert proposal.document["split"] == {"column": "split", "validation": 0.1}
    assert proposal.document["kind"] == "single"
    assert all("/training_set/" in file for file in files(scenario, "train", "val"))
    assert all("/test_set/" in file for file in files(scenario, "test"))
    assert (len(files(scenario, "test")), len(files(scenario, "train", "val"))) == (8, 16)
    assert any("8 rows marked as test are measured, and never trained on" in note for note in proposal.notes)
    assert any("10% of the training rows, by hash, are for validation" in note for note in proposal.notes)


def test_b04_sides_stay_where_validation_is_hard_to_carve(tmp_path: Path) -> None:
    classes(tmp_path / "data/train", ["ant", "bee"], 2)
    classes(tmp_path / "data/test", ["ant", "bee"], 2, 500)
    scenario = written(propose([{"source": str(tmp_path / "data")}]), tmp_path / "p.yaml")
    assert all("/train/" in file for file in files(scenario, "train", "val"))
    assert all("/test/" in file for file in files(scenario, "test"))


def test_b04_validation_is_measured_where_no_test_is_marked(tmp_path: Path) -> None:
    classes(tmp_path / "data/train", ["ant", "bee"], 12)
    classes(tmp_path / "data/val", ["ant", "bee"], 4, 500)
    proposal = propose([{"source": str(tmp_path / "data")}])
    scenario = written(proposal, tmp_path / "p.yaml")
    assert proposal.document["split"] == {"column": "split", "measure": "validation", "validation": 0.1}
    assert all("/val/" in file for file in files(scenario, "test"))
    assert all("/train/" in file for file in files(scenario, "train", "val"))
    assert any(
        "the 8 rows marked as validation are measured, and never trained on" in n for n in proposal.notes
    )


def test_b04_of_several_data_sets_each_keeps_its_sides(tmp_path: Path) -> None:
    classes(tmp_path / "a/train", ["ant", "bee"], 12)
    classes(tmp_path / "a/val", ["ant", "bee"], 4, 500)
    case_names(tmp_path / "b")
    classes(tmp_path / "c", ["x", "y"], 12, 900)
    proposal = propose([{"source": str(tmp_path / name)} for name in "abc"])
    rules = [source.get("split") for source in proposal.document["sources"]]
    assert rules[0] == {"column": "split", "measure": "validation", "validation": 0.1}
    assert rules[1] == {"column": "split", "validation": 0.1}
    assert rules[2] is None
    scenario = written(proposal, tmp_path / "p.yaml")
    trained = {Path(file).relative_to(tmp_path).parts[:2] for file in files(scenario, "train")}
    assert trained == {("a", "train"), ("b", "train"), ("c", "x"), ("c", "y")}


def test_b02_class_folders_are_one_task(tmp_path: Path) -> None:
    proposal = propose([{"source": str(classes(tmp_path / "data", ["ant", "bee", "bird"], 12))}])
    assert proposal.document["kind"] == "single"
    assert "one task with all classes" in proposal.reason


@pytest.mark.parametrize(
    ("count", "wanted", "sizes"),
    [(4, 2, [2, 2]), (7, 2, [3, 2, 2]), (5, 3, [3, 2]), (7, 3, [4, 3]), (3, 2, [3]), (4, 9, [4])],
)
def test_b02_no_task_of_a_stream_of_classes_has_one_class(
    tmp_path: Path, count: int, wanted: int, sizes: list[int]
) -> None:
    folder = classes(tmp_path / "data", [f"kind {i}" for i in range(count)], 12)
    proposal = propose([{"source": str(folder)}], Wish(classes_per_task=wanted))
    scenario = written(proposal, tmp_path / "p.yaml")
    assert [len(task.classes or ()) for task in scenario.tasks] == sizes


@pytest.mark.parametrize("wish", [Wish(), Wish(classes_per_task=2)])
def test_b02_classes_that_a_side_lacks_are_named(tmp_path: Path, wish: Wish) -> None:
    classes(tmp_path / "data/train", ["ant", "bee", "cat", "dog"], 6)
    classes(tmp_path / "data/val", ["ant", "cat", "dog"], 3, 400)
    classes(tmp_path / "data/test", ["bee", "bird", "cat", "dog"], 3, 700)
    notes = "\n".join(propose([{"source": str(tmp_path / "data")}], wish).notes)
    assert "without a training row, and " in notes
    assert ": bird" in notes
    assert "without a test row, and " in notes
    assert ": ant" in notes
    assert "without a validation row: bee" in notes


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    folder = classes(tmp_path / "data", ["ant"], 20)
    with pytest.raises(DataError, match="has one class \\('ant'\\), so there is nothing to tell apart"):
        propose([{"source": str(folder)}])


def test_separate_test_data_are_measured_and_no_other(
    tmp_path: Path, micro_folder: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    classes(tmp_path / "photos", ["ant", "bee", "bird", "cat"], 12)
    classes(tmp_path / "held-out", ["ant", "bee", "bird", "cat"], 3, 700)
    for more in ([], ["--classes-per-task", "2"]):
        file = tmp_path / f"{len(more)}.yaml"
        code, _, said = command(
            "init-config", tmp_path / "photos", "--test", tmp_path / "held-out", "-o", file, *more
        )
        assert code == 0, said
        assert "note: photos: the separate test data are measured" in said
        document: dict[str, Any] = yaml.safe_load(file.read_text())
        assert Path(document["test"]["source"]) == tmp_path / "held-out"
        scenario = load_scenario(resolve_config(str(file)).scenario)
        assert all("/held-out/" in name for name in files(scenario, "test"))
        assert len(files(scenario, "train", "val")) == 48
        assert len(scenario.tasks) == 1 + bool(more)


def test_a_generated_stream_keeps_its_rows_and_measures_everything(tmp_path: Path) -> None:
    proposal = propose(
        [{"source": str(classes(tmp_path / "data", ["ant", "bee", "cat", "dog"], 12))}],
        Wish(classes_per_task=2),
    )
    written(proposal, tmp_path / "p.yaml")
    config = resolve_config(str(tmp_path / "p.yaml"))
    assert config.checkpoint.keep_rows is True
    assert config.scenario["everything"] is True


def test_three_rows_get_no_batch_of_one(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / f"data/{i}.png", "cat", (16, 16), i)
    text(tmp_path / "data/metadata.csv", "file_name,text\n" + "".join(f"{i}.png,cat {i}\n" for i in range(6)))
    assert propose([{"source": str(tmp_path / "data")}]).training["batch_size"] >= 2


def test_b02_check_names_the_classes_that_a_side_lacks(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    classes(tmp_path / "train", ["ant", "bee", "cat"], 6)
    classes(tmp_path / "val", ["ant", "cat"], 3, 400)
    classes(tmp_path / "test", ["bee", "bird", "cat"], 3, 700)
    _, out, _ = command("check", tmp_path)
    assert "1 class stands in the test alone: 'bird'" in out
    assert "1 class has no test row: 'ant'" in out
    assert "1 class has no validation row: 'bee'" in out


def test_sides_that_share_pictures_are_refused_or_learned_without_them(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    classes(tmp_path / "data/train", ["ant", "bee"], 10)
    classes(tmp_path / "data/test", ["ant", "bee"], 3, 700)
    classes(tmp_path / "data/test", ["ant"], 1)  # a picture of the training side
    code, _, said = command("init-config", tmp_path / "data", "-o", tmp_path / "a.yaml")
    assert code != 0
    assert "1 of 6 test images are also training images" in said
    assert "init-config: --remove-shared" in said
    assert command("init-config", tmp_path / "data", "-o", tmp_path / "a.yaml", "--remove-shared")[0] == 0
    scenario = load_scenario(resolve_config(str(tmp_path / "a.yaml")).scenario)
    trained = {t.content(i) for t in (task.train for task in scenario.tasks) for i in range(len(t))}
    measured = {s.data.content(i) for s in scenario.eval_sets for i in range(len(s.data))}
    assert not trained & measured


def test_domains_of_folders_become_tasks_on_request(tmp_path: Path) -> None:
    classes(tmp_path / "data/photo", ["cat", "dog"], 12)
    classes(tmp_path / "data/sketch", ["cat", "dog"], 12, 500)
    proposal = propose([{"source": str(tmp_path / "data")}], Wish("domains"))
    assert proposal.document["column"] == "domain"
    assert [task.name for task in proposal.scenario.tasks] == ["photo", "sketch"]


def test_b01_classes_called_after_sides_stay_classes_in_the_written_file(tmp_path: Path) -> None:
    classes(tmp_path / "data", ["train", "test"], 12)
    proposal = propose([{"source": str(tmp_path / "data"), "columns": {"split": ""}}])
    scenario = written(proposal, tmp_path / "p.yaml")
    assert {entry.name for entry in scenario.tasks[0].classes or ()} == {"train", "test"}
    assert {Path(file).parent.name for file in files(scenario, "train")} == {"train", "test"}
