"""Reads each data block of a scenario once; collects notes, guesses and quarantined rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from everclip.data.reading.locate import read_sources
from everclip.data.reading.quarantine import Quarantine
from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.scenarios.paths import Paths
from everclip.scenarios.spec import Measured


@dataclass
class Reader:
    """Reads data blocks.

    Attributes:
        paths: resolves their paths.
        notes: notes on the data.
        guesses: guesses about the data, such as column names.
        quarantine: the quarantined rows of each block.
        fingerprints: label of a block -> its fingerprint.
    """

    paths: Paths
    notes: list[str] = field(default_factory=list)
    guesses: list[str] = field(default_factory=list)
    quarantine: list[Quarantine] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    _loaded: dict[tuple[str, bool], Loaded] = field(default_factory=dict)

    def fresh(self) -> Reader:
        """Return a reader that shares the data read so far and starts without notes."""
        return replace(self, notes=[], guesses=[], quarantine=[], fingerprints={})

    def read(self, spec: DataSpec, key: str = "data", labelled: bool = True) -> Table:
        """Return the usable rows of a block.

        Args:
            spec: the block.
            key: its position in the document, for errors.
            labelled: whether captions or classes are needed.

        Raises:
            ConfigError: for a source or setting that does not exist.
            DataError: for data that cannot be read.
        """
        same = repr(spec), labelled  # repr, since JSON cannot hold names that are not UTF-8
        if same not in self._loaded:
            with _errors_with_key(key):
                loaded = read(self.paths.located(spec, key), labelled=labelled)
            self._loaded[same] = loaded
            self._keep(loaded, spec, key)
        return self._loaded[same].table

    def require(self, spec: DataSpec, key: str) -> None:
        """Check that a block exists and is complete, without opening its images.

        Raises:
            ConfigError: for a source or setting that does not exist.
            DataError: for data that cannot be listed or are incomplete.
        """
        with _errors_with_key(key):
            read_sources(self.paths.located(spec, key), None)

    def columns(self, spec: DataSpec) -> dict[str, str]:
        """Return the columns of a block that was read: canonical name -> name in the source."""
        same = repr(spec)
        found = self._loaded.get((same, True)) or self._loaded[same, False]
        return dict(found.columns)

    def _keep(self, loaded: Loaded, spec: DataSpec, key: str) -> None:
        if len(loaded.table) == 0:
            raise DataError(f"{spec.label} ({key}): there is no usable row. {loaded.quarantine.summary()}.")
        label = spec.label
        if label in self.fingerprints:  # the same files, read with other settings
            label = f"{label} ({key})"
        self.fingerprints[label] = loaded.table.fingerprint
        self.quarantine.append(loaded.quarantine)
        prefix = f"{spec.label}: "  # some lines have it already
        self.guesses += [prefix + line.removeprefix(prefix) for line in loaded.guesses]

    def with_keys(self, table: Table, keys: list[str | None]) -> Table:
        """Return a table with other class keys."""
        return table.with_column("class_key", keys)

    def contents(self, tables: Iterable[Table | None], by: str | None = None) -> set[str]:
        """Return the content hashes of all images of the tables, and their values of the column `by`."""
        return {name for t in tables if t is not None for names in _marks(t, by) for name in names}

    def without(self, table: Table, contents: set[str], by: str | None = None) -> Table:
        """Return the rows whose image, and whose value of the column `by`, is not among `contents`."""
        kept = [i for i, names in enumerate(_marks(table, by)) if contents.isdisjoint(names)]
        return table if len(kept) == len(table) else table.select(kept)

    def kind_of(self, table: Table, given: Measured | None, key: str) -> Measured:
        """Return how a table is measured: as given, else by captions if there are any, else by classes.

        Raises:
            DataError: if it has neither, or lacks what `given` needs.
        """
        has = {"retrieval": has_values(table, "caption"), "classification": has_values(table, "class_key")}
        if given is not None:
            if not has[given]:
                wanted = "caption" if given == "retrieval" else "class_name"
                raise DataError(
                    f"{table.name}: {key} is {given}, which needs a column {wanted!r} with values; columns are "
                    f"{', '.join(table.column_names)}."
                )
            return given
        if not any(has.values()):
            raise DataError(
                f"{table.name}: there are neither captions nor classes to learn from; columns are "
                f"{', '.join(table.column_names)}. Name them with `columns: {{caption: NAME}}` in the data block."
            )
        if all(has.values()) and not table.name.startswith("builtin:"):
            line = f"{table.name}: has captions and classes; learned and measured by captions ({key}: classification)"
            self.guesses += [] if line in self.guesses else [line]
        return "retrieval" if has["retrieval"] else "classification"


def _marks(table: Table, by: str | None) -> Iterator[tuple[str, ...]]:
    """Yield what identifies each row's image: its content and, if the table has it, the value of the column `by`."""
    if by is None or not table.has(by):
        yield from ((table.content(i),) for i in range(len(table)))
        return
    for position, value in enumerate(table.column(by)):
        content = table.content(position)
        yield (content,) if value is None or value != value else (content, f"{by}={value}")


def has_values(table: Table, column: str) -> bool:
    """Whether any row has a value in the column."""
    return table.has(column) and any(value is not None and value != "" for value in table.column(column))


@contextmanager
def _errors_with_key(key: str) -> Iterator[None]:
    """Replace `data` in errors by the key of the block."""
    try:
        yield
    except ConfigError as error:
        if key == "data":
            raise
        raise ConfigError(re.sub(r"^data(?=[.:])", key, str(error), flags=re.MULTILINE)) from error


def with_class(table: Table, keys: Any = None) -> Table:
    """Return the rows that have a class (one of `keys`): a row without one has no right answer."""
    return table.where("class_key", lambda key: key is not None and (keys is None or key in keys))
