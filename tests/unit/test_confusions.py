"""Single classes: counts that belong to the scores, what is taken for what, and their section in the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import report_fixtures as synthetic
import torch

from everclip.contracts import ClassEntry
from everclip.errors import DataError
from everclip.evaluation.confusions import (
    MANY_CLASSES,
    MOST_PAIRS,
    confusions_file,
    count_confusions,
    merge_confusions,
    read_confusions,
    to_json,
)
from everclip.evaluation.results import Column
from everclip.report import classes, write_report
from everclip.report.runs import Run
from everclip.run import execute
from everclip.training.progress import Progress


def entries(count: int, old: int = 0) -> list[ClassEntry]:
    return [ClassEntry(f"k{i}", f"name {i}", tasks=() if i < old else (i % 2,)) for i in range(count)]


def test_counts_and_the_most_frequent_confusion_first() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    answers = torch.tensor([0, 1, 1, 1, 3, 3])
    found = count_confusions("all", answers, labels, entries(5, old=1))
    assert [(c.key, c.n, c.right, c.tasks) for c in found.classes] == [
        ("k0", 3, 1, []),
        ("k1", 2, 1, [1]),
        ("k2", 1, 0, [0]),
        ("k3", 0, 0, [1]),
    ]
    assert found.wrong == [(0, 1, 2), (1, 3, 1), (2, 3, 1)]
    assert (found.answers, found.whole) == (5, True)


def test_of_many_classes_only_the_most_frequent_confusions_are_kept() -> None:
    count = MANY_CLASSES + 150
    labels = torch.arange(count).repeat_interleave(2)
    answers = (labels + 1) % count
    answers[0:2] = 5
    found = count_confusions("all", answers, labels, entries(count))
    assert len(found.wrong) == MOST_PAIRS
    assert not found.whole
    assert found.wrong[0][2] == 2
    assert sum(c.n for c in found.classes) == 2 * count


def test_sets_with_the_same_answers_join_by_class() -> None:
    first = count_confusions("all", torch.tensor([1, 1]), torch.tensor([0, 1]), entries(3))
    second = count_confusions("all", torch.tensor([1, 1]), torch.tensor([0, 2]), entries(3))
    both = merge_confusions([first, second])
    assert {c.key: (c.n, c.right) for c in both.classes} == {"k0": (2, 0), "k1": (1, 1), "k2": (1, 0)}
    assert [(both.classes[t].key, both.classes[a].key, n) for t, a, n in both.wrong] == [
        ("k0", "k1", 2),
        ("k2", "k1", 1),
    ]


def test_what_a_run_writes_belongs_to_its_scores(micro_config: Callable[..., Any]) -> None:
    config = micro_config("classes", "training.steps=2", "scenario.everything=true")
    results = execute(config, progress=Progress(quiet=True))
    for row in results.rows:
        held = read_confusions(Path(config.output), row.index)
        assert held.keys() == {c.name for c in results.columns if c.kind == "classification"}
        for name, found in held.items():
            score = row.scores[name]["all"]["accuracy"]
            right, total = (sum(getattr(c, what) for c in found.classes) for what in ("right", "n"))
            assert right / total == pytest.approx(score.value)
            assert right + sum(count for *_, count in found.wrong) == total
            assert {c.key: c.right / c.n for c in found.classes if c.n} == pytest.approx(row.per_class[name])
    write_report(Path(config.output))
    html = (Path(config.output) / "report.html").read_text(encoding="utf-8")
    assert "Class by class" in html
    assert (Path(config.output) / "figures" / "confusion.png").is_file()


def classified(folder: Path, old: int, count: int, space: str = "all") -> Path:
    """Write a run whose sets are classified, and its answers: every picture of class 0 is taken for the last."""
    sets = [("known", "known", None), ("2016", "task", 0)]
    columns = [
        Column(name=n, kind="classification", group=g, task=t, samples=40, classes=count)  # type: ignore[arg-type]
        for n, g, t in sets
    ]
    run = synthetic.write_run(
        folder,
        rows=2,
        columns=columns,
        paired=False,
        headline={"protocol": "all", "metric": "accuracy"},
        protocols=[{"name": "all", "space": space}],
    )
    (run / "rows").mkdir()
    labels = {"known": torch.arange(old).repeat(3), "2016": torch.arange(old, count).repeat(3)}
    for row in (0, 1):
        held = {}
        for name, values in labels.items():
            answers = torch.where(values == 0, count - 1, values) if row else torch.zeros_like(values)
            held[name] = count_confusions("all", answers, values, entries(count, old))
        confusions_file(run, row).write_text(to_json(held), encoding="utf-8")
    return run


def test_old_and_new_classes_stand_in_one_table_worst_first(tmp_path: Path) -> None:
    (part,) = classes.parts(Run(classified(tmp_path, old=3, count=7)))
    first, *rest = part["rows"]
    assert (first["name"], first["belongs"], first["now"], first["before"]) == (
        "name 0",
        "old",
        "0.0",
        "100.0",
    )
    assert first["change"] == "−100.0"
    assert {row["belongs"].split()[0] for row in rest} == {"old", "new"}
    assert part["pairs"][0] == {"truth": "name 0", "answer": "name 6", "count": "3", "of": "3"}
    assert part["figure"].name == "confusion"
    assert "name 0 as name 6 3 of 3" in part["figure"].alt


def test_sets_with_answers_of_their_own_stand_apart(tmp_path: Path) -> None:
    found = classes.parts(Run(classified(tmp_path, old=3, count=7, space="own")))
    assert [part["title"] for part in found] == ["known", "2016"]


def test_many_classes_are_listed_and_not_drawn(tmp_path: Path) -> None:
    (part,) = classes.parts(Run(classified(tmp_path, old=40, count=90)))
    assert part["figure"] is None
    assert len(part["rows"]) == classes.LISTED
    assert part["left"] == 90 - classes.LISTED
    write_report(tmp_path)
    assert "worst of 90 classes" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    run = classified(tmp_path, old=2, count=4)
    confusions_file(run, 1).write_text(json.dumps({"known": {"classes": 3}}), encoding="utf-8")
    with pytest.raises(DataError, match=r"001\.classes\.json"):
        read_confusions(run, 1)


def test_runs_without_the_file_have_no_such_section(tmp_path: Path) -> None:
    assert classes.parts(Run(synthetic.write_run(tmp_path))) == []
