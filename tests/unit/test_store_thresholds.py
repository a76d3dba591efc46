"""Thresholds of a tagger, carried over to a new version: against brute force and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from everclip.errors import ConfigError
from everclip.store.thresholds import carried, read_thresholds


def rates(scores: np.ndarray, right: np.ndarray, cut: float) -> tuple[float, float]:
    tagged = scores >= cut
    return right[tagged].mean() if tagged.any() else np.nan, tagged[right].mean()


@pytest.mark.parametrize("seed", range(8))
def test_the_new_threshold_is_the_lowest_that_is_as_precise(seed: int) -> None:
    draw = np.random.default_rng(seed)
    right = draw.random(80) < 0.3
    old = np.round(draw.normal(right * 0.5, 0.4), 1)
    new = np.round(draw.normal(right * 0.8 + 0.2, 0.5), 1)  # rounded, so that many are equal
    cut = float(np.quantile(old, 0.7))
    of = carried("kettle", cut, old, new, right)
    precision, recall = rates(old, right, cut)
    fitting = [t for t in np.unique(new) if rates(new, right, t)[0] >= precision]
    assert of.new == (min(fitting) if fitting else None)
    assert of.precision[0] == pytest.approx(precision)
    assert of.recall[0] == pytest.approx(recall)
    if of.new is not None:
        assert (of.precision[1], of.recall[1]) == pytest.approx(rates(new, right, of.new))


def test_an_unchanged_model_keeps_precision_and_at_least_its_recall() -> None:
    scores, right = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True])
    of = carried("a", 0.75, scores, scores, right)
    assert of.new == 0.8
    assert of.recall[1] >= of.recall[0]


def test_what_cannot_be_carried_over_says_why() -> None:
    scores, right = np.array([0.9, 0.1]), np.array([True, False])
    assert "no measured image" in carried("a", 0.5, scores, scores, np.array([False, False])).note
    assert "no image reached" in carried("a", 0.95, scores, scores, right).note
    assert "as precise" in carried("a", 0.5, scores, -scores, right).note


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "one class"),
        ("{}", "one class"),
        ("no", "JSON"),
        ("[" * 100_000, "JSON"),
        ('{"a": 2}', "'a'"),
        ('{"a": true}', "'a'"),
        ('{"kettle": 0.2, "pot": 0.1, "kettle": 0.3}', "the class 'kettle' is there twice"),
    ],
    ids=[
        "list",
        "nothing",
        "text",
        "deep",
        "large",
        "bool",
        "twice",
    ],
)
def test_what_is_no_file_of_thresholds_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "cuts.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_thresholds(path)
    path.write_text('{"kettle": 0.25}')
    assert read_thresholds(path) == {"kettle": 0.25}
