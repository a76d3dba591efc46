"""From data as a user has them to something a learner can learn or be measured on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from os import PathLike, fspath
from typing import Any

from everclip.config import EvaluationConfig, validated
from everclip.contracts import Task
from everclip.data.reading.sources import read, read_rows
from everclip.data.reading.spec import DataSpec
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.scenarios.base import class_entries, merge_entries
from everclip.scenarios.measuring import Measuring, measured_set
from everclip.scenarios.spec import SplitSpec
from everclip.scenarios.splits import split
from everclip.templates import GivenTemplates, templates_of

UserData = str | PathLike[str] | DataSpec | Table | Mapping[str, Any] | Iterable[Any]
"""A path or name of data, or several; a `data:` block (as a mapping or `DataSpec`); a table; rows as mappings."""


def table_of(data: UserData) -> Table:
    """Read data into a table of good rows.

    Raises:
        ConfigError: for a source or setting that does not exist.
        DataError: if more rows than allowed cannot be used.
    """
    if isinstance(data, Table):
        return data
    if isinstance(data, str | PathLike):
        return read(validated(DataSpec, {"source": fspath(data)}, "data")).table
    if isinstance(data, DataSpec):
        return read(data).table
    if isinstance(data, Mapping):
        if "source" not in data and "image" in data:
            return read_rows([data]).table  # one row
        return read(validated(DataSpec, data, "data")).table
    rows = _rows_of(data)
    if isinstance(rows, list | tuple) and rows and all(isinstance(row, str | PathLike) for row in rows):
        return read(validated(DataSpec, {"source": [fspath(row) for row in rows]}, "data")).table
    return read_rows(rows).table


def _rows_of(data: Any) -> Iterable[Any]:
    """Return the rows of whatever holds some: an iterable, a data frame (pandas), a table (pyarrow)."""
    if callable(getattr(data, "iterrows", None)):
        return list(data.to_dict("records"))  # a data frame of pandas
    if callable(getattr(data, "to_pylist", None)):
        return list(data.to_pylist())  # a table of pyarrow
    if isinstance(data, bytes | bytearray) or not isinstance(data, Iterable):
        raise ConfigError(
            f"data: expected a path, a `data:` block, a table or rows (mappings with `image` and `caption` or "
            f"`class_name`); found {type(data).__name__}."
        )
    return data


def make_task(
    data: UserData, index: int, name: str | None, templates: GivenTemplates, validation: float
) -> Task:
    """Return data as the task with a number: its training rows, a part of them carved off for validation.

    Rows that a column `split` marks as test are left out; those it marks as validation are the task's, and then nothing
    is carved. Data without captions are learned from class names.
    """
    texts = templates_of(templates, "learn: templates")
    if not isinstance(validation, int | float) or not 0 <= validation < 1:
        raise ConfigError(f"learn: validation: expected a share in [0, 1), found {validation!r}.")
    table = table_of(data)
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"learn: name: expected a text, found {type(name).__name__}.")
    table = table.renamed(name or (f"task {index}" if isinstance(data, Table) else table.name))
    parts = split(table, SplitSpec(column="split") if table.has("split") else None)
    if len(parts.train) == 0:
        raise DataError(f"{table.name}: nothing to learn: there is no training row.")
    captioned = table.has("caption") and any(parts.train.column("caption"))
    if not captioned and not table.has("class_key"):
        raise DataError(
            f"{table.name}: nothing to learn from: expected a column `caption` or `class_name`; columns are "
            f"{', '.join(table.column_names)}."
        )
    train, val = parts.training(validation)
    if len(train) == 0:
        raise DataError(
            f"{table.name}: {len(table)} rows are too few to set {validation:.0%} aside; lower it."
        )
    classes = None
    if not captioned:
        # Marked validation rows may hold classes that no training row has: they are told apart from the others, too.
        tables = [t for t in (parts.train, parts.val) if t is not None]
        classes = merge_entries([entry for t in tables for entry in class_entries(t, texts, (index,))])
    return Task(index, table.name, train, val if len(val) else None, classes)


def require_new(task: Task, learned: Collection[int]) -> None:
    """Refuse a task whose number was learned already: replay and results keep tasks apart by it.

    Raises:
        ConfigError: if it was.
    """
    again = set(task.covers or (task.index,)) & set(learned)
    if again:
        raise ConfigError(
            f"learn: task {min(again)} ({task.name!r}) was learned already; the next one is number "
            f"{max(learned) + 1}."
        )


def evaluation_of(config: EvaluationConfig | Mapping[str, Any] | None) -> EvaluationConfig:
    """Return settings of an evaluation, also from a mapping.

    Raises:
        ConfigError: for something else, or settings that do not fit.
    """
    if isinstance(config, EvaluationConfig):
        return config
    if config is not None and not isinstance(config, Mapping):
        raise ConfigError(
            f"config: expected settings such as {{'top_k': [1]}}, found {type(config).__name__}."
        )
    return validated(EvaluationConfig, config or {}, "evaluation")


def to_measure(data: UserData, templates: GivenTemplates) -> Measuring:
    """Return data as one evaluation set on its own."""
    texts = templates_of(templates, "evaluate: templates")
    return Measuring((measured_set(table_of(data), texts),))
