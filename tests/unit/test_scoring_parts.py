"""Parts of a row's scores by themselves: intervals of shares and means, answers that are followed, close calls."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from everclip.config import EvaluationConfig
from everclip.evaluation.best_answers import best_classes, nearest_captions
from everclip.evaluation.results import Score
from everclip.evaluation.scoring import SCORES_UNDER, compute_metrics, scores_of_batch
from everclip.evaluation.statistics import bootstrap_mean, wilson
from everclip.metrics import Metric, get

CONFIG = EvaluationConfig(confidence=0.9, top_k=(1,))


def measure(entry: Metric) -> tuple[dict[str, Score], dict[str, torch.Tensor]]:
    """Return the scores and outcomes of a set with classes where this is the only metric."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("everclip.evaluation.scoring.cut", lambda kind, top_k: [(entry, {})])
        return compute_metrics("classification", None, CONFIG, 11)  # type: ignore[arg-type]


def of_values(values: torch.Tensor, interval: Any) -> tuple[Score, dict[str, torch.Tensor]]:
    """Return the score of a metric with these values per item, and the outcomes that are kept."""
    entry = replace(get("accuracy"), name="m", function=lambda answered: values, interval=interval)
    scores, outcomes = measure(entry)
    return scores["m"], outcomes


def test_a_share_has_wilsons_interval_and_its_outcomes_are_kept() -> None:
    hits = torch.tensor([True, False, True, True])
    found, kept = of_values(hits, "wilson")
    interval = wilson(3, 4, 0.9)
    assert (found.value, found.low, found.high, found.n) == (0.75, interval.low, interval.high, 4)
    assert kept.keys() == {"m"}
    assert (kept["m"].dtype, kept["m"].tolist()) == (torch.float32, [1.0, 0.0, 1.0, 1.0])
    empty, kept = of_values(hits[:0], "wilson")
    assert (empty.value, empty.low, empty.high) == (None, None, None)
    assert len(kept["m"]) == 0


@pytest.mark.parametrize(
    "values", [[0.5, 1.0, 0.0, 0.25], [0.0, 0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [0.0, 1.0]]
)
def test_a_mean_is_resampled_unless_all_values_are_none_or_all(values: list[float]) -> None:
    given = torch.tensor(values)
    found, kept = of_values(given, "bootstrap")
    certain = set(values) in ({0.0}, {1.0})
    interval = (
        wilson(int(sum(values)), len(values), 0.9) if certain else bootstrap_mean(values, 11, confidence=0.9)
    )
    assert (found.low, found.high) == (interval.low, interval.high)
    assert (found.value, found.n) == (pytest.approx(sum(values) / len(values)), len(values))
    assert kept["m"].tolist() == values
    empty, _ = of_values(given[:0], "bootstrap")
    assert (empty.value, empty.low, empty.high) == (None, None, None)


def test_a_metric_without_an_interval_says_how_many_items_are_behind_it() -> None:
    entry = replace(get("ece"), function=lambda answered, **_: (0.25, 7))
    scores, outcomes = measure(entry)
    assert scores["ece"] == Score(value=0.25, n=7)
    assert outcomes == {}


def test_answers_are_the_three_best_and_the_first_of_equals() -> None:
    scores = torch.tensor([[0.1, 0.30004, 0.2, 0.30004], [0.9, 0.1, 0.2, 0.3]])
    labels = torch.tensor([3, 0])
    assert best_classes(scores, ["a", "b", "c", "d"], labels, [0, 1]) == {
        0: ([("b", 0.3), ("d", 0.3), ("c", 0.2)], False, 2),
        1: ([("a", 0.9), ("d", 0.3), ("c", 0.2)], True, 1),
    }
    assert best_classes(scores, ["a", "b", "c", "d"], labels, []) == {}


@pytest.mark.parametrize("captions", [1, 3])
def test_close_calls_of_a_retrieval_set_are_counted_and_its_answers_kept(captions: int) -> None:
    images = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), dim=1)
    gallery = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])[:captions]
    ranks: Any = SimpleNamespace()
    ranked: Any = SimpleNamespace(
        gallery=gallery, image_to_text=ranks, images=["p", "q", "r"], candidates=["x", "y", "z"][:captions]
    )
    identities = ["q", "p", "r"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "everclip.evaluation.retrieval.best_ranks",
            lambda given: torch.tensor([1, 4, 1]) if given is ranks else None,
        )
        close, answers = nearest_captions(images, ranked, identities, [0, 2])
    assert close == 0
    if captions == 1:
        assert answers == {0: ([("x", 1.0)], False, 4), 2: ([("x", 0.7071)], True, 1)}
        return
    # The third picture is as near to x as to y, and nearer to z.
    assert answers == {
        0: ([("x", 1.0), ("z", 0.6), ("y", 0.0)], False, 4),
        2: ([("z", 0.9899), ("x", 0.7071), ("y", 0.7071)], True, 1),
    }
    ranked.gallery, ranked.candidates = gallery[:2], ["x", "y"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("everclip.evaluation.retrieval.best_ranks", lambda given: torch.ones(3))
        assert nearest_captions(images, ranked, identities, ()) == (1, {})
        ranked.gallery = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1e-3, 1.0]]), dim=1)
        assert nearest_captions(images, ranked, identities, ()) == (0, {})


def test_wide_features_are_left_out_of_what_is_held() -> None:
    method: Any = SimpleNamespace(
        wide=("banks",), class_scores=lambda images, space, bank: (images["banks"] * bank + space).double()
    )
    features = {"embedding": torch.ones(2, 3), "banks": torch.full((2, 4), 2.0)}
    found = scores_of_batch(method, {"all": (5, 3), "own": (0, 1)}, features)  # type: ignore[dict-item]
    assert found.keys() == {"embedding", SCORES_UNDER + "all", SCORES_UNDER + "own"}
    assert found["embedding"] is features["embedding"]
    assert found[SCORES_UNDER + "all"].tolist() == [[11.0] * 4] * 2
    assert found[SCORES_UNDER + "own"].tolist() == [[2.0] * 4] * 2
    assert found[SCORES_UNDER + "all"].dtype == torch.float32
