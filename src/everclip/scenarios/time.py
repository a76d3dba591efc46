"""Tasks by time (or by any condition): the rows that satisfy `where`, in the order listed."""

from __future__ import annotations

from typing import Any

from everclip.data.table import Table
from everclip.scenarios.base import matcher
from everclip.scenarios.spec import ScenarioSpec


def groups(spec: ScenarioSpec, train: Table, test: Table) -> list[tuple[str, Table, Table, Any]]:
    """Return (name, training rows, test rows, None) per task."""
    return [(task.name, matcher(task.where)(train), matcher(task.where)(test), None) for task in spec.tasks]
