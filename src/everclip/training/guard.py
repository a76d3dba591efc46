"""The retention guard: measure validation data while a task trains, and act if the model forgets too much.

It measures the validation twins of the retention suite, never the suite itself, whose scores are in the results.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from everclip.config import GuardConfig
from everclip.contracts import EvalSet
from everclip.distributed import from_first
from everclip.errors import ConfigError, did_you_mean
from everclip.evaluation.statistics import wilson
from everclip.evaluation.validation import set_score
from everclip.features.service import FeatureService
from everclip.interfaces import Guarded, WatchedScenario
from everclip.training.schedules import resolve

HALVINGS = 5
"""Number of halvings in the search for the largest good share, which is then exact to 1/32."""

Scores = dict[str, float]
Weights = dict[str, torch.Tensor]


def watchable(scenario: WatchedScenario) -> list[EvalSet]:
    """Return the sets that a guard may measure: the validation twins of the retention suite, else those of the base."""
    if scenario.retention_val or scenario.base_val is None or not len(scenario.base_val):
        return list(scenario.retention_val)
    return [replace(s, data=scenario.base_val) for s in scenario.eval_sets if s.group == "known"][:1]


def _log(kind: str, message: str) -> None:
    logging.getLogger("everclip").warning("%s: %s", kind, message)


@dataclass(frozen=True)
class _Verdict:
    """What fell too far, a set or the mean of all, and by how many points."""

    fallen: str
    drop: float


class Guard:
    """Limit the drop of scores on watched sets while tasks are learned.

    Args:
        config: the limit, and the action beyond it.
        sets: the available sets: validation twins of the retention suite.
        features: encodes.

    Attributes:
        tell: called with kind and text of notes for readers of the results; default: the log.
        seconds: seconds spent on measurements, since `take_seconds` was last called.

    Raises:
        ConfigError: if `guard.sets` names an unknown set, or `guard.max_drop` is not set.
    """

    def __init__(self, config: GuardConfig, sets: Sequence[EvalSet], features: FeatureService) -> None:
        if config.max_drop is None:
            raise ConfigError("guard.max_drop: not set; set the largest allowed drop in points, such as 1.")
        self._limit = config.max_drop
        known = [s.name for s in sets]
        for name in config.sets:
            if name not in known:
                hint = did_you_mean(name, known) if known else " There are no sets to watch."
                raise ConfigError(f"guard.sets: {name!r} is not a set that can be watched.{hint}")
        self.config, self._features = config, features
        self._sets = [s for s in sets if not config.sets or s.name in config.sets]
        self.tell: Callable[[str, str], None] = _log
        self.seconds = 0.0
        self._before: dict[str, dict[str, Any]] = {}
        self._noted_idle = False
        self._good: Weights | None = None
        self._good_at = 0
        self._clear()

    def _clear(self) -> None:
        self.stopped = False
        self._looks, self._last, self._acted = 0, Scores(), list[dict[str, Any]]()

    @property
    def sets(self) -> tuple[EvalSet, ...]:
        """The watched sets."""
        return tuple(self._sets)

    @property
    def _of_mean(self) -> bool:
        """Whether the limit is on a mean; that of one set is the set."""
        return self.config.over == "mean" and len(self._sets) > 1

    # -- a task ---------------------------------------------------------------------------------------------------

    def begin_task(self, method: Guarded, learned: int) -> None:
        """Measure the reference scores of new sets, and store the weights, before the task is learned.

        Args:
            method: the method before the task.
            learned: the number of tasks learned before.
        """
        self._clear()
        if not self._sets:
            if not self._noted_idle:
                self.tell(
                    "idle guard",
                    f"guard.max_drop={self._limit:g} is set, but there is nothing to watch: add a set with validation "
                    "images to `retention` (with its own `data`, or raise split.validation); in Python, pass sets to "
                    "`learner.watch`.",
                )
            self._noted_idle = True
            return
        started = time.monotonic()
        new = [s for s in self._sets if self._before.get(s.name, {}).get("data") != s.data.fingerprint]
        if new:
            self._measure_before(method, new, learned)
        self._good, self._good_at = method.weights(), 0
        self.seconds += time.monotonic() - started

    def due(self, done: int, steps: int) -> bool:
        """Return whether a measurement is due after `done` of `steps` steps."""
        if not self._sets or self.stopped or self.config.every is None:
            return False
        every = max(1, resolve(self.config.every, steps))
        return done % every == 0 or done == steps

    def look(self, method: Guarded, done: int, steps: int) -> bool:
        """Measure, and act if a set fell too far; return whether the task's training ends.

        Args:
            method: the method after `done` of `steps` steps; in evaluation mode afterwards.
        """
        started = time.monotonic()
        verdict = self._measure(method)
        if verdict is None:
            self._good, self._good_at = method.weights(), done
        else:
            self._act(method, verdict, f"after step {done} of {steps}", done)
            self.stopped = self.config.action == "stop"
        self.seconds += time.monotonic() - started
        return self.stopped

    def take_seconds(self) -> float:
        """Return the seconds spent on measurements since the last call."""
        spent, self.seconds = self.seconds, 0.0
        return spent

    def end_task(self, method: Guarded) -> dict[str, Any] | None:
        """Measure again after the merge, and return the note of the row; `None` without watched sets."""
        if not self._sets:
            return None
        started = time.monotonic()
        verdict = self._measure(method)
        if verdict is not None:
            self._act(method, verdict, "after the merge", None)
        self._good = None
        self.seconds += time.monotonic() - started
        return self._note()

    # -- measuring and acting -------------------------------------------------------------------------------------

    def _measure_before(self, method: Guarded, sets: Sequence[EvalSet], learned: int) -> None:
        for s in sets:
            value, n = from_first(set_score(method, s, self._features))
            interval = wilson(round(value * n), n)
            margin = round(50 * (interval.high - interval.low), 2)
            self._before[s.name] = {"value": value, "n": n, "margin": margin, "data": s.data.fingerprint}
            if learned:
                self.tell(
                    "late guard",
                    f"{s.name}: compared with its score after {learned} tasks, because it was not watched before.",
                )
            if margin > self._limit and not self._of_mean:
                noise = (
                    f"{n} validation images: a share of {100 * value:.1f} % is only known to +-{margin:.1f} points, so "
                    f"a drop of {self._limit:g} points may be chance"
                )
                self._before[s.name]["noise"] = noise
                self.tell("noisy guard", f"{s.name}: {noise}")

        if self._of_mean:
            self._note_noise_of_mean()

    def _note_noise_of_mean(self) -> None:
        margins = [self._before[s.name]["margin"] for s in self._sets]
        margin = sum(m**2 for m in margins) ** 0.5 / len(margins)
        if margin > self._limit:
            images = sum(self._before[s.name]["n"] for s in self._sets)
            self.tell(
                "noisy guard",
                f"{images} validation images in {len(margins)} sets: their mean is only known to +-{margin:.1f} "
                f"points, so a drop of {self._limit:g} points may be chance",
            )

    def _scores(self, method: Guarded) -> Scores:
        # The scores of the first process: they may differ by rounding between processes, but decisions must not.
        keys = method.encoder_keys()
        return from_first({s.name: set_score(method, s, self._features, keys)[0] for s in self._sets})

    def _verdict(self, scores: Mapping[str, float]) -> _Verdict | None:
        drops = {name: 100 * (self._before[name]["value"] - value) for name, value in scores.items()}
        fallen = max(drops, key=lambda name: drops[name])
        drop = drops[fallen]
        if self._of_mean:
            fallen, drop = f"the mean of {len(drops)} sets", sum(drops.values()) / len(drops)
        return _Verdict(fallen, round(drop, 4)) if drop > self._limit + 1e-9 else None

    def _measure(self, method: Guarded) -> _Verdict | None:
        self._looks += 1
        self._last = self._scores(method)
        return self._verdict(self._last)

    def _act(self, method: Guarded, verdict: _Verdict, when: str, done: int | None) -> None:
        assert self._good is not None
        back = self.config.action == "step-back"
        share = self._step_back(method) if back else 0.0
        if not back:
            method.blend(self._good, method.weights(), 0.0)
            self._last = self._scores(method)
        note = {"when": when, "set": verdict.fallen, "points": verdict.drop, "share": share}
        self._acted.append(note)
        last_good = f"step {self._good_at}" if self._good_at else "the start of the task"
        action = (
            f"kept {100 * share:.0f} % of the way from {last_good}" if back else f"went back to {last_good}"
        )
        if self._verdict(self._last) is not None:
            action += ", which is beyond the limit too"
        if not back and done is not None:
            action += " and ended the task's training"
        self.tell(
            "guard",
            f"{when}: {verdict.fallen} fell by {verdict.drop:.1f} points (limit {self._limit:g}); {action}",
        )
        self._good = method.weights()
        self._good_at = self._good_at if done is None else done

    def _step_back(self, method: Guarded) -> float:
        """Interpolate from the last good weights as far as the limit allows; return the share of the new weights."""
        assert self._good is not None
        good, now = self._good, method.weights()
        low, high, at_low = 0.0, 1.0, None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            method.blend(good, now, middle)
            scores = self._scores(method)
            if self._verdict(scores) is None:
                low, at_low = middle, scores
            else:
                high = middle
        method.blend(good, now, low)
        self._last = at_low if at_low is not None else self._scores(method)
        return low

    def _note(self) -> dict[str, Any]:
        sets: dict[str, Any] = {}
        for name, before in self._before.items():
            if name in self._last:
                kept: dict[str, Any] = {key: before[key] for key in ("n", "margin", "noise") if key in before}
                sets[name] = {"before": round(before["value"], 6), "now": round(self._last[name], 6), **kept}
        limits = {"max_drop": self._limit, "over": self.config.over, "action": self.config.action}
        return {
            **limits,
            "looks": self._looks,
            "acted": list(self._acted),
            "stopped": self.stopped,
            "sets": sets,
        }

    # -- state ----------------------------------------------------------------------------------------------------

    def tensors(self) -> Weights:
        """Return the last good weights, inside a task."""
        return {} if self._good is None else dict(self._good)

    def state(self) -> dict[str, Any]:
        """Return the JSON that a checkpoint needs besides tensors."""
        return {
            "before": self._before,
            "told_idle": self._noted_idle,
            "good_at": self._good_at,
            "stopped": self.stopped,
            "looks": self._looks,
            "last": self._last,
            "acted": self._acted,
        }

    def restore(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Restore what `tensors` and `state` returned."""
        self._before = dict(state["before"])
        self._noted_idle, self._good_at = bool(state["told_idle"]), int(state["good_at"])
        self.stopped, self._looks = bool(state["stopped"]), int(state["looks"])
        self._last, self._acted = dict(state["last"]), list(state["acted"])
        self._good = dict(tensors) or None
