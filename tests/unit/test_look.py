"""The look: new test images that row 0 got wrong, chosen blindly to later rows, in report, terminal and demo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import report_fixtures as synthetic
from PIL import Image

import everclip
from everclip.cli import demo
from everclip.evaluation.results import Answer, Example
from everclip.report import look, write_report
from everclip.report.runs import Run

ROWS = 4


def example(column: str, id: str, *answers: str, truth: str = "owl") -> Example:
    given = [Answer(row=r, answers=[(a, 0.5)], correct=a == truth) for r, a in enumerate(answers) if a]
    return Example(column=column, id=id, picture="", truth=truth, answers=given)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Run]:
    def make(*examples: Example, rows: int = ROWS) -> Run:
        folder = synthetic.write_run(tmp_path / "run", rows=rows)
        results = everclip.Results.read(folder).model_copy(update={"examples": list(examples)})
        results.write(folder)
        return Run(folder)

    return make


def test_only_new_images_that_row_0_got_wrong_are_shown(run: Callable[..., Run]) -> None:
    wrong = example("2016", "a", "cat", "owl")
    others = [example("2016", "b", "owl"), example("known", "c", "cat"), example("subgroups", "d", "cat")]
    assert look.chosen(run(wrong, *others)) == [wrong]


def test_the_tasks_take_turns_and_later_answers_play_no_part(run: Callable[..., Run]) -> None:
    ids = [str(i) for i in range(4)]
    learned = [example(c, i, "cat", "owl", "owl", "owl") for c in synthetic.TASKS for i in ids]
    failed = [example(c, i, "cat", "cat", "cat", "cat") for c in synthetic.TASKS for i in ids]
    first, second = (look.chosen(run(*found)) for found in (learned, failed))
    assert [(e.column, e.id) for e in first] == [(e.column, e.id) for e in second]
    assert [e.column for e in first] == ["2016", *synthetic.TASKS]
    assert look.chosen(run(*reversed(learned))) == first
    assert len(look.chosen(run(*learned), count=99)) == look.MOST
    assert {e.id for e in look.chosen(run(*learned), count=5)} <= set(ids)


def test_an_image_that_is_not_asked_before_its_task_is_shown(run: Callable[..., Run]) -> None:
    found = run(example("2016", "a", "", "cat", "owl"))
    assert (
        look.text(found)
        == "  owl (2016) - before training: not asked; after 2016: cat; after 2017: right; after 2018: not asked"
    )
    assert "not asked" in write_report(found.folder).read_text(encoding="utf-8")


def test_equal_answers_of_following_rows_are_said_once(run: Callable[..., Run]) -> None:
    found = run(
        example("2016", "a", "cat", "owl", "owl", "owl"), example("2018", "b", "cat", "cat", "owl", "cat")
    )
    assert look.text(found).splitlines() == [
        "  owl (2016) - before training: cat; after 2016 to 2018: right",
        "  owl (2018) - before training to after 2016: cat; after 2017: right; after 2018: cat",
    ]
    assert look.text(found, rows=[0], count=1) == "  owl (2016) - before training: cat"
    same = run(example("2016", "a", *["cat"] * ROWS))
    assert look.text(same) == "  owl (2016) - cat at every row"


def test_the_rank_of_the_true_name_is_given_at_the_first_and_the_last_row(run: Callable[..., Run]) -> None:
    ranks = [1203, 40, 7, 1]
    given = [Answer(row=r, answers=[("cat", 0.5)], correct=k == 1, rank=k) for r, k in enumerate(ranks)]
    found = run(Example(column="2016", id="a", picture="", truth="owl", answers=given))
    assert (
        look.text(found)
        == "  owl (2016), rank 1,203 to 1 - before training to after 2017: cat; after 2018: right"
    )
    assert look.text(found, rows=[0]) == "  owl (2016), rank 1,203 - before training: cat"
    assert "0.50, rank 1,203<" in write_report(found.folder).read_text(encoding="utf-8")


def test_the_report_shows_pictures_names_and_marks(tmp_path: Path) -> None:
    folder = synthetic.write_run(tmp_path / "run")
    html = write_report(folder).read_text(encoding="utf-8")
    part = html[html.index('id="look"') : html.index('id="together"')]
    assert part.count("<img") == len(look.chosen(Run(folder))) == 2
    assert "softball" in part
    assert "baseball" in part
    assert "✓ right" in part
    assert "red heart" not in part  # known before


@pytest.mark.parametrize("rows", [1, ROWS])
def test_a_run_without_such_images_has_no_look(run: Callable[..., Run], rows: int) -> None:
    found = run(*([example("2016", "a", "cat")] if rows == 1 else []), rows=rows)
    assert look.table(found) is None
    assert 'id="look"' not in write_report(found.folder).read_text(encoding="utf-8")


def test_names_cannot_inject(run: Callable[..., Run]) -> None:
    html = write_report(run(example("2016", "a", "<b>cat")).folder).read_text(encoding="utf-8")
    assert "<b>cat" not in html
    assert "&lt;b&gt;cat" in html


def test_pictures_are_small(run: Callable[..., Run]) -> None:
    found = run(example("2016", "a", "cat").model_copy(update={"picture": "examples/big.png"}))
    Image.effect_noise((900, 900), 90).save(found.folder / "examples/big.png")
    table = look.table(found)
    assert table is not None
    assert len(table["rows"][0]["image"]) < 150_000


@pytest.mark.parametrize("kind", ["classes", "time"])
def test_a_real_run_records_what_the_look_shows(micro_config: Callable[..., Any], kind: str) -> None:
    config = micro_config(kind, "method=zero-shot")
    results = everclip.execute(config)
    wrong = [
        e
        for e in results.examples
        if e.column in {t.name for t in results.tasks} and not e.answers[0].correct
    ]
    shown = look.chosen(Run(config.output))
    assert len(shown) == min(look.SHOWN, len(wrong)) > 0
    assert all((a.rank == 1) == a.correct and a.rank is not None for e in results.examples for a in e.answers)
    assert all(e in wrong for e in shown)


def test_the_demo_opens_with_a_look(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "BENCHMARK", str(micro_folder / "classes.yaml"))
    monkeypatch.setattr(demo, "METHODS", ("zero-shot", "finetune"))
    demo.run_demo(tmp_path, [f"backbone={micro_folder / 'model'}", "training.steps=1", "training.device=cpu"])
    said = capsys.readouterr().out
    opening = said.index("what the model of 2015 calls them:")
    assert said.index("[1/2] zero-shot") < opening < said.index("[2/2] finetune")
    assert opening < said.index("The same drawings with finetune") < said.index("compare.html")
    names = [
        line.split(", rank")[0] for line in said.splitlines() if line.startswith("  ") and " - before" in line
    ]
    assert "Chance is" in said
    assert said.index("a search index of images stays valid") < said.index("everclip suggest mine.yaml")
    assert len(names) > 1
    assert names[: len(names) // 2] == names[len(names) // 2 :]
