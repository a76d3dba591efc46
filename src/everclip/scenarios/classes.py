"""Class-incremental tasks: a few new classes each, in the order or groups that the scenario states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from everclip.contracts import ClassEntry
from everclip.errors import ConfigError, DataError, did_you_mean
from everclip.scenarios.base import class_entries
from everclip.scenarios.conditions import require_column
from everclip.scenarios.groups import Group
from everclip.scenarios.ordering import ordered
from everclip.scenarios.reading import Reader
from everclip.scenarios.spec import ScenarioSpec
from everclip.scenarios.splits import Parts, classes_without_rows


def groups(spec: ScenarioSpec, parts: Parts, reader: Reader) -> list[Group]:
    """Return one group per `per_task` classes, or per listed group.

    A class without training rows cannot be learned, and one without test rows cannot be measured: such classes are
    left out with a note. If one is listed in `groups`, it is an error.
    """
    require_column(parts.train, "class_key", "kind `classes`")
    entries = class_entries(parts.train, ("{}",))
    if spec.groups:
        return _cut(_keys_of_listed(spec.groups, entries, parts), parts)
    measured = set(parts.test.column("class_key"))
    names = [entry.key for entry in entries if entry.key in measured]
    if not spec.evaluate_where:
        reader.notes += classes_without_rows(parts, "left out", "left out")
    if not names:
        raise DataError(
            f"{parts.train.name}: none of {len(entries)} classes has training rows and test rows; raise split.test."
        )
    order = ordered(names, spec, "classes")
    assert spec.per_task is not None  # the spec's own validation
    first = spec.first_task or spec.per_task
    cuts = [0, *range(first, len(order), spec.per_task), len(order)]
    return _cut([order[start:stop] for start, stop in pairwise(cuts)], parts)


def _cut(chosen: Sequence[Sequence[str]], parts: Parts) -> list[Group]:
    """Return one group per list of class keys, named by the numbers of its classes."""
    pick, start, found = parts.by("class_key"), 0, []
    for index, keys in enumerate(chosen):
        name = f"classes {start + 1}-{start + len(keys)}"
        found.append(Group(name, pick(keys), "classification", tuple(keys), key=f"groups.{index}"))
        start += len(keys)
    return found


def _keys_of_listed(
    listed: Sequence[Sequence[str]], entries: Sequence[ClassEntry], parts: Parts
) -> list[list[str]]:
    """Turn listed classes (keys, or names that only one class has) into keys.

    Raises:
        ConfigError: for a class that does not exist, or is listed twice.
        DataError: for a class without test rows.
    """
    names = Counter(entry.name for entry in entries)
    keys = {entry.name: entry.key for entry in entries if names[entry.name] == 1}
    keys |= {entry.key: entry.key for entry in entries}
    measured = Counter(parts.test.column("class_key"))
    seen: set[str] = set()
    for index, group in enumerate(listed):
        if not group:
            raise ConfigError(f"groups.{index}: is empty; a task needs classes.")
        for name in group:
            if name not in keys:
                raise ConfigError(
                    f"groups.{index}: {name!r} is none of the classes.{did_you_mean(name, keys)}"
                )
            if keys[name] in seen:
                raise ConfigError(f"groups.{index}: {name!r} is listed more than once.")
            if not measured[keys[name]]:
                raise DataError(
                    f"{parts.train.name}: the class {name!r} (groups.{index}) has no test row; raise split.test, or "
                    "leave the class out."
                )
            seen.add(keys[name])
    return [[keys[name] for name in group] for group in listed]
