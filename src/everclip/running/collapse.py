"""Detects a wrecked model: scores that were clearly above chance before training are at chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from everclip.evaluation.headline import DEFAULT_METRIC, NEVER_TASKS
from everclip.evaluation.results import Row
from everclip.learner.core import Learner
from everclip.running.run_state import RunState
from everclip.scenarios.base import ListScenario

COLLAPSED = "collapsed"
"""Kind of the event in the results."""


def collapse(scenario: ListScenario, state: RunState, learner: Learner) -> str | None:
    """Return a message on sets that fell from clearly above chance to chance; `None` if none did, or it was reported.

    Args:
        scenario: gives the evaluation sets and their label spaces.
        state: gives the rows and the events of the run.
        learner: gives the learned tasks and the learning rate.
    """
    if any(event["kind"] == COLLAPSED and event["row"] == len(state.rows) for event in state.events):
        return None
    rows, learned = [Row(**row) for row in state.rows], learner.learned
    rate = learner.training.lr * learner.method.lr_scale
    fallen: list[str] = []
    sizes: dict[tuple[str, ...], int] = {}
    for s in scenario.eval_sets if len(rows) > 1 else ():
        for protocol in scenario.protocols:
            chance = _chance(scenario, s, learned, protocol, sizes)
            fall = None if chance is None else _fall(rows, s.name, protocol.name, chance)
            if fall is not None:
                fallen.append(f"{s.name} ({fall})")
                break
    if not fallen:
        return None
    more = f" and {len(fallen) - 4} more" if len(fallen) > 4 else ""
    return (
        f"after training, {', '.join(fallen[:4])}{more}: scores that were clearly above chance are now at chance: "
        f"{_cause(learner.method.describe().trainable_parameters, rate)}; then run with a new output"
    )


def _cause(trained: int, rate: float) -> str:
    """Return why the scores fell and what to do; a method without trained parameters uses no learning rate."""
    if not trained:
        return (
            "no weights were trained, so what was learned takes their right answers. Use another method (everclip "
            "suggest tries some; with `base`, it scores what was known, too)"
        )
    return (
        f"training wrecked the model. Lower training.lr (it was {rate:g}; everclip suggest measures one), lengthen "
        "training.warmup, train fewer parts (method.trainable), or use method=safe"
    )


def _chance(
    scenario: ListScenario, s: Any, learned: set[int], protocol: Any, sizes: dict[tuple[str, ...], int]
) -> float | None:
    """Return the score of guessing; `None` without a choice. `sizes` caches the number of captions per pool."""
    if s.kind in NEVER_TASKS:
        return None  # every model may answer few of them, also before training
    if s.kind == "retrieval":
        pool = scenario.pool(s, learned, protocol) or ()
        names = tuple(p.name for p in pool)
        if names not in sizes:
            sizes[names] = len({c for p in pool for c in p.data.column("caption")})
        answers = sizes[names]
    else:
        space = scenario.label_space(s, learned, protocol)
        answers = 0 if space is None else len(space.entries)
    return 1 / answers if answers > 1 else None


def _fall(rows: Sequence[Row], name: str, protocol: str, chance: float) -> str | None:
    """Return the fall in words if a set is at chance now and was clearly better before."""
    cells = [row.scores.get(name, {}).get(protocol, {}) for row in (rows[0], rows[-1])]
    metric = next((m for m in DEFAULT_METRIC.values() if all(m in cell for cell in cells)), None)
    if metric is None:
        return None
    before, now = (cell[metric] for cell in cells)
    if before.value is None or now.value is None or before.low is None or now.low is None:
        return None
    # A small set may never be clearly above chance; then a clear fall counts.
    clear = before.low > chance or (now.high is not None and now.high < before.low)
    if not clear or now.low > chance or now.value >= before.value:
        return None
    # At chance within its interval, but still half as good as before: that is forgetting, not collapse.
    if now.value > max(2 * chance, before.value / 2):
        return None
    return f"{100 * before.value:.1f} % -> {100 * now.value:.1f} %, chance {100 * chance:.1f} %"
