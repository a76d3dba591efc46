"""Turn a user's data into a task to learn or a set to measure. Training itself reads no files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from os import PathLike, fspath
from typing import Any

from everclip.config import validated
from everclip.contracts import UNNUMBERED, ClassEntry, Task
from everclip.data.reading.sources import read, read_rows
from everclip.data.reading.spec import DataSpec
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.learner.task_numbers import numbered
from everclip.scenarios.base import class_entries, merge_entries
from everclip.scenarios.measuring import PLAIN, MeasuredSets, measured_set
from everclip.scenarios.spec import SplitSpec
from everclip.scenarios.splits import Parts, split
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


def batch_of(data: UserData) -> tuple[Table | None, int]:
    """Read one batch of a stream.

    A queue may deliver a message twice: of rows with the same `id`, the first counts.

    Returns:
        The table, `None` if the batch is empty; and the number of rows that were left out.

    Raises:
        ConfigError, DataError: see `table_of`.
    """
    if isinstance(data, Table | str | PathLike | DataSpec | Mapping):
        return table_of(data), 0
    rows = _rows_of(data)
    if isinstance(rows, list | tuple) and any(isinstance(row, str | PathLike) for row in rows):
        return table_of(rows), 0  # names of files
    batch = _FirstOfId(rows)
    given = iter(batch)
    for first in given:
        return read_rows(chain([first], given)).table, batch.repeated
    return None, 0


class _FirstOfId:
    """Rows without those whose `id` an earlier row has.

    Attributes:
        repeated: the number of rows that were left out so far.
    """

    def __init__(self, rows: Iterable[Any]) -> None:
        self._rows = rows
        self.repeated = 0

    def __iter__(self) -> Iterator[Any]:
        """Yield the rows."""
        known: set[str] = set()
        for row in self._rows:
            name = row.get("id") if isinstance(row, Mapping) else None
            if name is not None and name == name:  # NaN is no id
                if str(name) in known:
                    self.repeated += 1
                    continue
                known.add(str(name))
            yield row


def _rows_of(data: Any) -> Iterable[Any]:
    """Return the rows of an iterable, a data frame (pandas) or a table (pyarrow)."""
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
    data: UserData,
    *,
    name: str | None = None,
    templates: GivenTemplates = ("{}",),
    validation: float = 0.1,
    index: int = UNNUMBERED,
) -> Task:
    """Read data into a task that `Learner.learn` takes.

    Rows that a column `split` marks as test are left out. Those that it marks as validation are the task's validation
    part; without any, a share is set aside. Data without captions are learned from class names.

    Args:
        data: a path, or several; a name such as `builtin:emoji`; a `data:` block; a `Table`; or rows: mappings with
            `image` and `caption` or `class_name`, a data frame, a table of pyarrow.
        name: of the task; default: the data's own, or the task's number.
        templates: texts around class names, for data with classes and no captions.
        validation: share of the images that is kept for choices (merging, the retention guard), by hash.
        index: the task's number; by default the learner gives it the next one.

    Raises:
        ConfigError: for a source or a setting that does not exist.
        DataError: if the data cannot be read or hold nothing to learn.

    Example:
        >>> learner.learn(make_task("photos/"))
    """
    texts = templates_of(templates, "make_task: templates")
    if not isinstance(validation, int | float) or not 0 <= validation < 1:
        raise ConfigError(f"make_task: validation: expected a share in [0, 1), found {validation!r}.")
    if isinstance(index, bool) or not isinstance(index, int) or index < UNNUMBERED:
        raise ConfigError(f"make_task: index: expected a number from 0, found {index!r}.")
    table = table_of(data)
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"make_task: name: expected a text, found {type(name).__name__}.")
    table = table.renamed(name or table.name)
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
    # The task of a `Table` without a given name is named after its number.
    task_name = "" if isinstance(data, Table) and not name else table.name
    classes = None if captioned else _classes(parts, texts)
    task = Task(UNNUMBERED, task_name, train, val if len(val) else None, classes)
    return task if index == UNNUMBERED else numbered(task, index)


def _classes(parts: Parts, templates: Sequence[str]) -> tuple[ClassEntry, ...]:
    """Return the classes of a task, including those that only validation rows have."""
    tables = [t for t in (parts.train, parts.val) if t is not None]
    return merge_entries([entry for t in tables for entry in class_entries(t, templates)])


def to_measure(data: UserData, templates: GivenTemplates) -> MeasuredSets:
    """Return data as one evaluation set on its own."""
    texts = templates_of(templates, "evaluate: templates")
    return MeasuredSets((measured_set(table_of(data), None if texts == PLAIN else texts),))
