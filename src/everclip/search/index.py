"""The index: items, one table of vectors per vector space, and the file that says which versions of them hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from everclip.errors import ConfigError
from everclip.files import clear_leftovers, crash_point, require_writable, write_text_atomic
from everclip.lock import locked, now
from everclip.sealing import read_sealed, sealed
from everclip.search import tables
from everclip.search.filters import Condition, expression_of
from everclip.search.metadata import shown
from everclip.search.records import EXACT_BELOW, FOLDER, SERVING, Ann, Column, Serving, Space, Storage

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

    Raises:
        ConfigError: if there is no index, or LanceDB is not installed.
        CheckpointError: if its state is damaged.
    """

    def __init__(self, store: Path, say: Say = lambda line: None) -> None:
        self.folder, self.say = store / FOLDER, say
        if not (self.folder / SERVING).is_file():
            raise ConfigError(f"{store}: has no search index; `everclip index {store} IMAGES...` makes one.")
        self.database = tables.connect(self.folder)

    @classmethod
    def create(cls, store: Path, exact_below: int = EXACT_BELOW, say: Say = lambda line: None) -> Index:
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
        return cls(store, say)

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
        """Change tables; everything holds from one rename at the end, or nothing."""
        with locked(self.folder / COMMIT_LOCK, verb, True, self.say, "index"):
            clear_leftovers(self.folder)
            change = Change(self.database, self.state)
            yield change
            state = change.result()
            crash_point("in index: tables written")
            write_text_atomic(self.folder / SERVING, sealed(state))


@dataclass(frozen=True)
class View:
    """An index at one moment."""

    database: Any
    state: Serving

    @cached_property
    def items(self) -> Any:
        """The table of items."""
        return tables.at_version(self.database, tables.ITEMS, self.state.items)

    def vectors(self, key: str) -> Any:
        """Return the table of a space's vectors."""
        space = self.state.spaces[key]
        return tables.at_version(self.database, space.table, space.at)

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
    ) -> list[list[Hit]]:
        """Return the nearest items of each query, the nearest first.

        Args:
            key: of the encoder of the queries; must be that of a space.
            queries: unit vectors `(N, D)`.
            top: number of results.
            wanted: conditions on metadata.
            exact: whether to compare with every vector, even if there is an approximate index.

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
        ids = list(dict.fromkeys(i for rows in found for i in rows.column("id").to_pylist()))
        places = tables.rows_with(self.items, ids, ["id", "path"])
        paths = dict(zip(places.column("id").to_pylist(), places.column("path").to_pylist(), strict=True))
        return [self._hits(rows, paths) for rows in found]

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
    wanted = ["id", "_distance", *metadata_of(table.schema)]
    search = _asked(table, query, top, None if exact or space.ann is None else _effort(space.ann))
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
    found: list[str] = _asked(table, query, top, effort).select(["id"]).to_arrow().column("id").to_pylist()
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


class Change:
    """A change of an index that has not been committed."""

    def __init__(self, database: Any, state: Serving) -> None:
        self.database, self.state = database, state
        self._open: dict[str, Any] = {}

    def table(self, name: str) -> Any:
        """Return a table for writing."""
        if name not in self._open:
            at = self.state.items if name == tables.ITEMS else self._space_of(name).at
            self._open[name] = tables.to_change(self.database, name, at)
        return self._open[name]

    def _space_of(self, table: str) -> Space:
        return next(space for space in self.state.spaces.values() if space.table == table)

    def result(self) -> Serving:
        """Return the state with the versions of all tables that were changed."""
        at = {name: table.version for name, table in self._open.items()}
        spaces = {
            key: space.model_copy(update={"at": at.get(space.table, space.at)})
            for key, space in self.state.spaces.items()
        }
        return self.state.model_copy(
            update={"items": at.get(tables.ITEMS, self.state.items), "spaces": spaces}
        )

    def set_space(self, space: Space) -> None:
        """Change what is written of a space."""
        self.state = self.state.model_copy(update={"spaces": {**self.state.spaces, space.key: space}})

    def new_space(
        self,
        key: str,
        version: str,
        tower: str,
        width: int,
        storage: Storage = "float32",
        how: str = "reembed",
    ) -> Space:
        """Add a space without vectors, or return the one of this key."""
        if key in self.state.spaces:
            return self.state.spaces[key]
        name = f"vectors-{key}"
        schema = tables.vector_schema(width, storage, self.state.columns)
        table = self.database.create_table(name, schema=schema, mode="overwrite")
        space = Space(
            key=key,
            version=version,
            tower=tower,
            width=width,
            storage=storage,
            table=name,
            at=table.version,
            how=how,
            made=now(),
        )
        self.set_space(space)
        self._open[name] = table
        return space

    def serve(self, key: str) -> None:
        """Let a space answer."""
        if key != self.state.serving:
            before = [k for k in self.state.before if k != key]
            if self.state.serving is not None:
                before.append(self.state.serving)
            self.state = self.state.model_copy(update={"serving": key, "before": before})

    def add_columns(self, columns: Sequence[Column]) -> None:
        """Add columns of metadata to all tables; items that are there have no value in them."""
        if not columns:
            return
        fields = tables.metadata_fields(columns, len(self.state.columns))
        for name in [tables.ITEMS, *(space.table for space in self.state.spaces.values())]:
            self.table(name).add_columns(fields)
        self.state = self.state.model_copy(update={"columns": [*self.state.columns, *columns]})

    def put(self, items: pa.Table, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Add items, or replace those of the same ids. Where the content is as before, vectors of all spaces stay.

        Args:
            items: rows with the fields of items and all columns of metadata.
            vectors: key of a space -> unit vectors `(N, D)` of these items.
        """
        ids = items.column("id").to_pylist()
        contents = dict(zip(ids, items.column("sha256").to_pylist(), strict=True))
        known = tables.rows_with(self.table(tables.ITEMS), ids, ["id"]).column("id").to_pylist()
        for key, space in self.state.spaces.items():
            if known and key not in vectors:
                self._carry_over(space, known, contents, items)
        if known:
            tables.without(self.table(tables.ITEMS), known)
        self.table(tables.ITEMS).add(items)
        for key, rows in vectors.items():
            self.put_vectors(key, items, rows)

    def _carry_over(
        self, space: Space, known: Sequence[str], contents: Mapping[str, str], items: pa.Table
    ) -> None:
        """Give the vectors of replaced items their new metadata; drop those of another content."""
        table = self.table(space.table)
        rows = tables.rows_with(table, known)
        if not len(rows):
            return
        same = [i for i, row in enumerate(rows.to_pylist()) if contents[row["id"]] == row["sha256"]]
        kept = rows.take(same)
        index = {i: n for n, i in enumerate(items.column("id").to_pylist())}
        fresh = items.take([index[i] for i in kept.column("id").to_pylist()])
        for field in metadata_of(fresh):
            kept = kept.set_column(kept.column_names.index(field), field, fresh.column(field))
        tables.without(table, known)
        if len(kept):
            table.add(kept)

    def put_vectors(
        self,
        key: str,
        items: pa.Table,
        vectors: NDArray[np.float32],
        how: str = "embedded",
        known: Sequence[str] | None = None,
    ) -> None:
        """Add vectors to a space, or replace those of the same ids.

        Args:
            key: of the space.
            items: rows of items with their metadata, `N` of them.
            vectors: unit vectors `(N, D)`.
            how: `embedded` or `mapped`.
            known: ids that the space holds already, if the caller knows them.
        """
        space = self.state.spaces[key]
        table = self.table(space.table)
        ids = items.column("id").to_pylist()
        if known is None:
            known = tables.rows_with(table, ids, ["id"]).column("id").to_pylist()
        if known:
            tables.without(table, known)
        columns = {
            "id": items.column("id"),
            "vector": tables.vectors_array(vectors, space.storage),
            "how": pa.array([how] * len(ids), pa.string()),
            "sha256": items.column("sha256"),
            **{name: items.column(name) for name in metadata_of(items)},
        }
        table.add(pa.table(columns))

    def set_contents(self, contents: Mapping[str, str]) -> None:
        """Note that items have another content than when they were added: id -> SHA-256."""
        if not contents:
            return
        table = self.table(tables.ITEMS)
        rows = tables.rows_with(table, list(contents))
        fresh = pa.array([contents[i] for i in rows.column("id").to_pylist()], pa.string())
        tables.without(table, list(contents))
        table.add(rows.set_column(rows.column_names.index("sha256"), "sha256", fresh))

    def remove(self, ids: Sequence[str]) -> list[str]:
        """Remove items with their vectors; return the ids that were there."""
        known = tables.rows_with(self.table(tables.ITEMS), ids, ["id"]).column("id").to_pylist()
        if known:
            for name in [tables.ITEMS, *(space.table for space in self.state.spaces.values())]:
                tables.without(self.table(name), known)
        return sorted(known)


def metadata_of(rows: Any) -> list[str]:
    """Return the names of the stored columns of metadata of a table or schema of Arrow."""
    return [
        name
        for name in (rows.names if isinstance(rows, pa.Schema) else rows.column_names)
        if name.startswith("m")
    ]
