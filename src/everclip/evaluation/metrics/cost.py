"""Metrics of what a run cost. A function takes the field `cost` of a result and returns a number or `None`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everclip.metrics import metric

TOTALS = ("total", "wall", "run")
"""What the seconds of the whole run may be called."""


@metric(
    "seconds",
    kind="cost",
    label="Seconds",
    meaning="Wall clock of the whole run, all sessions together.",
    formula="Σ seconds of the stages, or the total that the run states",
    unit="seconds",
    higher_is_better=False,
)
def seconds(cost: Mapping[str, Any]) -> float | None:
    """What the run says itself, else the sum of its stages."""
    given = cost.get("seconds")
    if isinstance(given, Mapping):
        given = next((given[key] for key in TOTALS if is_number(given.get(key))), None)
    for value in (given, *(cost.get(key) for key in ("total_seconds", "seconds_total", "wall_seconds"))):
        if value is not None and is_number(value):
            return float(value)
    parts = stages(cost)
    return sum(parts.values()) if parts else None


def stages(cost: Mapping[str, Any]) -> dict[str, float]:
    """Return seconds by stage, longest first; empty where a result holds only a total."""
    found: dict[str, float] = {}
    for key, value in cost.items():
        if key == "seconds" and isinstance(value, Mapping):
            found |= {str(k): float(v) for k, v in value.items() if is_number(v) and k not in TOTALS}
        elif is_number(value) and stage_name(key):
            found[stage_name(key)] = float(value)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def stage_name(key: str) -> str:
    """`train_seconds` and `seconds_train` are the stage `train`; anything else is none."""
    for name in (key.removesuffix("_seconds"), key.removeprefix("seconds_")):
        if name != key:
            return "" if name in TOTALS else name.replace("_", " ")
    return ""


def is_number(value: Any) -> bool:
    """Whether a value of a free-form cost is a number; a flag is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
