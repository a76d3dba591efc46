"""Read a run folder for reports: the typed result, the configuration, and the outcome of every item."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from everclip.errors import ConfigError, DataError
from everclip.evaluation.cells import Cells
from everclip.evaluation.headline import metric_of
from everclip.evaluation.measurements import Measurements, learned_after
from everclip.evaluation.old_and_new import OldAndNew
from everclip.evaluation.results import Column, Results, Row, Score
from everclip.metrics import Sets
from everclip.registry import read_yaml
from everclip.training.run_place import local_run
from everclip.urls import is_remote

Group = Literal["everything", "known", "task", "part", "retention"]


class Run:
    """One run folder, read once. Works for a run that has not finished.

    Args:
        folder: the run folder, or the URL of one.

    Attributes:
        folder: the run folder; of a URL, its copy on this machine.
        place: the folder or the URL, for people.

    Raises:
        DataError: if the folder holds no readable result.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = local_run(folder)
        self.place = str(folder).rstrip("/") if is_remote(str(folder)) else str(self.folder)
        self.results = Results.read(self.folder)
        self.config, self.config_problem = _read_config(self.folder)
        self._cells: dict[tuple[Sets, tuple[str, ...]], Cells] = {}
        self._files: dict[int, dict[str, NDArray[np.float64]] | None] = {}

    @property
    def name(self) -> str:
        """The name of the method."""
        return str(self.results.method.get("name", "unnamed method"))

    @property
    def last(self) -> int:
        """The index of the last row; -1 if there is none."""
        return len(self.results.rows) - 1

    @property
    def complete(self) -> bool:
        """Whether every task of the stream was learned."""
        return self.learned_count(self.last) == len(self.results.tasks)

    @property
    def all_at_once(self) -> bool:
        """Whether the method learned the whole stream at once, as the upper bound `joint` does."""
        return any(row.task is None for row in self.results.rows[1:])

    @cached_property
    def confidence(self) -> float:
        """The level of all intervals."""
        section = self.config.get("evaluation")
        value = section.get("confidence", 0.95) if isinstance(section, Mapping) else 0.95
        return float(value) if isinstance(value, int | float) and 0 < value < 1 else 0.95

    def label(self, row: Row) -> str:
        """Return the label of a row: `before`, `after 2016`."""
        return row.label if row.index == 0 or row.label.startswith("after") else f"after {row.label}"

    def columns(self, group: Group) -> list[Column]:
        """Return the evaluation sets of a group, tasks in the order of learning."""
        if group == "task":
            return list(self.measured.columns_of("task"))
        return [column for column in self.results.columns if column.group == group]

    def learned_count(self, row: int) -> int:
        """Return how many tasks the model of a row has learned."""
        return len(self.learned(row))

    def learned(self, row: int) -> set[int]:
        """Return the tasks that the model of a row has learned."""
        return self._learned[row] if row >= 0 else set()

    @cached_property
    def _learned(self) -> list[set[int]]:
        return learned_after(self.results.rows, [task.index for task in self.results.tasks])

    @cached_property
    def measured(self) -> Measurements:
        """The rows and columns in the form that metrics read."""
        return Measurements.of(self.results)

    def cells(self, sets: Sets, columns: tuple[Column, ...]) -> Cells:
        """Return the cells of sets at all rows; computed once."""
        key = (sets, tuple(column.name for column in columns))
        if key not in self._cells:
            self._cells[key] = self.measured.cells(sets, columns)
        return self._cells[key]

    def cell(self, column: Column) -> tuple[str, str]:
        """Return the protocol and metric that a column shows, by the same rule as in the result's matrix."""
        headline = self.results.headline
        return headline["protocol"], metric_of(column, headline)

    @property
    def together(self) -> OldAndNew | str:
        """How old and new are scored together, or why they are not."""
        return self.measured.together

    def score(self, row: int, column: Column, under: str | None = None) -> Score | None:
        """Return the score of a column at a row, under the headline's protocol or `under`; `None` without a cell."""
        protocol, metric = self.cell(column)
        protocol = under or protocol
        score = self.results.score(row, column.name, protocol, metric)
        return score if score is not None and score.value is not None else None

    def outcomes(self, row: int, column: Column, under: str | None = None) -> NDArray[np.float64] | None:
        """Return the outcomes per item `(N,)` behind `score`; `None` if the run does not hold them.

        Also return `None` if their mean is not the score, as for a metric that weighs items.
        """
        score = self.score(row, column, under)
        items = self._items(self.results.rows[row])
        if score is None or score.value is None or items is None:
            return None
        protocol, metric = self.cell(column)
        values = items.get(f"{column.name}/{under or protocol}/{metric}")
        if values is None or values.ndim != 1 or not len(values) or not bool(np.isfinite(values).all()):
            return None
        return values if abs(float(values.mean()) - score.value) < 1e-4 else None

    def _items(self, row: Row) -> dict[str, NDArray[np.float64]] | None:
        if row.index not in self._files:
            self._files[row.index] = _read_items(self.folder / "rows" / f"{row.index:03d}.safetensors")
        return self._files[row.index]


def _read_items(path: Path) -> dict[str, NDArray[np.float64]] | None:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        return None
    try:
        return {name: np.asarray(values, dtype=np.float64) for name, values in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path}: the outcomes of this row cannot be read ({error}).") from error


def _read_config(folder: Path) -> tuple[Mapping[str, Any], str | None]:
    try:
        return read_yaml(folder / "config.yaml"), None
    except ConfigError as error:
        # The report works without the configuration, and says that it is missing.
        return {}, str(error)
