"""The rows and settings from which a task is built."""

from __future__ import annotations

from dataclasses import dataclass

from everclip.contracts import EvalSet
from everclip.scenarios.spec import GroupSpec, Measured, SplitSpec
from everclip.scenarios.splits import Parts


@dataclass(frozen=True)
class Group:
    """The rows and settings of one task, before it is built.

    Attributes:
        name: of the task and of its evaluation set.
        parts: its rows by side.
        kind: how it is measured; `None` = as the scenario says, or by its columns.
        classes: keys of its classes in order; `None` = those of its rows, where it is measured by classes.
        templates: texts around class names; `None` = the scenario's.
        rule: the split its rows came from; `None` = the scenario's.
        language: of its texts.
        key: its position in the document, for errors.
        train_template: the text around class names that training uses; `None` = the scenario's, or the first.
        measure: additional columns, by condition on its test rows.
        also: additional columns, from test data of their own.
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
    also: tuple[EvalSet, ...] = ()
