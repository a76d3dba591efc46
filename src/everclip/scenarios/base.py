"""A scenario as lists: tasks, evaluation sets, protocols, and notes on the data."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from everclip.contracts import ClassEntry, EvalProtocol, EvalSet, LabelSpace, Reference, Task
from everclip.data.reading.quarantine import Quarantine
from everclip.data.table import Table
from everclip.scenarios.spec import ScenarioSpec


@dataclass(frozen=True)
class ListScenario:
    """Ordered tasks + evaluation sets + protocols, all known in advance.

    Attributes:
        base: the backbone's own training data, if the scenario has it (minus its validation part).
        base_val: the validation part of the base.
        retention_val: the validation twins of the retention suite, under the same names. Training may measure
            them; they share no image with test or training data.
        data_fingerprints: the fingerprint of every data block as it was read.
        quarantine: the rows of every data block that could not be used.
        guesses: guesses about the data, such as column names.
        notes: other remarks on the data: where they were found, which rows were left out.
        reference: unlabeled data that belong to no task; none is measured.
    """

    spec: ScenarioSpec
    tasks: tuple[Task, ...]
    eval_sets: tuple[EvalSet, ...]
    protocols: tuple[EvalProtocol, ...]
    base: Table | None = None
    base_val: Table | None = None
    data_fingerprints: dict[str, str] = field(default_factory=dict)
    retention_val: tuple[EvalSet, ...] = ()
    quarantine: tuple[Quarantine, ...] = ()
    guesses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reference: Reference | None = None

    @property
    def name(self) -> str:
        """The scenario's name."""
        return self.spec.name

    @property
    def builtin(self) -> bool:
        """Whether all data came with the package, so that nobody has to mend them."""
        return all(label.startswith("builtin:") for label in self.data_fingerprints)

    @property
    def shown_protocol(self) -> str:
        """The protocol whose details are shown: that of the headline."""
        return self.spec.headline.protocol

    @property
    def retention_suite(self) -> tuple[EvalSet, ...]:
        """The sets that are never trained on."""
        return tuple(s for s in self.eval_sets if s.group == "retention")

    def label_space(
        self, eval_set: EvalSet, learned: Collection[int], protocol: EvalProtocol
    ) -> LabelSpace | None:
        """Return the label space of `eval_set` after the tasks `learned`; `None` if it is not scored."""
        known = eval_set.task if protocol.known_task else None
        own = LabelSpace(eval_set.classes or (), known)
        if eval_set.group == "retention" or protocol.space == "own":
            return own
        if protocol.space == "learned":
            return own if self._is_seen(eval_set, learned) else None
        if protocol.space == "seen" and not self._is_seen(eval_set, learned):
            return own if protocol.unseen == "own" else None
        peers = self._peers(eval_set, learned, protocol)
        entries = merge_entries([e for s in peers for e in s.classes or ()])
        before = {
            e.key for s in peers for e in s.classes or () if not e.tasks
        }  # known before the stream, also if a task has it again
        marked = [replace(e, seen=e.key in before or bool(set(e.tasks) & set(learned))) for e in entries]
        if eval_set.seen_only and protocol.space == "seen":
            marked = [entry for entry in marked if entry.seen]
            if not marked:
                return None
        return LabelSpace(tuple(marked), known)

    def pool(
        self, eval_set: EvalSet, learned: Collection[int], protocol: EvalProtocol
    ) -> tuple[EvalSet, ...] | None:
        """Return the retrieval sets whose samples are candidates; protocols mean the same as for label spaces."""
        if eval_set.group == "retention" or protocol.space == "own":
            return (eval_set,)
        if protocol.space == "learned":
            return (eval_set,) if self._is_seen(eval_set, learned) else None
        if protocol.space == "seen" and not self._is_seen(eval_set, learned):
            return (eval_set,) if protocol.unseen == "own" else None
        return tuple(self._peers(eval_set, learned, protocol))

    def _peers(self, eval_set: EvalSet, learned: Collection[int], protocol: EvalProtocol) -> list[EvalSet]:
        """Return the sets whose answers compete under `seen` and `all`: base and tasks, as the set is measured."""
        same = [s for s in self.eval_sets if s.kind == eval_set.kind]
        # `evaluate_also` measures base and tasks in a way in which no set of theirs is measured.
        peers = [s for s in same if s.group in ("known", "task")] or [s for s in same if s.group == "part"]
        return [s for s in peers if protocol.space == "all" or self._is_seen(s, learned)]

    def _is_seen(self, eval_set: EvalSet, learned: Collection[int]) -> bool:
        if eval_set.group == "everything":
            return all(self._is_seen(s, learned) for s in self.eval_sets if s.group == "task")
        return eval_set.task is None or eval_set.task in learned

    def at_once(self) -> ListScenario:
        """Return the scenario with all tasks joined into one (for the method `joint`)."""
        if len(self.tasks) <= 1:
            return self
        # If one task is learned from captions, the joined task is, too.
        labelled = all(task.classes is not None for task in self.tasks)
        classes = merge_entries([e for t in self.tasks for e in t.classes or ()]) if labelled else None
        languages = {task.language for task in self.tasks}
        parts = [task.val for task in self.tasks if task.val is not None and len(task.val)]
        joined = Task(
            index=0,
            name="all at once",
            train=Table.concat([task.train for task in self.tasks]),
            val=Table.concat(parts) if parts else None,
            classes=classes,
            language=languages.pop() if len(languages) == 1 else None,
            covers=tuple(task.index for task in self.tasks),
        )
        return replace(self, tasks=(joined,))


def merge_entries(entries: Sequence[ClassEntry]) -> tuple[ClassEntry, ...]:
    """Merge entries of equal key at the position of the first; join their tasks."""
    merged: dict[str, ClassEntry] = {}
    for entry in entries:
        old = merged.get(entry.key)
        if old is None:
            merged[entry.key] = entry
        else:
            merged[entry.key] = replace(old, tasks=tuple(sorted({*old.tasks, *entry.tasks})))
    return tuple(merged.values())


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
