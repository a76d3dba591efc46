"""How `same_results.py` compares: a short summary of a run, and the differences between two of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]

HEAD = (
    "schema_version", "status", "benchmark", "title", "summary", "backbone", "seed", "protocols", "headline", "tasks",
    "columns",
)  # fmt: skip
"""What a result says of the run before its first number; one part of a summary."""

LOSSES = 4
"""Values of each loss in a summary, the last ones."""

DIGITS = 5
"""Significant digits of the numbers in a summary; the hashes are of all digits."""


@dataclass(frozen=True)
class Tolerance:
    """How far two numbers may lie apart: `absolute + relative * the larger one`."""

    relative: float
    absolute: float

    def holds(self, before: float, now: float) -> bool:
        """Whether two numbers are equal as far as rounding allows."""
        return abs(before - now) <= self.absolute + self.relative * max(abs(before), abs(now))

    def __str__(self) -> str:
        return f"{self.absolute:g} + {self.relative:g} of the value"


TOLERANCES = {
    "losses": Tolerance(1e-2, 5e-3),
    "weights": Tolerance(1e-3, 1e-2),
    "": Tolerance(0.0, 0.35),
}
"""Part -> what rounding may change on another processor; "" = shares, where one picture may change sides."""


@dataclass(frozen=True)
class Difference:
    """A place in a record where two runs differ; `None` in words where one of them has no such key."""

    path: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.path}: {self.before} -> {self.now}"


ABSENT = "(absent)"


# -- summary --------------------------------------------------------------------------------------------------


def summary(record: Record) -> Record:
    """Return what the baseline keeps of a record: hashes of its parts, and the numbers that explain a difference.

    A hash of a part is two: the first is of keys, words and kinds of values, which are the same on every machine; the
    second is of all of it, to the last bit.
    """
    if "refused" in record or "crash" in record:
        return {key: record[key] for key in ("refused", "crash", "plan") if key in record}
    alone = ("describe", "rows", *HEAD)
    parts = {"head": {key: record.get(key) for key in HEAD}}
    parts |= {key: value for key, value in record.items() if key not in alone}
    parts |= {f"row {number}": row for number, row in enumerate(record.get("rows", []))}
    numbers = {
        "describe": record.get("describe") or {},
        "matrix": record.get("matrix", {}).get("values"),
        "metrics": {name: value for name, value in record.get("metrics", {}).items() if value is not None},
        "losses": {name: _last(v) for name, v in record.get("losses", {}).items() if name not in _COUNTS},
        "weights": _grouped(record.get("weights", {})),
    }
    return {
        "parts": {key: f"{_hash(_form(v, key))} {_hash(v)}" for key, v in parts.items()},
        **shortened(numbers),
    }


_COUNTS = ("task", "phase", "step", "lr", "grad_norm")


def _last(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None][-LOSSES:]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _form(value: Any, key: str = "") -> Any:
    """Return a document with a mark in place of every number; hashes and the answers about pictures are left out."""
    if key in ("answers", "hash", "towers", "towers_before", "data"):
        return None
    if key == "message":
        return re.sub(r"\d[\d.]*", "number", value)
    if key == "state":  # which samples are kept may hang on a rounded distance
        return _names(value)
    if isinstance(value, Mapping):
        return {name: _form(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [_form(part) for part in value]
    return "number" if isinstance(value, int | float) else value


def _names(value: Any) -> Any:
    """Return the keys of a document, and nothing of its values."""
    return {name: _names(part) for name, part in value.items()} if isinstance(value, Mapping) else None


def _grouped(weights: Mapping[str, Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return how many tensors each group has, their length and wave; the first three words of a name are its group."""
    groups: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for name, found in weights.items():
        groups[".".join(name.split(".")[:3])].append(found)
    return {
        name: [len(found), sum(one["length"] ** 2 for one in found) ** 0.5, sum(one["wave"] for one in found)]
        for name, found in groups.items()
    }


def shortened(value: Any) -> Any:
    """Return a document whose numbers have a few significant digits."""
    if isinstance(value, Mapping):
        return {name: shortened(part) for name, part in value.items()}
    if isinstance(value, list):
        return [shortened(part) for part in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


# -- comparison -----------------------------------------------------------------------------------------------


def differences(
    before: Any, now: Any, tolerances: Mapping[str, Tolerance] | None = None, path: str = ""
) -> list[Difference]:
    """Return where two documents differ.

    Args:
        before: a document.
        now: another one.
        tolerances: first key of a path -> how far numbers may lie apart there ("" = anywhere else); `None` = not at
            all, and not in the type either.
        path: where the documents stand in a larger one.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = [*before, *(name for name in now if name not in before)]
        return [
            found
            for name in names
            for found in differences(
                before.get(name, ABSENT),
                now.get(name, ABSENT),
                tolerances,
                f"{path}.{name}" if path else name,
            )
        ]
    if isinstance(before, list) and isinstance(now, list):
        found = [
            one
            for index, pair in enumerate(zip(before, now, strict=False))
            for one in differences(*pair, tolerances, f"{path}.{index}")
        ]
        if len(before) != len(now):
            found.append(Difference(f"{path} (number of entries)", str(len(before)), str(len(now))))
        return found
    if _equal(before, now, tolerances, path):
        return []
    return [Difference(path, _words(before), _words(now))]


def _equal(before: Any, now: Any, tolerances: Mapping[str, Tolerance] | None, path: str) -> bool:
    if tolerances is None or not (_is_number(before) and _is_number(now)):
        return type(before) is type(now) and bool(before == now)
    tolerance = tolerances.get(path.partition(".")[0], tolerances[""])
    return tolerance.holds(before, now)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _words(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 160 else f"{text[:150]}... ({len(text)} characters)"


def compared(before: Record, now: Record, exact: bool, details: Record | None = None) -> list[Difference]:
    """Return where a run differs from its summary in the baseline.

    Args:
        before: the summary in the baseline.
        now: the record of the run.
        exact: whether every bit counts; else numbers may differ as far as rounding on another processor allows.
        details: the whole record behind `before`, where it is at hand: it names values that `before` has as hashes.
    """
    if not exact:
        return differences(_without_exact(before), _without_exact(summary(now)), TOLERANCES)
    new = summary(now)
    found = differences(before, new)
    if found and details is not None and not differences(before, summary(details)):
        return differences(details, now)
    return found


def _without_exact(found: Record) -> Record:
    return found | {
        "parts": {name: hashes.partition(" ")[0] for name, hashes in found.get("parts", {}).items()}
    }


# -- file -----------------------------------------------------------------------------------------------------

PACKED = ("parts", "describe", "metrics", "losses", "weights")
"""Parts of a summary whose keys are those of many runs; a file holds each set of keys once."""


def packed(runs: Mapping[str, Record]) -> tuple[list[list[str]], dict[str, Record]]:
    """Return the sets of keys, and runs whose parts are `[number of the set, values...]`."""
    sets: dict[tuple[str, ...], int] = {}

    def values(key: str, part: Any) -> Any:
        if key not in PACKED:
            return part
        number = sets.setdefault(tuple(sorted(part)), len(sets))
        return [number, *(part[name] for name in sorted(part))]

    small = {run: {key: values(key, part) for key, part in found.items()} for run, found in runs.items()}
    return [list(names) for names in sets], small


def unpacked(sets: list[list[str]], runs: Mapping[str, Record]) -> dict[str, Record]:
    """Return the runs that `packed` made small."""
    return {
        run: {
            key: dict(zip(sets[part[0]], part[1:], strict=True)) if key in PACKED else part
            for key, part in found.items()
        }
        for run, found in runs.items()
    }
