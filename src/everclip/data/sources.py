"""Reading what the user names: find it, read it, bring it to canonical columns, look at every picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from everclip.data.canonical import named, plain, spread_captions, texts_of
from everclip.data.columns import choose, describe, renamed
from everclip.data.examine import Examined, Tick, examine
from everclip.data.identity import with_ids
from everclip.data.locate import located
from everclip.data.near_files import is_absolute
from everclip.data.picture_folder import SAMPLE, picture_folder
from everclip.data.pictures import PLACE, shared_places, with_contents
from everclip.data.quarantine import Entry, Quarantine, require_enough
from everclip.data.readers.raw import Raw
from everclip.data.references import Resolver, image_places
from everclip.data.rendering import COLUMN, Rendering, renderings
from everclip.data.spec import DataSpec
from everclip.data.splits import side_of
from everclip.data.table import Pictures, Table, replaced
from everclip.errors import ConfigError, DataError


@dataclass(frozen=True)
class Loaded:
    """What reading gives.

    Attributes:
        table: the usable samples in canonical columns.
        quarantine: the others, with reasons.
        columns: canonical names to those of the source, as given or guessed.
        guesses: one line per guess, for people.
        facts: per row of `table`: `width`, `height` (upright, in pixels), `bytes`, `mode`, `format`, `frames`, `dhash`
            (64-bit difference hash), `sha256`, `span`, `background` and `blank`.
    """

    table: Table
    quarantine: Quarantine
    columns: dict[str, str]
    guesses: tuple[str, ...]
    facts: pa.Table


def read(spec: DataSpec, root: Path | None = None, tick: Tick | None = None, labelled: bool = True) -> Loaded:
    """Read the data that a `data:` block names.

    Args:
        spec: the block.
        root: folder that relative paths start from.
        tick: called with (pictures looked at, all pictures) now and then.
        labelled: whether captions or classes are needed.

    Raises:
        ConfigError: for an unknown source or option.
        DataError: for unreadable data, or a larger share of unusable rows than `spec.quarantine_limit`.
    """
    resolve_from = None if spec.root is None else (root or Path()) / Path(spec.root).expanduser()
    downloads = None if spec.downloads is None else (root or Path()) / Path(spec.downloads).expanduser()
    for key, folder in (("root", resolve_from), ("downloads", downloads)):
        if folder is not None and not folder.is_dir() and not (spec.is_catalog and key == "root"):
            raise ConfigError(f"data.{key}: {folder}: no such folder.")
    return _loaded(located(spec, root, labelled), spec, resolve_from, downloads, tick, labelled)


def read_rows(
    rows: Iterable[Mapping[str, Any]],
    columns: Mapping[str, str] | None = None,
    name: str = "rows",
    root: Path | None = None,
    quarantine_limit: float = 0.01,
) -> Loaded:
    """Read rows that a program gives.

    Args:
        rows: mappings of column to value; a picture is encoded bytes, a path or a PIL picture.
        columns: canonical names to those of the rows; what is not given is guessed where it is obvious.
        name: what messages call them.
        root: folder that paths start from, and may not leave; without it they are taken as they are.
        quarantine_limit: above this share of unusable rows reading stops.

    Raises:
        DataError: for rows that hold no pictures, or too many unusable ones.
    """
    from everclip.data.readers.rows import read_mappings

    spec = DataSpec(source=name, columns=dict(columns or {}), quarantine_limit=quarantine_limit)
    return _loaded([read_mappings(rows, spec.columns, name, root)], spec, None, None, None)


@dataclass
class _Part:
    """One file in canonical columns.

    Attributes:
        columns: `image` holds positions among `pictures`.
        pictures: of type `everclip.data.pictures.PLACE`, one per row of the file.
        origin: each row's position in the file.
        broken: rows that are set aside, and why.
    """

    raw: Raw
    columns: pa.Table
    pictures: pa.ChunkedArray
    origin: Sequence[int]
    broken: dict[int, tuple[str, str]]

    def entries(self, broken: Mapping[int, tuple[str, str]], start: int) -> list[Entry]:
        """Return the quarantine's entries of this file, in order of its rows.

        Args:
            broken: positions among the rows of all files.
            start: position of this file's first row among them.
        """
        mine = list(self.raw.broken)
        for position, row in enumerate(self.origin):
            if start + position in broken:
                found = broken[start + position]
                place = self.pictures[row]
                path = place["path"].as_py() if place["offset"].as_py() is None else None
                mine.append(Entry(self.raw.number(row), self.raw.row_name(row), *found, path=path or ""))
        return sorted(mine, key=lambda entry: entry.row or 0)


def _loaded(
    raws: Sequence[Raw],
    spec: DataSpec,
    root: Path | None,
    downloads: Path | None,
    tick: Tick | None,
    labelled: bool = True,
) -> Loaded:
    found = [choose(raw.columns.schema, spec.columns, raw.known, raw.name) for raw in raws]
    parts = [
        _part(raw, names, spec, root, downloads, labelled)
        for raw, (names, _) in zip(raws, found, strict=True)
    ]
    lines = [note for raw in raws for note in raw.notes] + _spoken(raws, [guesses for _, guesses in found])
    columns, pictures = _chained(parts)
    starts = _starts([len(part.origin) for part in parts])
    broken = {
        start + i: why for part, start in zip(parts, starts, strict=True) for i, why in part.broken.items()
    }
    at = columns.column("image").to_numpy()
    wanted = sorted({int(at[row]) for row in range(len(at)) if row not in broken})
    seen = examine(pictures, wanted, tick, rendering=Rendering(spec.background, spec.bits))
    bad = {position: (reason, detail) for position, reason, detail in seen.bad}
    broken |= {row: bad[int(at[row])] for row in range(len(at)) if row not in broken and int(at[row]) in bad}
    hashes: list[str | None] = [None] * len(pictures)
    sizes: list[int | None] = [None] * len(pictures)
    known = (seen.facts.column(name).to_pylist() for name in ("sha256", "bytes"))
    for position, key, size in zip(seen.good, *known, strict=True):
        hashes[position], sizes[position] = key, size
    owners = [part.raw.name for part in parts for _ in part.origin]
    columns, more = with_ids(columns, [hashes[i] for i in at], owners, broken)
    columns, rendered = _with_renderings(columns, at, seen, spec)
    more += rendered
    rows = np.asarray([row for row in range(len(at)) if row not in broken], np.int64)
    quarantine = Quarantine(
        spec.label,
        columns.num_rows + sum(len(raw.broken) for raw in raws),
        tuple(e for part, start in zip(parts, starts, strict=True) for e in part.entries(broken, start)),
        _sides(columns, broken),
        spec.counts == "required",
    )
    require_enough(quarantine, spec.quarantine_limit)
    name = spec.label if len(spec.sources) > 1 or ":" in spec.label else Path(spec.label).name
    table = Table(columns, rows, name, Pictures(with_contents(pictures, hashes, sizes)))
    facts = seen.facts.take(pa.array(np.searchsorted(np.asarray(seen.good, np.int64), at[rows])))
    chosen = {wanted: column for names, _ in found for wanted, column in names.items()}
    return Loaded(table, quarantine, chosen, tuple(dict.fromkeys([*lines, *more])), facts)


def _with_renderings(
    columns: pa.Table, at: np.ndarray, seen: Examined, spec: DataSpec
) -> tuple[pa.Table, list[str]]:
    """Add how each row's picture becomes RGB, where the file alone does not decide; and lines for people."""
    spans, backgrounds = (seen.facts.column(name).to_pylist() for name in ("span", "background"))
    chosen, lines = renderings(spans, backgrounds, spec.background, spec.bits)
    if any(chosen):
        of_picture = dict(zip(seen.good, chosen, strict=True))
        values = [of_picture.get(int(position)) for position in at]
        columns = replaced(columns, COLUMN, pa.array(values, pa.string()))
    return columns, lines


def _sides(columns: pa.Table, broken: Mapping[int, Any]) -> dict[str, tuple[int, int]]:
    """Return rows set aside and all rows per side, if any were; rows that no reader could give have no side."""
    if not broken or "split" not in columns.column_names:
        return {}
    marks = ["" if mark is None else str(side_of(mark)) for mark in columns.column("split").to_pylist()]
    held, gone = Counter(marks), Counter(marks[row] for row in broken)
    return {side: (gone[side], held[side]) for side in sorted(gone) if side}


def _spoken(raws: Sequence[Raw], guesses: Sequence[Sequence[str]]) -> list[str]:
    """Return the guesses as lines; what is guessed for every file alike is said once."""
    common = [line for line in guesses[0] if all(line in mine for mine in guesses)]
    own = [
        f"{raw.name}: {line}"
        for raw, mine in zip(raws, guesses, strict=True)
        for line in mine
        if line not in common
    ]
    return common + own


def _part(
    raw: Raw,
    names: Mapping[str, str],
    spec: DataSpec,
    root: Path | None,
    downloads: Path | None,
    labelled: bool,
) -> _Part:
    """Bring one file to canonical columns."""
    _require(names, raw, labelled)
    columns, unread = plain(renamed(raw.columns, names))
    resolver = Resolver(_start(raw, columns.column("image"), root), downloads)
    pictures, missing = image_places(columns.column("image"), resolver, raw.name)
    raw.notes += [f"{raw.name}: {line}" for line in resolver.notes()]
    columns = replaced(columns, "image", shared_places(pictures))
    columns, origin = spread_captions(columns)
    by_row = {row: (reason, detail) for row, reason, detail in (*missing, *unread)}
    broken = {position: by_row[row] for position, row in enumerate(origin) if row in by_row}
    columns, problems = named(columns, raw.name, raw.textual)
    broken |= {i: (reason, detail) for i, reason, detail in problems if i not in broken}
    if labelled:
        columns, problems = texts_of(columns, broken)
        broken |= {i: (reason, detail) for i, reason, detail in problems if i not in broken}
    for name, value in (("split", raw.split), ("language", spec.language)):
        if value is not None and name not in columns.column_names:
            columns = columns.append_column(name, pa.array([value] * columns.num_rows, pa.string()))
    if "class_key" not in columns.column_names and "class_name" in columns.column_names:
        columns = columns.append_column("class_key", columns.column("class_name"))
    return _Part(raw, columns, pictures, origin, broken)


def _start(raw: Raw, images: pa.ChunkedArray, root: Path | None) -> Path | None:
    """Return the folder that paths start from and may not leave; `None` where they are taken as they are."""
    if not raw.confined:
        return None
    if raw.root_fixed or root is not None or raw.root is None or not pa.types.is_string(images.type):
        return raw.root if raw.root_fixed or root is None else root
    step = max(1, len(images) // SAMPLE)
    paths = [v for v in images.take(pa.array(range(0, len(images), step), pa.int64())).to_pylist() if v]
    folder, line = picture_folder(raw.root, [v for v in paths if "://" not in v and not is_absolute(v)])
    raw.notes += [f"{raw.name}: {line}"] if line else []
    return folder


def _require(names: Mapping[str, str], raw: Raw, labelled: bool) -> None:
    """Refuse data without pictures, or with neither captions nor classes where they are needed."""
    held = describe(raw.columns.column_names)
    if raw.broken and not raw.columns.num_rows:
        # Columns are known from rows: without one there is nothing to say about them.
        raise DataError(Quarantine(raw.name, len(raw.broken), tuple(raw.broken)).table())
    if raw.broken:
        held += (
            f" ({Quarantine(raw.name, raw.columns.num_rows + len(raw.broken), tuple(raw.broken)).summary()})"
        )
    if "image" not in names:
        raise DataError(
            f"{raw.name}: no column `image` (bytes, paths or URLs); columns are {held}. Name it with "
            "data.columns.image=NAME."
        )
    if labelled and not {"caption", "class_name", "class_key"} & set(names):
        raise DataError(
            raw.unlabelled
            or f"{raw.name}: nothing to learn from: neither captions nor classes; columns are {held}. Name one "
            "with data.columns.caption=NAME or data.columns.class_name=NAME."
        )


def _chained(parts: Sequence[_Part]) -> tuple[pa.Table, pa.ChunkedArray]:
    """Chain the rows and the pictures of several files."""
    tables = [
        replaced(part.columns, "image", pc.add(part.columns.column("image"), start))
        for part, start in zip(parts, _starts([len(part.pictures) for part in parts]), strict=True)
    ]
    pictures = pa.chunked_array([chunk for part in parts for chunk in part.pictures.chunks], PLACE)
    return _joined(tables), pictures


def _starts(lengths: Sequence[int]) -> list[int]:
    return [int(n) for n in np.cumsum([0, *lengths])[:-1]]


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Chain the rows of several files; columns that clash in type become text."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        pass
    kinds: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for field in table.schema:
            kinds.setdefault(field.name, set()).add(field.type)
    plain_tables = []
    for table in tables:
        for index, name in enumerate(table.column_names):
            if len(kinds[name]) > 1:
                values = [
                    v if v is None or isinstance(v, str) else str(v) for v in table.column(index).to_pylist()
                ]
                table = table.set_column(index, name, pa.array(values, pa.string()))
        plain_tables.append(table)
    return pa.concat_tables(plain_tables, promote_options="default")
