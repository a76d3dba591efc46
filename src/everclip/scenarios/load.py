"""From a validated document to a scenario: read the data, split it, cut it into tasks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from everclip.config import validated
from everclip.contracts import EvalProtocol, EvalSet
from everclip.errors import ConfigError, DataError
from everclip.files import found_in
from everclip.scenarios import classes, domains, languages, online, sources, time
from everclip.scenarios.base import ListScenario
from everclip.scenarios.building import (
    RowFilter,
    base_part,
    everything,
    measured_again,
    one_test,
    subset_columns,
    task_part,
)
from everclip.scenarios.clock import clocked
from everclip.scenarios.conditions import matcher
from everclip.scenarios.groups import Group
from everclip.scenarios.leaks import TrainingData, remove_leaks
from everclip.scenarios.merging import with_joined_templates
from everclip.scenarios.paths import Paths
from everclip.scenarios.reading import Reader
from everclip.scenarios.reference import reference_of
from everclip.scenarios.retention import retention_set, twins
from everclip.scenarios.shared_images import require_disjoint, without_test_ids
from everclip.scenarios.shots import classes_below_shots
from everclip.scenarios.spec import Measured, ScenarioSpec
from everclip.scenarios.splits import Parts, classes_without_rows, rule_of, split, unknown_marks

_KINDS: dict[str, Callable[[ScenarioSpec, Parts, Reader], list[Group]]] = {
    "time": time.groups,
    "classes": classes.groups,
    "domains": domains.groups,
    "languages": languages.groups,
    "single": domains.single,
    "online": online.groups,
}


def load_scenario(
    document: Mapping[str, Any], root: Path | None = None, directory: str | None = None
) -> ListScenario:
    """Build the scenario that a YAML document describes.

    Args:
        document: see `everclip.scenarios.spec.ScenarioSpec`.
        root: folder that relative data paths start from; default: that of the document's `file`, where they exist
            there, else the working directory.
        directory: where to look for relative paths that are not found from the working directory.

    Raises:
        ConfigError: for a document that does not fit; names the file and the key as it stands there.
        DataError: for data that cannot be read, or a part without rows.
    """
    if not isinstance(document, Mapping):
        raise ConfigError(
            f"load_scenario: expected the mapping of a scenario, found {type(document).__name__}. For a benchmark or a "
            "file, use everclip.resolve_config(NAME).scenario."
        )
    file = document.get("file")
    with _errors_in(file):
        spec = validated(ScenarioSpec, document, "")
        beside = None if file is None else str(found_in(Path(file), directory))
        paths = Paths(beside, root, directory, data_root=spec.root, places=spec.places, counts=spec.counts)
        return build_scenario(spec, Reader(paths, paths.notes))


@contextmanager
def _errors_in(file: Any) -> Iterator[None]:
    """Prefix errors with the file, or with `scenario.` if the scenario has no file."""
    try:
        yield
    except ConfigError as error:
        if file is not None:
            raise ConfigError(f"{file}: {error}") from error
        text = re.sub(r"^(?=[a-z_]+(\.\w+)*: )", "scenario.", str(error), flags=re.MULTILINE)
        raise ConfigError(text if text != str(error) else f"scenario: {error}") from error


def build_scenario(spec: ScenarioSpec, reader: Reader) -> ListScenario:
    """Build a scenario from its validated form; `reader` reads the data that it has not read yet."""
    spec = spec.model_copy(update={"split": rule_of(spec.data, spec.split)})
    if spec.kind == "online":
        spec = spec.model_copy(update={"one_test": True})
    measurable = matcher(
        spec.evaluate_where, "evaluate_where"
    )  # decides which rows may be measured, also for validation
    parts, kind, groups = _cut(spec, reader, measurable)
    base = base_val = None
    sets: list[EvalSet] = []
    if spec.base is not None:
        base, base_val, known = base_part(spec, parts, kind, reader, measurable)
        sets.append(known)
    built = [task_part(spec, group, index, kind, reader, measurable) for index, group in enumerate(groups)]
    if spec.merge_templates == "joined":
        built = with_joined_templates(built, spec.templates_of)
    if parts is not None and spec.one_test:
        sets.append(one_test(spec, parts.test, kind, len(built)))
    test = None if parts is None else parts.test
    suite = tuple(retention_set(part, index, test, reader) for index, part in enumerate(spec.retention))
    for group, (_, measured) in zip(groups, built, strict=True):
        sets += [] if measured is None else [measured, *subset_columns(group, measured)]
    sets += [*(everything(sets, reader) if spec.everything else []), *measured_again(spec, sets)]
    sets += [one.measured for one in suite]
    _require_unique_names(sets)
    _require_captions(sets)
    reference = reference_of(spec.reference, reader)
    tasks = tuple(task for task, _ in built)
    by = None if spec.split is None else spec.split.by
    learned = remove_leaks(TrainingData(tasks, base, base_val, suite, reference), sets, reader, by)
    reader.notes += [line for task in learned.tasks for line in classes_below_shots(task, spec.shots)]
    if spec.kind == "online":
        learned = replace(learned, tasks=online.seen_once(learned.tasks))
        parts_of = {e.key: task.index for task in reversed(learned.tasks) for e in task.classes or ()}
        sets = list(online.with_stretches(sets, parts_of))
    vals = [t for t in (learned.base_val, *(task.val for task in learned.tasks)) if t is not None]
    return ListScenario(
        spec,
        learned.tasks,
        tuple(sets),
        tuple(EvalProtocol(**protocol.model_dump()) for protocol in spec.protocols),
        learned.base,
        learned.base_val,
        reader.fingerprints,
        twins(learned.suite, vals, reader),
        tuple(reader.quarantine),
        tuple(reader.guesses),
        tuple(reader.notes),
        learned.reference,
    )


def _cut(
    spec: ScenarioSpec, reader: Reader, measurable: RowFilter
) -> tuple[Parts | None, Measured | None, list[Group]]:
    """Read the stream's data and cut them into tasks. A stream of sources has no common table and no common kind."""
    if spec.data is None:
        return None, None, sources.groups(spec, reader)
    column = spec.column or "time"
    table = clocked(reader.read(spec.data), column, spec.clock)
    test = None if spec.test is None else clocked(reader.read(spec.test, "test"), column, spec.clock)
    parts = split(table, spec.split, test)
    require_disjoint(parts, spec.split, spec.data, "split", separate=spec.test is not None)
    parts = parts if spec.test is not None else without_test_ids(parts, spec.split, reader.notes)
    reader.notes += unknown_marks(table, spec.split)
    parts = Parts(parts.train, parts.val, measurable(parts.test))
    kind: Measured = "classification"
    if spec.kind == "online":
        parts = online.measurable(parts, reader)
    elif spec.kind != "classes":
        kind = reader.kind_of(table, spec.evaluate_as, "evaluate_as")
        if kind == "classification" and not spec.evaluate_where and spec.base is None:
            reader.notes += classes_without_rows(
                parts, "only measured, not learned", "only learned, not measured"
            )
    return parts, kind, _KINDS[spec.kind](spec, parts, reader)


def _require_unique_names(sets: Sequence[EvalSet]) -> None:
    names = [s.name for s in sets]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"{names.count(name)} evaluation sets are named {name!r}. Results are kept by name: give each task, "
                "the base and each retention set a name of its own."
            )


def _require_captions(sets: Sequence[EvalSet]) -> None:
    for s in (s for s in sets if s.kind == "retrieval" and s.data.has("caption")):
        for name, caption in zip(s.data.ids, s.data.column("caption"), strict=True):
            if caption is None or caption == "":
                raise DataError(
                    f"evaluation set {s.name!r}, id {name}: no caption (found {caption!r}); retrieval needs one. Add "
                    "one, or leave such rows out with evaluate_where."
                )
