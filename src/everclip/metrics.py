"""The registry of metrics: one record each, which results, reports, comparisons and docs read.

A metric is a function with the decorator `metric`. No other place is edited: the built-in ones are in
`everclip.evaluation.metrics`, those of other packages in modules named by an entry point in the group
`everclip.metrics`, and a script of one's own imports its module before it runs, reports or compares.

Nothing heavy is imported here, and modules that register metrics import torch inside their functions: reports and
comparisons need the words alone.
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

Kind = Literal["classification", "retrieval", "stream", "space", "spaces", "cost"]
"""Of what a metric is one, which decides what its function takes and returns.

* `classification`, `retrieval`: one evaluation set at one row (`classification.py`, `retrieval.py`);
* `stream`: evaluation sets over the rows of a run (`matrix.py`, `sets.py`);
* `space`: the embeddings of images or texts, `spaces`: of both (`space.py`);
* `cost`: what a run cost (`cost.py`).

The files are in `everclip.evaluation.metrics`; each says what its functions take.
"""

Unit = Literal["percent", "points", "ratio", "number", "degrees", "rank", "seconds"]
"""How a value is shown: a share in [0, 1] as percent, a difference of shares as points, anything else as it is."""

Interval = Literal["wilson", "bootstrap", "none"]

Sets = Literal["task", "known", "retention", "old", "new", "everything"]
"""The evaluation sets that a metric of a stream reads: a group of columns under the headline's protocol, or a part of
what is scored together (`everclip.evaluation.together`)."""

Need = Literal["rows", "matrix", "two tasks", "tasks", "known", "retention", "together", "fixed answers"]
"""What a stream must have for a metric to be defined; `everclip.report.undefined` says in words what is missing."""

PACKAGE = "everclip.evaluation.metrics"
GROUP = "everclip.metrics"

AUTO = "auto"
"""The headline metric that is each column's own, for streams whose tasks are of several kinds."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric.

    Attributes:
        name: what results call it. `{k}` in it stands for a cut-off: one metric for each of `evaluation.top_k`.
        function: computes it; what it takes and returns depends on `kind`.
        kind: of what it is a metric.
        label: what people call it, at the head of a column.
        meaning: what it says, in one plain sentence.
        formula: the formula under the name the field uses. `R[i, j]` is the score after task `i` on task `j`, both from
            1; `R0` is row 0; `T` is the number of tasks; `Z` and `K` are scores of retention and known sets.
        unit: of its values.
        higher_is_better: `None` where neither is.
        interval: of one set: Wilson for hits, a bootstrap over items for other means; of a stream: a bootstrap over the
            items of its sets, or none.
        pooled: whether its value over several sets is its mean over all their items (metrics of a set).
        sets: the sets that it reads (metrics of a stream).
        needs: what must be there for it to be defined (metrics of a stream).
        shown: its place among the columns of a comparison (metrics of a stream), or among the figures of a report
            (metrics of a space); `None` leaves it to the report's table and to the results.
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
        """The name in a comparison, where every number is that of the last row: `known` for `known_last`."""
        return self.name.removesuffix("_last") if self.label.endswith(", last") else self.name

    @property
    def heading(self) -> str:
        """The label in a comparison, where every number is that of the last row."""
        return self.label.removesuffix(", last")

    @property
    def direction(self) -> str:
        """`higher`, `lower`, or nothing where neither is better."""
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
    """Register the decorated function as a metric; the arguments are those of `Metric`.

    Raises:
        ConfigError: if the name is taken, or a value is none of those allowed.
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
        taken = _registered.get(name)
        if taken is not None:
            where = getattr(taken.function, "__module__", "another module")
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
    """Return all metrics (of one kind) by name: the built-in ones in their order, then those of other packages.

    Raises:
        ConfigError: if a module named by an entry point cannot be imported.
    """
    _load()
    return {name: entry for name, entry in _registered.items() if kind in (None, entry.kind)}


def _order(entry: Metric) -> tuple[bool, str]:
    """Built-in metrics stand first, by file; whatever was imported first, results hold them in one order."""
    module = entry.function.__module__
    built_in = module.startswith(f"{PACKAGE}.")
    return not built_in, module if built_in else ""


def find(name: str, kind: Kind | None = None) -> Metric | None:
    """Return a metric by the name that results give it (`mean_r5` is `mean_r{k}` at 5); `None` for a foreign name."""
    _load()
    exact = _registered.get(name)
    if exact is not None and "{k}" not in name:
        return exact if kind in (None, exact.kind) else None
    for entry in _registered.values():
        if "{k}" in entry.name and kind in (None, entry.kind):
            before, _, after = entry.name.partition("{k}")
            found = re.fullmatch(rf"{re.escape(before)}([1-9]\d*){re.escape(after)}", name)
            if found:
                return entry.at(int(found[1]))
    return None


def get(name: str, kind: Kind | None = None) -> Metric:
    """Return a metric by the name that results give it.

    Raises:
        ConfigError: if there is none; names the closest.
    """
    found = find(name, kind)
    if found is None:
        raise ConfigError(f"no metric is called {name!r}.{did_you_mean(name, list(metrics(kind)))}")
    return found


def cut(kind: Kind, cut_offs: Sequence[int]) -> Iterator[tuple[Metric, dict[str, int]]]:
    """Yield the metrics of a kind of set and the arguments of their functions, those with a cut-off first."""
    entries = metrics(kind)
    for k in cut_offs:
        yield from ((entry.at(k), {"k": k}) for entry in entries.values() if "{k}" in entry.name)
    yield from ((entry, {}) for entry in entries.values() if "{k}" not in entry.name)


def _load() -> None:
    """Import what registers metrics, once; where a module of another package fails, it is tried again next time."""
    if _loaded:
        return
    folder = importlib.import_module(PACKAGE).__path__
    for module in sorted(found.name for found in pkgutil.iter_modules(folder)):
        importlib.import_module(f"{PACKAGE}.{module}")
    for point in metadata.entry_points(group=GROUP):
        try:
            importlib.import_module(point.module)
        except Exception as error:
            raise ConfigError(
                f"metrics of the entry point {point.name!r} ({point.value}) cannot be imported: {error!r}."
            ) from error
    _loaded.add(PACKAGE)
