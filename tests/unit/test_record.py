"""What a row leaves behind: features that later rows are compared with, and the pictures whose answers are followed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from everclip.config import EvaluationConfig
from everclip.data.sampling.order import unit_hash
from everclip.evaluation import representation
from everclip.evaluation.record import THUMBNAIL, RowRecorder, choose_examples
from everclip.evaluation.results import Answer, Example
from everclip.evaluation.scoring import RowScorer, RowScores
from everclip.run import Run
from everclip.training.progress import Progress

SETS = (("a", "task", "retrieval"), ("b", "known", "retrieval"), ("c", "retention", "retrieval"),
        ("d", "known", "classification"), ("all", "everything", "retrieval"))  # fmt: skip


class Ids(list[str]):
    """The data of a set, of which nothing but ids are asked."""

    @property
    def ids(self) -> list[str]:
        return list(self)

    def value(self, column: str, position: int) -> str:
        return f"{column} {self[position]}"


def recorder(
    path: Path, sets: Any = SETS, writes: bool = True, ids: dict[str, list[str]] | None = None
) -> RowRecorder:
    """Return the recorder of a scenario whose sets have these ids, of which all are followed."""
    named: list[Any] = [
        SimpleNamespace(name=name, group=group, kind=kind, task=None, data=Ids((ids or {}).get(name, [])))
        for name, group, kind in sets
    ]
    config: Any = SimpleNamespace(seed=3, evaluation=EvaluationConfig(representation_samples=20, examples=9))
    service: Any = SimpleNamespace(store=None)
    scenario: Any = SimpleNamespace(eval_sets=named)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("everclip.evaluation.record.SetFeatures", lambda *given, **named: None)
        return RowRecorder(path, scenario, config, service, writes)


def space_of(own: RowRecorder, index: int, scores: RowScores) -> dict[str, float | None]:
    """Return what a recorder says of the embedding space at a row with these features."""
    method: Any = SimpleNamespace(notes={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowScorer, "row", lambda self, method, learned, tick: scores)
        row, _ = own.measure(method, "row", index, None, (), (0, 0), lambda *given: None, ())
    return row.representation


def features(seed: int, sets: Any = SETS) -> RowScores:
    draw = torch.Generator().manual_seed(seed)
    sides = {}
    for name, _, kind in sets:
        if kind == "retrieval":
            pair = [torch.randn(24, 6, generator=draw) for _ in range(2)]
            sides[name] = tuple(torch.nn.functional.normalize(side, dim=1) for side in pair)
    return RowScores(features=sides)


def joined(scores: Any, names: str) -> tuple[torch.Tensor, torch.Tensor]:
    images, texts = (torch.cat([scores.features[name][side] for name in names]) for side in (0, 1))
    return images, texts


@pytest.mark.parametrize(
    ("sets", "names"), [(SETS, "bc"), (SETS[:1], "a"), ((SETS[0], SETS[3]), "a"), (SETS[1:], "bc")]
)
def test_the_space_is_measured_on_what_was_known_else_on_all_and_against_row_0(
    tmp_path: Path, sets: Any, names: str
) -> None:
    (tmp_path / "rows").mkdir()
    own = recorder(tmp_path, sets)
    first, second = features(0, sets), features(1, sets)
    before = joined(first, names)
    file = tmp_path / "rows" / "000.features.safetensors"
    assert own.missing_features(0) == []
    assert own.missing_features(1) == [f"{file} is missing or damaged: changes against row 0 are null"]
    found = space_of(own, 0, first)
    assert found == representation.measure(*before, None, sample=20, seed=3)
    kept = load_file(file)
    assert kept.keys() == {"images", "texts"}
    assert torch.equal(kept["images"], before[0])
    assert torch.equal(kept["texts"], before[1])
    assert own.missing_features(1) == []
    rows = representation.probe_rows(len(before[0]), 20, 3)
    later = space_of(own, 1, second)
    probes = [side[rows] for side in before]
    now = joined(second, names)
    assert later == representation.measure(*now, before, probes, sample=20, seed=3)
    assert any(value is not None and found[name] is None for name, value in later.items())
    # Row 2 is compared with row 1, of which only the chosen items are kept.
    own.missing_features(2)
    third = space_of(own, 2, first)
    assert third == representation.measure(*before, before, [side[rows] for side in now], sample=20, seed=3)
    assert third["image_rotation_deg"] == 0
    assert third["image_rotation_since_last_deg"] == pytest.approx(later["image_rotation_since_last_deg"])
    assert load_file(tmp_path / "rows" / "001.features.safetensors")["rows"].tolist() == rows.tolist()
    file.write_bytes(b"damaged")
    assert own.missing_features(2) != []
    alone = space_of(own, 1, second)
    assert alone == representation.measure(*now, None, sample=20, seed=3)


def test_a_row_is_not_compared_with_a_row_of_other_items(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    # The second recorder has a further set, as after an extension of a stream without known sets.
    tasks = [("a", "task", "retrieval"), ("b", "task", "retrieval")]
    own, longer = recorder(tmp_path, tasks[:1]), recorder(tmp_path, tasks)
    space_of(own, 0, features(0, tasks[:1]))
    space_of(own, 1, features(1, tasks[:1]))
    space_of(longer, 0, features(0, tasks))
    found = space_of(longer, 2, features(2, tasks))
    assert found["image_rotation_deg"] is not None
    assert found["image_rotation_since_last_deg"] is None
    lost = tmp_path / "rows" / "001.features.safetensors"
    lost.unlink()
    assert longer.missing_features(2) == [
        f"{lost} is missing or damaged: changes against the row before are null"
    ]


def test_only_the_first_process_writes_and_only_retrieval_sets_are_measured(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    assert space_of(recorder(tmp_path, writes=False), 0, features(0))
    assert list((tmp_path / "rows").iterdir()) == []
    classes = recorder(tmp_path, SETS[3:4])
    assert space_of(classes, 0, features(0)) == {}
    assert classes.missing_features(1) == []


def test_examples_are_those_of_lowest_hash_in_the_order_of_their_set() -> None:
    ids = [f"picture {i}" for i in range(20)]

    groups = (("one", "task"), ("two", "known"), ("all", "everything"))
    sets = [
        SimpleNamespace(name=name, group=group, kind="classification", data=Ids(ids))
        for name, group in groups
    ]
    found = choose_examples(SimpleNamespace(eval_sets=sets), 5)
    assert found.keys() == {"one", "two"}
    for name, chosen in found.items():
        place = [unit_hash("examples", name, i) for i in ids]
        assert chosen == sorted(chosen)
        assert sorted(place)[:5] == sorted(place[i] for i in chosen)
    assert found["one"] != found["two"]
    assert choose_examples(SimpleNamespace(eval_sets=sets), 0) == {"one": [], "two": []}
    assert choose_examples(SimpleNamespace(eval_sets=sets[:1]), 50) == {"one": list(range(20))}


@pytest.mark.parametrize("kind", ["classes", "time"])
def test_pictures_and_names_of_examples_are_those_of_the_data(
    kind: str, micro_config: Callable[..., Any]
) -> None:
    run = Run.of(micro_config(kind, "method=zero-shot", "evaluation.examples=2"), Progress(quiet=True))
    results = run.execute()
    sets = {s.name: s for s in run.scenario.eval_sets}
    chosen = choose_examples(run.scenario, 2)
    assert [(e.column, e.id) for e in results.examples] == [
        (name, sets[name].data.ids[position]) for name, positions in chosen.items() for position in positions
    ]
    store = run.learner.store
    for number, example in enumerate(results.examples):
        assert example.picture == f"examples/{number:03d}.png"
        data = sets[example.column].data
        position = data.ids.index(example.id)
        column = "caption" if sets[example.column].kind == "retrieval" else "class_name"
        assert example.truth == str(data.column(column)[position])
        wanted = store.get(data, position).copy()
        wanted.thumbnail((THUMBNAIL, THUMBNAIL))
        with Image.open(run.path / example.picture) as shown:
            assert shown.format == "PNG"
            assert np.array_equal(np.asarray(shown), np.asarray(wanted))
        assert [answer.row for answer in example.answers] == [row.index for row in results.rows]


def test_pictures_followed_so_far_keep_their_answers_where_a_scenario_grew(tmp_path: Path) -> None:
    def example(column: str, name: str, *rows: int) -> Example:
        answers = [Answer(row=row, answers=[("x", 0.1)], correct=True) for row in rows]
        return Example(column=column, id=name, picture="p", truth="t", answers=answers)

    own = recorder(tmp_path, ids={"a": ["1", "2"], "b": ["1"]})
    found = own.with_old_answers([example("a", "1", 0, 1), example("c", "1", 0)])
    assert [(e.column, e.id, [a.row for a in e.answers]) for e in found] == [
        ("a", "1", [0, 1]), ("a", "2", []), ("b", "1", []),
    ]  # fmt: skip
    assert [(e.picture, e.truth) for e in found] == [
        ("examples/000.png", "caption 1"), ("examples/001.png", "caption 2"), ("examples/002.png", "caption 1"),
    ]  # fmt: skip
