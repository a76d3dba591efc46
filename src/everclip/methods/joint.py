"""Learn everything at once: all tasks together with the backbone's own training data, an upper bound."""

from __future__ import annotations

from everclip.contracts import Needs, Past, Phase, Source, Task
from everclip.data.table import Table
from everclip.methods.settings import SlotsWithoutReplay
from everclip.methods.slots import SlotMethod


class Joint(SlotMethod):
    """One phase over all data. Because of `needs.all_tasks_at_once`, the run loop joins the tasks."""

    Settings = SlotsWithoutReplay
    needs = Needs(all_tasks_at_once=True)

    def phases(self, task: Task, past: Past) -> list[Phase]:
        """Declare one phase over the joined tasks and, if the scenario has it, the base."""
        parts = [task.train] if past.base is None else [task.train, past.base]
        sources = (Source(Table.concat(parts, "everything")),)
        classes = task.classes if self.uses_labels(task) else None
        return [self.phase("train", sources, classes, past.training, past)]
