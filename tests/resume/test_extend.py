"""Tasks added to a finished run: it ends as if they had been there from the start; nothing old may have changed.

1. extended, with the rows' models kept == learned from the start, bit for bit: weights, rows, files
2. without them the same but for cells that nobody can measure any more
3. killed at any place of the extension and continued == 1
4. changed data, another order, a method that learns everything at once: refused, and nothing is written
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import resume_cases as cases
import resume_harness as harness
import torch
from safetensors.torch import load_file, save_file

from everclip.errors import RunFolderError
from everclip.evaluation.results import Results
from everclip.run import Run
from everclip.training.progress import Progress

KEEP = "checkpoint.keep_rows=true"
VARIANTS = ["replay-base", "wise-ft-initial", "running-mean", "weight-constraint"]
SLOW = [
    case
    for case, (kind, _) in cases.CASES.items()
    if kind == "time" and case not in VARIANTS and not cases.at_once(case)
]


def extend(config: Any, act: Callable[[str], None] = lambda point: None) -> Results:
    """Run with `--extend` in this process."""
    with harness.at_crash_points(act):
        return Run.of(config, Progress(quiet=True), extend=True).execute()


@pytest.fixture
def configs(micro_config: Callable[..., Any], own_method: None) -> Callable[..., tuple[Any, Any, Any]]:
    """Return (case, *overrides) -> (two tasks, the same folder with all three, all three from the start)."""

    def make(case: str, *more: str) -> tuple[Any, Any, Any]:
        kind, own = cases.CASES[case]
        fixed = (*cases.SHORT, *own, *more)
        return (
            micro_config(kind, *fixed, cases.TWO_YEARS),
            micro_config(kind, *fixed),
            micro_config(kind, *fixed, output="whole"),
        )

    return make


def check_whole(configs: Callable[..., Any], case: str) -> None:
    two, more, whole = configs(case, KEEP)
    harness.run(two)
    harness.run(whole)
    extend(more)
    harness.assert_same_end(Path(more.output), Path(whole.output))


@pytest.mark.parametrize("case", VARIANTS)
def test_an_extended_run_ends_as_if_all_tasks_had_been_there(configs: Callable[..., Any], case: str) -> None:
    check_whole(configs, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_an_extended_run_ends_as_if_all_tasks_had_been_there_all_methods(
    configs: Callable[..., Any], case: str
) -> None:
    check_whole(configs, case)


def test_the_set_of_everything_grows_with_the_tasks(configs: Callable[..., Any]) -> None:
    two, more, whole = configs("finetune", KEEP, "scenario.everything=true")
    before = harness.run(two).columns
    expected, found = harness.run(whole), extend(more)
    assert found.rows == expected.rows
    sizes = [{c.name: c.samples for c in columns} for columns in (before, found.columns)]
    assert sizes[1]["everything"] == sizes[0]["everything"] + sizes[1]["2003"]


def test_without_kept_models_the_set_of_everything_has_no_old_cells(configs: Callable[..., Any]) -> None:
    two, more, _ = configs("finetune", "scenario.everything=true")
    harness.run(two)
    found = extend(more)
    assert ["everything" in row.scores for row in found.rows] == [True, False, True, True]


def test_without_kept_models_only_unmeasurable_cells_are_missing(configs: Callable[..., Any]) -> None:
    two, more, whole = configs("replay-base")
    harness.run(two)
    expected, found = harness.run(whole), extend(more)
    ours, theirs = (harness.newest(Path(c.output)).tensors for c in (more, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert found.rows[0] == expected.rows[0]  # the backbone itself is always at hand
    assert found.rows[2:] == expected.rows[2:]  # the newest checkpoint is the model of the last row
    assert "2003" not in found.rows[1].scores
    assert found.matrix.values[1][found.matrix.columns.index("2003")] is None
    assert "all" not in found.rows[1].scores["known"]  # among fewer answers than the rows after it
    assert "all" in found.rows[1].scores["groups"]
    assert found.matrix.values[1][0] is None
    own = {name: cells["own"] for name, cells in expected.rows[1].scores.items() if name != "2003"}
    assert {name: cells["own"] for name, cells in found.rows[1].scores.items()} == own
    assert found.metrics["transfer"] is None
    assert found.metrics["last"] == expected.metrics["last"]
    (event,) = [e for e in found.events if e.kind == "extended"]
    assert "2003" in event.message
    assert "row 1 could not be measured again" in event.message


def test_extended_twice_the_same_rows_are_missing_as_extended_once_less(configs: Callable[..., Any]) -> None:
    two, more, whole = configs("finetune")
    one = two.model_copy(update={"scenario": {**two.scenario, "tasks": two.scenario["tasks"][:1]}})
    harness.run(one)
    extend(two)
    found, expected = extend(more), harness.run(whole)
    # Rows 1 and 2 are each the last one of a run, and measured again when it was extended; row 1 not a second time.
    assert found.rows[0] == expected.rows[0]
    assert found.rows[2:] == expected.rows[2:]
    assert {name: "all" in cells for name, cells in found.rows[1].scores.items()} == {
        "known": False,
        "2001": False,
        "2002": False,
        "groups": True,
    }
    said = [e.message for e in found.events if e.kind == "extended"]
    assert ["could not be measured again" in text for text in said] == [False, True]


def test_models_kept_from_an_extension_on_serve_the_next_one(configs: Callable[..., Any]) -> None:
    two, more, whole = configs("finetune")
    one = two.model_copy(update={"scenario": {**two.scenario, "tasks": two.scenario["tasks"][:1]}})
    harness.run(one)
    keeping = {"checkpoint": two.checkpoint.model_copy(update={"keep_rows": True})}
    extend(two.model_copy(update=keeping))
    assert extend(more.model_copy(update=keeping)).rows == harness.run(whole).rows


def test_a_run_extended_in_the_middle_of_a_task_says_which_rows_it_has(configs: Callable[..., Any]) -> None:
    two, more, whole = configs("finetune", "checkpoint.keep=1")
    with pytest.raises(harness.Killed):
        harness.run(two, act=_dies_at("after step", 6))
    found, expected = extend(more), harness.run(whole)
    assert [index for index, row in enumerate(found.rows) if row != expected.rows[index]] == [1]


def _dies_at(wanted: str, number: int) -> Callable[[str], None]:
    left = number

    def act(point: str) -> None:
        nonlocal left
        left -= point == wanted
        if left == 0:
            raise harness.Killed(point)

    return act


@pytest.mark.parametrize(
    ("years", "again"),
    [((2002, 2001, 2003), "the classes of 2001"), ((2001, 2003, 2002), "the classes that were known before")],
)
def test_a_new_month_of_the_same_classes_leaves_old_cells_as_they_are(
    micro_config: Callable[..., Any], years: tuple[int, ...], again: str
) -> None:
    fixed = (*cases.SHORT, "scenario.evaluate_as=classification", "scenario.headline.metric=accuracy")
    fixed = (*fixed, "scenario.retention=[]", "checkpoint.keep=1")
    three = [{"name": str(y), "where": {"time": y}} for y in years]  # the last brings again what is named
    two = micro_config("time", *fixed, f"scenario.tasks={three[:2]}")
    more = micro_config("time", *fixed, f"scenario.tasks={three}")
    before = harness.run(two)
    found = extend(more)
    for name in ("known", *map(str, years[:2])):
        assert found.rows[1].scores[name] == before.rows[1].scores[name]
        assert found.rows[1].per_class[name] == before.rows[1].per_class[name]
    assert str(years[2]) not in found.rows[1].scores
    assert str(years[2]) in found.rows[2].scores


def test_a_start_model_that_changed_on_disk_is_not_measured_as_row_0(
    configs: Callable[..., Any], micro_folder: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(micro_folder / "model", tmp_path / "model")
    two, more, _ = configs("finetune", "training.steps=1", f"backbone={place}")
    before = harness.run(two).rows[0]
    state = load_file(place / "open_clip_model.safetensors")
    save_file({k: v + 0.01 for k, v in state.items()}, place / "open_clip_model.safetensors")
    found = extend(more)
    kept = {name: {p: v for p, v in cells.items() if p != "all"} for name, cells in before.scores.items()}
    kept["groups"] = before.scores["groups"]  # the retention suite has no answers but its own
    assert found.rows[0].scores == kept
    (event,) = [e for e in found.events if e.kind == "extended"]
    assert "rows 0 to 1 could not be measured again" in event.message


def _places(passed: list[str], every_kind: bool) -> list[int]:
    """Return numbers of crash points: where an extension has got further, or one of every kind and the middle."""
    kinds = [harness.kind_of(point) for point in passed]
    last = {kind: number for number, kind in enumerate(kinds)}
    if every_kind:
        return sorted({*last.values(), 0, len(passed) // 2})
    taken_up = (kinds.index("before renaming N"), kinds.index("after renaming N"))
    return sorted(
        {0, *taken_up, *(last[k] for k in ("after step", "in evaluation", "before renaming results.json"))}
    )


@pytest.mark.parametrize("every_kind", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_extension_killed_anywhere_continues(
    configs: Callable[..., Any], tmp_path: Path, every_kind: bool
) -> None:
    two, more, whole = configs("replay-base", KEEP, "checkpoint.every_steps=null")
    harness.run(two)
    harness.run(whole)
    finished = tmp_path / "finished"
    shutil.copytree(two.output, finished)
    passed: list[str] = []
    extend(more, passed.append)
    for number in _places(passed, every_kind):
        shutil.rmtree(more.output)
        shutil.copytree(finished, more.output)
        left = number

        def act(point: str) -> None:
            nonlocal left
            if left == 0:
                raise harness.Killed(point)
            left -= 1

        with pytest.raises(harness.Killed):
            extend(more, act)
        extend(more)
        harness.assert_same_end(Path(more.output), Path(whole.output))


def test_once_taken_up_the_plain_command_continues(configs: Callable[..., Any]) -> None:
    two, more, whole = configs("finetune", KEEP)
    harness.run(two)
    harness.run(whole)

    def act(point: str) -> None:
        if point == "after step":
            raise harness.Killed(point)

    with pytest.raises(harness.Killed):
        extend(more, act)
    harness.run(more)
    harness.assert_same_end(Path(more.output), Path(whole.output))
    assert extend(more).status == "finished"  # asked again with nothing new: the held result


def test_new_tasks_are_not_learned_unasked(configs: Callable[..., Any]) -> None:
    two, more, _ = configs("finetune")
    harness.run(two)
    with pytest.raises(RunFolderError, match="--extend"):
        harness.run(more)


def test_a_mistyped_folder_is_not_learned_from_the_start(configs: Callable[..., Any]) -> None:
    _, more, _ = configs("finetune")
    with pytest.raises(RunFolderError, match="holds no run to extend"):
        extend(more)
    assert not Path(more.output).exists()


def test_nothing_old_may_change(
    configs: Callable[..., Any], micro_config: Callable[..., Any], micro_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.parquet"
    shutil.copy(micro_folder / "data.parquet", data)
    source = f"scenario.data.source={data}"
    fixed = (*cases.SHORT, source)
    two = micro_config("time", *fixed, cases.TWO_YEARS)
    harness.run(two)
    before = (Path(two.output) / "config.yaml").read_bytes()
    swapped = cases.TWO_YEARS.replace("2001", "x").replace("2002", "2001").replace("x", "2002")
    with pytest.raises(RunFolderError, match="the tasks were 2001, 2002; they are 2002, 2001"):
        extend(micro_config("time", *fixed, swapped))
    with pytest.raises(RunFolderError, match=r"training\.lr"):
        extend(micro_config("time", *fixed, "training.lr=0.5"))
    table = pq.read_table(data)
    times = table.column("time").to_pylist()
    captions = [
        f"new {number}" if year == 2001 else c
        for number, (year, c) in enumerate(zip(times, table.column("caption").to_pylist(), strict=True))
    ]
    at = table.column_names.index("caption")
    pq.write_table(table.set_column(at, "caption", [captions]), data)
    with pytest.raises(RunFolderError, match="task '2001'"):
        extend(micro_config("time", *fixed))
    assert (Path(two.output) / "config.yaml").read_bytes() == before


def test_how_old_rows_were_measured_may_not_change(micro_config: Callable[..., Any]) -> None:
    short = (*cases.SHORT, "training.steps=1", "scenario.per_task=3")
    harness.run(micro_config("classes", *short))
    with pytest.raises(RunFolderError, match=r"class texts of task .* -> 3 classes"):
        extend(micro_config("classes", *short, 'scenario.class_templates=["my {}"]'))
    with pytest.raises(RunFolderError, match=r"scenario\.protocols"):
        extend(micro_config("classes", *short, "scenario.protocols=[{name: all, space: all}]"))
    assert extend(micro_config("classes", *short)).status == "finished"


def test_what_the_guard_watches_may_not_change(micro_config: Callable[..., Any]) -> None:
    run = Run.of(micro_config("time", "guard.max_drop=50"), Progress(quiet=True))
    (name,) = [part for part in run.state.parts if part == "evaluation set 'groups' (validation)"]
    assert run.scenario.retention_val[0].data.fingerprint in run.state.parts[name]


def test_a_method_that_learns_everything_at_once_cannot_go_on(configs: Callable[..., Any]) -> None:
    two, more, _ = configs("joint")
    harness.run(two)
    with pytest.raises(RunFolderError, match="at once"):
        extend(more)


def test_the_report_of_an_extended_run_says_so(configs: Callable[..., Any]) -> None:
    two, more, _ = configs("finetune", "report=true")
    harness.run(two)
    extend(more)
    page = (Path(more.output) / "report.html").read_text(encoding="utf-8")
    assert "extended" in page
    assert "2003" in page
