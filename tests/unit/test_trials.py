"""Trials of presets on held-out images: what is learned and scored are apart, and the better one is proposed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rail_fixtures import pictures

from everclip.config import MethodConfig, TrainingConfig
from everclip.learner import Learner
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone
from everclip.suggest import trials
from everclip.suggest.suggestion import _why_closed_form
from everclip.suggest.trials import Trial, better, divide, try_method
from micro import of_classes


def trial(change: float, low: float, high: float) -> Trial:
    return Trial("any", 0.4, 0.4 + change, change, low, high, low > 0 or high < 0, 100, 1.0)


def test_no_image_is_both_learned_and_scored(micro_folder: Path) -> None:
    task = of_classes(pictures(micro_folder), 0, *range(6))
    task = replace(task, train=task.train.select([*range(len(task.train)), 0, 1, 2]))  # three images twice
    divided = divide(task)
    assert divided is not None
    learned, scored = divided
    assert not set(learned.train.identities()) & set(scored.identities())
    assert len(learned.train) + len(scored) == len(task.train)
    assert learned.classes == task.classes
    assert learned.val is None


def test_too_few_images_tell_nothing(micro_folder: Path) -> None:
    assert divide(of_classes(pictures(micro_folder), 0, 0, 1)) is None


def test_a_trial_is_bounded(micro_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "FEWEST", 2)
    monkeypatch.setattr(trials, "LEARNED", 30)
    monkeypatch.setattr(trials, "SCORED", 10)
    divided = divide(of_classes(pictures(micro_folder), 0, *range(6)))
    assert divided is not None
    assert (len(divided[0].train), len(divided[1])) == (30, 10)


def test_the_closed_form_learns_and_leaves_the_start_model_alone(
    micro_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "FEWEST", 5)
    divided = divide(of_classes(pictures(micro_folder), 0, *range(6)))
    assert divided is not None

    def learner() -> Learner:
        method = build_method(
            MethodConfig(name="rail", settings={"fusion": 1.0}), load_backbone(str(micro_folder / "model"))
        )
        return Learner(method, TrainingConfig(steps=1, batch_size=8, device="cpu"))

    first = learner()
    found = try_method(first, *divided)
    assert found.method == "rail"
    assert found.after > found.before  # the images of a class have a colour of their own
    assert found.change == pytest.approx(found.after - found.before)
    assert found.low <= found.change <= found.high
    assert found.images == len(divided[1])
    assert first.learned == {0}
    assert "points" in found.describe()
    again = try_method(learner(), *divided)
    assert replace(again, seconds=0.0) == replace(found, seconds=0.0)


def test_a_short_trial_is_no_comparison_and_the_reason_says_so() -> None:
    closed = trial(0.10, 0.05, 0.15)
    short = replace(trial(0.0, -0.01, 0.01), method="safe", steps=17, planned=250)
    whole = replace(short, steps=250)
    assert (short.short, whole.short, closed.short) == (True, False, False)
    assert "safe took 17 of its 250 steps only" in _why_closed_form([closed, short])
    assert "only" not in _why_closed_form([closed, whole])


@pytest.mark.parametrize(
    ("closed", "trained", "proposed"),
    [
        (trial(0.10, 0.05, 0.15), trial(0.03, -0.01, 0.07), True),
        (trial(0.10, 0.05, 0.15), None, True),
        (trial(0.10, 0.05, 0.15), trial(0.12, 0.06, 0.18), False),
        (trial(0.02, -0.02, 0.06), None, False),
        (trial(-0.10, -0.15, -0.05), trial(-0.2, -0.3, -0.1), False),
    ],
)
def test_the_closed_form_is_proposed_only_for_a_resolved_gain_that_is_not_the_smaller(
    closed: Trial, trained: Trial | None, proposed: bool
) -> None:
    assert better(closed, trained) is proposed
