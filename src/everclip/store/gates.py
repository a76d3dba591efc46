"""The gates of an update: each passes, fails, or cannot tell and says how many more images would."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from PIL import Image

from everclip.diagnosis.records import Diagnosis
from everclip.evaluation.statistics import wilson
from everclip.features.encoding import measuring
from everclip.learner.core import Learner
from everclip.report import formats
from everclip.store.records import Gate, GateLimits, GateState

_TIMED, _ROUNDS = 16, 20  # images of a batch that is timed, and how often


def gates_of(found: Diagnosis, limits: GateLimits, old: Learner, new: Learner) -> list[Gate]:
    """Judge an update by the diagnosis of both models.

    Args:
        found: compares the version that serves with the candidate.
        limits: the conditions; gates that are turned off are left out.
        old, new: both models, for time and size.
    """
    judges: tuple[Callable[[], Gate | None], ...] = (
        lambda: _retention(found, limits.retention),
        lambda: _gain(found, limits.gain),
        lambda: _flips(found, limits.negative_flips),
        lambda: _pair_angle(found, limits.pair_angle),
        lambda: _latency(limits.latency, old, new),
        lambda: _size(limits.size, old, new),
    )
    return [gate for judge in judges if (gate := judge()) is not None]


def passed(gates: Sequence[Gate], unclear: bool) -> bool:
    """Whether an update may serve.

    Args:
        gates: their results.
        unclear: whether gates that cannot tell, or were not measured, count as passed.
    """
    good = {"pass", "cannot tell", "not measured"} if unclear else {"pass"}
    return all(gate.state in good for gate in gates)


def _retention(found: Diagnosis, limit: float | None) -> Gate | None:
    if limit is None:
        return None
    verdict = found.verdict
    states: dict[str, GateState] = {
        "safe": "pass",
        "unchanged": "pass",
        "unsafe": "fail",
        "unclear": "cannot tell",
    }
    if verdict.kept is None:
        return Gate(
            name="retention",
            state="not measured",
            limit=limit,
            reason="no probe suite and no held-out data of earlier updates: `everclip init --probe DATA` gives one",
        )
    change = verdict.kept.change
    reason = verdict.sentence.split(". ", 1)[0]
    if verdict.more_items is not None and verdict.state == "unclear":
        reason += f" (about {max(1, math.ceil((verdict.more_items - 1) * verdict.kept.items)):,} more images)"
    return Gate(
        name="retention",
        state=states[verdict.state],
        value=-change.value + 0.0,
        low=None if change.high is None else -change.high,
        high=None if change.low is None else -change.low,
        limit=limit,
        reason=reason,
    )


def _gain(found: Diagnosis, limit: float | None) -> Gate | None:
    pair = found.verdict.new
    if limit is None:
        return None
    if pair is None:
        return Gate(name="gain", state="not measured", limit=limit, reason="no held-out rows of the new data")
    change = pair.change
    low, high = change.low or 0.0, change.high or 0.0
    state: GateState = "cannot tell"
    if low >= limit and change.resolved:
        state = "pass"
    elif high < limit or change.nothing:
        state = "fail"
    needed = ""
    if state == "cannot tell" and (distance := abs(change.value - limit)) > 0:
        factor = ((high - low) / 2 / distance) ** 2
        if 1 < factor < 100:
            needed = f"; about {math.ceil((factor - 1) * pair.items):,} more images would decide"
    return Gate(
        name="gain",
        state=state,
        value=change.value,
        low=change.low,
        high=change.high,
        limit=limit,
        reason=f"new data change by {formats.points(change.value)} points "
        f"({formats.span(change.low, change.high, 1)}); at least {formats.points(limit)} expected{needed}",
    )


def _flips(found: Diagnosis, limit: float | None) -> Gate | None:
    if limit is None:
        return None
    counted = [s.flips[0] for s in found.sets if s.role == "kept" and s.flips]
    items = sum(flip.items for flip in counted)
    if not items:
        return Gate(
            name="negative flips", state="not measured", limit=limit, reason="nothing known is measured"
        )
    lost = round(sum(flip.negative.value * flip.items for flip in counted))
    interval = wilson(lost, items, found.confidence)
    state: GateState = "cannot tell"
    if interval.high <= limit:
        state = "pass"
    elif interval.low > limit:
        state = "fail"
    return Gate(
        name="negative flips",
        state=state,
        value=lost / items,
        low=interval.low,
        high=interval.high,
        limit=limit,
        reason=f"{lost:,} of {items:,} known items were right and are wrong now "
        f"({formats.span(interval.low, interval.high, 1)} %); at most {formats.percent(limit)} allowed",
    )


def _pair_angle(found: Diagnosis, limit: float | None) -> Gate | None:
    if limit is None:
        return None
    angles = [
        v.new for s in found.sets for v in s.space if v.name == "pair_angle_change_deg" and v.new is not None
    ]
    if not angles:
        return Gate(
            name="pair angle", state="not measured", limit=limit, reason="no embeddings were compared"
        )
    worst = max(angles)
    return Gate(
        name="pair angle",
        state="pass" if worst <= limit else "fail",
        value=worst,
        limit=limit,
        reason=f"images and their texts turn apart by {worst:.1f} degrees at most; {limit:g} allowed",
    )


def _latency(limit: float | None, old: Learner, new: Learner) -> Gate | None:
    if limit is None:
        return None
    if old.method.structure() == new.method.structure() and _shapes(old) == _shapes(new):
        return Gate(
            name="latency", state="pass", value=1.0, limit=limit, reason="both compute the same operations"
        )
    times = _seconds(old, new)
    # Other work on the machine only ever adds time, so the fastest round tells most about the model.
    factor = min(times[1]) / min(times[0])
    return Gate(
        name="latency",
        state="pass" if factor <= limit else "fail",
        value=factor,
        limit=limit,
        reason=f"an image takes {factor:.2f} times as long (fastest of {_ROUNDS} rounds in turns); {limit:g} allowed",
    )


def _shapes(learner: Learner) -> dict[str, tuple[int, ...]]:
    return {name: tuple(values.shape) for name, values in learner.method.state_dict().items()}


def _seconds(old: Learner, new: Learner) -> tuple[list[float], list[float]]:
    """Return how long both take for a batch of images, measured in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for round_ in range(_ROUNDS + 1):
        for learner, seconds in zip((old, new), times, strict=True):
            pixel = learner.method.backbone.preprocess(Image.new("RGB", (224, 224)))
            pixels = pixel.expand(_TIMED, *pixel.shape).to(learner.accelerator.device)
            with measuring(learner.method):
                started = time.perf_counter()
                learner.method.encode_images(pixels)
            if round_:  # the first one warms up
                seconds.append(time.perf_counter() - started)
    return times


def _size(limit: float | None, old: Learner, new: Learner) -> Gate | None:
    if limit is None:
        return None
    counts = [sum(p.numel() for p in learner.method.parameters()) for learner in (old, new)]
    factor = counts[1] / counts[0]
    return Gate(
        name="size",
        state="pass" if factor <= limit else "fail",
        value=factor,
        limit=limit,
        reason=f"{counts[1]:,} parameters, {factor:.2f} times as many as before; {limit:g} allowed",
    )
