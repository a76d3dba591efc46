"""Metrics of what a run cost. A function takes the field `cost` of a result and returns a number or `None`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everclip.metrics import metric

TOTALS = ("total", "wall", "run")
"""Names that the seconds of the whole run may have."""


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
    """Return the total that the run states, else the sum of its stages."""
    total = cost.get("seconds")
    if isinstance(total, Mapping):
        total = next((total[key] for key in TOTALS if is_number(total.get(key))), None)
    for value in (total, *(cost.get(key) for key in ("total_seconds", "seconds_total", "wall_seconds"))):
        if value is not None and is_number(value):
            return float(value)
    parts = stages(cost)
    return sum(parts.values()) if parts else None


def stages(cost: Mapping[str, Any]) -> dict[str, float]:
    """Return seconds by stage, longest first; empty if a result holds only a total."""
    by_stage: dict[str, float] = {}
    for key, value in cost.items():
        if key == "seconds" and isinstance(value, Mapping):
            by_stage |= {str(k): float(v) for k, v in value.items() if is_number(v) and k not in TOTALS}
        elif is_number(value) and stage_name(key):
            by_stage[stage_name(key)] = float(value)
    return dict(sorted(by_stage.items(), key=lambda item: -item[1]))


def stage_name(key: str) -> str:
    """Return the stage in a key: `train` for `train_seconds` and `seconds_train`; empty for other keys."""
    for name in (key.removesuffix("_seconds"), key.removeprefix("seconds_")):
        if name != key:
            return "" if name in TOTALS else name.replace("_", " ")
    return ""


def is_number(value: Any) -> bool:
    """Whether a value of a free-form cost is a number; a boolean is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
