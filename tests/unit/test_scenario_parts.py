"""Splits, base, retention and validation twins: what is measured is never trained on, wherever else it lies."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from scenario_data import document, write

from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario


def hashes(tables: Iterable[Table | None]) -> set[str]:
    return {hashlib.sha256(b).hexdigest() for t in tables if t is not None for b in t.column("image")}


def require_apart(scenario: ListScenario) -> None:
    """Nothing measured is trained on or looked at; nothing looked at is trained on. By content."""
    measured = hashes(s.data for s in scenario.eval_sets)
    watched = hashes(
        [scenario.base_val, *(t.val for t in scenario.tasks), *(s.data for s in scenario.retention_val)]
    )
    trained = hashes([scenario.base, *(t.train for t in scenario.tasks)])
    assert measured
    assert not trained & measured
    assert not watched & measured
    assert not trained & watched


CLASSES = {"class_key": ["a", "b", "c", "d"], "class_name": ["ant", "bee", "cow", "dog"]}


# -- splits ---------------------------------------------------------------------------------------------------


def test_a_column_marks_all_three_parts(tmp_path: Path) -> None:
    marks = ["train", "Test", "validation", "dev", "VAL", "other", None]
    data = write(tmp_path / "d.parquet", 140, caption=[f"c{i}" for i in range(140)], part=marks)
    scenario = load_scenario(document("single", data, split={"column": "part", "validation": 0.4}))
    task = scenario.tasks[0]
    assert task.val is not None
    assert set(scenario.eval_sets[0].data.column("part")) == {"Test"}
    assert set(task.val.column("part")) == {"validation", "dev", "VAL"}
    assert set(task.train.column("part")) == {"train", "other", None}
    assert len(task.train) == 60  # nothing is carved off as well


def test_a_folder_of_train_and_test_tables_marks_its_rows(tmp_path: Path) -> None:
    for seed, name in enumerate(("train", "test", "val")):
        write(tmp_path / "d" / f"{name}.parquet", 20, seed, caption=[f"{name} {i}" for i in range(20)])
    scenario = load_scenario(document("single", tmp_path / "d", split={"column": "split"}))
    task = scenario.tasks[0]
    assert task.val is not None
    assert [len(t) for t in (task.train, task.val, scenario.eval_sets[0].data)] == [20, 20, 20]


def test_captions_of_one_picture_stay_together_under_every_share(tmp_path: Path) -> None:
    names = [f"p{i // 4}" for i in range(200)]
    data = write(tmp_path / "d.parquet", 200, caption=[f"c{i}" for i in range(200)], image_id=names)
    scenario = load_scenario(document("single", data))
    task = scenario.tasks[0]
    parts = [set(t.identities()) for t in (task.train, task.val, scenario.eval_sets[0].data) if t is not None]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 50


def test_the_same_picture_under_other_names_is_not_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "d" / "train.parquet", 60, 0, caption=["x"], image_id=[f"a{i}" for i in range(60)])
    write(tmp_path / "d" / "test.parquet", 20, 0, caption=["y"], image_id=[f"b{i}" for i in range(20)])
    rule = {"column": "split", "validation": 0.2}
    with pytest.raises(
        DataError, match=r"20 of 20 test images are also training images.*split\.shared: remove"
    ):
        load_scenario(document("single", tmp_path / "d", split=rule))
    scenario = load_scenario(document("single", tmp_path / "d", split={**rule, "shared": "remove"}))
    require_apart(scenario)
    task = scenario.tasks[0]
    assert len(scenario.eval_sets[0].data) == 20
    assert len(task.train) + len(task.val or ()) == 40
    assert any("rows are left out, because their images are measured" in note for note in scenario.notes)


def test_a_test_picture_of_one_source_is_not_trained_on_by_another(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 60, 0, **CLASSES)
    write(tmp_path / "b.parquet", 80, 0, **CLASSES, id=[f"other-{i}" for i in range(80)])
    sources = [
        {"name": n, "data": {"source": str(tmp_path / f"{n}.parquet")}, "split": {"test": share}}
        for n, share in (("a", 0.2), ("b", 0.5))
    ]
    require_apart(load_scenario(document("sources", None, sources=sources)))


def test_when_everything_trained_is_measured_it_says_so(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write(
            tmp_path / "d" / f"{name}.parquet",
            20,
            0,
            caption=["x"],
            image_id=[name + str(i) for i in range(20)],
        )
    with pytest.raises(DataError, match="training images are also measured"):
        load_scenario(
            document("single", tmp_path / "d", split={"column": "split", "validation": 0, "shared": "remove"})
        )


@pytest.mark.parametrize(
    ("columns", "changes", "match"),
    [
        (
            {"part": ["a", "b"]},
            {"split": {"column": "part"}},
            r"task 'all' has 40 training and 0 test .*'a' 20, 'b' 20",
        ),
        (
            {"part": ["test"]},
            {"split": {"column": "part"}},
            "0 training and 40 test rows, so there is nothing to",
        ),
        (
            {},
            {"split": {"test": 0.001}},
            r"40 training and 0 test rows.*split\.test is 0\.001, .*; split\.test=0\.02 puts one there",
        ),
        (
            {},
            {"split": {"test": 0.2, "validation": 0.999}},
            r"its 3[0-9] training rows all fall into its validation part",
        ),
        (
            {"time": ["2024-01"] * 39 + ["2024-02"]},
            {"kind": "time", "every": "month"},
            r"task '2024-0\d' has 1? ?.*row",
        ),
    ],
)
def test_a_part_without_rows_is_refused_with_numbers(
    tmp_path: Path, columns: dict[str, Any], changes: dict[str, Any], match: str
) -> None:
    data = write(tmp_path / "d.parquet", 40, caption=[f"c{i}" for i in range(40)], **columns)
    with pytest.raises(DataError, match=match):
        load_scenario({**document("single", data), **changes})


def test_a_task_too_small_for_validation_is_noted_with_numbers(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 40, caption=[f"c{i}" for i in range(40)])
    scenario = load_scenario(document("single", data, split={"test": 0.2, "validation": 0.001}))
    assert len(scenario.tasks[0].val or ()) == 0
    assert any("and none for validation (split.validation is 0.001" in note for note in scenario.notes)


# -- base and retention ---------------------------------------------------------------------------------------


def retention(name: str, source: Path | None = None, **more: Any) -> dict[str, Any]:
    return {"name": name, **({} if source is None else {"data": {"source": str(source)}}), **more}


def test_a_base_with_data_of_its_own(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 60, 0, caption=[f"c{i}" for i in range(60)])
    old = write(tmp_path / "old.parquet", 80, 1, **CLASSES)
    base = {
        "name": "known",
        "data": {"source": str(old)},
        "where": {"class_key": ["a", "b"]},
        "split": {"test": 0.4},
    }
    scenario = load_scenario(document("single", data, base=base))
    require_apart(scenario)
    assert scenario.base is not None
    assert scenario.base_val is not None
    known = scenario.eval_sets[0]
    assert (known.group, known.kind, {c.name for c in known.classes or ()}) == (
        "known",
        "classification",
        {"ant", "bee"},
    )
    assert len(scenario.base) + len(scenario.base_val) + len(known.data) == 40
    assert {i.rpartition("-")[0] for i in scenario.base.ids} == {"old"}


def test_retention_by_condition_has_its_twin_in_the_validation_rows(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 200, **CLASSES, caption=[f"c{i}" for i in range(200)], era=[1, 2, 3])
    suite = [
        retention("kinds", where={"era": [1, 2]}, templates=["a {}"]),
        retention("words", kind="retrieval", where={"class_key": "a"}),
    ]
    scenario = load_scenario(
        document("domains", data, column="era", base={"name": "b", "where": {"era": 1}}, retention=suite)
    )
    require_apart(scenario)
    validation = {
        i for t in (scenario.base_val, *(t.val for t in scenario.tasks)) if t is not None for i in t.ids
    }
    for measured, twin in zip(scenario.retention_suite, scenario.retention_val, strict=True):
        assert (twin.name, twin.kind, twin.classes, twin.group) == (
            measured.name, measured.kind, measured.classes, "retention",
        )  # fmt: skip
        assert len(twin.data) == len(set(twin.data.ids))
    expected = {i for t in (scenario.base_val, *(t.val for t in scenario.tasks)) if t is not None
                for i, era in zip(t.ids, t.column("era"), strict=True) if era in (1, 2)}  # fmt: skip
    assert set(scenario.retention_val[0].data.ids) == expected <= validation
    assert set(scenario.retention_val[1].data.column("class_key")) == {"a"}


def test_retention_with_data_of_its_own_gives_a_share_to_its_twin(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 60, 0, caption=[f"c{i}" for i in range(60)])
    other = write(tmp_path / "other.parquet", 100, 1, **CLASSES)
    suite = [retention("other", other, templates=["{}!"], validation=0.4)]
    scenario = load_scenario(document("single", data, retention=suite))
    require_apart(scenario)
    measured, twin = scenario.retention_suite[0], scenario.retention_val[0]
    assert sorted(measured.data.ids + twin.data.ids) == sorted(f"other-{i}" for i in range(100))
    assert 20 < len(twin.data) < 60
    assert measured.classes == twin.classes
    assert {c.prompts() for c in measured.classes or ()} == {("ant!",), ("bee!",), ("cow!",), ("dog!",)}
    again = load_scenario(document("single", data, retention=suite))
    assert again.retention_val[0].data.ids == twin.data.ids


def test_retention_with_separate_validation_data_is_measured_whole(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 60, 0, caption=[f"c{i}" for i in range(60)])
    test = write(tmp_path / "test.parquet", 40, 1, caption=["one", "two"])
    val = write(tmp_path / "val.parquet", 40, 1, caption=["one", "two"], id=[f"v{i}" for i in range(40)])
    fresh = write(tmp_path / "fresh.parquet", 20, 2, caption=["one", "two"])
    suite = [
        retention("same", test, kind="retrieval", val={"source": str(val)}),
        retention("fresh", test, kind="retrieval", val={"source": str(fresh)}, where={"caption": "one"}),
    ]
    scenario = load_scenario(document("single", data, retention=suite))
    require_apart(scenario)
    assert [len(s.data) for s in scenario.retention_suite] == [40, 20]
    assert [(s.name, len(s.data)) for s in scenario.retention_val] == [
        ("fresh", 10)
    ]  # all of the other is measured
    assert any("'same' has no validation twin" in note for note in scenario.notes)


def test_training_pictures_that_a_retention_set_holds_are_left_out(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 100, 0, **CLASSES)
    other = write(tmp_path / "other.parquet", 30, 0, **CLASSES)  # the first thirty of the same pictures
    scenario = load_scenario(document("single", data, retention=[retention("other", other)]))
    require_apart(scenario)
    assert len(scenario.retention_suite[0].data) + len(scenario.retention_val[0].data) <= 30
    assert len(scenario.retention_suite[0].data) > 10


def test_a_retention_set_without_its_column_says_which(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 60, 0, caption=["x"])
    with pytest.raises(
        DataError, match=r"no column 'class_key' \(retention\.0: kind classification; the other"
    ):
        load_scenario(document("single", data, retention=[retention("r")]))
    with pytest.raises(ConfigError, match=r"retention\.0: .*`val` needs `data`"):
        load_scenario(document("single", data, retention=[retention("r", val={"source": str(data)})]))


# -- kinds ----------------------------------------------------------------------------------------------------


def test_groups_of_classes_are_listed_by_key_or_name(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 120, **CLASSES)
    scenario = load_scenario(document("classes", data, groups=[["cow", "a"], ["dog"]]))
    assert [(t.name, [c.key for c in t.classes or ()]) for t in scenario.tasks] == [
        ("classes 1-2", ["c", "a"]), ("classes 3-3", ["d"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("groups", "match"),
    [
        ([["ant"], ["bees"]], r"groups\.1: 'bees' is none of the classes\. Did you mean 'bee'"),
        ([["ant"], ["a"]], r"groups\.1: 'a' is listed more than once"),
        ([["ant"], []], r"groups\.1: is empty"),
    ],
)
def test_groups_that_do_not_fit(tmp_path: Path, groups: list[list[str]], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_scenario(document("classes", write(tmp_path / "d.parquet", 120, **CLASSES), groups=groups))


def test_languages_are_domains_and_every_task_knows_its_own(tmp_path: Path) -> None:
    data = write(
        tmp_path / "d.parquet", 120, caption=[f"c{i}" for i in range(120)], language=["de", "fr", "zh"]
    )
    scenario = load_scenario(document("domains", data, column="language", order=["zh", "de"]))
    assert [(t.name, t.language) for t in scenario.tasks] == [("zh", "zh"), ("de", "de")]
    assert scenario.at_once().tasks[0].language is None


@pytest.mark.parametrize(
    ("columns", "given", "kind"),
    [
        (CLASSES, None, "classification"),
        ({"caption": ["x", "y"]}, None, "retrieval"),
        ({**CLASSES, "caption": ["x", "y"]}, None, "retrieval"),
        ({**CLASSES, "caption": ["x", "y"]}, "classification", "classification"),
    ],
)
def test_captions_decide_how_a_stream_is_measured(
    tmp_path: Path, columns: dict[str, Any], given: str | None, kind: str
) -> None:
    data = write(tmp_path / "d.parquet", 80, **columns, language=["de", "fr"])
    scenario = load_scenario(document("domains", data, column="language", evaluate_as=given))
    assert {s.kind for s in scenario.eval_sets} == {kind}
    assert all((t.classes is not None) == (kind == "classification") for t in scenario.tasks)
    both = len(columns) == 3 and given is None
    assert any("captions and classes" in guess for guess in scenario.guesses) == both


def test_rows_without_a_class_are_not_classified(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 90, class_key=["a", "b", None], caption=[f"c{i}" for i in range(90)])
    scenario = load_scenario(document("single", data, evaluate_as="classification"))
    task = scenario.tasks[0]
    assert None not in scenario.eval_sets[0].data.column("class_key") + task.train.column("class_key")


# -- what is remembered ---------------------------------------------------------------------------------------


def test_what_was_set_aside_is_kept(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 60, 0, caption=["x", "y"])
    scenario = load_scenario(document("single", data))
    assert [(q.total, len(q.entries)) for q in scenario.quarantine] == [(60, 0)]
