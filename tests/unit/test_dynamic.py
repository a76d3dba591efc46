"""The report's section on evaluation over time: TiC's averages per kind of dated set, beside the static suite."""

from __future__ import annotations

from pathlib import Path

import pytest
import report_fixtures as synthetic

from everclip.evaluation.results import Column, Results, Score
from everclip.evaluation.statistics import seed_spread
from everclip.report import dynamic, write_comparison, write_report
from everclip.report.formats import plain_percent
from everclip.report.runs import Run
from everclip.report.side_tables import time_table
from matrices import summary


def written(
    folder: Path,
    timed: bool = True,
    parts: bool = True,
    rows: int | None = None,
    method: str = "finetune",
    seed: int = 0,
) -> Path:
    """Write a synthetic run whose tasks have times and, each, a further set with classes."""
    synthetic.write_run(folder, method, seed, rows=rows)
    results = Results.read(folder)
    tasks = [t.model_copy(update={"time": t.name if timed else None}) for t in results.tasks]
    columns, table = list(results.columns), list(results.rows)
    if parts:
        columns += [
            Column(
                name=f"{t.name} (classification)",
                kind="classification",
                group="part",
                task=t.index,
                samples=50,
            )
            for t in tasks
        ]
        for place, row in enumerate(table):
            more = {
                f"{t.name} (classification)": {"all": {"accuracy": share(place, t.index)}, "own": {}}
                for t in tasks
            }
            table[place] = row.model_copy(update={"scores": {**row.scores, **more}})
    results.model_copy(update={"tasks": tasks, "columns": columns, "rows": table}).write(folder)
    return folder


def share(row: int, task: int) -> Score:
    value = 0.1 + 0.05 * row + 0.02 * task
    return Score(value=value, low=value - 0.05, high=value + 0.05, n=50)


def test_both_kinds_have_the_averages_of_their_own_matrix(tmp_path: Path) -> None:
    run = Run(written(tmp_path / "run"))
    found = dynamic.table(run)
    assert found is not None
    assert [row["label"] for row in found["rows"]] == [
        "retrieval, Recall@1, both ways",
        "classification, Accuracy",
    ]
    parts = [[share(row, task).value or 0.0 for task in range(5)] for row in range(1, 6)]
    tasks = [[synthetic.cell(row, c) for c in run.columns("task")] for row in run.results.rows[1:]]
    for row, table in zip(found["rows"], (tasks, parts), strict=True):
        expected = summary(table, None)
        names = ("tic_in_domain", "tic_backward", "tic_forward")
        assert [cell["value"] for cell in row["cells"]] == [plain_percent(expected[name]) for name in names]
    assert found["static"].startswith("Static suite (subgroups): ")
    assert "points since row 0" in found["static"]


@pytest.mark.slow
def test_the_page_holds_the_section(tmp_path: Path) -> None:
    page = write_report(written(tmp_path / "run")).read_text()
    assert "Dated test sets, and the static suite" in page
    assert "not differences" in page


@pytest.mark.parametrize(
    ("given", "shown"),
    [({"parts": False}, 1), ({"timed": False}, 2), ({"timed": False, "parts": False}, 0), ({"rows": 3}, 0)],
    ids=["one kind", "no times, two kinds", "no times", "not finished"],
)
def test_the_section_is_there_for_finished_streams_in_time(
    tmp_path: Path, given: dict[str, bool], shown: int
) -> None:
    found = dynamic.table(Run(written(tmp_path / "run", **given)))  # type: ignore[arg-type]  # rows is a number
    assert len(found["rows"] if found else ()) == shown


def test_tasks_that_are_languages_are_no_stream_in_time_even_if_their_data_have_dates(tmp_path: Path) -> None:
    run = Run(written(tmp_path / "run"))
    for kind, there in (("languages", False), ("classes", False), ("time", True)):
        run.config = {"scenario": {"kind": kind}}
        assert (dynamic.table(run) is not None) is there


def test_a_comparison_has_the_averages_of_every_method_over_its_seeds(tmp_path: Path) -> None:
    first, second, other = (
        Run(written(tmp_path / name, parts=False, method=method, seed=seed))
        for name, method, seed in (("a", "finetune", 0), ("b", "finetune", 1), ("c", "replay", 0))
    )
    table = time_table([first, second, other])
    assert table is not None
    (label, cells), (other_label, alone) = table.rows
    assert (label, other_label) == ("finetune", "replay")
    for place, name in enumerate(("tic_in_domain", "tic_backward", "tic_forward")):
        values = [
            summary(
                [[synthetic.cell(row, c) for c in run.columns("task")] for row in run.results.rows[1:]], None
            )[name]
            for run in (first, second)
        ]
        spread = seed_spread([value or 0.0 for value in values])
        assert (cells[place].value, cells[place].range) == (
            plain_percent(spread.mean),
            f"± {plain_percent(spread.standard_deviation)}",
        )
        assert "–" in alone[place].range, "of one run, the interval over items"
    assert "in-domain" in table.text()
    page = write_comparison([first.folder, other.folder], tmp_path / "page.html").read_text(encoding="utf-8")
    assert '<h2 id="over-time">Scores over time</h2>' in page


def test_kinds_of_dated_sets_have_rows_of_their_own_and_other_streams_none(tmp_path: Path) -> None:
    both = time_table([Run(written(tmp_path / "both"))])
    assert both is not None
    assert [label for label, _ in both.rows] == [
        "finetune: retrieval, Recall@1, both ways",
        "finetune: classification, Accuracy",
    ]
    one = Run(written(tmp_path / "one", parts=False))
    assert time_table([Run(tmp_path / "both"), one]) is None, "they measured different kinds"
    assert time_table([Run(written(tmp_path / "none", timed=False, parts=False))]) is None
    assert time_table([Run(written(tmp_path / "part", rows=3, parts=False))]) is None
