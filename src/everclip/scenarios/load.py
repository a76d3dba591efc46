"""From a validated document to a scenario: read the data, split it, cut it into tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from everclip.config import validated
from everclip.contracts import EvalProtocol, EvalSet, Task
from everclip.data.sources import read
from everclip.data.splits import carve
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.scenarios import classes, domains, time
from everclip.scenarios.base import ListScenario, matcher, require_rows, retention_set, split
from everclip.scenarios.spec import ScenarioSpec

Groups = list[tuple[str, Table, Table, Any]]
"""(task name, training rows, test rows, classes or None)"""

_KINDS: dict[str, Callable[[ScenarioSpec, Table, Table], Groups]] = {
    "time": time.groups,
    "classes": classes.groups,
    "domains": domains.groups,
    "single": domains.single,
}


def load_scenario(document: Mapping[str, Any], root: Path | None = None) -> ListScenario:
    """Build the scenario that a YAML document describes.

    Args:
        document: see `everclip.scenarios.spec.ScenarioSpec`.
        root: folder that relative data paths start from.

    Raises:
        ConfigError: for a document that does not fit.
        DataError: for data that cannot be read, or a part without rows.
    """
    spec = validated(ScenarioSpec, document, "scenario")
    table = read(spec.data, root).table
    train, test = split(table, spec)
    fit = matcher(spec.evaluate_where)  # holds for whatever is measured, validation pictures too
    test = fit(test)
    tasks, sets = [], []
    base = base_val = None
    if spec.base is not None:
        keep = matcher(spec.base.where)
        base, carved = carve(keep(train).renamed(spec.base.name), spec.split.validation)
        base_val = fit(carved)
        known = keep(test).renamed(spec.base.name)
        require_rows(known, f"base {spec.base.name!r}", spec.base.where)
        sets.append(EvalSet(spec.base.name, _kind(spec), known, None, "known"))
    for index, (name, rows, held_out, entries) in enumerate(_KINDS[spec.kind](spec, train, test)):
        where = spec.tasks[index].where if spec.kind == "time" else {}
        require_rows(rows, f"task {name!r} (training)", where)
        require_rows(held_out, f"task {name!r} (test)", where)
        kept, carved = carve(rows.renamed(name), spec.split.validation)
        require_rows(kept, f"task {name!r} (training, without its validation part)", {})
        times = rows.column("time") if rows.has("time") else []
        tasks.append(Task(index, name, kept, fit(carved), entries, spec.data.language, _span(times)))
        sets.append(EvalSet(name, _kind(spec), held_out.renamed(name), index, "task", entries))
    sets += [retention_set(part, test) for part in spec.retention]
    _require_unique_names(sets)
    _require_captions(sets)
    protocols = tuple(EvalProtocol(**protocol.model_dump()) for protocol in spec.protocols)
    return ListScenario(
        spec, tuple(tasks), tuple(sets), protocols, base, base_val, {spec.data.label: table.fingerprint}
    )


def _require_unique_names(sets: list[EvalSet]) -> None:
    names = [s.name for s in sets]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"scenario: {name!r} names {names.count(name)} evaluation sets; results are kept by name, so give "
                "each task, the base and each retention set its own."
            )


def _require_captions(sets: list[EvalSet]) -> None:
    for s in (s for s in sets if s.kind == "retrieval" and s.data.has("caption")):
        for name, caption in zip(s.data.ids, s.data.column("caption"), strict=True):
            if caption is None or caption == "":
                raise DataError(
                    f"evaluation set {s.name!r}, id {name}: no caption (found {caption!r}); retrieval needs one. Give "
                    "it one, or leave such rows out with scenario.evaluate_where."
                )


def _kind(spec: ScenarioSpec) -> Any:
    return "classification" if spec.kind == "classes" else "retrieval"


def _span(times: list[Any]) -> str | None:
    given = sorted({str(value) for value in times if value is not None})
    return None if not given else given[0] if len(given) == 1 else f"{given[0]} to {given[-1]}"
