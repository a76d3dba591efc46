"""Whether training wrecked the model: what it could do before is down to chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from everclip.evaluation.headline import OWN
from everclip.evaluation.results import Row
from everclip.learner.core import Learner
from everclip.running.place import Place
from everclip.scenarios.base import ListScenario

COLLAPSED = "collapsed"
"""The kind of the event."""


def collapse(scenario: ListScenario, place: Place, learner: Learner) -> str | None:
    """Say which sets fell from clearly above chance to chance, and what to do; `None` if none did, or it was said.

    Args:
        scenario: its evaluation sets, and how many answers each offers.
        place: the run's rows, from the one before training to the last, and its events.
        learner: what it learned, and at which rate.
    """
    if any(event["kind"] == COLLAPSED and event["row"] == len(place.rows) for event in place.events):
        return None
    rows, learned = [Row(**row) for row in place.rows], learner.learned
    rate = learner.training.lr * learner.method.lr_scale
    found: list[str] = []
    sizes: dict[tuple[str, ...], int] = {}
    for s in scenario.eval_sets if len(rows) > 1 else ():
        for protocol in scenario.protocols:
            chance = _chance(scenario, s, learned, protocol, sizes)
            fall = None if chance is None else _fall(rows, s.name, protocol.name, chance)
            if fall is not None:
                found.append(f"{s.name} ({fall})")
                break
    if not found:
        return None
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return (
        f"after training, {', '.join(found[:4])}{more}: what the model could do before is down to chance, so it is "
        f"wrecked rather than trained. Lower training.lr (it was {rate:g}; everclip suggest measures one), lengthen "
        "training.warmup, train fewer parts (method.trainable), or take method=safe; then run with a new output"
    )


def _chance(
    scenario: ListScenario, s: Any, learned: set[int], protocol: Any, sizes: dict[tuple[str, ...], int]
) -> float | None:
    """Return the score of guessing, `None` where nothing is offered; `sizes` keeps the captions of each pool."""
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
    """Return the fall in words where a set lies at chance now and was clearly better before."""
    cells = [row.scores.get(name, {}).get(protocol, {}) for row in (rows[0], rows[-1])]
    metric = next((m for m in OWN.values() if all(m in cell for cell in cells)), None)
    if metric is None:
        return None
    before, now = (cell[metric] for cell in cells)
    if before.value is None or now.value is None or before.low is None or now.low is None:
        return None
    # A small set that was not clearly above chance says something, too, once it lies clearly below what it was.
    clear = before.low > chance or (now.high is not None and now.high < before.low)
    if not clear or now.low > chance or now.value >= before.value:
        return None
    # A set may lie at chance within its interval and still be half as good as before: that is forgetting.
    if now.value > max(2 * chance, before.value / 2):
        return None
    return f"{100 * before.value:.1f} % -> {100 * now.value:.1f} %, chance {100 * chance:.1f} %"
