"""Everything at once: all tasks and the backbone's own training data together, an upper bound on every column."""

from __future__ import annotations

from everclip.contracts import Needs, Past, Phase, Source, Task
from everclip.data.table import Table
from everclip.methods.settings import SlotsWithoutReplay
from everclip.methods.slots import SlotMethod


class Joint(SlotMethod):
    """One phase over all data. The run loop joins the tasks, since `needs.all_tasks_at_once` says so."""

    Settings = SlotsWithoutReplay
    needs = Needs(all_tasks_at_once=True)

    def phases(self, task: Task, past: Past) -> list[Phase]:
        """Declare one phase over the joined tasks and, where the scenario has it, the base."""
        parts = [task.train] if past.base is None else [task.train, past.base]
        sources = (Source(Table.concat(parts, "everything")),)
        classes = task.classes if self.uses_labels(task) else None
        return [self.phase("train", sources, classes, past.training, past)]
