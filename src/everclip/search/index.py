"""The index: items, one table of vectors per vector space, and the file that says which versions of them hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from everclip.errors import CheckpointError, ConfigError, RunFolderError
from everclip.files import clear_leftovers, crash_point, require_writable, write_text_atomic
from everclip.lock import locked
from everclip.sealing import read_sealed, sealed
from everclip.search import tables
from everclip.search.change import Change
from everclip.search.filters import Condition, expression_of
from everclip.search.metadata import shown
from everclip.search.records import EXACT_BELOW, FOLDER, SERVING, Ann, Serving, Space

COMMIT_LOCK, ADD_LOCK, REINDEX_LOCK = ".lock", ".index.lock", ".reindex.lock"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Hit:
    """One result: an item with its cosine, its file (if it has one) and its metadata."""

    id: str
    cosine: float
    path: str | None
    metadata: dict[str, Any]


class Index:
    """The index in a store's folder.

    Args:
        store: the folder of the store.
        say: called with lines for the user.
        committed: called after every change.

    Raises:
        ConfigError: if there is no index, or LanceDB is not installed.
        CheckpointError: if its state is damaged.
    """

    def __init__(
        self, store: Path, say: Say = lambda line: None, committed: Callable[[], None] = lambda: None
    ) -> None:
        self.folder, self.say, self._committed = store / FOLDER, say, committed
        if not (self.folder / SERVING).is_file():
            raise ConfigError(f"{store}: has no search index; `everclip index {store} IMAGES...` makes one.")
        self.database = tables.connect(self.folder)

    @classmethod
    def create(
        cls,
        store: Path,
        exact_below: int = EXACT_BELOW,
        say: Say = lambda line: None,
        committed: Callable[[], None] = lambda: None,
    ) -> Index:
        """Make an index without items, or open the one that is there."""
        folder = store / FOLDER
        if not (folder / SERVING).is_file():
            require_writable(store, "STORE")
            folder.mkdir(exist_ok=True)
            with locked(folder / COMMIT_LOCK, "index", True, say, "index"):
                if not (folder / SERVING).is_file():
                    database = tables.connect(folder)
                    items = database.create_table(
                        tables.ITEMS, schema=pa.schema(tables.ITEM_FIELDS), mode="overwrite"
                    )
                    state = Serving(items=items.version, exact_below=exact_below)
                    write_text_atomic(folder / SERVING, sealed(state))
        return cls(store, say, committed)

    @property
    def state(self) -> Serving:
        """What holds now."""
        return read_sealed(self.folder / SERVING, Serving)

    def view(self) -> View:
        """Return the index as it is now, for reading; later changes do not show in it."""
        return View(self.database, self.state)

    @contextmanager
    def alone(self, lock: str, verb: str, wait: bool = False) -> Iterator[None]:
        """Hold a lock for a whole action (`ADD_LOCK`, `REINDEX_LOCK`).

        Raises:
            RunFolderError: if another process holds it; names the holder.
        """
        with locked(self.folder / lock, verb, wait, self.say, "index", "Wait for it."):
            yield

    @contextmanager
    def changing(self, verb: str) -> Iterator[Change]:
        """Change tables; everything holds from one rename at the end, or nothing.

        Raises:
            CheckpointError: if a table cannot be written (for example: the disk is full).
        """
        with locked(self.folder / COMMIT_LOCK, verb, True, self.say, "index"):
            clear_leftovers(self.folder)
            change = Change(self.database, self.state)
            try:
                yield change
                state = change.result()
            except (RuntimeError, OSError) as error:  # of LanceDB, which reports a full disk in its own words
                raise CheckpointError(
                    f"{self.folder}: the index cannot be changed ({tables.message_of(error)}). What was there "
                    "before holds."
                ) from error
            crash_point("in index: tables written")
            write_text_atomic(self.folder / SERVING, sealed(state))
            self._committed()

    def clean(self) -> None:
        """Remove versions of tables that nobody reads any more. Does nothing while the index is being moved."""
        try:
            with self.alone(REINDEX_LOCK, "index"), self.changing("index") as change:
                for name in [tables.ITEMS, *(space.table for space in change.state.spaces.values())]:
                    tables.clean(change.table(name))
        except RunFolderError:
            self.say("note: old versions of the tables stay until the index has been moved")


@dataclass(frozen=True)
class View:
    """An index at one moment. May be used by several threads."""

    database: Any
    state: Serving
    _vectors: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def items(self) -> Any:
        """The table of items."""
        return tables.at_version(self.database, tables.ITEMS, self.state.items)

    def vectors(self, key: str) -> Any:
        """Return the table of a space's vectors; opened once."""
        if key not in self._vectors:
            space = self.state.spaces[key]
            self._vectors[key] = tables.at_version(self.database, space.table, space.at)
        return self._vectors[key]

    def contents(self) -> dict[str, str]:
        """Return id -> SHA-256 of every item."""
        return _contents(self.items)

    def held(self, key: str) -> dict[str, str]:
        """Return id -> SHA-256 of every vector of a space; empty if there is no such space."""
        return _contents(self.vectors(key)) if key in self.state.spaces else {}

    def missing(self, key: str) -> dict[str, int]:
        """Return the items that have no vector of their present content in a space.

        Returns:
            id -> position of its row in the table of items, in this order.
        """
        held = self.held(key)
        return {i: row for row, (i, content) in enumerate(self.contents().items()) if held.get(i) != content}

    def search(
        self,
        key: str,
        queries: NDArray[np.float32],
        top: int = 10,
        wanted: Sequence[Condition] = (),
        exact: bool = False,
        paths: bool = True,
    ) -> list[list[Hit]]:
        """Return the nearest items of each query, the nearest first.

        Args:
            key: of the encoder of the queries; must be that of a space.
            queries: unit vectors `(N, D)`.
            top: number of results.
            wanted: conditions on metadata.
            exact: whether to compare with every vector, even if there is an approximate index.
            paths: whether to look up the file of each item.

        Raises:
            ConfigError: if the queries are of another vector space.
        """
        space = self.state.spaces.get(key)
        if space is None:
            raise ConfigError(refusal(self.state))
        if queries.ndim != 2 or queries.shape[1] != space.width:
            raise ConfigError(f"queries: expected (N, {space.width}), found {tuple(queries.shape)}.")
        table, condition = self.vectors(key), expression_of(wanted)
        found = [_nearest(table, query, space, top, condition, exact) for query in queries]
        ids = list(dict.fromkeys(i for rows in found for i in rows.column("id").to_pylist())) if paths else []
        places = tables.rows_with(self.items, ids, ["id", "path"])
        of_item = dict(zip(places.column("id").to_pylist(), places.column("path").to_pylist(), strict=True))
        return [self._hits(rows, of_item) for rows in found]

    def _hits(self, rows: pa.Table, paths: Mapping[str, str | None]) -> list[Hit]:
        hits = [
            Hit(row["id"], 1 - row["_distance"], paths.get(row["id"]), self.metadata(row))
            for row in rows.to_pylist()
        ]
        return sorted(hits, key=lambda hit: (-hit.cosine, hit.id))

    def metadata(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the metadata of a stored row by the names of its columns; without those it lacks."""
        named = {
            column.also or column.name: shown(row.get(f"m{i}"), column.kind)
            for i, column in enumerate(self.state.columns)
        }
        return {name: value for name, value in named.items() if value is not None}


def _nearest(
    table: Any, query: NDArray[np.float32], space: Space, top: int, condition: Any, exact: bool
) -> pa.Table:
    wanted = ["id", "_distance", *tables.metadata_of(table.schema)]
    search = _asked(table, query, top, None if exact or space.ann is None else _effort(space.ann))
    with tables.reading(table.name):
        return (search if condition is None else search.where(condition)).select(wanted).to_arrow()


def _effort(ann: Ann) -> tuple[int, int]:
    return ann.probes, ann.refine


def _asked(table: Any, query: NDArray[np.float32], top: int, effort: tuple[int, int] | None) -> Any:
    search = table.search(np.asarray(query, np.float32)).distance_type("dot").limit(top)
    if effort is None:
        return search.bypass_vector_index()
    return search.nprobes(effort[0]).refine_factor(effort[1])


def nearest(table: Any, query: NDArray[np.float32], top: int, effort: tuple[int, int] | None) -> list[str]:
    """Return the ids of the nearest vectors of a table.

    Args:
        table: of vectors.
        query: a unit vector `(D,)`.
        top: number of ids.
        effort: partitions to look into, and how many times more candidates to refine; `None`: exact.
    """
    found: list[str] = (
        _asked(table, query, top, effort).select(["id", "_distance"]).to_arrow().column("id").to_pylist()
    )
    return found


def refusal(state: Serving) -> str:
    """Return why a query of another encoder is refused, and what to do."""
    space = state.space
    if space is None:
        return "the index holds no images yet."
    return (
        f"the query comes from another image encoder than the index: the vectors are of {space.version}. Cosines "
        f"between two vector spaces mean nothing. Ask with {space.version}, or move the index: `everclip reindex`."
    )


def _contents(table: Any) -> dict[str, str]:
    rows = tables.all_rows(table, ["id", "sha256"])
    return dict(zip(rows.column("id").to_pylist(), rows.column("sha256").to_pylist(), strict=True))
