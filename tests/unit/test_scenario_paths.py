"""Paths of a scenario file: beside the file, else where one runs; variables; errors that name keys as written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from scenario_data import document, write

from everclip.config import resolve_config
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario
from everclip.scenarios.paths import Paths

Load = Callable[..., ListScenario]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return a function (source, **changes) that loads `streams/mine.yaml`, started in `work`."""
    (tmp_path / "work").mkdir()
    (tmp_path / "streams").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def make(source: str, *overrides: str, **changes: Any) -> ListScenario:
        whole = {**document("single", None), "data": {"source": source}, **changes}
        (tmp_path / "streams" / "mine.yaml").write_text(yaml.safe_dump(whole))
        config = resolve_config("../streams/mine.yaml", ["training.steps=1", *overrides])
        return load_scenario(config.scenario)

    return make


@pytest.mark.parametrize("place", ["streams", "work"])
def test_a_relative_path_is_found_beside_the_file_or_where_one_runs(
    load: Load, tmp_path: Path, place: str
) -> None:
    write(tmp_path / place / "d.parquet", 40, caption=["x", "y"])
    scenario = load("d.parquet")
    assert len(scenario.tasks) == 1
    assert set(scenario.data_fingerprints) == {"d.parquet"}
    said = "beside ../streams/mine.yaml" if place == "streams" else "in the working directory"
    assert [note for note in scenario.notes if f"data.source: 'd.parquet' is read from {said}" in note]


def test_patterns_and_lists_are_found_as_single_files_are(load: Load, tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / "streams" / "parts" / f"{i}.parquet", 20, i, caption=["x", "y"])
    write(tmp_path / "work" / "more.parquet", 20, 9, caption=["x", "y"])
    assert len(load("parts/*.parquet").tasks[0].train) > 30
    both = load("", data={"source": ["parts/*.parquet", "more.parquet"]})
    names = {i for t in both.tasks for i in t.train.ids}
    assert {name.rpartition("-")[0] for name in names} == {"0", "1", "2", "more"}


def test_two_different_files_of_the_name_are_an_error(load: Load, tmp_path: Path) -> None:
    for seed, place in enumerate(("streams", "work")):
        write(tmp_path / place / "d.parquet", 40, seed, caption=["x"])
    with pytest.raises(
        ConfigError, match=r"mine\.yaml: data\.source: 'd\.parquet' is found twice: beside .* and in the"
    ):
        load("d.parquet")
    assert load(str(tmp_path / "work" / "d.parquet"))


def test_a_path_that_is_nowhere_names_both_places(load: Load, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"'d\.csv' is found neither beside .*streams.* nor in the working .*work"
    ):
        load("d.csv")


def test_variables_are_expanded_in_every_path(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "far" / "d.parquet", 40, caption=["x"])
    monkeypatch.setenv("FAR", str(tmp_path / "far"))
    assert load("${FAR}/d.parquet").tasks
    found = Paths().located(DataSpec(source="hub:a/b", root="${FAR}/x", downloads="~/y"), "data")
    assert (found.source, found.root) == ("hub:a/b", f"{tmp_path}/far/x")
    assert found.downloads == str(Path.home() / "y")


def test_a_variable_that_is_not_set_is_named(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.source: the environment variable NOWHERE_1 is not set"):
        load("${NOWHERE_1}/d.parquet")
    suite = [{"name": "r", "data": {"source": "hub:a/b", "root": "${NOWHERE_1}"}}]
    with pytest.raises(ConfigError, match=r"retention\.0\.data\.root: the environment variable NOWHERE_1"):
        load(str(write(tmp_path / "d.parquet", 40, caption=["x"])), retention=suite)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"knid": 1}, r"mine\.yaml: knid: unknown key\. Did you mean 'kind'"),
        ({"data": {"sorce": "x"}}, r"mine\.yaml: data\.s"),
        ({"split": {"test": 2}}, r"mine\.yaml: split\.test: "),
        (
            {"retention": [{"name": "a", "kind": "retrieval", "where": {"time": {"form": 1}}}]},
            r"mine\.yaml: retention\.0\.where\.time: ",
        ),
        ({"base": {"name": "a", "data": {"source": "x.doc"}}}, r"mine\.yaml: base\.data\.source: "),
    ],
)
def test_errors_name_keys_as_the_file_has_them(
    load: Load, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    data = write(tmp_path / "d.parquet", 40, caption=["x"], time=[1])
    with pytest.raises(ConfigError, match=match) as caught:
        load(str(data), **changes)
    assert "scenario." not in str(caught.value)


def test_settings_of_a_benchmark_are_named_as_they_are_given() -> None:
    with pytest.raises(ConfigError, match=r"^scenario\.split\.test: "):
        load_scenario(resolve_config("emoji-time", ["scenario.split.test=2"]).scenario)
    with pytest.raises(ConfigError, match=r"^scenario\.order: 'x' is none of the classes"):
        load_scenario(resolve_config("emoji-classes", ["scenario.order=[x]"]).scenario)


def test_where_a_file_lies_is_no_part_of_what_a_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.yaml").write_text(yaml.safe_dump(document("single", Path("d.csv"))))
    monkeypatch.chdir(tmp_path)
    one = resolve_config("a/mine.yaml", ["training.steps=1", "output=x"])
    monkeypatch.chdir(tmp_path / "a")
    other = resolve_config("mine.yaml", ["training.steps=1", "output=y"])
    assert one.scenario["file"] != other.scenario["file"]
    assert one.identity() == other.identity()
    assert one.benchmark == "mine@1"
