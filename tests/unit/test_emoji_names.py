"""emoji-names: every English name is a class; and the keys of a scenario that it uses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scenario_data import document, write

import everclip
from everclip.cli.summary import print_results
from everclip.config import BackboneConfig
from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.data.sampling.same_texts import TextKeys
from everclip.errors import ConfigError, DataError
from everclip.models.backbone import load_backbone
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario
from presets import builtin_scenario

ALL, KNOWN, LEARNED = 1803, 1269, {"2016": 172, "2017": 79, "2018": 75, "2019": 76, "2020-22": 132}


@pytest.fixture(scope="module")
def names() -> ListScenario:
    return builtin_scenario("emoji-names")


def test_a_task_has_the_names_of_its_years_as_classes(names: ListScenario) -> None:
    assert {task.name: len(task.classes or ()) for task in names.tasks} == LEARNED
    for task in names.tasks:
        assert task.val is not None
        captions = {*task.train.column("caption"), *task.val.column("caption")}
        assert {c.name for c in task.classes or ()} == captions
    keys = [c.key for task in names.tasks for c in task.classes or ()]
    assert len(keys) == len(set(keys)) == ALL - KNOWN


def test_every_drawing_is_named_among_all_names_before_they_are_learned(names: ListScenario) -> None:
    protocol = next(p for p in names.protocols if p.name == "all")
    for s in names.eval_sets:
        if s.kind == "classification" and s.group != "retention":
            space = names.label_space(s, (), protocol)
            assert space is not None
            assert len(set(space.keys)) == ALL
            assert set(s.data.column("class_key")) <= set(space.keys)
            assert {e.templates for e in space.entries} == {("{}", "an emoji of {}")}


def test_no_two_names_are_one_text(names: ListScenario) -> None:
    tokenise = load_backbone(BackboneConfig(name="builtin:tiny"), 0).tokenise
    texts = [
        f for s in names.eval_sets for e in s.classes or () if s.group != "retention" for f in e.prompts()
    ]
    assert len(set(TextKeys(tokenise).of(texts).values())) == 2 * ALL


def test_no_held_out_drawing_is_learned_or_distilled(names: ListScenario) -> None:
    measured = {s.data.content(i) for s in names.eval_sets for i in range(len(s.data))}
    assert len(measured) == ALL
    tables = [t for task in names.tasks for t in (task.train, task.val)] + [names.base, names.base_val]
    assert names.reference is not None
    for table in (*tables, names.reference.images):
        assert table is not None
        assert not measured & {table.content(i) for i in range(len(table))}
        assert not any(table.column("held_out"))


def test_reference_data_are_the_known_emoji(names: ListScenario) -> None:
    assert names.reference is not None
    assert names.reference.images is not None
    assert max(names.reference.images.column("time")) == 2015
    new = {c.name for task in names.tasks for c in task.classes or ()}
    assert not new & set(names.reference.texts)


def test_search_is_measured_on_the_same_drawings_beside_the_classes(names: ListScenario) -> None:
    protocol = next(p for p in names.protocols if p.name == "all")
    search = {s.name: s for s in names.eval_sets if s.group == "part"}
    assert list(search) == [f"{name} (retrieval)" for name in ("known", *LEARNED)]
    for s in names.eval_sets:
        if s.group in ("known", "task"):
            same = search[f"{s.name} (retrieval)"]
            assert (same.kind, same.task, same.data.ids) == ("retrieval", s.task, s.data.ids)
            assert sum(len(p.data) for p in names.pool(same, (), protocol) or ()) == ALL


def test_the_retention_set_has_classes_of_another_column(names: ListScenario) -> None:
    (suite,) = names.retention_suite
    (twin,) = names.retention_val
    assert len(suite.classes or ()) == 96
    assert {c.name for c in suite.classes or ()} >= set(twin.data.column("class_name"))
    assert "face smiling" in twin.data.column("class_key")


# -- the keys -------------------------------------------------------------------------------------------------


def test_columns_of_the_emoji_may_be_chosen() -> None:
    usual = read(DataSpec(source="builtin:emoji", styles=["noto"])).table
    chosen = {"class_name": "name", "caption": "name"}
    table = read(DataSpec(source="builtin:emoji", styles=["noto"], columns=chosen)).table
    assert table.column("class_key") == table.column("class_name") == usual.column("caption")
    assert table.column("subgroup") == usual.column("class_key")
    assert table.column("subgroup_name") == usual.column("class_name")
    with pytest.raises(DataError, match=r"no column 'nmae' \(for class_name\)\. Did you mean 'name'"):
        read(DataSpec(source="builtin:emoji", columns={"class_name": "nmae"}))


@pytest.fixture
def stream(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    columns = {
        "class_key": ["a", "b", "c"],
        "caption": ["x", "y"],
        "group": ["g", "h", None],
        "time": [1, 1, 2, 2],
    }
    data = write(tmp_path / "d.parquet", 120, **columns)

    def make(**keys: Any) -> dict[str, Any]:
        tasks = [{"name": "one", "where": {"time": 1}}, {"name": "two", "where": {"time": 2}}]
        return document("time", data, tasks=tasks, evaluate_as="classification", **keys)

    return make


def test_a_second_measure_can_be_by_classes(stream: Callable[..., dict[str, Any]]) -> None:
    keys = {
        "evaluate_as": "retrieval",
        "evaluate_also": "classification",
        "protocols": [{"name": "own", "space": "all"}],
    }
    scenario = load_scenario(stream() | keys)
    again = [s for s in scenario.eval_sets if s.group == "part"]
    assert [s.name for s in again] == ["one (classification)", "two (classification)"]
    space = scenario.label_space(again[0], (), scenario.protocols[0])
    assert space is not None
    assert sorted(space.keys) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"evaluate_also": "classification"}, "evaluate_also: 'one' is measured by classification already"),
        (
            {"retention": [{"name": "r", "kind": "retrieval", "class_column": "group"}]},
            "`class_column` needs kind",
        ),
        (
            {"retention": [{"name": "r", "class_column": "gruop"}]},
            r"no column 'gruop' \(retention.0.class_column\)",
        ),
        ({"reference": {"images": {"source": "d.parquet"}, "images_where": {"time": 9}}}, "no image fits"),
    ],
)
def test_keys_that_do_not_fit_are_refused(
    stream: Callable[..., dict[str, Any]], tmp_path: Path, keys: dict[str, Any], match: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=match):
        load_scenario(stream(**keys), tmp_path)


def test_rows_without_a_class_of_the_other_column_are_left_out(stream: Callable[..., dict[str, Any]]) -> None:
    scenario = load_scenario(stream(retention=[{"name": "r", "class_column": "group"}]))
    assert set(scenario.retention_suite[0].data.column("class_key")) == {"g", "h"}


def test_reference_images_are_chosen_by_condition(
    stream: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    reference = {"images": {"source": "d.parquet"}, "images_where": {"time": 1}}
    scenario = load_scenario(stream(reference=reference), tmp_path)
    assert scenario.reference is not None
    assert scenario.reference.images is not None
    assert set(scenario.reference.images.column("time")) == {1}


def test_a_second_measure_changes_neither_the_measures_of_the_space_nor_the_printed_table(
    micro_config: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = (
        "scenario.evaluate_as=classification",
        "scenario.evaluate_also=retrieval",
        "scenario.headline.metric=accuracy",
    )
    both = everclip.execute(micro_config("time", "method=zero-shot", *keys))
    alone = everclip.execute(micro_config("time", "method=zero-shot", f"output={tmp_path / 'alone'}"))
    assert both.rows[-1].representation == alone.rows[-1].representation
    assert "known (retrieval)" in both.matrix.columns
    capsys.readouterr()
    print_results(both, tmp_path, str(tmp_path))
    table = capsys.readouterr().out
    assert "known   2001   2002   2003  groups" in table
    assert "(retrieval)" not in table
