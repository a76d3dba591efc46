"""The registry of metrics: one record per metric, read by results, reports, comparisons and docs.

A metric is a function with the decorator `metric`; nothing else needs to be edited. Built-in metrics are in
`everclip.evaluation.metrics`. Other packages name their modules by an entry point in the group `everclip.metrics`. A
script imports its module before it runs, reports or compares.

This module imports nothing heavy, and modules that register metrics import torch inside their functions: reports and
comparisons only need the texts.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, Literal, TypeVar, get_args

from everclip.errors import ConfigError, did_you_mean

Kind = Literal["classification", "retrieval", "pairs", "multi-image", "stream", "space", "spaces", "cost"]
"""What a metric measures. This decides what its function takes and returns.

* `classification`, `retrieval`, `pairs`, `multi-image`: one evaluation set at one row (`classification.py`,
  `retrieval.py`, `pairs.py`, `multi_image.py`);
* `stream`: evaluation sets over the rows of a run (`matrix.py`, `sets.py`);
* `space`: the embeddings of images or texts, `spaces`: of both (`space.py`);
* `cost`: the cost of a run (`cost.py`).

The files are in `everclip.evaluation.metrics`; each says what its functions take.
"""

Unit = Literal["percent", "points", "ratio", "number", "degrees", "rank", "seconds"]
"""How a value is shown: a share in [0, 1] as percent, a difference of shares as points, any other value as it is."""

Interval = Literal["wilson", "bootstrap", "none"]

Sets = Literal["task", "known", "retention", "old", "new", "everything"]
"""The evaluation sets that a metric of a stream reads: a group of columns under the headline's protocol, or a part of
the sets that are scored together (`everclip.evaluation.old_and_new`)."""

Need = Literal[
    "rows", "matrix", "two tasks", "tasks", "known", "retention", "together", "fixed answers", "seen once"
]
"""What a stream must have so that a metric is defined; `everclip.report.undefined` says in words what is missing."""

PACKAGE = "everclip.evaluation.metrics"
GROUP = "everclip.metrics"

AUTO = "auto"
"""The headline metric for streams with tasks of several kinds: each column shows the default metric of its kind."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric.

    Attributes:
        name: its name in results. `{k}` in it stands for a cut-off: one metric for each value of `evaluation.top_k`.
        function: computes it; arguments and return value depend on `kind`.
        kind: what it measures.
        label: its name for people, as a column heading.
        meaning: what it means, in one plain sentence.
        formula: the formula, with the name that the field uses. `R[i, j]` is the score on task `j` after task `i`, both
            from 1; `R0` is row 0; `T` is the number of tasks; `Z` and `K` are scores of retention and known sets.
        unit: the unit of its values.
        higher_is_better: `None` if neither direction is better.
        interval: for one set: Wilson for hits, a bootstrap over items for other means. For a stream: a bootstrap over
            the items of its sets, or none.
        pooled: whether its value over several sets is its mean over all their items (metrics of a set).
        sets: the sets that it reads (metrics of a stream).
        needs: what must exist for it to be defined (metrics of a stream).
        shown: its position among the columns of a comparison (metrics of a stream), or among the figures of a report
            (metrics of a space). With `None` it appears only in the report's table and in the results.
    """

    name: str
    function: Callable[..., Any]
    kind: Kind
    label: str
    meaning: str
    formula: str
    unit: Unit = "percent"
    higher_is_better: bool | None = True
    interval: Interval = "none"
    pooled: bool = False
    sets: Sets = "task"
    needs: tuple[Need, ...] = ()
    shown: int | None = None

    @property
    def key(self) -> str:
        """The name in a comparison, where all values are from the last row: `known` for `known_last`."""
        return self.name.removesuffix("_last") if self.label.endswith(", last") else self.name

    @property
    def heading(self) -> str:
        """The label in a comparison, where all values are from the last row."""
        return self.label.removesuffix(", last")

    @property
    def direction(self) -> str:
        """`higher` or `lower`; empty if neither direction is better."""
        return {True: "higher", False: "lower", None: ""}[self.higher_is_better]

    def at(self, k: int) -> Metric:
        """Return the metric at one cut-off."""
        fields = ("name", "label", "meaning", "formula")
        return replace(self, **{field: getattr(self, field).replace("{k}", str(k)) for field in fields})


_registered: dict[str, Metric] = {}
_loaded: set[str] = set()


def metric(
    name: str,
    *,
    kind: Kind,
    label: str,
    meaning: str,
    formula: str = "",
    unit: Unit = "percent",
    higher_is_better: bool | None = True,
    interval: Interval = "none",
    pooled: bool = False,
    sets: Sets = "task",
    needs: tuple[Need, ...] = (),
    shown: int | None = None,
) -> Callable[[F], F]:
    """Register the decorated function as a metric. The arguments are those of `Metric`.

    Raises:
        ConfigError: if the name is already registered, or a value is not allowed.
    """
    for field, value, allowed in (
        ("kind", kind, get_args(Kind)),
        ("unit", unit, get_args(Unit)),
        ("interval", interval, get_args(Interval)),
        ("sets", sets, get_args(Sets)),
        *(("needs", need, get_args(Need)) for need in needs),
    ):
        if value not in allowed:
            raise ConfigError(
                f"metric {name!r}: {field}: {value!r} is unknown.{did_you_mean(value, allowed)}"
            )

    def register(function: F) -> F:
        existing = _registered.get(name)
        if existing is not None:
            where = getattr(existing.function, "__module__", "another module")
            raise ConfigError(f"metric {name!r} of {function.__module__} is already registered by {where}.")
        entry = Metric(
            name=name,
            function=function,
            kind=kind,
            label=label,
            meaning=meaning,
            formula=formula,
            unit=unit,
            higher_is_better=higher_is_better,
            interval=interval,
            pooled=pooled,
            sets=sets,
            needs=needs,
            shown=shown,
        )
        ordered = sorted([*_registered.values(), entry], key=_order)
        _registered.clear()
        _registered.update({entry.name: entry for entry in ordered})
        return function

    return register


def metrics(kind: Kind | None = None) -> dict[str, Metric]:
    """Return all metrics (of one kind) by name: the built-in ones in order, then those of other packages.

    Raises:
        ConfigError: if a module named by an entry point cannot be imported.
    """
    _load()
    return {name: entry for name, entry in _registered.items() if kind in (None, entry.kind)}


def _order(entry: Metric) -> tuple[bool, str]:
    """Return the sort key: built-in metrics first, by file. So the order does not depend on the order of imports."""
    module = entry.function.__module__
    built_in = module.startswith(f"{PACKAGE}.")
    return not built_in, module if built_in else ""


def find(name: str, kind: Kind | None = None) -> Metric | None:
    """Return a metric by its name in results (`mean_r5` is `mean_r{k}` at 5); `None` if there is none."""
    _load()
    exact = _registered.get(name)
    if exact is not None and "{k}" not in name:
        return exact if kind in (None, exact.kind) else None
    for entry in _registered.values():
        if "{k}" in entry.name and kind in (None, entry.kind):
            before, _, after = entry.name.partition("{k}")
            match = re.fullmatch(rf"{re.escape(before)}([1-9]\d*){re.escape(after)}", name)
            if match:
                return entry.at(int(match[1]))
    return None


def get(name: str, kind: Kind | None = None) -> Metric:
    """Return a metric by its name in results.

    Raises:
        ConfigError: if there is none; suggests the closest name.
    """
    entry = find(name, kind)
    if entry is None:
        raise ConfigError(f"no metric is called {name!r}.{did_you_mean(name, list(metrics(kind)))}")
    return entry


def cut(kind: Kind, cut_offs: Sequence[int]) -> Iterator[tuple[Metric, dict[str, int]]]:
    """Yield the metrics of one kind with the arguments of their functions; those with a cut-off first."""
    entries = metrics(kind)
    for k in cut_offs:
        yield from ((entry.at(k), {"k": k}) for entry in entries.values() if "{k}" in entry.name)
    yield from ((entry, {}) for entry in entries.values() if "{k}" not in entry.name)


def _load() -> None:
    """Import all modules that register metrics, once. If a module of another package fails, the next call retries."""
    if _loaded:
        return
    folder = importlib.import_module(PACKAGE).__path__
    for module in sorted(info.name for info in pkgutil.iter_modules(folder)):
        importlib.import_module(f"{PACKAGE}.{module}")
    for point in metadata.entry_points(group=GROUP):
        try:
            importlib.import_module(point.module)
        except Exception as error:
            raise ConfigError(
                f"metrics of the entry point {point.name!r} ({point.value}) cannot be imported: {error!r}."
            ) from error
    _loaded.add(PACKAGE)
