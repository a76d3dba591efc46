"""Builds a task with its evaluation set, and the base, from rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from everclip.contracts import ClassEntry, EvalSet, Task
from everclip.data.sampling.splits import VALIDATION_SALT, least_share
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.scenarios.base import class_entries, merge_entries
from everclip.scenarios.clock import clocked
from everclip.scenarios.conditions import matcher, require_column
from everclip.scenarios.groups import Group
from everclip.scenarios.reading import Reader, with_class
from everclip.scenarios.shots import first_by_hash
from everclip.scenarios.spec import Measured, ScenarioSpec, SplitSpec
from everclip.scenarios.splits import Parts, rule_of, split, why_no_test

RowFilter = Callable[[Table], Table]
_DEFAULT = SplitSpec()


def task_part(
    spec: ScenarioSpec, group: Group, index: int, kind: Measured | None, reader: Reader, measurable: RowFilter
) -> tuple[Task, EvalSet | None]:
    """Build a task and the evaluation set that measures it (none where one set measures all tasks).

    Args:
        spec: the scenario.
        group: the rows and settings of the task.
        index: the number of the task.
        kind: how the task is measured, unless the group says so.
        reader: collects the notes.
        measurable: keeps the rows that may be measured (`evaluate_where`).

    Raises:
        DataError: if a side has no rows; says how many there are and what to change.
    """
    kind = group.kind or kind
    rule = group.rule or spec.split
    what = f"task {group.name!r}" + (f" ({group.key})" if group.key else "")
    parts = _measurable_parts(group.parts, kind, measurable)
    train, val = _train_and_val(parts, rule, what, reader, measurable, tested=not spec.one_test)
    train, val = (first_by_hash(rows, spec.shots, spec.shots_seed) for rows in (train, val))
    rows = [parts.train, *([] if parts.val is None else [parts.val])]
    entries = measured = None
    if kind == "classification":
        templates = group.templates or spec.class_templates
        entries = _entries(rows, templates, (index,))
        if group.classes is not None:
            by_key = {entry.key: entry for entry in entries}
            measured = entries = tuple(by_key[key] for key in group.classes)
        else:
            measured = merge_entries([*entries, *class_entries(parts.test, templates, (index,))])
        entries = _with_first_template(entries, group.train_template or spec.train_template)
    language = _language(parts.train, group.language or (spec.data.language if spec.data else None))
    times = parts.train.column("time") if parts.train.has("time") else []
    task = Task(
        index, group.name, train.renamed(group.name), val.renamed(group.name), entries, language, _span(times)
    )
    if spec.one_test:
        return task, None
    test = parts.test.renamed(group.name)
    return task, EvalSet(group.name, kind or "retrieval", test, index, "task", measured)


def subset_columns(group: Group, measured: EvalSet) -> list[EvalSet]:
    """Return the additional columns of a task: parts of its test rows, scored like its own set; further test data.

    Raises:
        DataError: if a condition fits no row.
    """
    found = []
    for i, part in enumerate(group.measure):
        key = f"{group.key}.measure.{i}"
        rows = matcher(part.where, f"{key}.where")(measured.data)
        if len(rows) == 0:
            raise DataError(
                f"{group.name}: {key} ({part.name!r}) fits none of its {len(measured.data):,} test rows; check "
                "its `where`."
            )
        found.append(replace(measured, name=part.name, data=rows.renamed(part.name), group="part"))
    return found + [replace(s, task=measured.task) for s in group.also]


def measured_again(spec: ScenarioSpec, sets: Sequence[EvalSet]) -> list[EvalSet]:
    """Return base and tasks as further columns that are measured in the other way (`evaluate_also`).

    Raises:
        ConfigError: if they are measured in this way already.
        DataError: if a set lacks captions or classes.
    """
    if spec.evaluate_also is None:
        return []
    kind, found = spec.evaluate_also, []
    for s in (s for s in sets if s.group in ("known", "task")):
        if s.kind == kind:
            raise ConfigError(f"evaluate_also: {s.name!r} is measured by {kind} already; leave the key out.")
        require_column(s.data, "caption" if kind == "retrieval" else "class_key", f"evaluate_also: {kind}")
        data, entries = s.data, None
        if kind == "classification":
            data = with_class(data)
            entries = class_entries(data, spec.class_templates, () if s.task is None else (s.task,))
        name = f"{s.name} ({kind})"
        found.append(EvalSet(name, kind, data.renamed(name), s.task, "part", entries))
    return found


def one_test(spec: ScenarioSpec, test: Table, kind: Measured | None, tasks: int) -> EvalSet:
    """Return all test rows as one evaluation set (`one_test`).

    Raises:
        DataError: if there are none.
    """
    entries = None
    if kind == "classification":
        test = with_class(test)
        entries = class_entries(test, spec.class_templates, tuple(range(tasks)))
    if len(test) == 0:
        raise DataError(f"{test.name}: there is no test row to measure; check `split` and `evaluate_where`.")
    return EvalSet("test", kind or "retrieval", test.renamed("test"), None, "task", entries)


def everything(sets: Sequence[EvalSet], reader: Reader) -> list[EvalSet]:
    """Return the set `everything`, the test rows of all tasks and of the base, if all have the same kind."""
    joined = [s for s in sets if s.group in ("known", "task")]
    kinds = sorted({s.kind for s in joined})
    if len(kinds) > 1:
        reader.notes.append(
            f"there is no evaluation set `everything`: some tasks are measured by {kinds[0]}, others by {kinds[1]}"
        )
        return []
    data = Table.concat([s.data for s in joined], "everything")
    entries = merge_entries([entry for s in joined for entry in s.classes or ()])
    return [EvalSet("everything", joined[0].kind, data, None, "everything", entries or None)]


def _with_first_template(entries: tuple[ClassEntry, ...], template: str | None) -> tuple[ClassEntry, ...]:
    """Put a template first: training uses the first template, class banks use all."""
    if template is None:
        return entries
    return tuple(
        replace(e, templates=(template, *(t for t in e.templates if t != template))) for e in entries
    )


def base_part(
    spec: ScenarioSpec, parts: Parts | None, kind: Measured | None, reader: Reader, measurable: RowFilter
) -> tuple[Table, Table, EvalSet]:
    """Build the base's training rows, validation rows and evaluation set.

    Raises:
        ConfigError: if the base has data of its own without a split.
        DataError: if a side has no rows.
    """
    base = spec.base
    assert base is not None  # the caller's condition
    rule = rule_of(base.data, base.split or spec.split)
    kind = base.kind or kind
    if base.data is not None:
        table, column = reader.read(base.data, "base.data"), spec.column or "time"
        table = clocked(table, column, spec.clock) if table.has(column) else table
        if rule is None or not rule.has_rule:
            raise ConfigError(
                "base.split: missing; say which part of the base's data is held out, for example {test: 0.2}."
            )
        parts, measurable = (
            split(table, rule),
            lambda rows: rows,
        )  # `evaluate_where` is about the columns of the stream
        kind = reader.kind_of(table, base.kind, "base.kind")
    assert parts is not None  # checked by ScenarioSpec
    what = f"base {base.name!r}"
    base_parts = _measurable_parts(parts.keep(matcher(base.where, "base.where")), kind, measurable)
    train, val = _train_and_val(base_parts, rule, what, reader, measurable)
    classes = None
    if kind == "classification":
        classes = _entries([base_parts.train, base_parts.test], base.templates or spec.class_templates, ())
    known = EvalSet(
        base.name, kind or "retrieval", base_parts.test.renamed(base.name), None, "known", classes
    )
    return train.renamed(base.name), val.renamed(base.name), known


def _measurable_parts(parts: Parts, kind: Measured | None, measurable: RowFilter) -> Parts:
    if kind == "classification":
        parts = parts.keep(with_class)
    return Parts(parts.train, parts.val, measurable(parts.test))


def _train_and_val(
    parts: Parts,
    rule: SplitSpec | None,
    what: str,
    reader: Reader,
    measurable: RowFilter,
    tested: bool = True,
) -> tuple[Table, Table]:
    """Return the training and validation rows; raise if there is nothing to train on or to measure."""
    name = parts.train.name
    counts = f"{len(parts.train):,} training and {len(parts.test):,} test rows"
    if len(parts) == 0:
        raise DataError(f"{name}: {what} holds no rows; check its `where`.")
    if tested and len(parts.test) == 0:
        raise DataError(
            f"{name}: {what} has {counts}, so it cannot be measured: {why_no_test(parts.train, rule)}. Or join it "
            "with another part (a longer `every`, a wider `where`), or leave it out."
        )
    if len(parts.train) == 0 and rule is not None and rule.column is not None:
        raise DataError(
            f"{name}: {what} has {counts}, so there is nothing to learn: the column {rule.column!r} marks all of its "
            "rows as test or validation. Mark rows as train, set columns.split= to ignore the marks, or leave it out."
        )
    if len(parts.train) == 0:
        raise DataError(
            f"{name}: {what} has {counts}, so there is nothing to learn. Give more rows, lower split.test, join it "
            "with another part (a longer `every`, a wider `where`), or leave it out."
        )
    share = (rule or _DEFAULT).validation
    train, val = parts.training(share, (rule or _DEFAULT).by)
    if len(train) == 0:
        raise DataError(
            f"{name}: {what} holds no rows to learn from: its {len(parts.train):,} training rows all fall into its "
            f"validation part (split.validation: {share}). Lower it (split.validation=0 for none), or join it with "
            "another part."
        )
    val = measurable(val)
    if len(val) == 0 and (share > 0 or parts.val is not None):
        why = (
            f"split.validation is {share}, by hash"
            if parts.val is None
            else "no row is marked for validation"
        )
        hashed = parts.val is None and (rule or _DEFAULT).by is None
        least = least_share(parts.train, VALIDATION_SALT) if hashed else None
        remedy = "raise split.validation" if least is None else f"split.validation={least} gives it one image"
        reader.notes.append(
            f"{name}: {what} has {counts} and none for validation ({why}), so settings cannot be chosen on it; "
            f"{remedy}, or join it with another part"
        )
    return train, val


def _entries(
    tables: Sequence[Table], templates: Sequence[str], tasks: tuple[int, ...]
) -> tuple[ClassEntry, ...]:
    return merge_entries([entry for table in tables for entry in class_entries(table, templates, tasks)])


def _language(table: Table, given: str | None) -> str | None:
    """Return the language of the rows if there is exactly one, else that of the data block."""
    found = set(table.column("language")) - {None} if table.has("language") else set()
    return str(found.pop()) if len(found) == 1 else given


def _span(times: list[Any]) -> str | None:
    given = sorted({str(value) for value in times if value is not None})
    return None if not given else given[0] if len(given) == 1 else f"{given[0]} to {given[-1]}"
