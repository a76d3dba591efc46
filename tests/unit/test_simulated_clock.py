"""A stream in time as it grows: fifty months one after the other, gaps, repeated ids, time zones, missing dates."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scenario_data import document, write

from everclip.errors import ConfigError, DataError
from everclip.run import execute
from everclip.scenarios.base import ListScenario
from everclip.scenarios.clock import in_utc
from everclip.scenarios.load import load_scenario
from everclip.scenarios.periods import empty_between, period_of
from everclip.training.progress import Progress

MONTHS = [f"{2020 + i // 12}-{i % 12 + 1:02d}" for i in range(50)]


def written(folder: Path, months: list[str], rows: int = 12) -> list[str]:
    """Write one file per month, as a store of a user's data grows."""
    return [
        str(
            write(
                folder / f"{month}.parquet",
                rows,
                seed=MONTHS.index(month),
                caption=["a", "b"],
                time=[f"{month}-15"],
            )
        )
        for month in months
    ]


def loaded(sources: list[str], **changes: Any) -> ListScenario:
    given = {"every": "month", "split": {"test": 0.4, "validation": 0.2}, **changes}
    return load_scenario(document("time", None, data={"source": sources}, **given))


def training_ids(scenario: ListScenario) -> set[str]:
    """Return every id and image id that training or a choice may see."""
    tables = [scenario.base, scenario.base_val, *(s.data for s in scenario.retention_val)]
    tables += [table for task in scenario.tasks for table in (task.train, task.val)]
    return {name for table in tables if table is not None for name in (*table.ids, *table.identities())}


def measured_ids(scenario: ListScenario) -> set[str]:
    return {name for s in scenario.eval_sets for name in (*s.data.ids, *s.data.identities())}


# -- fifty steps ----------------------------------------------------------------------------------------------


def test_fifty_months_come_one_by_one_and_no_earlier_task_ever_changes(tmp_path: Path) -> None:
    sources = written(tmp_path, MONTHS)
    whole = loaded(sources)
    assert [task.name for task in whole.tasks] == MONTHS
    assert not training_ids(whole) & measured_ids(whole)
    sides = {t.name: (t.train.ids, t.val.ids if t.val else []) for t in whole.tasks}
    tests = {s.name: s.data.ids for s in whole.eval_sets}
    for now in (1, 26):
        part = loaded(sources[:now])
        assert [task.name for task in part.tasks] == MONTHS[:now]
        for task, s in zip(part.tasks, part.eval_sets, strict=True):
            assert (task.train.ids, task.val.ids if task.val else []) == sides[task.name]
            assert s.data.ids == tests[s.name]


def test_a_month_that_comes_late_takes_its_place(tmp_path: Path) -> None:
    first, last = written(tmp_path, [MONTHS[0], MONTHS[2]])
    late = written(tmp_path, [MONTHS[1]])
    assert [task.name for task in loaded([first, last, *late]).tasks] == MONTHS[:3]


# -- empty months ---------------------------------------------------------------------------------------------


def test_an_empty_month_is_no_task_and_a_note_names_it(tmp_path: Path) -> None:
    scenario = loaded(written(tmp_path, [MONTHS[0], MONTHS[2], MONTHS[5]]))
    assert [task.name for task in scenario.tasks] == [MONTHS[0], MONTHS[2], MONTHS[5]]
    (note,) = [line for line in scenario.notes if "no rows in" in line]
    assert note.endswith("no rows in 2020-02, 2020-04, 2020-05, so there is no task of these periods")


@given(
    st.lists(st.dates(dt.date(2019, 1, 1), dt.date(2021, 12, 31)), min_size=1, max_size=6),
    st.sampled_from(["year", "quarter", "month", "week"]),
)
def test_periods_with_and_without_rows_are_all_of_the_calendar(days: list[dt.date], unit: str) -> None:
    names = {str(period_of(day, unit)) for day in days}
    span = (max(days) - min(days)).days
    every = {str(period_of(min(days) + dt.timedelta(days=i), unit)) for i in range(span + 1)}
    assert empty_between(sorted(names), unit) == sorted(every - names)


def test_a_month_whose_rows_are_all_trained_on_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2020-01.*cannot be measured.*longer `every`"):
        loaded(written(tmp_path, MONTHS[:1], rows=2), split={"test": 0.001})


# -- ids that repeat ------------------------------------------------------------------------------------------


def test_an_image_of_two_months_is_on_one_side_in_both(tmp_path: Path) -> None:
    """The same images in every month: whatever is measured in one is trained on in none."""
    sources = [
        str(write(tmp_path / f"{m}.parquet", 40, caption=["a"], time=[m], id=[f"{i}" for i in range(40)]))
        for m in MONTHS[:3]
    ]
    scenario = loaded(sources)
    assert len(scenario.tasks) == 3
    held_out = [set(s.data.identities()) for s in scenario.eval_sets]
    assert held_out[0] == held_out[1] == held_out[2]
    assert not training_ids(scenario) & measured_ids(scenario)


def test_one_id_with_two_images_stays_on_one_side_if_the_split_goes_by_it(tmp_path: Path) -> None:
    """A page is stored again in the next month, with another image: a split by image takes it apart."""
    pages = [f"https://example.org/{i}" for i in range(40)]
    sources = [
        str(write(tmp_path / f"{m}.parquet", 40, seed=i, caption=["a"], time=[m], page=pages))
        for i, m in enumerate(MONTHS[:2])
    ]

    def shared(**split: Any) -> set[str]:
        scenario = loaded(sources, split={"test": 0.4, "validation": 0.2, **split})
        trained = [t for task in scenario.tasks for t in (task.train, task.val) if t]
        return {p for t in trained for p in t.column("page")} & {
            p for s in scenario.eval_sets for p in s.data.column("page")
        }

    assert shared(), "a split by image puts some pages on both sides"
    assert not shared(by="page")
    assert not shared(by="page", seed=3)


def test_marks_that_contradict_each_other_are_found_by_the_id_too(tmp_path: Path) -> None:
    rows = {"caption": ["a", "b"], "time": ["2024-01"], "image_id": ["x", "y", "z"]}
    data = write(tmp_path / "d.parquet", 12, **rows, split=["train"] * 8 + ["test"] * 4)
    marked = {"column": "split", "validation": 0}
    with pytest.raises(DataError, match=r"4 of 4 test images are also training images"):
        load_scenario(document("time", data, every="month", split=marked))
    rows["image_id"] = [*"xxyyxxyy", *"xzxz"]
    data = write(tmp_path / "e.parquet", 12, **rows, split=["train"] * 8 + ["test"] * 4)
    scenario = load_scenario(document("time", data, every="month", split={**marked, "shared": "remove"}))
    assert set(scenario.tasks[0].train.identities()) == {"y"}
    assert any("4 rows are left out, because test rows have their image_id" in n for n in scenario.notes)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.integers(0, 9), min_size=24, max_size=24),
    months=st.lists(st.integers(0, 3), min_size=24, max_size=24),
    test=st.sampled_from([0.3, 0.5]),
)
def test_no_measured_id_is_in_any_source_of_training(
    tmp_path: Path, names: list[int], months: list[int], test: float
) -> None:
    data = write(
        tmp_path / "d.parquet",
        24,
        caption=[f"thing {n}" for n in names],
        image_id=[f"im{n}" for n in names],
        time=[MONTHS[m] for m in months],
    )
    base = {"name": "known", "where": {"time": {"to": MONTHS[0]}}}
    try:
        scenario = load_scenario(
            document("time", data, every="month", base=base, split={"test": test, "validation": 0.2})
        )
    except DataError:
        return  # a month that the hash leaves without a side is refused
    assert not training_ids(scenario) & measured_ids(scenario)


# -- time zones and clocks ------------------------------------------------------------------------------------

OFFSETS = ["2024-01-31T23:30:00-05:00", "2024-02-01T00:30:00+02:00", "2024-01-15", None]


@pytest.mark.parametrize(
    ("clock", "expected"),
    [
        ("written", ["2024-01-31T23:30:00-05:00", "2024-02-01T00:30:00+02:00", "2024-01-15", None]),
        ("utc", ["2024-02-01T04:30:00", "2024-01-31T22:30:00", "2024-01-15", None]),
    ],
)
def test_an_offset_is_ignored_or_taken_off(tmp_path: Path, clock: Any, expected: list[str | None]) -> None:
    data = write(tmp_path / "d.parquet", 4, caption=["a"], time=OFFSETS)
    scenario_table = load_scenario(
        document("time", data, every="year", clock=clock, split={"test": 0.5, "validation": 0})
    )
    times = [
        *(v for t in scenario_table.tasks for v in t.train.column("time")),
        *(v for s in scenario_table.eval_sets for v in s.data.column("time")),
    ]
    assert sorted(times) == sorted(v for v in expected if v is not None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-03-01 00:30:00+02", "2024-02-29T22:30:00"),  # as PostgreSQL prints it
        ("2024-03-01T00:30:00z", "2024-03-01T00:30:00"),
        ("2024-03-01T00:30:00.25-0130", "2024-03-01T02:00:00.250000"),
        ("2024-03-01 00:30", "2024-03-01 00:30"),
        ("March 2024", "March 2024"),  # what is no ISO time is refused later, by the periods
    ],
)
def test_offsets_are_read_in_every_iso_form(text: str, expected: str) -> None:
    assert in_utc(text) == expected


def test_an_offset_that_is_not_understood_is_refused() -> None:
    with pytest.raises(ValueError, match="'2024-03-01 00:30:00 CET' is no time with an offset"):
        in_utc("2024-03-01 00:30:00 CET")


def test_seconds_since_1970_are_read_in_utc_whatever_the_zone_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published split of YFCC takes the year in the zone of the machine."""
    newyear = 1230768000  # 2009-01-01T00:00:00Z
    stamps = [newyear - 1, newyear, newyear + 0.5, str(newyear + 1), None]
    data = write(
        tmp_path / "d.parquet", 200, caption=["a"], time=[str(s) if s is not None else None for s in stamps]
    )
    found = []
    try:
        for zone in ("UTC", "Pacific/Kiritimati", "America/Los_Angeles"):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            scenario = load_scenario(document("time", data, every="year", clock="unix"))
            found.append([(t.name, t.time, len(t.train)) for t in scenario.tasks])
            assert any("40 rows without 'time' belong to no task" in note for note in scenario.notes)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found[0] == found[1] == found[2]
    assert [name for name, *_ in found[0]] == ["2008", "2009"]
    assert found[0][0][1] == "2008-12-31T23:59:59"


@pytest.mark.parametrize(
    ("clock", "value", "message"),
    [
        ("unix", "soon", "'soon' is not a number of seconds"),
        ("unix", 1230768000000, "after the year 3000; if it counts milliseconds, set clock: unix-ms"),
        ("utc", "2024-01-31T25:00:00+01:00", "hour must be in"),
        ("utc", "0001-01-01T00:00:00+02:00", "is outside the years 1 to 9999 in UTC"),
        ("utc", "9999-12-31T23:59:59-02:00", "is outside the years 1 to 9999 in UTC"),
    ],
)
def test_a_value_that_is_no_such_time_names_its_row(
    tmp_path: Path, clock: Any, value: Any, message: str
) -> None:
    data = write(tmp_path / "d.parquet", 3, caption=["a"], time=[value])
    with pytest.raises(DataError, match=rf"row 1, id d-0: time: .*{message}.*scenario\.clock: {clock}"):
        load_scenario(document("time", data, every="year", clock=clock))


def test_milliseconds(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 40, caption=["a"], time=[1230768000000, 1230767999999])
    assert [t.name for t in load_scenario(document("time", data, every="day", clock="unix-ms")).tasks] == [
        "2008-12-31",
        "2009-01-01",
    ]


@pytest.mark.parametrize("stamps", [[1600000000, 1700000000], [1.6e9, None], ["1600000000", ""]])
def test_seconds_that_are_called_milliseconds_are_refused(tmp_path: Path, stamps: list[Any]) -> None:
    """Read as milliseconds, the whole data would be one task of January 1970."""
    data = write(tmp_path / "d.parquet", 40, caption=["a"], time=stamps)
    with pytest.raises(DataError, match=r"d\.parquet: time: .*seem to count seconds; set clock: unix "):
        load_scenario(document("time", data, every="year", clock="unix-ms"))


def test_milliseconds_of_1970_beside_later_ones_are_read(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 40, caption=["a"], time=[-1, 0, 1230768000000])
    scenario = load_scenario(document("time", data, every="year", clock="unix-ms"))
    assert [task.name for task in scenario.tasks] == ["1969", "1970", "2009"]


def test_a_number_that_counts_from_1970_names_the_clock(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 3, caption=["a"], time=[1700000000])
    with pytest.raises(DataError, match=r"row 1.*1700000000 is not an ISO time.*set clock: unix \(seconds\)"):
        load_scenario(document("time", data, every="year"))


def test_only_time_has_a_clock(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 10, caption=["a"])
    with pytest.raises(ConfigError, match="`clock` needs kind `time`"):
        load_scenario(document("single", data, clock="unix"))
    with pytest.raises(ConfigError, match=r"split\.seed: only a split by hash has it"):
        load_scenario(document("single", data, split={"column": "split", "seed": 2}))


# -- missing dates --------------------------------------------------------------------------------------------


def test_rows_without_a_date_are_counted_with_listed_tasks_too(tmp_path: Path) -> None:
    data = write(tmp_path / "d.parquet", 60, caption=["a"], time=["2024-01-01", None, "2025-01-01"])
    tasks = [
        {"name": "old", "where": {"time": {"to": 2024}}},
        {"name": "new", "where": {"time": {"from": 2025}}},
    ]
    scenario = load_scenario(document("time", data, tasks=tasks))
    assert any("20 rows without 'time' belong to no task" in note for note in scenario.notes)


@pytest.mark.parametrize("column", ["time", "made"])
@pytest.mark.parametrize("cut", [{"every": "year"}, {"parts": 2}, {"every": "year", "clock": "utc"}])
def test_a_blank_date_is_a_missing_date(tmp_path: Path, column: str, cut: dict[str, Any]) -> None:
    data = write(
        tmp_path / "d.parquet", 60, caption=["a"], **{column: ["2024-01-01", "", "  ", "2025-01-01"]}
    )
    scenario = load_scenario(document("time", data, column=column, **cut))
    assert len(scenario.tasks) == 2
    assert any(f"30 rows without {column!r} belong to no task" in note for note in scenario.notes)
    known = {"name": "known", "where": {column: {"to": "2024-06"}}}
    based = load_scenario(document("time", data, column=column, every="year", base=known))
    assert [task.name for task in based.tasks] == ["2025"]


# -- a run ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_over_fifty_months_fills_the_whole_matrix(tmp_path: Path, micro_folder: Path) -> None:
    """The averages of TiC-CLIP against sums over the 50 x 50 cells."""
    stream = tmp_path / "months.yaml"
    given = document("time", None, every="month", data={"source": written(tmp_path, MONTHS)})
    stream.write_text(yaml.safe_dump({**given, "split": {"test": 0.4, "validation": 0.2}}))
    settings = ["training.steps=1", "training.batch_size=4", "training.threads=1", "training.device=cpu"]
    results = execute(
        str(stream),
        *settings,
        f"backbone={micro_folder / 'model'}",
        "method=cumulative-exp",
        f"output={tmp_path / 'run'}",
        "report=false",
        progress=Progress(quiet=True),
    )
    table = np.array(results.matrix.values[1:], dtype=np.float64)
    assert table.shape == (50, 50)
    cells = {"in_domain": [], "backward": [], "forward": []}  # type: dict[str, list[float]]
    for i in range(50):
        for j in range(50):
            cells["in_domain" if i == j else "backward" if i > j else "forward"].append(float(table[i, j]))
    for name, values in cells.items():
        assert results.metrics[f"tic_{name}"] == pytest.approx(sum(values) / len(values))
    assert [len(values) for values in cells.values()] == [50, 1225, 1225]
