"""From a validated document to a scenario: read the data, split it, cut it into tasks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from everclip.config import validated
from everclip.contracts import EvalProtocol, EvalSet
from everclip.errors import ConfigError, DataError
from everclip.scenarios import classes, domains, sources, time
from everclip.scenarios.apart import Learned, keep_apart
from everclip.scenarios.base import ListScenario
from everclip.scenarios.building import Fit, columns_of, everything, known_part, one_test, task_part
from everclip.scenarios.conditions import matcher
from everclip.scenarios.groups import Group
from everclip.scenarios.marked_sides import require_disjoint
from everclip.scenarios.merging import with_joined_templates
from everclip.scenarios.paths import Paths
from everclip.scenarios.reading import Reader
from everclip.scenarios.reference import reference_of
from everclip.scenarios.retention import retained, twins
from everclip.scenarios.shots import fewer
from everclip.scenarios.spec import Measured, ScenarioSpec
from everclip.scenarios.splits import Parts, lost_by_side, rule_of, split, strange_marks

_KINDS: dict[str, Callable[[ScenarioSpec, Parts, Reader], list[Group]]] = {
    "time": time.groups,
    "classes": classes.groups,
    "domains": domains.groups,
    "single": domains.single,
}


def load_scenario(document: Mapping[str, Any], root: Path | None = None) -> ListScenario:
    """Build the scenario that a YAML document describes.

    Args:
        document: see `everclip.scenarios.spec.ScenarioSpec`.
        root: folder that relative data paths start from; default: that of the document's `file`, where they exist
            there, else the working directory.

    Raises:
        ConfigError: for a document that does not fit; names the file and the key as it stands there.
        DataError: for data that cannot be read, or a part without rows.
    """
    if not isinstance(document, Mapping):
        raise ConfigError(
            f"load_scenario: expected the mapping of a scenario, found {type(document).__name__}; of a name or a file "
            "it is everclip.resolve_config(NAME).scenario."
        )
    file = document.get("file")
    with _named_as_written(file):
        spec = validated(ScenarioSpec, document, "")
        paths = Paths(file, root, data_root=spec.root, places=spec.places, counts=spec.counts)
        return build_scenario(spec, Reader(paths, paths.notes))


@contextmanager
def _named_as_written(file: Any) -> Iterator[None]:
    """Begin errors with the file, or with the section that settings of a benchmark stand in."""
    try:
        yield
    except ConfigError as error:
        if file is not None:
            raise ConfigError(f"{file}: {error}") from error
        text = re.sub(r"^(?=[a-z_]+(\.\w+)*: )", "scenario.", str(error), flags=re.MULTILINE)
        raise ConfigError(text if text != str(error) else f"scenario: {error}") from error


def build_scenario(spec: ScenarioSpec, reader: Reader) -> ListScenario:
    """Build a scenario from its validated form; `reader` reads its data, or has read them already."""
    spec = spec.model_copy(update={"split": rule_of(spec.data, spec.split)})
    fit = matcher(spec.evaluate_where, "evaluate_where")  # whatever is measured, validation pictures too
    parts, kind, groups = _cut(spec, reader, fit)
    base = base_val = None
    sets: list[EvalSet] = []
    if spec.base is not None:
        base, base_val, known = known_part(spec, parts, kind, reader, fit)
        sets.append(known)
    built = [task_part(spec, group, index, kind, reader, fit) for index, group in enumerate(groups)]
    if spec.merge_templates == "joined":
        built = with_joined_templates(built, spec.templates_of)
    if parts is not None and spec.one_test:
        sets.append(one_test(spec, parts.test, kind, len(built)))
    test = None if parts is None else parts.test
    suite = tuple(retained(part, index, test, reader) for index, part in enumerate(spec.retention))
    for group, (_, measured) in zip(groups, built, strict=True):
        sets += [] if measured is None else [measured, *columns_of(group, measured)]
    sets += everything(sets, reader) if spec.everything else []
    sets += [one.measured for one in suite]
    _require_unique_names(sets)
    _require_captions(sets)
    reference = reference_of(spec.reference, reader)
    tasks = tuple(task for task, _ in built)
    learned = keep_apart(Learned(tasks, base, base_val, suite, reference), sets, reader)
    reader.notes += [line for task in learned.tasks for line in fewer(task, spec.shots)]
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


def _cut(spec: ScenarioSpec, reader: Reader, fit: Fit) -> tuple[Parts | None, Measured | None, list[Group]]:
    """Read the stream's data and cut them into tasks; sources have no common table and no common kind."""
    if spec.data is None:
        return None, None, sources.groups(spec, reader)
    table = reader.read(spec.data)
    parts = split(table, spec.split, None if spec.test is None else reader.read(spec.test, "test"))
    require_disjoint(parts, spec.split, spec.data, "split", separate=spec.test is not None)
    reader.notes += strange_marks(table, spec.split)
    parts = Parts(parts.train, parts.val, fit(parts.test))
    kind: Measured = "classification"
    if spec.kind != "classes":
        kind = reader.kind_of(table, spec.evaluate_as, "evaluate_as")
        if kind == "classification" and not spec.evaluate_where and spec.base is None:
            reader.notes += lost_by_side(
                parts, "measured without being learned", "learned without being measured"
            )
    return parts, kind, _KINDS[spec.kind](spec, parts, reader)


def _require_unique_names(sets: Sequence[EvalSet]) -> None:
    names = [s.name for s in sets]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"{name!r} names {names.count(name)} evaluation sets; results are kept by name, so give each task, the "
                "base and each retention set its own."
            )


def _require_captions(sets: Sequence[EvalSet]) -> None:
    for s in (s for s in sets if s.kind == "retrieval" and s.data.has("caption")):
        for name, caption in zip(s.data.ids, s.data.column("caption"), strict=True):
            if caption is None or caption == "":
                raise DataError(
                    f"evaluation set {s.name!r}, id {name}: no caption (found {caption!r}); retrieval needs one. Give "
                    "it one, or leave such rows out with evaluate_where."
                )
