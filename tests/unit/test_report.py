"""The report of a run: self-contained, safe, honest about what is not defined, and complete at every moment.

Proven here: no request leaves the page; names cannot inject; a run with one row, null metrics, a missing picture
or no configuration still gets a report; intervals and the headline follow the numbers.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import report_fixtures as synthetic
from PIL import Image

from everclip.errors import DataError
from everclip.evaluation.cells import Cells
from everclip.evaluation.measurements import OLD_AND_NEW, Measurements
from everclip.evaluation.results import Column, Event, Example, Score
from everclip.evaluation.statistics import Interval, wilson
from everclip.metrics import get, metrics
from everclip.report import old_and_new, sections, sentences, write_report
from everclip.report.canvas import plain
from everclip.report.comparison import compared_keys
from everclip.report.estimates import (
    Estimate,
    at_last_row,
    change_since_start,
    estimate,
    metric_cells,
    metric_of_key,
)
from everclip.report.formats import number, points, seconds, span
from everclip.report.inline_images import inline_image
from everclip.report.intervals import difference_interval, stratified_bootstrap
from everclip.report.runs import Run
from everclip.report.sensitivity import interval_of_cells, read_cells
from everclip.report.sentences import headline
from everclip.report.undefined import why_undefined

FIGURES = ("matrix", "curves", "forgetting", "retention", "representation", "rotations", "cost")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its report."""
    folder = synthetic.write_run(tmp_path_factory.mktemp("run") / "finetune", "finetune")
    write_report(folder)
    return folder


def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def loads(html: str) -> list[str]:
    """Every address the page would load or lead to."""
    found = re.findall(r"""(?:src|href|action|poster|data)\s*=\s*["']([^"']*)""", html)
    return found + re.findall(r"url\(([^)]*)\)", html) + re.findall(r"@import[^;]*", html)


def test_page_loads_nothing(finished: Path) -> None:
    for address in loads(page(finished)):
        assert address.strip("'\"").startswith(("data:", "#")), address
    assert "<script" not in page(finished)


def test_page_has_the_promised_parts_in_order(finished: Path) -> None:
    html = page(finished)
    parts = [
        "headline",
        "tiles",
        "Score matrix",
        "Every set over time",
        "Forgetting per task",
        ">What was known before</h2>",
        "The embedding space",
        "Cost",
        "Derived metrics",
        "Examples",
        "Events",
        "Provenance",
    ]
    places = [html.index(part, html.index("<body>")) for part in parts]
    assert places == sorted(places)
    assert '<html lang="en">' in html
    assert html.count("<svg") == html.count('role="img" aria-label=') >= 10
    assert len(re.findall(r' id="([^"]+)"', html)) == len(set(re.findall(r' id="([^"]+)"', html)))
    assert "✓ right" in html
    assert "✗ wrong" in html
    assert "everclip run emoji-time@1 method=finetune seed=0" in html
    assert "data:image/png;base64," in html


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_there_and_not_empty(finished: Path, name: str) -> None:
    with Image.open(finished / "figures" / f"{name}.png") as image:
        assert min(image.size) >= 100
        assert len(image.convert("RGB").quantize(64).getcolors()) > 20


def test_headline_follows_the_numbers(finished: Path) -> None:
    run = Run(finished)
    said = headline(run)
    known, before = estimate(run, metric_cells(run, "known")), estimate(run, metric_cells(run, "known", 0))
    assert known is not None
    assert before is not None
    assert said.startswith("After 5 tasks, finetune finds ")
    assert f"{100 * known.value:.0f}\u00a0%" in said
    assert f"down from {100 * before.value:.0f}\u00a0%" in said
    assert "learned +31 points, forgot 16" in said


def test_the_headline_says_where_names_become_more(tmp_path: Path) -> None:
    """ODCL-CIL: own names before a set is learned, the union afterwards; the two rows are not of one kind."""
    spaces = [{"name": "own", "space": "own"}, {"name": "all", "space": "seen", "unseen": "own"}]
    assert "among all names learned" in headline(Run(synthetic.write_run(tmp_path / "a", protocols=spaces)))
    spaces[1]["unseen"] = "skip"
    for i, protocols in enumerate(
        (spaces, [{"name": "own", "space": "own"}, {"name": "all", "space": "all"}])
    ):
        run = Run(synthetic.write_run(tmp_path / str(i), protocols=protocols))
        assert "among all names learned" not in headline(run)


def test_a_method_that_trains_nothing_changes_nothing(tmp_path: Path) -> None:
    run = Run(synthetic.write_run(tmp_path, "zero-shot"))
    assert "exactly as before: learned nothing, forgot nothing" in headline(run)
    change = change_since_start(run, "known")
    assert change is not None
    assert change.nothing
    assert not change.resolved


def test_overlap_is_called_not_resolved(tmp_path: Path) -> None:
    found, _ = synthetic.results("finetune", rows=2)
    first = found.rows[0].scores["known"]["all"]["mean_r1"]
    near = Score(
        value=(first.value or 0) - 0.01, low=(first.low or 0) - 0.01, high=(first.high or 0) - 0.01, n=first.n
    )
    last = found.rows[1].model_copy(
        update={"scores": {**found.rows[1].scores, "known": {"all": {"mean_r1": near}}}}
    )
    run = Run(synthetic.write_run(tmp_path, "finetune", paired=False, rows=2))
    found.model_copy(update={"rows": [found.rows[0], last]}).write(tmp_path)
    said = headline(Run(run.folder))
    assert "(not resolved)" in said
    assert "what it forgot is not resolved" in said


def test_one_row_says_what_is_not_defined(tmp_path: Path) -> None:
    folder = synthetic.write_run(tmp_path, rows=1, status="running")
    (folder / "examples" / "1.png").unlink()
    (folder / "figures").mkdir()
    (folder / "figures" / "forgetting.png").write_bytes(b"of an earlier report")
    (folder / "figures" / "mine.png").write_bytes(b"not ours")
    write_report(folder)
    html = page(folder)
    assert "Before any training, finetune finds" in html
    assert "No task has been learned yet" in html
    assert "not defined" in html
    assert "needs one row per task; this run has 0 of 5" in html
    assert "This run is not finished: 0 of 5 tasks" in html
    assert html.count("image missing") == 1
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "matrix.png",
        "curves.png",
        "representation.png",
        "cost.png",
        "mine.png",
    }


def test_no_row_no_column_no_metric(tmp_path: Path) -> None:
    found, _ = synthetic.results(rows=1)
    bare = found.model_copy(
        update={
            "rows": [],
            "columns": [],
            "metrics": {"forgetting": None},
            "examples": [],
            "events": [],
            "cost": {},
            "provenance": {},
        }
    )
    bare.write(tmp_path)
    write_report(tmp_path)
    html = page(tmp_path)
    assert "no row has been measured yet" in html
    assert "config.yaml" in html  # said to be missing


def test_joint_has_no_square_matrix_and_says_so(tmp_path: Path) -> None:
    run = Run(synthetic.write_run(tmp_path, "joint"))
    assert why_undefined("average", run.results).endswith("this run has one row for all tasks at once")
    assert run.complete
    assert headline(run).startswith("After 5 tasks, joint finds")


def test_hostile_names_are_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&$x^{$ {{ 7*7 }}"
    found, _ = synthetic.results("finetune", rows=2)
    rename = {"2016": evil}
    columns = [c.model_copy(update={"name": rename.get(c.name, c.name)}) for c in found.columns]
    rows = [
        r.model_copy(update={"label": evil, "scores": {rename.get(k, k): v for k, v in r.scores.items()}})
        for r in found.rows
    ]
    example = Example(column=evil, id=evil, picture="examples/0.png", truth=evil, answers=[])
    folder = synthetic.write_run(tmp_path, "finetune", paired=False, rows=2)
    found.model_copy(
        update={
            "columns": columns,
            "rows": rows,
            "examples": [example],
            "title": evil,
            "summary": evil,
            "method": {"name": evil},
            "events": [Event(kind=evil, message=evil)],
            "cost": {evil: evil},
            "provenance": {evil: evil, "command": evil},
            "metrics": {**found.metrics, evil: 0.5},
        }
    ).write(folder)
    write_report(folder)
    html = page(folder)
    assert "<script" not in html
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", html)[0]
    assert "&lt;script&gt;" in html
    assert all(address.startswith(("data:", "#")) for address in loads(html))


def test_pictures_come_only_from_the_run_folder(tmp_path: Path) -> None:
    folder = synthetic.write_run(tmp_path / "run", rows=1)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (folder / "text.png").write_text("no picture")
    assert inline_image(folder, "../secret.png") is None
    assert inline_image(folder, str(tmp_path / "secret.png")) is None
    assert inline_image(folder, "text.png") is None
    assert inline_image(folder, "missing.png") is None
    assert inline_image(folder, "") is None
    found = inline_image(folder, "examples/0.png")
    assert found is not None
    assert found.startswith("data:image/png;base64,")


def test_large_pictures_are_scaled_down(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "big.png")
    found = inline_image(tmp_path, "big.png")
    assert found is not None
    assert len(found) < 200_000 < (tmp_path / "big.png").stat().st_size


def test_no_result_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        write_report(tmp_path)


def test_outcomes_that_do_not_belong_to_the_score_are_not_used(tmp_path: Path) -> None:
    folder = synthetic.write_run(tmp_path, rows=2)
    _, items = synthetic.results(rows=2)
    key = "known/all/mean_r1"
    synthetic.save_items(folder, [items[0], {**items[1], key: 1 - items[1][key]}])
    change = change_since_start(Run(folder), "known")
    assert change is not None
    assert not change.paired
    assert "independent" in change.how


def test_a_report_shows_the_numbers_of_the_result_to_the_last_bit(tmp_path: Path) -> None:
    found, _ = synthetic.results("finetune")
    run = Run(synthetic.write_run(tmp_path, "finetune"))
    measured = Measurements.of(found).values("task", "known", "retention", *OLD_AND_NEW)
    keys = [key for key in compared_keys() if "seen once" not in metric_of_key(key).needs]
    assert all(at_last_row(run, key) is None for key in set(compared_keys()) - set(keys))
    for key in keys:
        value = at_last_row(run, key, draws=10)
        assert value is not None
        assert value.value == measured[metric_of_key(key).name]


def test_what_a_metric_reads_is_found_by_trying() -> None:
    cells = Cells.of([0.1, 0.2, 0.3], [[0.5, 0.3, 0.2], [0.4, 0.6, 0.3], [0.3, 0.6, 0.7]])

    def read(name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return read_cells(get(name, "stream"), cells)

    assert read("new_last") == ((3,), (0, 1, 2))
    assert read("new_change") == ((0, 3), (0, 1, 2))
    assert read("forgetting") == ((1, 2, 3), (0, 1))
    assert read("transfer") == ((1, 2, 3), (1, 2))
    assert read("forward_transfer") == ((0, 1, 2, 3), (1, 2))


def test_without_outcomes_forgetting_joins_the_best_row_and_the_last() -> None:
    # Column 0 falls from its best (row 1) to the last row; column 1 stays where it is, its best being the first of two.
    cells = Cells.of([0.1, 0.1, 0.1], [[0.5, 0.3, 0.2], [0.4, 0.6, 0.3], [0.3, 0.6, 0.7]])
    low, high = cells.scores - 0.05, cells.scores + 0.02
    found = interval_of_cells(get("forgetting", "stream"), cells, low, high)
    parts = [
        difference_interval(best, Interval(best - 0.05, best + 0.02), now, Interval(now - 0.05, now + 0.02))
        for best, now in ((0.5, 0.3), (0.6, 0.6))
    ]
    wanted = [
        ((0.2 - parts[0].low) ** 2 + (0.0 - parts[1].low) ** 2) ** 0.5 / 2,
        ((parts[0].high - 0.2) ** 2 + (parts[1].high - 0.0) ** 2) ** 0.5 / 2,
    ]
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.1 - wanted[0], 0.1 + wanted[1]))
    tied = Cells.of([0.1, 0.1], [[0.5, 0.2], [0.5, 0.6]])
    ends = tied.scores - 0.1, tied.scores + 0.1
    once = interval_of_cells(get("forgetting", "stream"), tied, *ends)
    assert once is not None
    assert (once.low, once.high) == pytest.approx((-0.1 * 2**0.5, 0.1 * 2**0.5))
    low[1, 0] = np.nan
    assert interval_of_cells(get("forgetting", "stream"), cells, low, high) is None


def test_every_undefined_metric_has_a_reason() -> None:
    found, _ = synthetic.results(rows=1)
    for name in metrics("stream"):
        assert why_undefined(name, found)
    assert why_undefined("from_elsewhere", found)


def test_stratified_bootstrap_of_one_block_is_near_wilson() -> None:
    hits = np.repeat([1.0, 0.0], [60, 140])[:, None]
    found = stratified_bootstrap([hits], lambda means: means[0][..., 0], seed=0)
    exact = wilson(60, 200)
    assert found.low == pytest.approx(exact.low, abs=0.01)
    assert found.high == pytest.approx(exact.high, abs=0.01)
    assert found == stratified_bootstrap([hits[::-1]], lambda means: means[0][..., 0], seed=0)


def test_intervals_of_sums_and_differences() -> None:
    one = Interval(0.4, 0.6)
    ends = np.full((1, 4), 0.4), np.full((1, 4), 0.6)
    four = interval_of_cells(get("new_before", "stream"), Cells.of([0.5] * 4, []), *ends)
    assert four is not None
    assert (four.low, four.high) == pytest.approx((0.45, 0.55))
    gap = difference_interval(0.5, one, 0.5, one)
    assert (gap.low, gap.high) == pytest.approx((-0.1 * 2**0.5, 0.1 * 2**0.5))
    # Newcombe (1998), table II, contrast 56/70 - 48/80, method 10: 0.0524 to 0.3339.
    a, b = wilson(56, 70), wilson(48, 80)
    found = difference_interval(56 / 70, a, 48 / 80, b)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(-0.04), "0.0"),
        (number(-1.26), "\u22121.3"),
        (number(None), "not defined"),
        (points(0.1), "+10.0"),
        (points(-0.1), "\u221210.0"),
        (points(0.0001), "0.0"),
        (span(0.44, 0.48), "44–48"),
        (span(-0.02, 0.01), "\u22122 to 1"),
        (span(None, 1.0), ""),
        (seconds(8.14), "8.1\u00a0s"),
        (seconds(250), "4\u00a0min 10\u00a0s"),
        (seconds(7500), "2\u00a0h 05\u00a0min"),
        (plain("a$b\nc"), r"a\$b c"),
    ],
)
def test_numbers_as_readers_see_them(shown: str, expected: str) -> None:
    assert shown == expected


# -- old and new together; sentences of gains -----------------------------------------------------------------


def test_the_report_leads_with_everything(finished: Path) -> None:
    html = page(finished)
    assert html.index("of everything, old and new together") < html.index("of what it was taught")
    assert html.index('id="together"') < html.index('id="matrix"')
    assert (finished / "figures" / "together.png").is_file()
    run = Run(finished)
    table = old_and_new.table(run)
    assert table is not None
    assert table["heads"] == ["old", "new", "everything"]
    assert [len(row["cells"]) for row in table["rows"]] == [3] * 6
    # Old and new are the parts that everything is made of.
    old, new, everything = (
        estimate(run, metric_cells(run, key)) for key in ("everything_old", "everything_new", "everything")
    )
    assert old is not None
    assert new is not None
    assert everything is not None
    counts = {"known": 600, "task": sum(synthetic.ITEMS[t] for t in synthetic.TASKS)}
    pooled = (old.value * counts["known"] + new.value * counts["task"]) / sum(counts.values())
    assert everything.value == pytest.approx(pooled)


def test_an_evaluation_set_of_everything_is_taken_where_there_is_one(tmp_path: Path) -> None:
    found, _ = synthetic.results("finetune")
    whole = Column(name="all of it", kind="retrieval", group="everything", task=None, samples=988)
    score = Score(value=0.123, low=0.11, high=0.14, n=988)
    rows = [
        r.model_copy(update={"scores": {**r.scores, "all of it": {"all": {"mean_r1": score}}}})
        for r in found.rows
    ]
    folder = synthetic.write_run(tmp_path, rows=6, paired=False, columns=[*found.columns, whole])
    found.model_copy(update={"rows": rows, "columns": [*found.columns, whole]}).write(folder)
    value = estimate(Run(folder), metric_cells(Run(folder), "everything"))
    assert value is not None
    assert (value.value, value.low, value.high) == (0.123, 0.11, 0.14)


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [
        (0.2, 0.1, 0.3, "forgot 20 of earlier tasks (10–30)"),
        (-0.2, -0.28, -0.13, "gained 20 on earlier tasks (13–28)"),
        (0.02, -0.03, 0.06, "forgetting of earlier tasks not resolved (−3 to 6)"),
        (-0.02, -0.06, 0.03, "forgetting of earlier tasks not resolved (−6 to 3)"),
        (0.0, 0.0, 0.0, "forgot nothing of earlier tasks"),
        (0.05, None, None, "forgot 5 of earlier tasks"),
        (-0.05, None, None, "gained 5 on earlier tasks"),
        (0.0, None, None, "forgot nothing of earlier tasks"),
    ],
)
def test_forgetting_in_words(value: float, low: float | None, high: float | None, said: str) -> None:
    assert sentences.forgot_tasks(Estimate(value=value, low=low, high=high)) == said


def extended(folder: Path, missing: dict[int, tuple[str, ...]]) -> Path:
    """Write a run whose rows lack the cells of sets that came with an extension."""
    found, _ = synthetic.results("finetune")
    rows = [
        r.model_copy(
            update={"scores": {k: v for k, v in r.scores.items() if k not in missing.get(r.index, ())}}
        )
        for r in found.rows
    ]
    event = Event(kind="extended", message="3 new")
    synthetic.write_run(folder, rows=6)
    nulls = {**found.metrics, "average": None, "forgetting": None}
    found.model_copy(update={"rows": rows, "events": [event], "metrics": nulls}).write(folder)
    return folder


def test_an_extended_run_says_which_rows_lack_cells_and_why(tmp_path: Path) -> None:
    folder = extended(tmp_path, {1: ("2019", "2020-22"), 2: ("2019", "2020-22")})
    write_report(folder)
    html = page(folder)
    assert "only one task has been learned so far" not in html
    assert "The following rows lack cells" in html
    assert "checkpoint.keep_rows" in html
    why = why_undefined("average", Run(folder).results)
    assert why.startswith("the run was extended, and the rows after 2016, after 2017 were not measured")
    assert why_undefined("everything_change", Run(folder).results) == why


def test_forgetting_without_any_earlier_cell_says_the_true_reason(tmp_path: Path) -> None:
    every = tuple(synthetic.TASKS)
    folder = extended(tmp_path, dict.fromkeys(range(1, 5), every))
    write_report(folder)
    html = page(folder)
    assert "only one task has been learned so far" not in html
    assert "Not defined: the following rows lack cells" in html


def test_one_task_alone_and_all_at_once_say_so(tmp_path: Path) -> None:
    joint = Run(synthetic.write_run(tmp_path / "joint", "joint"))
    assert sections.why_no_forgetting(joint).startswith("all tasks are learned at once")
    found, _ = synthetic.results(rows=2)
    one = synthetic.write_run(tmp_path / "one", rows=2, tasks=found.tasks[:1])
    assert sections.why_no_forgetting(Run(one)) == "the stream has one task"


def test_without_a_known_set_everything_is_all_tasks(tmp_path: Path) -> None:
    rest = [column for column in synthetic.columns() if column.group != "known"]
    run = Run(synthetic.write_run(tmp_path, columns=rest))
    table = old_and_new.table(run)
    assert table is not None
    assert (table["title"], table["heads"]) == ("All tasks together", ["everything"])
    assert "everything, all tasks together" in headline(run)
    assert "no known set" in table["note"]
