"""Format the free-form `cost` of a result for reading: counts, bytes, energy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everclip.evaluation.metrics.cost import is_number, stage_name
from everclip.report import formats

_UNITS = {"wh": "Wh", "kwh": "kWh", "joules": "J", "watts": "W", "percent": "%"}


def facts(cost: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return all costs except seconds, as (name, readable value)."""
    flat = [
        (name, value) for name, value in _flatten(cost) if not name.startswith(("seconds", "total seconds"))
    ]
    flat = [(name, value) for name, value in flat if not stage_name(name.replace(" ", "_"))]
    return [(_without_unit(name), _readable(name, value)) for name, value in flat]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    items: list[tuple[str, Any]] = []
    for key, value in tree.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        items += _flatten(value, f"{name}: ") if isinstance(value, Mapping) else [(name, value)]
    return items


def _readable(name: str, value: Any) -> str:
    if value is None:
        return formats.NOT_DEFINED
    if not is_number(value):
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
