"""A scenario held as lists, and what all kinds of streams share: conditions, splits, evaluation sets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from everclip.contracts import ClassEntry, EvalProtocol, EvalSet, LabelSpace, Task
from everclip.data.splits import carve
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.scenarios.spec import RetentionSpec, ScenarioSpec, Where


@dataclass(frozen=True)
class ListScenario:
    """Ordered tasks + evaluation sets + protocols, all known in advance.

    Attributes:
        base: the backbone's own training data, if the scenario has it (minus its validation part).
        base_val: the validation part of the base.
    """

    spec: ScenarioSpec
    tasks: tuple[Task, ...]
    eval_sets: tuple[EvalSet, ...]
    protocols: tuple[EvalProtocol, ...]
    base: Table | None = None
    base_val: Table | None = None
    data_fingerprints: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The scenario's name."""
        return self.spec.name

    @property
    def shown_protocol(self) -> str:
        """The protocol whose details are shown: the headline's."""
        return self.spec.headline.protocol

    @property
    def retention_suite(self) -> tuple[EvalSet, ...]:
        """The sets that are never trained on."""
        return tuple(s for s in self.eval_sets if s.group == "retention")

    def label_space(
        self, eval_set: EvalSet, learned: Collection[int], protocol: EvalProtocol
    ) -> LabelSpace | None:
        """Return the classes on offer when `eval_set` is scored after the tasks `learned`; `None` = no such cell."""
        known = eval_set.task if protocol.known_task else None
        own = LabelSpace(eval_set.classes or (), known)
        if eval_set.group == "retention" or protocol.space == "own":
            return own
        if protocol.space == "seen" and not self._is_seen(eval_set, learned):
            return own if protocol.unseen == "own" else None
        peers = [s for s in self.eval_sets if s.kind == "classification" and s.group != "retention"]
        if protocol.space == "seen":
            peers = [s for s in peers if self._is_seen(s, learned)]
        entries = merge_entries([e for s in peers for e in s.classes or ()])
        marked = [replace(e, seen=not e.tasks or bool(set(e.tasks) & set(learned))) for e in entries]
        return LabelSpace(tuple(marked), known)

    def pool(
        self, eval_set: EvalSet, learned: Collection[int], protocol: EvalProtocol
    ) -> tuple[EvalSet, ...] | None:
        """Return the retrieval sets whose samples are candidates; the same words as for label spaces."""
        if eval_set.group == "retention" or protocol.space == "own":
            return (eval_set,)
        if protocol.space == "seen" and not self._is_seen(eval_set, learned):
            return (eval_set,) if protocol.unseen == "own" else None
        peers = [s for s in self.eval_sets if s.kind == "retrieval" and s.group != "retention"]
        if protocol.space == "seen":
            peers = [s for s in peers if self._is_seen(s, learned)]
        return tuple(peers)

    @staticmethod
    def _is_seen(eval_set: EvalSet, learned: Collection[int]) -> bool:
        return eval_set.task is None or eval_set.task in learned

    def at_once(self) -> ListScenario:
        """Return the scenario with all tasks joined into one (for the method `joint`)."""
        if len(self.tasks) <= 1:
            return self
        classes = merge_entries([e for t in self.tasks for e in t.classes or ()]) or None
        parts = [task.val for task in self.tasks if task.val is not None and len(task.val)]
        joined = Task(
            index=0,
            name="all at once",
            train=Table.concat([task.train for task in self.tasks]),
            val=Table.concat(parts) if parts else None,
            classes=classes,
            language=self.tasks[0].language,
            covers=tuple(task.index for task in self.tasks),
        )
        return replace(self, tasks=(joined,))


def merge_entries(entries: Sequence[ClassEntry]) -> tuple[ClassEntry, ...]:
    """Merge entries of equal key, keeping the first's place; their tasks are joined."""
    merged: dict[str, ClassEntry] = {}
    for entry in entries:
        old = merged.get(entry.key)
        if old is None:
            merged[entry.key] = entry
        else:
            merged[entry.key] = replace(old, tasks=tuple(sorted({*old.tasks, *entry.tasks})))
    return tuple(merged.values())


def matcher(where: Where) -> Callable[[Table], Table]:
    """Return a function that keeps the rows which satisfy every condition of `where`."""

    def keep(table: Table) -> Table:
        for column, wanted in where.items():
            table = table.where(column, _condition(column, wanted))
        return table

    return keep


def _condition(column: str, wanted: Any) -> Callable[[Any], bool]:
    if isinstance(wanted, dict):
        unknown = set(wanted) - {"from", "to"}
        if unknown:
            raise ConfigError(
                f"where.{column}: unknown key {sorted(unknown)[0]!r}; expected `from` and `to`."
            )
        low, high = wanted.get("from"), wanted.get("to")

        def within(value: Any) -> bool:
            try:
                return value is not None and (low is None or value >= low) and (high is None or value <= high)
            except TypeError as error:
                raise ConfigError(
                    f"where.{column}: the range {wanted} cannot be compared with the column's {value!r}."
                ) from error

        return within
    if isinstance(wanted, list | tuple):
        return lambda v: v in wanted
    return lambda v: v == wanted


def split(table: Table, spec: ScenarioSpec) -> tuple[Table, Table]:
    """Return `(train, test)` by the scenario's rule."""
    if spec.split.test is not None:
        return carve(table, spec.split.test, salt="everclip-test-v1")
    column = str(spec.split.column)

    def held(value: Any) -> bool:
        return value is True or (isinstance(value, str) and value.lower() in ("test", "true"))

    return table.where(column, lambda v: not held(v)), table.where(column, held)


def class_entries(
    table: Table, templates: Sequence[str], tasks: tuple[int, ...] = ()
) -> tuple[ClassEntry, ...]:
    """Return the classes of a table in order of first appearance; key and name come from its columns."""
    names = table.column("class_name") if table.has("class_name") else table.column("class_key")
    entries: dict[str, ClassEntry] = {}
    for key, name in zip(table.column("class_key"), names, strict=True):
        if key is not None:
            entries.setdefault(str(key), ClassEntry(str(key), str(name), tuple(templates), tasks))
    return tuple(entries.values())


def retention_set(spec: RetentionSpec, test: Table) -> EvalSet:
    """Build one set of the retention suite from the held-out rows."""
    data = matcher(spec.where)(test).renamed(spec.name)
    if spec.kind == "classification":
        data = data.where("class_key", lambda key: key is not None)  # what has no class has no right answer
    require_rows(data, f"retention set {spec.name!r}", spec.where)
    classes = class_entries(data, spec.templates) if spec.kind == "classification" else None
    return EvalSet(spec.name, spec.kind, data, None, "retention", classes)


def require_rows(table: Table, what: str, where: Where) -> None:
    """Raise `DataError` if a part of a scenario holds no rows."""
    if len(table) == 0:
        raise DataError(f"{table.name}: {what} holds no rows (condition: {where or 'none'}).")
