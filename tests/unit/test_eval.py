"""`everclip eval`: any model on any data, the same numbers as a run's first row, pictures encoded once per model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from everclip.config import resolve_config
from everclip.errors import ConfigError, DataError
from everclip.evaluation.results import Results
from everclip.learner.core import Learner
from everclip.learner.evaluate import Evaluation, evaluate_model, load_model
from everclip.run import execute
from everclip.scenarios.load import load_scenario

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(command: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Return a function (*arguments) -> (exit code, standard output, standard error), with a cache of its own."""
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "cache"))
    return command


def found(answer: tuple[int, str, str]) -> Evaluation:
    assert answer[0] == 0, answer[2]
    return Evaluation.model_validate_json(answer[1])


def test_a_benchmark_gives_the_numbers_of_a_runs_first_row(
    call: Call, micro_folder: Path, tmp_path: Path
) -> None:
    target, model = micro_folder / "time.yaml", micro_folder / "model"
    fixed = [f"backbone={model}", "training.threads=1", "training.device=cpu", "report=false"]
    results = execute(str(target), *fixed, "method=zero-shot", f"output={tmp_path / 'run'}")
    measured = found(call("eval", model, "--on", target, "--json"))
    assert measured.towers == results.provenance["towers"]
    for part in measured.sets:
        expected = results.rows[0].scores[part.name][part.protocol]
        assert part.scores == expected
    assert {part.name for part in measured.sets} == set(results.matrix.columns)


def test_a_runs_model_is_measured_as_it_ended(call: Call, micro_folder: Path, tmp_path: Path) -> None:
    target = micro_folder / "time.yaml"
    fixed = [
        f"backbone={micro_folder / 'model'}",
        "training.threads=1",
        "training.device=cpu",
        "report=false",
    ]
    execute(str(target), *fixed, f"output={tmp_path / 'run'}")
    results = Results.read(tmp_path / "run")
    measured = found(call("eval", tmp_path / "run", "--on", target, "--json"))
    own = {part.name: part.scores for part in measured.sets if part.protocol == "own"}
    assert own == {name: cells["own"] for name, cells in results.rows[-1].scores.items()}


def test_pictures_are_encoded_once_per_model(call: Call, micro_folder: Path) -> None:
    data, model = micro_folder / "data.parquet", micro_folder / "model"
    first = found(call("eval", model, "--on", data, "--json"))
    again = found(call("eval", model, "--on", data, "--json"))
    assert (first.encoded, again.encoded) == (96, 0)
    assert again.sets == first.sets
    anew = found(call("eval", model, "--on", data, "--json", "--no-cache"))
    assert anew.encoded == 96
    assert anew.sets == first.sets


def test_captions_are_retrieved_and_classes_told_apart(
    call: Call, micro_folder: Path, tmp_path: Path
) -> None:
    data, model = micro_folder / "data.parquet", micro_folder / "model"
    captions = found(call("eval", model, "--on", data, "--json")).sets[0]
    assert (captions.kind, captions.samples) == ("retrieval", 96)
    classes = found(
        call("eval", model, "--on", data, "--kind", "classification", "--template", "a {}", "--json")
    ).sets[0]
    assert (classes.kind, classes.classes) == ("classification", 6)
    assert classes.scores["accuracy"].n == 96
    held_out = tmp_path / "split.parquet"
    table = pq.read_table(data)
    marks = ["test" if i % 4 == 0 else "train" for i in range(len(table))]
    pq.write_table(table.append_column("split", [marks]), held_out)
    assert found(call("eval", model, "--on", held_out, "--json")).sets[0].samples == 24


def test_what_is_printed_for_people_names_set_metric_and_interval(call: Call, micro_folder: Path) -> None:
    code, out, _ = call("eval", micro_folder / "model", "--on", micro_folder / "data.parquet")
    assert code == 0
    assert "data.parquet (retrieval, 96 rows" in out
    assert "mean_r1" in out
    assert "[" in out


def test_what_does_not_fit_is_said(call: Call, micro_folder: Path, tmp_path: Path) -> None:
    model, data = micro_folder / "model", micro_folder / "data.parquet"
    assert call("eval", model)[0] == 2
    code, _, err = call("eval", model, "--on", data, "--kind", "guess")
    assert (code, "guess" in err) == (2, True)
    code, _, err = call("eval", model, "--on", data, "training.lr=1")
    assert (code, "no setting of eval" in err) == (2, True)
    assert call("eval", model, "--on", tmp_path / "none.csv")[0] in (2, 3)
    assert call("eval", tmp_path / "none", "--on", data)[0] == 2


def test_columns_are_named_as_for_check(call: Call, micro_folder: Path, tmp_path: Path) -> None:
    table = pq.read_table(micro_folder / "data.parquet").select(["image", "caption"])
    file = tmp_path / "named.parquet"
    pq.write_table(table.rename_columns(["picture of it", "words"]), file)
    names = ["columns.image=picture of it", "data.columns.caption=words"]
    answer = found(call("eval", micro_folder / "model", *names, "--on", file, "--json"))
    assert (answer.sets[0].kind, answer.sets[0].samples) == ("retrieval", 96)


def test_settings_of_a_finished_runs_backbone_are_refused(micro_folder: Path, tmp_path: Path) -> None:
    fixed = [
        f"backbone={micro_folder / 'model'}",
        "training.threads=1",
        "training.device=cpu",
        "report=false",
    ]
    execute(str(micro_folder / "time.yaml"), *fixed, "method=zero-shot", f"output={tmp_path / 'run'}")
    with pytest.raises(ConfigError, match=r"backbone\.weights"):
        load_model(str(tmp_path / "run"), {"weights": "x"})


def test_python_gives_what_the_command_gives(call: Call, micro_folder: Path) -> None:
    data, model = str(micro_folder / "data.parquet"), str(micro_folder / "model")
    learner = Learner.create(model, "zero-shot", {"device": "cpu", "threads": 1})
    one = evaluate_model(learner, model, [data])
    two = json.loads(call("eval", model, "--on", data, "--json")[1])
    assert one.model_dump(mode="json")["sets"] == two["sets"]
    assert learner.evaluate(data)["data.parquet"]["own"] == one.sets[0].scores


def test_data_without_a_right_answer_cannot_be_scored(micro_folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.parquet"
    table = pq.read_table(micro_folder / "data.parquet").select(["image"])
    pq.write_table(table, bare)
    learner = Learner.create(str(micro_folder / "model"), "zero-shot", {"device": "cpu", "threads": 1})
    with pytest.raises(DataError, match="class_name"):
        learner.evaluate(str(bare))


def test_an_export_with_a_class_head_is_not_measured_without_it(
    call: Call, micro_folder: Path, tmp_path: Path
) -> None:
    run = learned_classes(micro_folder, tmp_path, "rail")
    assert call("export", run, tmp_path / "out")[0] == 0
    for command in (("eval", "--on", micro_folder / "data.parquet"), ("classify", "x.png", "--name", "a")):
        verb, *rest = command
        code, _, err = call(verb, tmp_path / "out", *rest)
        assert (code, "class head" in err, "run folder" in err) == (2, True, True)


@pytest.mark.parametrize("method", ["rail", "finetune"])
def test_a_run_offers_the_classes_that_it_learned(
    method: str, call: Call, micro_folder: Path, tmp_path: Path
) -> None:
    run = learned_classes(micro_folder, tmp_path, method)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "x.png")
    code, out, err = call("classify", run, tmp_path / "x.png", "--top", "50", "--json")
    assert code == 0, err
    offered = {entry["name"] for entry in json.loads(out)[0]["names"]}
    scenario = load_scenario(resolve_config(str(micro_folder / "classes.yaml")).scenario)
    assert offered == {entry.name for task in scenario.tasks for entry in task.classes or ()}
    assert f"the {len(offered)} classes" in err


def learned_classes(micro_folder: Path, tmp_path: Path, method: str) -> Path:
    fixed = (f"backbone={micro_folder / 'model'}", "training.threads=1", "training.device=cpu")
    target = str(micro_folder / "classes.yaml")
    execute(
        target, *fixed, f"method={method}", "training.steps=2", "report=false", f"output={tmp_path / 'run'}"
    )
    return tmp_path / "run"
