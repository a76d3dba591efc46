"""Times and conditions: periods against the calendar, ranges by prefix, and errors that name the row."""

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scenario_data import document, write

from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.scenarios.conditions import matcher
from everclip.scenarios.load import load_scenario
from everclip.scenarios.periods import period_of
from everclip.scenarios.time import equal_parts
from micro import picture

DAYS = st.dates(dt.date(1000, 1, 1), dt.date(9999, 12, 31))


# -- periods --------------------------------------------------------------------------------------------------


@given(DAYS)
def test_a_day_falls_into_the_periods_of_the_calendar(day: dt.date) -> None:
    year, week, _ = day.isocalendar()
    for value in (
        day,
        day.isoformat(),
        f"{day}T23:59:59+02:00",
        f"{day} 10:00",
        dt.datetime(*day.timetuple()[:3]),
    ):
        assert period_of(value, "year") == str(day.year)
        assert period_of(value, "quarter") == f"{day.year}-Q{(day.month - 1) // 3 + 1}"
        assert period_of(value, "month") == f"{day.year}-{day.month:02d}"
        assert period_of(value, "week") == f"{year:04d}-W{week:02d}"
        assert period_of(value, "day") == day.isoformat()


@given(st.lists(DAYS, min_size=2, max_size=8))
def test_periods_sort_as_their_days_do(days: list[dt.date]) -> None:
    for unit in ("year", "quarter", "month", "week", "day"):
        periods = [str(period_of(day, unit)) for day in sorted(days)]
        assert periods == sorted(periods)


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (2024, "year", "2024"),
        ("2024-05", "quarter", "2024-Q2"),
        ("2024-W09", "week", "2024-W09"),
        ("2024W09", "year", "2024"),
        ("2024-Q3", "quarter", "2024-Q3"),
        ("spring", "value", "spring"),
        (7, "value", 7),
    ],
)
def test_other_forms_of_time(value: Any, unit: str, expected: Any) -> None:
    assert period_of(value, unit) == expected


@pytest.mark.parametrize(
    ("value", "unit"),
    [(2024, "month"), ("2024", "week"), ("2024-13", "month"), ("2024-02-30", "day"), ("05/03/2024", "year"),
     (None, "year"), (True, "value"), (3.5, "value"), ("2024-W60", "week"), ("", "year"), (10**9, "year")],
)  # fmt: skip
def test_what_holds_no_such_period_is_refused(value: Any, unit: str) -> None:
    with pytest.raises(ValueError):
        period_of(value, unit)


# -- conditions -----------------------------------------------------------------------------------------------


def kept(values: list[Any], wanted: Any, column: str = "time") -> list[Any]:
    images = pa.array([b""] * len(values), pa.binary())
    table = Table(pa.table({"id": [str(i) for i in range(len(values))], "image": images, column: values}))
    return matcher({column: wanted})(table).column(column)


ISO = ["2023-12-31", "2024-01-01", "2024-01-31", "2024-01-31T22:00:00Z", "2024-02-01", None]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"to": "2024-01"}, ISO[:4]),
        ({"from": "2024-01", "to": "2024-01"}, ISO[1:4]),
        ({"from": "2024-02"}, ISO[4:5]),
        ({"from": 2024}, ISO[1:5]),
        ({"to": 2023}, ISO[:1]),
        ({"to": dt.date(2024, 1, 31)}, ISO[:4]),
        ({"from": dt.datetime(2024, 1, 31, 21), "to": "2024-02-28"}, ISO[3:5]),
        ("2024-01", ISO[1:4]),
        (dt.date(2024, 1, 31), ISO[2:4]),
        (2024, ISO[1:5]),
        (["2023", "2024-02"], [ISO[0], ISO[4]]),
        ("2024-0", []),
        (None, [None]),
    ],
)
def test_iso_times_are_compared_by_prefix(wanted: Any, expected: list[Any]) -> None:
    assert kept(ISO, wanted) == expected


@pytest.mark.parametrize(
    ("values", "wanted", "expected"),
    [
        ([1, 2, 10], {"from": 2}, [2, 10]),
        ([1, 2, 10], {"to": "9"}, [1, 2]),
        (["1", "2", "10"], {"from": 2}, ["2", "10"]),
        (["3", "4"], 3, ["3"]),
        (["true", "False"], True, ["true"]),
        ([0.5, float("nan"), 2.0], {"to": 1}, [0.5]),
        (["cat", "car", "dog"], {"from": "car", "to": "cat"}, ["cat", "car"]),
        (["2024-03-05", "2024"], "2024-03", ["2024-03-05"]),
    ],
)
def test_numbers_are_numbers_and_texts_are_texts(values: list[Any], wanted: Any, expected: list[Any]) -> None:
    assert kept(values, wanted) == expected


def test_equality_goes_by_prefix_in_the_column_time_alone() -> None:
    assert kept(["2024-03-05"], "2024-03", column="name") == []


@given(st.lists(DAYS, min_size=1), DAYS, DAYS)
def test_ranges_of_days_are_those_of_the_calendar(days: list[dt.date], low: dt.date, high: dt.date) -> None:
    texts = [day.isoformat() for day in days]
    expected = [day.isoformat() for day in days if low <= day <= high]
    assert kept(texts, {"from": low.isoformat(), "to": high}) == expected


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([2000, 2001], {"from": "2001-05"}),
        (["2000-01-01", "2001"], {"to": "2001-05"}),
        (["2000-01-01", "May 2001"], {"to": "2001-05"}),
        ([True, False], {"to": 1}),
    ],
)
def test_what_cannot_be_compared_is_named_with_its_row(values: list[Any], wanted: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"where\.time: the range .* cannot be compared .*row \d, id \d"):
        kept(values, wanted)


@pytest.mark.parametrize("wanted", [{"form": 1}, {"from": 1, "too": 2}, [{"from": 1}], [[1]]])
def test_a_condition_that_is_none_is_refused(wanted: Any) -> None:
    with pytest.raises(ConfigError, match=r"where\.time: "):
        kept([1], wanted)


# -- tasks by period ------------------------------------------------------------------------------------------

MONTHS = ["2024-01-05", "2024-02-10", "2024-02-20", "2024-04-01", "2023-11-30"]


def test_every_period_is_a_task_in_order_of_time(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 150, caption=["a", "b", "c"], time=MONTHS)
    scenario = load_scenario(document("time", data, every="month"))
    assert [(t.name, t.time) for t in scenario.tasks] == [
        ("2023-11", "2023-11-30"),
        ("2024-01", "2024-01-05"),
        ("2024-02", "2024-02-10 to 2024-02-20"),
        ("2024-04", "2024-04-01"),
    ]
    assert [t.name for t in load_scenario(document("time", data, every="year")).tasks] == ["2023", "2024"]
    rows = [i for t in scenario.tasks for table in (t.train, t.val) if table for i in table.ids]
    rows += [i for s in scenario.eval_sets for i in s.data.ids]
    assert sorted(rows) == sorted(f"d-{i}" for i in range(150))


def test_a_new_period_becomes_a_new_task_and_changes_no_other(tmp_path: Path) -> None:
    old = write(tmp_path / "d.parquet", 150, caption=["a", "b", "c"], time=MONTHS)
    before = load_scenario(document("time", old, every="quarter"))
    new = write(tmp_path / "new.parquet", 60, seed=1, caption=["d"], time=["2024-05-01"])
    both = document("time", None, every="quarter", data={"source": [str(old), str(new)]})
    after = load_scenario(both)
    assert [t.name for t in before.tasks] == ["2023-Q4", "2024-Q1", "2024-Q2"]
    assert [t.name for t in after.tasks] == ["2023-Q4", "2024-Q1", "2024-Q2"]
    later = write(tmp_path / "new.parquet", 60, seed=1, caption=["d"], time=["2024-07-01"])
    assert later == new
    after = load_scenario(both)
    assert [t.name for t in after.tasks] == ["2023-Q4", "2024-Q1", "2024-Q2", "2024-Q3"]
    for task, same in zip(before.tasks, after.tasks, strict=False):
        assert (task.train.ids, task.val and task.val.ids) == (same.train.ids, same.val and same.val.ids)
    measured = {s.name: s.data.fingerprint for s in after.eval_sets}
    assert all(measured[s.name] == s.data.fingerprint for s in before.eval_sets)


def test_what_the_base_takes_belongs_to_no_period(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 200, caption=["a", "b", "c"], time=MONTHS)
    base = {"name": "known", "where": {"time": {"to": "2024-01"}}}
    scenario = load_scenario(document("time", data, every="month", base=base))
    assert [t.name for t in scenario.tasks] == ["2024-02", "2024-04"]
    assert scenario.base is not None
    assert set(scenario.base.column("time")) == {"2023-11-30", "2024-01-05"}


def test_values_that_are_no_dates_make_tasks_too(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 150, caption=["a"], time=[3, 1, 10])
    assert [t.name for t in load_scenario(document("time", data, every="value")).tasks] == ["1", "3", "10"]


def test_a_row_without_a_period_is_named(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 40, caption=["a"], time=["2024-01-01"] * 39 + ["soon"])
    with pytest.raises(DataError, match=r"row 40, id d-39: time: 'soon' is not an ISO time"):
        load_scenario(document("time", data, every="month"))


def test_rows_without_a_time_are_counted(tmp_path: Path) -> None:
    data = write(
        tmp_path / "d.parquet", 100, caption=["a"], time=["2024-01-01", None, "2024-02-01", "2024-01-01"]
    )
    scenario = load_scenario(document("time", data, every="month"))
    assert [t.name for t in scenario.tasks] == ["2024-01", "2024-02"]
    assert any("25 rows without 'time'" in note for note in scenario.notes)


@pytest.mark.parametrize("changes", [{}, {"every": "year", "tasks": [{"name": "a"}]}])
def test_time_wants_tasks_or_every(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"needs one of `tasks` .*, `every` .* and `parts`"):
        load_scenario(document("time", tmp_path / "d.parquet", **changes))


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 20, caption=["a"])
    with pytest.raises(DataError, match=r"no column 'time' \(tasks by month\)"):
        load_scenario(document("time", data, every="month"))


def test_the_stream_that_the_documentation_shows_can_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`docs/own-stream.md`, followed to the letter with drawn pictures."""
    text = (Path(__file__).parents[2] / "docs" / "own-stream.md").read_text()
    document = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "img").mkdir()
    draw = np.random.default_rng(0)
    lines = ["file,title,year"]
    for i in range(120):
        (tmp_path / "img" / f"{i}.png").write_bytes(picture((i, 90, 255 - i), i, draw))
        lines.append(f"img/{i}.png,thing {i},{2023 + i % 3}")
    (tmp_path / "shop.csv").write_text("\n".join(lines) + "\n")
    for key in ("training", "backbone"):
        document.pop(key)
    assert [task.name for task in load_scenario(document).tasks] == ["2024", "2025"]


# -- parts of equal size --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 60), min_size=1, max_size=300), st.integers(2, 6))
def test_parts_follow_time_and_are_as_equal_as_times_allow(values: list[int], count: int) -> None:
    table = Table(
        pa.table({"id": [str(i) for i in range(len(values))], "image": [b""] * len(values), "time": values})
    )
    largest = max(values.count(value) for value in set(values))
    if len(set(values)) < count:
        with pytest.raises(DataError, match=r"there are no \d parts"):
            equal_parts(table, "time", count)
        return
    part_of = equal_parts(table, "time", count)
    names = [part_of(value) for value in sorted(values)]
    assert names == sorted(names, key=lambda name: int(name.partition(":")[0])), "time decides the part"
    assert len(set(names)) == count
    for name in set(names):
        assert abs(names.count(name) - len(values) / count) <= count * largest
    assert part_of(-1) == names[0]
    assert part_of(99) == names[-1]


def test_parts_are_tasks_with_the_times_in_their_names(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 120, caption=["a", "b", "c"], time=[2019, 2020, 2021, 2022])
    scenario = load_scenario(document("time", data, parts=2))
    assert [t.name for t in scenario.tasks] == ["1: 2019 to 2020", "2: 2021 to 2022"]
    assert [set(t.train.column("time")) for t in scenario.tasks] == [{2019, 2020}, {2021, 2022}]
    with pytest.raises(DataError, match=r"has 4 different times, .* there are no 5 parts"):
        load_scenario(document("time", data, parts=5))
    with pytest.raises(ConfigError, match=r"one of `tasks` .* `every` .* and `parts`"):
        load_scenario(document("time", data, parts=2, every="year"))
