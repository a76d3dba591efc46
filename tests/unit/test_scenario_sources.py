"""Streams of several data sets: each a task with its own names, templates, split and kind."""

from pathlib import Path
from typing import Any

import pytest
from scenario_data import document, write

from everclip.contracts import EvalProtocol
from everclip.errors import ConfigError, DataError
from everclip.evaluation.results import Results
from everclip.run import execute
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario

ALL = EvalProtocol("all", "all")


def keys(scenario: ListScenario, index: int) -> list[str]:
    return sorted(entry.key for entry in scenario.tasks[index].classes or ())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three data sets: two with classes (numbered anew in each, one name shared), one with captions."""
    write(tmp_path / "pets.parquet", 60, 1, class_key=["0", "1", "2"], class_name=["cat", "dog", "owl"])
    write(tmp_path / "toys.parquet", 60, 2, class_key=["0", "1"], class_name=["car", "dog"])
    captions = [f"scene {i}" for i in range(60)]
    write(tmp_path / "trips.parquet", 60, 3, caption=captions, language=["de"])
    return tmp_path


def stream(folder: Path, *names: str, **changes: Any) -> dict[str, Any]:
    sources = [{"name": n, "data": {"source": str(folder / f"{n}.parquet")}} for n in names]
    return document("sources", None, **{"sources": sources, **changes})


def test_every_source_is_a_task_of_its_own_kind(folder: Path) -> None:
    whole = stream(folder, "pets", "trips", "toys", class_templates=["a {}"])
    whole["sources"][2]["templates"] = ["toy {}", "{}"]
    scenario = load_scenario(whole)
    assert [(s.name, s.kind, s.task) for s in scenario.eval_sets] == [
        ("pets", "classification", 0), ("trips", "retrieval", 1), ("toys", "classification", 2),
    ]  # fmt: skip
    assert scenario.tasks[1].classes is None
    assert [t.language for t in scenario.tasks] == [None, "de", None]
    assert {c.prompts() for c in scenario.tasks[0].classes or ()} == {("a cat",), ("a dog",), ("a owl",)}
    assert (scenario.tasks[2].classes or ())[0].templates == ("toy {}", "{}")
    assert set(scenario.data_fingerprints) == {
        str(folder / f"{n}.parquet") for n in ("pets", "toys", "trips")
    }


def test_equal_names_are_one_class_and_equal_numbers_are_not(folder: Path) -> None:
    scenario = load_scenario(stream(folder, "pets", "toys"))
    assert (keys(scenario, 0), keys(scenario, 1)) == (["cat", "dog", "owl"], ["car", "dog"])
    space = scenario.label_space(scenario.eval_sets[0], {0, 1}, ALL)
    assert space is not None
    assert {e.key: e.tasks for e in space.entries} == {"cat": (0,), "dog": (0, 1), "owl": (0,), "car": (1,)}
    for task, s in zip(scenario.tasks, scenario.eval_sets, strict=True):
        for table in (task.train, task.val, s.data):
            assert table is not None
            assert table.column("class_key") == table.column("class_name")


def test_classes_can_be_kept_apart_by_source(folder: Path) -> None:
    scenario = load_scenario(stream(folder, "pets", "toys", merge_classes=False))
    assert (keys(scenario, 0), keys(scenario, 1)) == (
        ["pets/cat", "pets/dog", "pets/owl"], ["toys/car", "toys/dog"],
    )  # fmt: skip
    assert {c.name for c in scenario.tasks[1].classes or ()} == {"car", "dog"}
    space = scenario.label_space(scenario.eval_sets[1], {0, 1}, ALL)
    assert space is not None
    assert len(space.entries) == 5


def test_a_name_that_two_classes_of_a_source_share_joins_neither(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 60, 1, class_key=["134", "517", "3"], class_name=["crane", "crane", "owl"])
    write(tmp_path / "b.parquet", 60, 2, class_key=["0", "1"], class_name=["crane", "owl"])
    scenario = load_scenario(stream(tmp_path, "a", "b"))
    assert (keys(scenario, 0), keys(scenario, 1)) == (["a/134", "a/517", "owl"], ["crane", "owl"])


def test_separate_test_and_validation_data(folder: Path) -> None:
    write(folder / "pets-test.parquet", 30, 4, class_key=["7", "8", "9"], class_name=["owl", "cat", "dog"])
    write(folder / "pets-val.parquet", 12, 5, class_key=["7", "8", "9"], class_name=["owl", "cat", "dog"])
    whole = stream(folder, "pets", split=None)
    whole["sources"][0] |= {
        "test": {"source": str(folder / "pets-test.parquet")},
        "val": {"source": str(folder / "pets-val.parquet")},
        "where": {"class_key": ["cat", "dog"]},
    }
    scenario = load_scenario(whole)
    task, measured = scenario.tasks[0], scenario.eval_sets[0]
    assert task.val is not None
    assert (len(task.train), len(task.val), len(measured.data)) == (40, 8, 20)
    assert {i.rpartition("-")[0] for i in measured.data.ids} == {"pets-test"}
    assert {c.key for c in measured.classes or ()} == set(measured.data.column("class_key")) == {"cat", "dog"}


def test_a_split_of_its_own_goes_before_the_streams(folder: Path) -> None:
    marks = ["train", "test", "val"]
    write(folder / "marked.parquet", 60, 6, caption=[f"c{i}" for i in range(60)], part=marks)
    whole = stream(folder, "marked", "trips")
    whole["sources"][0]["split"] = {"column": "part"}
    task = load_scenario(whole).tasks[0]
    assert task.val is not None
    assert (set(task.train.column("part")), set(task.val.column("part"))) == ({"train"}, {"val"})


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"sources": []}, ConfigError, "needs `sources`"),
        ({"data": {"source": "x"}}, ConfigError, "has no `data` of its own"),
        ({"split": None}, ConfigError, r"sources\.0 \(pets\): set either split\.test"),
        ({"base": {"name": "b"}}, ConfigError, r"base\.data: missing"),
        ({"retention": [{"name": "r"}]}, ConfigError, r"retention\.0\.data: missing"),
    ],
)
def test_a_stream_of_sources_that_does_not_fit_says_why(
    folder: Path, change: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        load_scenario(stream(folder, "pets", **change))


def test_errors_of_a_source_name_its_key(folder: Path) -> None:
    whole = stream(folder, "pets", "toys")
    whole["sources"][1]["data"]["columns"] = {"captoin": "x"}
    with pytest.raises(ConfigError, match=r"scenario\.sources\.1\.data\.columns\.captoin"):
        load_scenario(whole)
    whole["sources"][1] = {"name": "pets", "data": {"source": "x.csv"}}
    with pytest.raises(ConfigError, match="different names"):
        load_scenario(whole)
    whole["sources"][1] = {
        "name": "trips",
        "data": {"source": str(folder / "trips.parquet")},
        "kind": "classification",
    }
    with pytest.raises(
        DataError, match=r"sources\.1\.kind is classification, which needs a column 'class_name'"
    ):
        load_scenario(whole)


def test_all_at_once_learns_from_captions_where_kinds_differ(folder: Path) -> None:
    assert load_scenario(stream(folder, "pets", "trips")).at_once().tasks[0].classes is None
    assert len(load_scenario(stream(folder, "pets", "toys")).at_once().tasks[0].classes or ()) == 4


@pytest.mark.parametrize(
    "method", ["wise-ft", *(pytest.param(name, marks=pytest.mark.slow) for name in ("joint", "finetune"))]
)
def test_a_stream_of_two_kinds_runs_to_its_end(
    folder: Path, micro_folder: Path, tmp_path: Path, method: str
) -> None:
    import yaml

    whole = stream(
        folder, "pets", "trips", "toys", protocols=[{"name": "own"}, {"name": "all", "space": "all"}]
    )
    whole["training"] = {"steps": 2, "batch_size": 8, "threads": 1, "device": "cpu"}
    (folder / "mine.yaml").write_text(yaml.safe_dump(whole))
    results: Results = execute(
        str(folder / "mine.yaml"),
        f"backbone={micro_folder / 'model'}",
        f"output={tmp_path / 'run'}",
        f"method={method}",
    )
    assert results.status == "finished"
    assert results.matrix.metric == "auto"
    for row, values in zip(results.rows, results.matrix.values, strict=True):
        for column, value in zip(results.columns, values, strict=True):
            own = "accuracy" if column.kind == "classification" else "mean_r1"
            assert value == row.scores[column.name]["own"][own].value
    assert (tmp_path / "run" / "report.html").is_file()


def test_parts_of_a_source_are_columns_of_their_own_among_all_its_classes(
    folder: Path, tmp_path: Path
) -> None:
    whole = stream(folder, "pets", "toys")
    whole["sources"][0]["measure"] = [{"name": "pets: furred", "where": {"class_name": ["cat", "dog"]}}]
    scenario = load_scenario(whole)
    pets, furred, toys = scenario.eval_sets
    assert (furred.name, furred.group, furred.task, furred.classes) == (
        "pets: furred",
        "part",
        0,
        pets.classes,
    )
    assert set(furred.data.column("class_name")) == {"cat", "dog"}
    assert set(furred.data.ids) < set(pets.data.ids)
    assert scenario.label_space(furred, (), ALL) == scenario.label_space(toys, (), ALL)
    whole["sources"][0]["measure"][0]["where"] = {"class_name": "fish"}
    with pytest.raises(DataError, match=r"sources\.0\.measure\.0 \('pets: furred'\) fits none of its"):
        load_scenario(whole)


def test_parts_do_not_enter_what_the_score_matrix_says(
    folder: Path, micro_folder: Path, tmp_path: Path
) -> None:
    import yaml

    whole = stream(folder, "pets", "toys")
    whole["training"] = {"steps": 2, "batch_size": 8, "threads": 1, "device": "cpu"}
    found: list[Results] = []
    for name, measure in (("plain", []), ("parted", [{"name": "felines", "where": {"class_name": "cat"}}])):
        whole["sources"][0]["measure"] = measure
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole))
        settings = (f"backbone={micro_folder / 'model'}", f"output={tmp_path / name}", "method=finetune")
        found.append(execute(str(folder / f"{name}.yaml"), *settings))
    plain, parted = found
    assert parted.metrics == plain.metrics
    assert [c.group for c in parted.columns] == ["task", "part", "task"]
    assert parted.rows[-1].scores["felines"]["own"]["accuracy"].n == parted.columns[1].samples > 0
    assert "felines" in (tmp_path / "parted" / "report.html").read_text()


def test_every_missing_source_is_named_at_once(folder: Path, public_root: Path) -> None:
    """Who lacks ten data sets of a benchmark need not run it eleven times to learn which."""
    whole = stream(folder, "pets", root=str(public_root), protocol="mtil")
    whole["sources"] += [{"name": n, "data": {"source": f"catalog:{n}"}} for n in ("dtd", "mnist")]
    with pytest.raises(
        DataError,
        match=r"2 of 3 sources cannot be read:\n.*\(DTD\) in .*\n.*MNIST in .*scenario.counts=noted",
    ):
        load_scenario(whole)
    (folder / "empty").mkdir()
    whole["root"] = str(folder / "empty")
    with pytest.raises(
        ConfigError, match=r"2 of 3 sources .*:\n.*\(DTD\) is not below .*\n.*MNIST is not below"
    ):
        load_scenario(whole)
    whole["root"] = str(folder / "nowhere")
    with pytest.raises(ConfigError, match="nowhere: no such folder") as found:
        load_scenario(whole)
    assert "\n" not in str(found.value)
