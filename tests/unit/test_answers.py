"""The pictures that a result follows over its rows: what the model said of each, by a computation of one's own."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from everclip.config import EvaluationConfig
from everclip.contracts import ClassEntry, LabelSpace
from everclip.evaluation import pools
from everclip.evaluation.scoring import RowScorer
from everclip.run import Run
from everclip.training.progress import Progress


def test_answers_are_the_three_best_classes_of_each_picture_at_each_row(
    micro_config: Callable[..., Any],
) -> None:
    settings = ("method=zero-shot", "scenario.per_task=2", "evaluation.examples=4")
    run = Run.of(micro_config("classes", *settings), Progress(quiet=True))
    results = run.execute()
    method, sets = run.learner.method, {s.name: s for s in run.scenario.eval_sets}
    every = LabelSpace(tuple({e.key: e for s in sets.values() for e in s.classes or ()}.values()))
    names = [entry.name for entry in every.entries]
    assert results.examples
    checked = 0
    for example in results.examples:
        s = sets[example.column]
        if s.kind != "classification":
            continue
        position = s.data.ids.index(example.id)
        picture = method.backbone.preprocess(run.learner.store.get(s.data, position))
        assert [answer.row for answer in example.answers] == [row.index for row in results.rows]
        for answer in example.answers:
            with torch.no_grad():
                images = method.eval().encode_images(picture[None])
                cosines = method.class_scores(images, every, method.class_bank(every))[0]
            found = [float(cosines[names.index(name)]) for name, _ in answer.answers]
            assert [value for _, value in answer.answers] == pytest.approx(found, abs=2e-4)
            offered = sorted((float(cosines[names.index(e.name)]) for e in s.classes or ()), reverse=True)
            assert found == sorted(found, reverse=True)
            assert len(found) == min(3, len(names)) or len(found) == len(offered)
            assert found[0] >= offered[0] - 1e-6  # the set's own classes are on offer under every protocol
            assert answer.correct == (answer.answers[0][0] == example.truth)
            checked += 1
    assert checked >= 8


def test_answers_to_pictures_of_a_retrieval_set_are_its_three_nearest_captions(
    micro_config: Callable[..., Any],
) -> None:
    run = Run.of(micro_config("time", "method=zero-shot", "evaluation.examples=4"), Progress(quiet=True))
    results = run.execute()
    method, sets = run.learner.method.eval(), {s.name: s for s in run.scenario.eval_sets}
    examples = [e for e in results.examples if sets[e.column].kind == "retrieval"]
    assert len(examples) >= 8
    for example in examples:
        s = sets[example.column]
        position = s.data.ids.index(example.id)
        picture = method.backbone.preprocess(run.learner.store.get(s.data, position))
        captions = list(
            dict.fromkeys(str(c) for other in sets.values() for c in other.data.column("caption"))
        )
        with torch.no_grad():
            image = method.encode_images(picture[None])["embedding"]
            texts = method.encode_texts(method.backbone.tokenise(captions))["embedding"]
        cosines = dict(zip(captions, (image @ texts.T)[0].tolist(), strict=True))
        identities = s.data.identities()
        pairs = zip(s.data.column("caption"), identities, strict=True)
        own = {str(caption) for caption, identity in pairs if identity == identities[position]}
        for answer in example.answers:
            said = [value for _, value in answer.answers]
            assert len(said) == 3
            assert said == sorted(said, reverse=True) == [round(value, 4) for value in said]
            assert said == pytest.approx([cosines[caption] for caption, _ in answer.answers], abs=2e-4)
            offered = sorted((cosines[str(c)] for c in set(s.data.column("caption"))), reverse=True)
            assert all(value >= other - 2e-4 for value, other in zip(said, offered, strict=False))
            assert answer.correct == (answer.answers[0][0] in own)


def test_details_are_those_of_the_headlines_protocol_or_of_the_first() -> None:
    for shown, names, wanted in (
        ("own", ("all", "own"), "own"),
        ("auto", ("all", "own"), "all"),
        ("x", ("all",), "all"),
    ):
        protocols = [SimpleNamespace(name=name) for name in names]
        scenario: Any = SimpleNamespace(protocols=protocols, shown_protocol=shown)
        features: Any = None
        assert RowScorer(scenario, features, EvaluationConfig(), 0, {}).shown_protocol == wanted


@pytest.mark.parametrize("uses", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_a_told_task_is_encoded_once_for_all_of_its_sets(uses: bool, wide: bool) -> None:
    """A protocol that tells the task has features of their own; what belongs to no task has those of all."""
    data = SimpleNamespace(column=lambda name: ["k"])
    sets = [
        SimpleNamespace(name=name, kind=kind, task=task, data=data, seen_only=False)
        for name, kind, task in (
            ("a", "classification", 0), ("b", "classification", 1), ("c", "classification", 0),
            ("old", "classification", None), ("pairs", "retrieval", None),
        )
    ]  # fmt: skip
    protocols = [
        SimpleNamespace(name="plain", known_task=False, same_texts="apart"),
        SimpleNamespace(name="told", known_task=True, same_texts="apart"),
    ]
    asked: list[Any] = []
    seen: list[tuple[str, str, int | None]] = []

    def images(method: Any, keys: Any, tick: Any, known_task: int | None = None, reduce: Any = None) -> Any:
        assert (keys, tick) == ({"image": "x"}, "tick")
        assert (reduce is not None) == wide
        asked.append(known_task)
        return {s.name: {"embedding": torch.zeros(1), "of": (s.name, known_task)} for s in sets}

    def label_space(s: Any, learned: Any, protocol: Any) -> LabelSpace:
        assert learned == {0}
        return LabelSpace((ClassEntry("k", protocol.name),))

    def class_scores(found: Any, space: LabelSpace, bank: Any) -> torch.Tensor:
        seen.append((found["of"][0], space.entries[0].name, found["of"][1]))
        return torch.zeros(1, 1)

    texts = {"embedding": torch.ones(2)}
    found_texts = SimpleNamespace(captions={"pairs": texts}.get, bank=lambda space: {})
    features: Any = SimpleNamespace(images=images, texts=lambda *given: found_texts)
    pools_asked: list[str] = []
    scenario: Any = SimpleNamespace(
        eval_sets=sets,
        protocols=protocols,
        shown_protocol="told",
        label_space=label_space,
        pool=lambda s, learned, protocol: pools_asked.append(protocol.name),
    )
    method: Any = SimpleNamespace(
        eval=lambda: None,
        encoder_keys=lambda: {"image": "x"},
        uses_known_task=uses,
        wide=("x",) if wide else (),
        class_scores=class_scores,
        backbone=SimpleNamespace(logit_scale=torch.tensor(1.0)),
        routes=lambda: ("route",),
        expert_places=lambda: None,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("everclip.evaluation.scoring.count_routes", lambda found, routes: {str(found["of"]): 1})
        patch.setattr("everclip.evaluation.scoring.count_experts", lambda found, places: None)
        result = RowScorer(scenario, features, EvaluationConfig(), 0, {}).row(method, {0}, "tick")  # type: ignore[arg-type]
    assert asked == ([None, 0, 1] if uses else [None])
    by_task = {"a": 0, "b": 1, "c": 0, "old": None, "pairs": None}
    own = {name: task if uses else None for name, task in by_task.items()}
    assert seen == [row for n in ["a", "b", "c", "old"] for row in ((n, "plain", None), (n, "told", own[n]))]
    assert pools_asked == ["plain", "told"]
    assert result.routes == {name: {str((name, task)): 1} for name, task in own.items()}
    assert {name: set(found) for name, found in result.scores.items()} == {
        s.name: set() if s.kind == "retrieval" else {"plain", "told"} for s in sets
    }
    assert result.features.keys() == {"pairs"}
    assert torch.equal(result.features["pairs"][1], texts["embedding"])


@pytest.mark.parametrize("apart", [False, True])
def test_captions_of_equal_tokens_are_one_only_where_the_protocol_says_so(
    apart: bool, micro_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    inner = pools.rank

    def rank(*given: Any) -> Any:
        asked.append(given[-1])
        return inner(*given)

    monkeypatch.setattr("everclip.evaluation.pools.rank", rank)
    said = "{name: all, space: all, same_texts: " + ("apart" if apart else "one") + "}"
    run = Run.of(
        micro_config("time", "method=zero-shot", f"scenario.protocols=[{said}]"), Progress(quiet=True)
    )
    run.execute()
    assert asked
    assert all((keys_of is None) == apart for keys_of in asked)
