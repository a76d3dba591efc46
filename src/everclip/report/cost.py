"""What a run cost, read from the free-form `cost` of a result: seconds by stage, counts, bytes, energy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everclip.report import formats

_TOTALS = ("total", "wall", "run")
_UNITS = {"wh": "Wh", "kwh": "kWh", "joules": "J", "watts": "W", "percent": "%"}


def stages(cost: Mapping[str, Any]) -> dict[str, float]:
    """Return seconds by stage, longest first; empty where a result holds only a total."""
    found: dict[str, float] = {}
    for key, value in cost.items():
        if key == "seconds" and isinstance(value, Mapping):
            found |= {str(k): float(v) for k, v in value.items() if _number(v) and k not in _TOTALS}
        elif _number(value) and _stage_name(key):
            found[_stage_name(key)] = float(value)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def total_seconds(cost: Mapping[str, Any]) -> float | None:
    """Return the seconds of the whole run: what it says itself, else the sum of its stages."""
    given = cost.get("seconds")
    if isinstance(given, Mapping):
        given = next((given[key] for key in _TOTALS if _number(given.get(key))), None)
    for value in (given, *(cost.get(key) for key in ("total_seconds", "seconds_total", "wall_seconds"))):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    parts = stages(cost)
    return sum(parts.values()) if parts else None


def facts(cost: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return everything but the seconds as (name, readable value)."""
    flat = [
        (name, value) for name, value in _flatten(cost) if not name.startswith(("seconds", "total seconds"))
    ]
    flat = [(name, value) for name, value in flat if not _stage_name(name.replace(" ", "_"))]
    return [(_without_unit(name), _readable(name, value)) for name, value in flat]


def _stage_name(key: str) -> str:
    """`train_seconds` and `seconds_train` are the stage `train`; anything else is none."""
    for name in (key.removesuffix("_seconds"), key.removeprefix("seconds_")):
        if name != key:
            return "" if name in _TOTALS else name.replace("_", " ")
    return ""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    items: list[tuple[str, Any]] = []
    for key, value in tree.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        items += _flatten(value, f"{name}: ") if isinstance(value, Mapping) else [(name, value)]
    return items


def _readable(name: str, value: Any) -> str:
    if value is None:
        return formats.NOT_DEFINED
    if not _number(value):
        return str(value)
    last = name.split()[-1] if name.split() else ""
    if last == "longest":  # of the checkpoints
        return formats.seconds(value)
    if "bytes" in name or last == "memory":
        return formats.size(value)
    return f"{formats.count(value)} {_UNITS.get(last, '')}".strip()


def _without_unit(name: str) -> str:
    words = name.split()
    return " ".join(words[:-1]) if len(words) > 1 and words[-1] in _UNITS else name
