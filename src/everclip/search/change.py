"""A change of an index: all tables that it touches hold from one commit on, or none does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from everclip.lock import now
from everclip.search import tables
from everclip.search.records import Column, Serving, Space, Storage
from everclip.search.tables import metadata_of


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

    def name_folders(self, roots: Mapping[str, str]) -> None:
        """Set the folders that items are named after: short name -> absolute folder."""
        self.state = self.state.model_copy(update={"roots": dict(roots)})

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
