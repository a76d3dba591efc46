"""What becomes a task: a name, its rows by part, and what is known of its classes."""

from __future__ import annotations

from dataclasses import dataclass

from everclip.scenarios.spec import GroupSpec, Measured, SplitSpec
from everclip.scenarios.splits import Parts


@dataclass(frozen=True)
class Group:
    """A task to be.

    Attributes:
        name: of the task and of its evaluation set.
        parts: its rows.
        kind: how it is measured; `None` = as the scenario says, or by its columns.
        classes: keys of its classes in order; `None` = those of its rows, where it is measured by classes.
        templates: around class names; `None` = the scenario's.
        rule: the split its rows came from; `None` = the scenario's.
        language: of its texts.
        key: where it stands in the document, for errors.
        train_template: the text around class names that training uses; `None` = the scenario's, or the first.
        measure: further columns, by condition on its test rows.
    """

    name: str
    parts: Parts
    kind: Measured | None = None
    classes: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    rule: SplitSpec | None = None
    language: str | None = None
    key: str = ""
    train_template: str | None = None
    measure: tuple[GroupSpec, ...] = ()
