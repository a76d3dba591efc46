"""Scenarios: nothing of the test set is ever trained on, and answers on offer are those the protocol allows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import everclip
import micro
from everclip.contracts import EvalProtocol
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError, EverclipError
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario
from presets import builtin_benchmarks, builtin_scenario

KINDS = ("time", "classes", "domains", "single")
OWN = EvalProtocol("own")
SEEN = EvalProtocol("seen", "seen")
SEEN_OWN = EvalProtocol("seen", "seen", unseen="own")
ALL = EvalProtocol("all", "all")


@pytest.fixture
def load(micro_folder: Path) -> Callable[..., ListScenario]:
    """Return a function (kind, **changes) -> scenario over the small stream."""

    def make(kind: str, **changes: Any) -> ListScenario:
        document = micro.scenario(kind, micro_folder / "data.parquet")
        document.pop("training")
        return load_scenario({**document, **changes})

    return make


def trained(scenario: ListScenario) -> set[str]:
    tables = [t for task in scenario.tasks for t in (task.train, task.val) if t is not None]
    tables += [t for t in (scenario.base, scenario.base_val) if t is not None]
    return {name for table in tables for name in table.ids}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_tested_is_never_trained_on(load: Callable[..., ListScenario], kind: str) -> None:
    scenario = load(kind)
    tested = {name for s in scenario.eval_sets for name in s.data.ids}
    assert tested
    assert not tested & trained(scenario)
    for task in scenario.tasks:
        assert task.val is not None
        assert not set(task.train.ids) & set(task.val.ids)
        assert len(task.train) > len(task.val) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_in_exactly_one_part(load: Callable[..., ListScenario], kind: str) -> None:
    scenario = load(kind)
    parts = [t.ids for task in scenario.tasks for t in (task.train, task.val) if t is not None]
    parts += [t.ids for t in (scenario.base, scenario.base_val) if t is not None]
    parts += [s.data.ids for s in scenario.eval_sets if s.group != "retention"]
    names = [name for part in parts for name in part]
    assert sorted(names) == sorted(f"{i}-{j}" for i in range(16) for j in range(6))


def test_a_share_splits_by_hash_and_a_column_by_its_mark(load: Callable[..., ListScenario]) -> None:
    marked = {name for s in load("time").eval_sets for name in s.data.ids}
    assert marked == {f"{i}-0" for i in range(16)}
    shared = {
        name for s in load("single", split={"test": 0.4}, retention=[]).eval_sets for name in s.data.ids
    }
    assert shared != marked
    assert 20 < len(shared) < 60


# -- kinds ----------------------------------------------------------------------------------------------------


def test_time_cuts_by_condition(load: Callable[..., ListScenario]) -> None:
    scenario = load("time")
    assert [(t.index, t.name, t.time, t.classes) for t in scenario.tasks] == [
        (0, "2001", "2001", None),
        (1, "2002", "2002", None),
        (2, "2003", "2003", None),
    ]
    assert scenario.base is not None
    assert set(scenario.base.column("time")) == {2000}
    assert [(s.name, s.group, s.task, s.kind) for s in scenario.eval_sets] == [
        ("known", "known", None, "retrieval"),
        ("2001", "task", 0, "retrieval"),
        ("2002", "task", 1, "retrieval"),
        ("2003", "task", 2, "retrieval"),
        ("groups", "retention", None, "classification"),
    ]


@pytest.mark.parametrize(
    ("where", "years"),
    [
        ({"time": {"from": 2002}}, {2002, 2003}),
        ({"time": {"to": 2001}}, {2000, 2001}),
        ({"time": {"from": 2001, "to": 2002}}, {2001, 2002}),
        ({"time": [2000, 2003]}, {2000, 2003}),
        ({"time": [2001, 2002], "style": "style-0", "class_key": "class-5"}, {2001}),
    ],
)
def test_conditions(load: Callable[..., ListScenario], where: dict[str, Any], years: set[int]) -> None:
    scenario = load(
        "time", tasks=[{"name": "t", "where": {"time": 2003}}], base={"name": "b", "where": where}
    )
    assert scenario.base is not None
    assert set(scenario.base.column("time")) == years


def test_classes_come_a_few_at_a_time_in_the_order_asked_for(load: Callable[..., ListScenario]) -> None:
    def order(**changes: Any) -> list[list[str]]:
        return [[c.key for c in task.classes or ()] for task in load("classes", **changes).tasks]

    names = [f"class-{i}" for i in range(6)]
    assert order() == [names[0:2], names[2:4], names[4:6]]
    assert order(first_task=3) == [names[0:3], names[3:5], names[5:6]]
    assert order(order=list(reversed(names))) == [names[5:3:-1], names[3:1:-1], names[1::-1]]
    assert order(order="given") == order()
    seeded = [name for part in order(order="seed", order_seed=1) for name in part]
    assert sorted(seeded) == names
    assert seeded != names
    assert seeded == [name for part in order(order="seed", order_seed=1) for name in part]
    assert seeded != [name for part in order(order="seed", order_seed=2) for name in part]


def test_rows_of_a_class_task_are_of_its_classes(load: Callable[..., ListScenario]) -> None:
    scenario = load("classes", class_templates=["a {}", "{}"])
    for task, s in zip(scenario.tasks, scenario.eval_sets, strict=False):
        assert task.classes is not None
        assert s.classes == task.classes
        assert s.kind == "classification"
        for table in (task.train, s.data):
            assert set(table.column("class_key")) == {c.key for c in task.classes}
        assert {c.tasks for c in task.classes} == {(task.index,)}
        assert task.classes[0].prompts() == (f"a {task.classes[0].name}", task.classes[0].name)


def test_a_class_that_cannot_be_measured_is_left_out(load: Callable[..., ListScenario]) -> None:
    scenario = load("classes", evaluate_where={"class_key": ["class-0", "class-3", "class-5"]}, retention=[])
    assert [[c.key for c in t.classes or ()] for t in scenario.tasks] == [["class-0", "class-3"], ["class-5"]]


def test_domains_are_the_values_of_a_column(load: Callable[..., ListScenario]) -> None:
    assert [t.name for t in load("domains").tasks] == ["2000", "2001", "2002", "2003"]
    chosen = load("domains", order=["2003", "2001"])
    assert [t.name for t in chosen.tasks] == ["2003", "2001"]
    assert set(chosen.tasks[0].train.column("time")) == {2003}


def test_single_takes_everything_or_what_its_task_selects(load: Callable[..., ListScenario]) -> None:
    assert len(load("single").tasks) == 1
    one = load("single", tasks=[{"name": "young", "where": {"time": {"from": 2002}}}])
    assert one.tasks[0].name == "young"
    assert set(one.tasks[0].train.column("time")) == {2002, 2003}


# -- protocols ------------------------------------------------------------------------------------------------


def test_label_spaces_hold_what_the_protocol_allows(load: Callable[..., ListScenario]) -> None:
    scenario = load("classes")
    second = scenario.eval_sets[1]

    def keys(protocol: EvalProtocol, *learned: int) -> list[str] | None:
        space = scenario.label_space(second, set(learned), protocol)
        return None if space is None else [key.removeprefix("class-") for key in space.keys]

    assert keys(OWN) == keys(OWN, 0, 1, 2) == ["2", "3"]
    assert keys(ALL) == list("012345")
    assert keys(SEEN, 0) is None
    assert keys(SEEN_OWN, 0) == ["2", "3"]
    assert keys(SEEN, 1) == ["2", "3"]
    assert keys(SEEN, 0, 1) == list("0123")


def test_the_task_is_told_only_where_the_protocol_says_so(load: Callable[..., ListScenario]) -> None:
    scenario = load("classes")
    told = scenario.label_space(scenario.eval_sets[1], {0, 1}, EvalProtocol("own", known_task=True))
    untold = scenario.label_space(scenario.eval_sets[1], {0, 1}, OWN)
    assert told is not None
    assert untold is not None
    assert (told.known_task, untold.known_task) == (1, None)


def test_pools_hold_what_the_protocol_allows(load: Callable[..., ListScenario]) -> None:
    scenario = load("time")
    second = scenario.eval_sets[2]  # task 1; the known set stands first

    def names(protocol: EvalProtocol, *learned: int) -> list[str] | None:
        pool = scenario.pool(second, set(learned), protocol)
        return None if pool is None else [s.name for s in pool]

    assert names(OWN) == ["2002"]
    assert names(ALL) == ["known", "2001", "2002", "2003"]
    assert names(SEEN, 0) is None
    assert names(SEEN_OWN, 0) == ["2002"]
    assert names(SEEN, 0, 1) == ["known", "2001", "2002"]


@pytest.mark.parametrize("protocol", [OWN, SEEN, ALL])
def test_the_retention_suite_keeps_its_own_answers(
    load: Callable[..., ListScenario], protocol: EvalProtocol
) -> None:
    suite = load("time").retention_suite[0]
    space = load("time").label_space(suite, set(), protocol)
    assert space is not None
    assert space.entries == suite.classes
    names = load("classes").retention_suite[0]
    assert load("classes").pool(names, set(), protocol) == (names,)


# -- at once --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_at_once_joins_all_tasks_and_changes_no_evaluation(
    load: Callable[..., ListScenario], kind: str
) -> None:
    scenario = load(kind)
    joined = scenario.at_once()
    assert len(joined.tasks) == 1
    assert sorted(joined.tasks[0].train.ids) == sorted(i for t in scenario.tasks for i in t.train.ids)
    assert joined.eval_sets == scenario.eval_sets
    if kind == "classes":
        assert [c.key for c in joined.tasks[0].classes or ()] == [f"class-{i}" for i in range(6)]


# -- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "error", "match"),
    [
        ("time", {"tasks": []}, ConfigError, "needs one of `tasks`"),
        ("time", {"tasks": [{"name": "none", "where": {"time": 1990}}]}, DataError, r"task .none. .tasks\.0. holds no"),
        ("time", {"base": {"name": "b", "where": {"time": 1}}}, DataError, "base 'b' holds no rows"),
        ("time", {"retention": [{"name": "r", "where": {"time": 1}}]}, DataError, "retention set 'r' holds no rows"),
        ("time", {"evaluate_where": {"tme": 1}}, DataError, r"no column 'tme'\. Did you mean 'time'"),
        ("time", {"base": {"name": "b", "where": {"time": {"form": 1}}}}, ConfigError, "unknown key .form."),
        ("time", {"headline": {"protocol": "al", "metric": "ece"}}, ConfigError, "'al' is none of own, seen, all"),
        ("time", {"split": {}}, ConfigError, "set either split.test"),
        ("time", {"split": {"test": 0.1, "column": "test"}}, ConfigError, "set either split.test"),
        ("time", {"headline": {"protocol": "all", "metric": "mean_r_1"}}, ConfigError, "mean_r_1.*you mean .mean_r1."),
        ("time", {"retention": [{"name": "2001"}]}, ConfigError, "2 evaluation sets are named '2001'"),
        ("time", {"knid": 1}, ConfigError, r"scenario\.knid: unknown key\. Did you mean 'kind'"),
        ("classes", {"per_task": None}, ConfigError, "needs either `per_task`"),
        ("classes", {"order": ["class-9"]}, ConfigError, r"scenario\.order: 'class-9' is none of the classes"),
        ("domains", {"column": None}, ConfigError, "needs `column`"),
        ("domains", {"column": "tiem"}, DataError, r"no column 'tiem'\. Did you mean 'time'"),
    ],
)  # fmt: skip
def test_a_scenario_that_does_not_fit_says_why(
    load: Callable[..., ListScenario],
    kind: str,
    changes: dict[str, Any],
    error: type[EverclipError],
    match: str,
) -> None:
    with pytest.raises(error, match=match):
        load(kind, **changes)


def test_a_range_of_another_type_than_the_column_is_a_clear_error(load: Callable[..., ListScenario]) -> None:
    with pytest.raises(EverclipError, match=r"where\.time: the range .*2001-05.* column's 2000"):
        load("time", base={"name": "b", "where": {"time": {"from": "2001-05"}}})


def test_a_retention_picture_without_a_class_is_left_out(micro_folder: Path, tmp_path: Path) -> None:
    data = Table(pq.read_table(micro_folder / "data.parquet"))
    keys = data.column("class_key")
    keys[0] = None  # the test drawing of the first thing, which is of the year 2000
    pq.write_table(data.with_column("class_key", keys).arrow(), tmp_path / "null.parquet")
    document = micro.scenario("time", tmp_path / "null.parquet")
    document.pop("training")
    suite = load_scenario(document).retention_suite[0]
    assert "0-0" not in suite.data.ids
    assert {str(key) for key in suite.data.column("class_key")} == {c.key for c in suite.classes or ()}


# -- built in -------------------------------------------------------------------------------------------------


# (name, training rows per task, rows per evaluation set, rows of the base): a change here is a new version.
SIZES = [
    (
        "emoji-time",
        [327, 143, 141, 177, 238],
        {"known": 1269, "2016": 172, "2017": 79, "2018": 75, "2019": 76, "2020-22": 132, "subgroups": 1269},
        2336,
    ),
    (
        "emoji-classes",
        [609, 628, 553, 1021, 551],
        {
            "classes 1-20": 326,
            "classes 21-40": 331,
            "classes 41-60": 307,
            "classes 61-80": 537,
            "classes 81-99": 302,
            "names": 1269,
        },
        None,
    ),
    (
        "emoji-styles",
        [1122, 1131, 1109],
        {"noto": 594, "openmoji": 615, "twemoji": 594, "subgroups": 1269},
        None,
    ),
    (
        "emoji-names",
        [304, 143, 137, 136, 238],
        {
            **{"known": 1269, "2016": 172, "2017": 79, "2018": 75, "2019": 76, "2020-22": 132},
            **{"known (retrieval)": 1269, "2016 (retrieval)": 172, "2017 (retrieval)": 79},
            **{"2018 (retrieval)": 75, "2019 (retrieval)": 76, "2020-22 (retrieval)": 132, "subgroups": 1269},
        },
        2282,
    ),
    ("emoji-online", [1127, 1311, 214, 324, 386], {"test": 1803, "names": 1269}, None),
    ("emoji-base", [2336], {"known": 1269, "subgroups": 1269}, None),
]


@pytest.mark.parametrize(("name", "trained_rows", "tested_rows", "base"), SIZES)
def test_built_in_benchmarks_have_the_sizes_they_were_published_with(
    name: str, trained_rows: list[int], tested_rows: dict[str, int], base: int | None
) -> None:
    scenario = builtin_scenario(name)
    assert [len(task.train) for task in scenario.tasks] == trained_rows
    assert {s.name: len(s.data) for s in scenario.eval_sets} == tested_rows
    assert (None if scenario.base is None else len(scenario.base)) == base
    assert not trained(scenario) & {i for s in scenario.eval_sets for i in s.data.ids}


def test_every_built_in_benchmark_is_covered_above() -> None:
    assert set(builtin_benchmarks()) == {name for name, *_ in SIZES}


def test_templates_without_a_place_are_refused(micro_config: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="exactly once"):
        everclip.execute(micro_config("classes", 'scenario.class_templates=["no place"]'))
