"""Trials of presets: what they learn and what they are scored on are apart; old and new count as in results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from rail_fixtures import pictures

from everclip.config import MethodConfig, TrainingConfig, resolve_config
from everclip.contracts import EvalSet, LabelSpace
from everclip.data.table import Table
from everclip.learner import Learner
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone
from everclip.prepare.suggest import scoring
from everclip.prepare.suggest.scoring import (
    Part,
    ScoringSets,
    at_most,
    hits_of,
    scoring_sets,
    split_task,
)
from everclip.prepare.suggest.trials import gap_between, try_method
from everclip.scenarios.base import ListScenario, class_entries
from everclip.scenarios.load import load_scenario
from micro import of_classes


def test_no_image_is_both_learned_and_scored(micro_folder: Path) -> None:
    task = of_classes(pictures(micro_folder), 0, *range(6))
    task = replace(task, train=task.train.select([*range(len(task.train)), 0, 1, 2]))  # three images twice
    divided = split_task(task)
    assert divided is not None
    learned, scored = divided
    assert not set(learned.train.identities()) & set(scored.identities())
    assert len(learned.train) + len(scored) == len(task.train)
    assert learned.classes == task.classes
    assert learned.val is None


def test_too_few_images_tell_nothing(micro_folder: Path) -> None:
    assert split_task(of_classes(pictures(micro_folder), 0, 0, 1)) is None


def test_a_trial_is_bounded(micro_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "FEWEST", 2)
    monkeypatch.setattr(scoring, "LEARNED", 30)
    monkeypatch.setattr(scoring, "SCORED", 10)
    divided = split_task(of_classes(pictures(micro_folder), 0, *range(6)))
    assert divided is not None
    assert (len(divided[0].train), len(divided[1])) == (30, 10)


def test_a_bounded_part_has_every_class(micro_folder: Path) -> None:
    table = pictures(micro_folder)
    table = table.select(sorted(range(len(table)), key=lambda i: table.column("class_key")[i]))
    some = at_most(table, 30)
    assert len(some) == 30
    assert len(set(some.column("class_key"))) == 6  # the first 30 rows are of two
    assert at_most(table, 10**6) is table


def test_validation_images_are_scored_and_not_learned(
    micro_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = of_classes(pictures(micro_folder), 0, *range(6))
    rows = list(range(len(task.train)))
    task = replace(task, train=task.train.select(rows[20:]), val=task.train.select(rows[:20]))
    found = split_task(task)
    assert task.val is not None
    assert found is not None
    assert found[0].val is None
    assert set(found[1].ids) >= set(task.val.ids)
    # Where a preset chooses on them, they are left to it.
    monkeypatch.setattr(scoring, "FEWEST", 5)
    sweeping = split_task(task, sweeps=True)
    assert sweeping is not None
    assert sweeping[0].val is task.val
    assert not set(sweeping[1].ids) & set(task.val.ids)


# -- old and new together -------------------------------------------------------------------------------------


@pytest.fixture
def stream(micro_folder: Path, tmp_path: Path) -> ListScenario:
    """A task of two classes; the base has four others."""
    document = {
        "name": "month",
        "version": 1,
        "summary": "two new classes",
        "kind": "sources",
        "merge_classes": True,
        "split": {"column": "test", "validation": 0.3},
        "protocols": [{"name": "own"}, {"name": "all", "space": "all"}],
        "headline": {"protocol": "all", "metric": "auto"},
        "training": {"steps": 4, "batch_size": 8},
        "base": {"name": "known", "kind": "classification", **rows_of(micro_folder, 0, 1, 2, 3)},
        "sources": [{"name": "month", "kind": "classification", **rows_of(micro_folder, 4, 5)}],
    }
    file = tmp_path / "month.yaml"
    file.write_text(yaml.safe_dump(document))
    return load_scenario(resolve_config(str(file)).scenario)


def rows_of(folder: Path, *numbers: int) -> dict[str, Any]:
    where = {"class_name": [f"class {number}" for number in numbers]}
    return {"data": {"source": str(folder / "data.parquet")}, "where": where}


def test_old_images_are_those_of_the_base_that_no_run_reports(
    stream: ListScenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "FEWEST", 5)
    divided = split_task(stream.tasks[0])
    assert divided is not None
    found = scoring_sets(stream.tasks[0], divided[1], stream, 10**6)
    assert found.old is not None
    assert stream.base_val is not None
    assert set(found.old.table.ids) == set(stream.base_val.ids)
    tested = {i for s in stream.eval_sets for i in s.data.identities()}
    assert not tested & {*found.old.table.identities(), *found.new.table.identities()}
    assert len(found.new.space.entries) == 6
    known, month = (sum(len(s.data) for s in stream.eval_sets if s.group == g) for g in ("known", "task"))
    assert found.share == pytest.approx(known / (known + month))
    new, old = len(found.new.table), len(found.old.table)
    weights = found.weights({"new": np.ones(new), "old": np.ones(old)})
    assert weights.mean() == pytest.approx(1)
    assert weights[new:].sum() / weights.sum() == pytest.approx(found.share)


def test_without_enough_old_images_new_ones_are_scored_alone(stream: ListScenario) -> None:
    task = stream.tasks[0]
    found = scoring_sets(task, task.train, stream, 10**6)  # 20 are wanted
    assert found.old is None
    assert set(found.new.space.keys) == {"class 4", "class 5"}
    assert found.weights({"new": np.ones(len(task.train))}).tolist() == [1.0] * len(task.train)


def test_a_base_that_is_measured_by_captions_has_no_old_classes(stream: ListScenario) -> None:
    task = stream.tasks[0]
    sets = tuple(
        replace(s, kind="retrieval", classes=None) if s.group == "known" else s for s in stream.eval_sets
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "FEWEST", 5)
        assert scoring_sets(task, task.train, stream, 10**6).old is not None
        assert scoring_sets(task, task.train, replace(stream, eval_sets=sets), 10**6).old is None


def test_twins_of_the_retention_suite_are_scored_among_their_own(stream: ListScenario) -> None:
    task = stream.tasks[0]
    assert stream.base_val is not None
    space = class_entries(stream.base_val, ["{}"])
    twin = EvalSet("kept", "classification", stream.base_val, None, "retention", space)
    found = scoring_sets(task, task.train, replace(stream, base_val=None, retention_val=(twin,)), 10**6)
    assert [part.space.keys for part in found.retention] == [tuple(e.key for e in space)]
    assert list(found.parts) == ["new", "retention"]


def test_a_gap_weighs_old_and_new_as_the_results_do() -> None:
    table = Table(pa.table({"image": ["a"] * 4, "class_key": ["x"] * 4}))
    part = Part(table, LabelSpace(()))
    whole = ScoringSets(part, part, share=0.75)
    first = {"new": np.array([1.0, 1, 1, 1]), "old": np.array([0.0, 0, 0, 0])}
    second = {"new": np.array([0.0, 0, 0, 0]), "old": np.array([1.0, 1, 0, 0])}
    found = gap_between(first, second, whole)
    assert found.together.mean == pytest.approx(0.25 * 1 - 0.75 * 0.5)
    assert (found.new.mean, found.old and found.old.mean) == (1.0, -0.5)
    assert found.retention is None


# -- trying ---------------------------------------------------------------------------------------------------


def test_the_closed_form_learns_and_leaves_the_start_model_alone(
    micro_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "FEWEST", 5)
    divided = split_task(of_classes(pictures(micro_folder), 0, *range(6)))
    assert divided is not None

    def learner() -> Learner:
        method = build_method(
            MethodConfig(name="rail", settings={"fusion": 1.0}), load_backbone(str(micro_folder / "model"))
        )
        return Learner(method, TrainingConfig(steps=1, batch_size=8, device="cpu"))

    first = learner()
    task, rows = divided
    whole = scoring_sets(task, rows, None, 10**6)
    before = hits_of(first, whole)
    found, after = try_method(first, task, whole, before)
    assert found.method == "rail"
    assert found.together == found.new
    assert found.new.after > found.new.before  # the images of a class have a colour of their own
    assert found.new.change == pytest.approx(found.new.after - found.new.before)
    assert found.new.low <= found.new.change <= found.new.high
    assert found.new.images == len(rows) == len(after["new"])
    assert (found.old, found.retention, found.weakness) == (None, None, "")
    assert first.learned == {0}
    assert "points" in "".join(found.describe())
    again, _ = try_method(learner(), task, whole, before)
    assert replace(again, seconds=0.0) == replace(found, seconds=0.0)


# -- captions -------------------------------------------------------------------------------------------------


def test_captions_are_scored_by_retrieval_both_ways(
    micro_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "FEWEST", 5)
    table = pictures(micro_folder)
    rows = table.select([*range(0, len(table), 3), 0])  # the first image twice: it counts once
    task = replace(of_classes(table, 0, *range(6)), train=rows, classes=None)
    method = build_method(MethodConfig(name="text-ridge"), load_backbone(str(micro_folder / "model")))
    learner = Learner(method, TrainingConfig(steps=1, batch_size=8, device="cpu"))
    whole = scoring_sets(task, rows, None, 10**6)
    assert whole.new.space is None
    found = hits_of(learner, whole)["new"]
    distinct = rows.select(range(len(rows) - 1))
    captions = distinct.column("caption")
    encoded = learner.encode(distinct.column("image"), captions)
    scores, tokens = encoded["images"] @ encoded["texts"].T, method.backbone.tokenise(captions)
    same = (tokens[:, None] == tokens).all(dim=2).numpy()  # captions of the same tokens are one caption
    at = np.arange(len(distinct))
    named, asked = same[at, scores.argmax(dim=1).numpy()], same[at, scores.argmax(dim=0).numpy()]
    np.testing.assert_allclose(found, (named + 1.0 * asked) / 2)
    np.testing.assert_allclose(whole.weights({"new": found}), 1.0)


def test_old_captions_are_those_of_the_base(
    micro_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "FEWEST", 2)
    stream = load_scenario(micro_config("time").scenario)
    task = stream.tasks[0]
    assert task.classes is None
    assert stream.base_val is not None
    found = scoring_sets(task, task.train, stream, 10**6)
    assert found.old is not None
    assert found.old.space is None
    assert set(found.old.table.ids) == set(stream.base_val.ids)
    tested = {
        s.group: len(s.data)
        for s in stream.eval_sets
        if s.task in (None, task.index) and s.kind == "retrieval"
    }
    assert found.share == pytest.approx(tested["known"] / (tested["known"] + tested["task"]))
