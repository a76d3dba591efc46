"""Search in runs that learn classes: pooled over sets by their queries, and absent where it was not measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import report_fixtures as synthetic
import yaml

import everclip
from everclip.evaluation.results import Column, Score
from everclip.evaluation.statistics import wilson
from everclip.report import write_comparison
from everclip.report.runs import Run
from everclip.report.search import search
from everclip.report.side_tables import search_table

SETS = {"known (retrieval)": (None, 8), "2016 (retrieval)": (0, 10), "2017 (retrieval)": (1, 30)}
"""Set -> its task and the number of its queries."""

SEARCH = '<h2 id="search">'


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Run]:
    """Return a function (name of the folder, right answers by set in the last row) -> run of classes."""

    def make(name: str, right: dict[str, int] | None = None, **changes: Any) -> Run:
        folder = synthetic.write_run(tmp_path / name)
        results = everclip.Results.read(folder)
        protocol = results.headline["protocol"]
        columns = [c.model_copy(update={"kind": "classification"}) for c in results.columns]
        rows = list(results.rows)
        if right is not None:
            columns += [
                Column(name=s, kind="retrieval", group="part", task=task, samples=n, classes=None)
                for s, (task, n) in SETS.items()
            ]
            for place in (0, -1):
                found = {
                    s: {protocol: {"text_to_image_r1": Score(value=(right[s] if place else 0) / n, n=n)}}
                    for s, (_, n) in SETS.items()
                }
                rows[place] = rows[place].model_copy(update={"scores": {**rows[place].scores, **found}})
        results.model_copy(update={"columns": columns, "rows": rows, **changes}).write(folder)
        return Run(folder)

    return make


def test_sets_count_by_their_queries(run: Callable[..., Run]) -> None:
    found = run("a", {"known (retrieval)": 6, "2016 (retrieval)": 10, "2017 (retrieval)": 0})
    before, after = search([found])
    assert (before.label, before.new.value, before.known.value) == ("before", 0.0, 0.0)
    assert after.label == found.results.method["name"]
    assert after.new.value == pytest.approx(10 / 40)  # not the mean of 100 % and 0 %
    assert (after.new.low, after.new.high) == pytest.approx((wilson(10, 40).low, wilson(10, 40).high))
    assert after.known.value == pytest.approx(6 / 8)
    table = search_table([found])
    assert table is not None
    assert "25.0 (14.2–40.2)" in table.text()


def test_a_stream_without_a_second_measure_shows_nothing(run: Callable[..., Run]) -> None:
    measured = run("a", dict.fromkeys(SETS, 1))
    without = run("b")
    assert search([without]) == []
    assert search([measured, without]) == []
    assert search_table([without]) is None


def test_the_page_of_a_comparison_has_the_table_where_it_was_measured(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    measured, without = run("a", dict.fromkeys(SETS, 1)), run("b")
    page = write_comparison([measured.folder], tmp_path / "with.html").read_text(encoding="utf-8")
    assert SEARCH in page
    assert '12.5<br><span class="quiet">2.2–47.1</span>' in page  # 1 of the 8 known names
    assert SEARCH not in write_comparison([without.folder], tmp_path / "no.html").read_text("utf-8")


def test_two_seeds_of_a_method_are_told_apart(run: Callable[..., Run]) -> None:
    runs = [run(name, dict.fromkeys(SETS, 1), seed=seed) for name, seed in (("a", 0), ("b", 1))]
    assert [found.label[-6:] for found in search(runs)] == ["before", "seed 0", "seed 1"]


def test_two_settings_of_a_method_are_told_apart(run: Callable[..., Run]) -> None:
    """Both lines once had the same label."""
    runs = []
    for name, level in (("a", 0.8), ("b", 0.9)):
        made = run(name, dict.fromkeys(SETS, 1))
        config = yaml.safe_load((made.folder / "config.yaml").read_text())
        config["method"]["settings"] = {**config["method"].get("settings", {}), "level": level}
        (made.folder / "config.yaml").write_text(yaml.safe_dump(config))
        runs.append(Run(made.folder))
    labels = [found.label for found in search(runs)[1:]]
    assert [label[-12:] for label in labels] == [" (level=0.8)", " (level=0.9)"]
