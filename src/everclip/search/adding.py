"""Add images to an index, replace and remove them. Each batch holds from its commit on; the same command continues."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from everclip.config import validated
from everclip.data.pictures.rendering import COLUMN as RENDERING
from everclip.data.reading.formats.raw import IMAGE_ENDINGS
from everclip.data.reading.loaded import Loaded
from everclip.data.reading.quarantine import Entry
from everclip.data.reading.sources import read, read_rows
from everclip.data.reading.spec import DataSpec
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.files import crash_point, user_path
from everclip.search import hits, tables
from everclip.search.ann import keep_ann
from everclip.search.embedding import BLOCK, Embedded, Group, Pace, SearchModel, Source, embedded
from everclip.search.index import ADD_LOCK, Index, View, refusal
from everclip.search.metadata import new_columns, stored
from everclip.search.naming import is_path, name_of, with_roots
from everclip.search.records import Column, Storage

Tell = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Images:
    """Images to add.

    Attributes:
        table: their rows.
        ids: of the items, one per row of the table; repeated ids are one item. Where `folder` decides, the absolute
            path of a file stands for the name that the index gives it.
        folder: that the user named, whose files are named by their paths; `None`: a column names the items.
        sources: canonical name of a column -> its name in the source.
        set_aside: rows that cannot be used.
    """

    table: Table
    ids: list[str]
    folder: str | None
    sources: dict[str, str]
    set_aside: tuple[Entry, ...]


@dataclass
class Added:
    """What was done.

    Attributes:
        added, replaced, same: numbers of items.
        differing: ids that are there with another content or other metadata, and were left as they are.
        failed: id -> why an image could not be read.
        repeated: rows that name an image of an earlier row.
        left_out: columns that cannot be kept.
    """

    added: int = 0
    replaced: int = 0
    same: int = 0
    repeated: int = 0
    differing: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def joined(self, other: Added) -> Added:
        """Return the sum of both."""
        return Added(
            self.added + other.added,
            self.replaced + other.replaced,
            self.same + other.same,
            self.repeated + other.repeated,
            [*self.differing, *other.differing],
            self.failed | other.failed,
            [*self.left_out, *other.left_out],
        )


def images_of(inputs: Sequence[str], id_column: str | None = None, limit: float = 0.01) -> list[Images]:
    """Read what the user names: image files, and whatever else `DataSpec.source` reads.

    Args:
        inputs: files, folders, tables, shards.
        id_column: the column that names an item.
        limit: above this share of unusable rows reading stops.

    Raises:
        ConfigError, DataError: if something cannot be read.
    """
    paths = [user_path(given, "IMAGES") for given in inputs]
    single = [
        str(path.absolute()) for path in paths if path.is_file() and path.suffix[1:].lower() in IMAGE_ENDINGS
    ]
    rest = [given for given, path in zip(inputs, paths, strict=True) if str(path.absolute()) not in single]
    found = []
    if single:
        rows = [{"image": path} for path in dict.fromkeys(single)]
        loaded = read_rows(rows, name="images", quarantine_limit=limit, labelled=False)
        found.append(_images(loaded, Path(os.path.commonpath(map(os.path.dirname, single)))))
    for source in rest:
        columns = {} if id_column is None else {"id": id_column}
        spec = validated(DataSpec, {"source": source, "columns": columns, "quarantine_limit": limit}, "index")
        path = user_path(source, "IMAGES").absolute()
        found.append(_images(read(spec, labelled=False), path if path.is_dir() else path.parent))
    return found


def _images(loaded: Loaded, folder: Path) -> Images:
    table = loaded.table
    given = next((name for name in ("image_id", "id") if name in loaded.columns), None)
    if given is not None:
        ids = [str(value) for value in table.column(given)]
    else:
        origins = [table.origin(row) for row in range(len(table))]
        ids = [_absolute(path) if path else table.content(row) for row, path in enumerate(origins)]
    named = str(folder) if given is None else None
    return Images(table, ids, named, dict(loaded.columns), loaded.quarantine.entries)


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).absolute())


def add(
    index: Index,
    model: SearchModel,
    images: Images,
    *,
    replacing: bool = False,
    storage: Storage = "float32",
    tell: Tell = lambda line: None,
) -> Added:
    """Add images that the index does not hold yet.

    Args:
        index: the index.
        model: the version that answers, or the first one that will.
        images: what to add.
        replacing: whether items that are there get the new content and metadata.
        storage: of vectors, if these are the first.
        tell: called with lines about the progress.

    Raises:
        ConfigError: if the index is of another vector space.
        DataError: if metadata do not fit the columns of the index.
        RunFolderError: if another process adds images.
    """
    with index.alone(ADD_LOCK, "index"):
        done = Added()
        columns, roots = _prepare(index, model, images, storage, done)
        todo = _todo(index, images, columns, roots, replacing, done)
        # Without new contents there is nothing to embed: metadata are replaced, and vectors stay.
        batches = [todo[i : i + BLOCK] for i in range(0, len(todo), BLOCK)]
        fresh = [[row for row in batch if row.encode] for batch in batches]
        vectors = embedded(model, ([row.source for row in batch] for batch in fresh))
        pace, group = Pace(), Group[tuple[list[_Row], Embedded | None]]()
        for number, batch in enumerate(batches, start=1):
            group.add((batch, next(vectors) if fresh[number - 1] else None), len(batch))
            if group.full or number == len(batches):
                _put(index, model, images, columns, group.taken(), done)
            if pace.due(ready := min(number * BLOCK, len(todo)), len(todo)):
                tell(f"{ready:,} of {len(todo):,} images{pace.left(ready, len(todo))}")
        if todo:
            keep_ann(index, model, tell)
    if todo:
        index.clean()
    return done


@dataclass(frozen=True)
class _Row:
    """A row to put: its position, its source, whether it replaces an item, and whether it must be encoded."""

    position: int
    source: Source
    known: bool
    encode: bool


def _prepare(
    index: Index, model: SearchModel, images: Images, storage: Storage, done: Added
) -> tuple[list[Column], dict[str, str]]:
    with index.changing("index") as change:
        if change.state.serving is None:
            change.new_space(model.key, model.version, model.tower, model.width, storage)
            change.serve(model.key)
        elif change.state.serving != model.key:
            raise ConfigError(refusal(change.state))
        columns, done.left_out = new_columns(images.table, change.state.columns, images.sources)
        for row, item in enumerate(
            images.ids
        ):  # all of them now: a column that was added keeps its kind for good
            _metadata(images.table, row, [*change.state.columns, *columns], item)
        change.add_columns(columns)
        if images.folder is not None:
            change.name_folders(
                with_roots(list(filter(is_path, images.ids)), images.folder, change.state.roots)
            )
        return list(change.state.columns), change.state.roots


def _todo(
    index: Index,
    images: Images,
    columns: Sequence[Column],
    roots: Mapping[str, str],
    replacing: bool,
    done: Added,
) -> list[_Row]:
    """Return the rows to put. What is there as it should be is left out, so a repeated command continues."""
    view = index.view()
    known = view.contents()
    ids = images.ids if images.folder is None else [_name(given, known, roots) for given in images.ids]
    rows: list[_Row] = []
    seen: set[str] = set()
    held = _held(view, [item for item in dict.fromkeys(ids) if item in known], columns)
    for row, item in enumerate(ids):
        if item in seen:
            done.repeated += 1
            continue
        seen.add(item)
        content = images.table.content(row)
        if item not in known:
            rows.append(_Row(row, _source(images.table, row, item), False, True))
        elif known[item] == content and held[item] == _metadata(images.table, row, columns, item):
            done.same += 1
        elif replacing:
            rows.append(_Row(row, _source(images.table, row, item), True, known[item] != content))
        else:
            done.differing.append(item)
    return rows


def _name(given: str, known: Container[str], roots: Mapping[str, str]) -> str:
    """Return the name of an item of which a path was given; one that is there by its absolute path keeps it."""
    return given if given in known or not is_path(given) else name_of(given, roots) or given


def _held(view: View, ids: Sequence[str], columns: Sequence[Column]) -> dict[str, tuple[Any, ...]]:
    names = [f"m{i}" for i in range(len(columns))]
    rows = tables.rows_with(view.items, ids, ["id", *names]).to_pylist()
    return {row["id"]: tuple(row[name] for name in names) for row in rows}


def _metadata(table: Table, row: int, columns: Sequence[Column], item: str) -> tuple[Any, ...]:
    return tuple(
        stored(table.value(c.name, row), c, f"{table.name}, {item}") if table.has(c.name) else None
        for c in columns
    )


def _source(table: Table, row: int, item: str) -> Source:
    """Return where the image of a row lies: its own file, its place in an archive, or its bytes."""
    place = table.place(row)
    held = place["bytes"]
    kept: dict[str, Any] = {"path": None, "offset": None, "size": None, "bytes": held}
    if held is None:
        kept["path"] = _absolute(place["path"])
        if place["offset"] is not None:
            kept["offset"], kept["size"] = place["offset"], place["size"]
    rendering = table.value(RENDERING, row) if table.has(RENDERING) else None
    return Source(item, kept, rendering)


def _put(
    index: Index,
    model: SearchModel,
    images: Images,
    columns: Sequence[Column],
    group: Sequence[tuple[list[_Row], Embedded | None]],
    done: Added,
) -> None:
    """Commit some batches: what was embedded, and what only has new metadata."""
    by_id = {row.source.id: row for batch, _ in group for row in batch}
    kept = [
        (row, images.table.content(row.position)) for batch, _ in group for row in batch if not row.encode
    ]
    found = Embedded.joined([part for _, part in group if part is not None])
    fresh = list(zip((by_id[i] for i in found.ids), found.contents, strict=True))
    done.failed |= found.failed
    with index.changing("index") as change:
        if fresh:
            change.put(_items(images.table, fresh, columns), {model.key: found.vectors})
        if kept:
            change.put(_items(images.table, kept, columns), {})
    crash_point("in index: batch added")
    done.replaced += sum(row.known for row, _ in [*fresh, *kept])
    done.added += sum(not row.known for row, _ in fresh)


def _items(table: Table, rows: Sequence[tuple[_Row, str]], columns: Sequence[Column]) -> pa.Table:
    fields = [*tables.ITEM_FIELDS, *tables.metadata_fields(columns)]
    values: dict[str, list[Any]] = {f.name: [] for f in fields}
    for row, content in rows:
        place = row.source.place
        for name in ("path", "offset", "size", "bytes"):
            values[name].append(place[name])
        values["id"].append(row.source.id)
        values["rendering"].append(row.source.rendering)
        values["sha256"].append(content)
        for i, value in enumerate(_metadata(table, row.position, columns, row.source.id)):
            values[f"m{i}"].append(value)
    return pa.table({f.name: pa.array(values[f.name], f.type) for f in fields})


def remove(index: Index, ids: Sequence[str]) -> tuple[list[str], list[str]]:
    """Remove items; return the ids that were removed, and those that were not there.

    Args:
        index: the index.
        ids: of items; for files also a path from the working directory.
    """
    with index.alone(ADD_LOCK, "index --remove"):
        view = index.view()
        known, roots = view.contents(), view.state.roots
        wanted = {
            given: given if given in known else _name(str(Path(given).absolute()), known, roots)
            for given in ids
        }
        with index.changing("index --remove") as change:
            gone = change.remove(sorted(set(wanted.values())))
        hits.forget(index.folder, gone)
    return gone, [given for given, meant in wanted.items() if meant not in gone]
