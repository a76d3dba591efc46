"""Read the data that the user names: find, read, bring to canonical columns, examine every image."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from everclip.config import validated
from everclip.data.pictures.location import LOCATION, with_contents
from everclip.data.pictures.rendering import COLUMN, Rendering, renderings
from everclip.data.reading.chosen_languages import of_languages
from everclip.data.reading.examine import Examined, Tick, examine
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.identity import with_ids
from everclip.data.reading.index import index_of, keep, load
from everclip.data.reading.loaded import Loaded as Loaded
from everclip.data.reading.locate import read_sources
from everclip.data.reading.one_file import CanonicalFile, ImageFolders, choose_columns, one_file
from everclip.data.reading.quarantine import Quarantine, require_enough
from everclip.data.reading.spec import DataSpec
from everclip.data.reading.wide_pairs import with_row_per_image
from everclip.data.sampling.splits import side_of
from everclip.data.table import ImageLocations, Table, replaced
from everclip.distributed import gather_objects, world
from everclip.errors import ConfigError, DataError
from everclip.files import user_path


def read(spec: DataSpec, root: Path | None = None, tick: Tick | None = None, labelled: bool = True) -> Loaded:
    """Read the data that a `data:` block names.

    Args:
        spec: the block.
        root: folder that relative paths start from.
        tick: called with (examined images, all images) from time to time.
        labelled: whether captions or classes are needed.

    Raises:
        ConfigError: for an unknown source or option.
        DataError: for unreadable data, or a larger share of unusable rows than `spec.quarantine_limit`.
    """
    resolve_from = None if spec.root is None else (root or Path()) / os.path.expanduser(spec.root)
    downloads = None if spec.downloads is None else (root or Path()) / os.path.expanduser(spec.downloads)
    for key, folder in (("root", resolve_from), ("downloads", downloads)):
        if folder is not None and not folder.is_dir() and not (spec.is_catalog and key == "root"):
            raise ConfigError(f"data.{key}: {folder}: no such folder.")
    index = index_of(spec, root, labelled)
    loaded = load(index)
    if loaded is None:
        places = ImageFolders(resolve_from, downloads)
        loaded = keep(index, _loaded(read_sources(spec, root, labelled), spec, places, tick, labelled))
    if world() > 1:  # computing it needs every value
        _require_equal(spec, f"rows with the fingerprint {loaded.table.fingerprint}")
    return loaded


def _require_equal(spec: DataSpec, found: str) -> None:
    """Check that all processes found the same; all must call it.

    Raises:
        DataError: on every process, if one found something else.
    """
    everywhere = gather_objects(found)
    other = next((i for i, one in enumerate(everywhere) if one != everywhere[0]), None)
    if other is not None:
        raise DataError(
            f"{spec.label}: the processes of this run found different data: process 0 {everywhere[0]}, process {other} "
            f"{everywhere[other]}. All machines need the same files under the same paths: copy them again."
        )


def read_rows(
    rows: Iterable[Mapping[str, Any]],
    columns: Mapping[str, str] | None = None,
    name: str = "rows",
    root: Path | None = None,
    quarantine_limit: float = 0.01,
    labelled: bool = True,
) -> Loaded:
    """Read rows from Python.

    Args:
        rows: mappings of column to value; an image is encoded bytes, a path or a PIL image.
        columns: canonical names to columns of the rows; others are guessed if exactly one fits.
        name: shown in messages.
        root: folder that paths start from and may not leave; without it they are used as they are.
        quarantine_limit: above this share of unusable rows reading stops.
        labelled: whether captions or classes are needed.

    Raises:
        DataError: for rows that hold no images, or too many unusable ones.
    """
    from everclip.data.reading.formats.rows import read_mappings

    given = {"columns": {} if columns is None else columns, "quarantine_limit": quarantine_limit}
    spec = validated(DataSpec, {"source": name, **given}, "read_rows")
    root = None if root is None else user_path(root, "read_rows: root")
    return _loaded([read_mappings(rows, spec.columns, name, root)], spec, ImageFolders(), None, labelled)


def _loaded(
    raws: Sequence[Raw],
    spec: DataSpec,
    places: ImageFolders,
    tick: Tick | None,
    labelled: bool = True,
) -> Loaded:
    files = len(raws)
    found = [choose_columns(with_row_per_image(raw, spec.columns), spec) for raw in _with_rows(raws)]
    raws = [raw for raw, _, _ in found]
    parts = [one_file(raw, names, spec, places, labelled) for raw, names, _ in found]
    if spec.languages is not None:
        parts = of_languages(parts, spec.languages, spec.label)
    lines = [note for raw in raws for note in raw.notes] + _guess_lines(
        raws, [guesses for _, _, guesses in found]
    )
    columns, pictures = _concatenated(parts)
    starts = _starts([len(part.origin) for part in parts])
    broken = {
        start + i: why for part, start in zip(parts, starts, strict=True) for i, why in part.broken.items()
    }
    at = columns.column("image").to_numpy()
    wanted = sorted({int(at[row]) for row in range(len(at)) if row not in broken})
    _require_equal(
        spec, f"{columns.num_rows:,} rows, {len(wanted):,} images"
    )  # the images are shared out next
    seen = examine(pictures, wanted, tick, rendering=Rendering(spec.background, spec.bits))
    bad = {position: (reason, detail) for position, reason, detail in seen.bad}
    broken |= {row: bad[int(at[row])] for row in range(len(at)) if row not in broken and int(at[row]) in bad}
    hashes: list[str | None] = [None] * len(pictures)
    sizes: list[int | None] = [None] * len(pictures)
    known = (seen.facts.column(name).to_pylist() for name in ("sha256", "bytes"))
    for position, key, size in zip(seen.good, *known, strict=True):
        hashes[position], sizes[position] = key, size
    owners = [part.raw.name for part in parts for _ in part.origin]
    trusted = all("image_id" in raw.known for raw in raws)
    columns, more = with_ids(columns, [hashes[i] for i in at], owners, broken, trusted)
    columns, rendered = _with_renderings(columns, at, seen, spec)
    more += rendered
    rows = np.asarray([row for row in range(len(at)) if row not in broken], np.int64)
    quarantine = Quarantine(
        spec.label,
        columns.num_rows + sum(len(raw.broken) for raw in raws),
        tuple(e for part, start in zip(parts, starts, strict=True) for e in part.entries(broken, start)),
        _sides(columns, broken),
        spec.counts == "required",
        spec.damaged_archives,
        files,
    )
    require_enough(quarantine, spec.quarantine_limit)
    name = spec.label if len(spec.sources) > 1 or ":" in spec.label else Path(spec.label).name
    table = Table(columns, rows, name, ImageLocations(with_contents(pictures, hashes, sizes)))
    facts = seen.facts.take(pa.array(np.searchsorted(np.asarray(seen.good, np.int64), at[rows])))
    chosen = {wanted: column for _, names, _ in found for wanted, column in names.items()}
    return Loaded(table, quarantine, chosen, tuple(dict.fromkeys([*lines, *more])), facts)


def _with_rows(raws: Sequence[Raw]) -> Sequence[Raw]:
    """Return the parts that have rows; unusable rows and notes of the others are counted with the first part.

    Raises:
        DataError: if there are only archives without members.
    """

    def is_empty(raw: Raw) -> bool:
        return not raw.columns.num_rows and bool(raw.broken or not raw.columns.column_names)

    held, empty = [raw for raw in raws if not is_empty(raw)], [raw for raw in raws if is_empty(raw)]
    if held:
        held[0].broken += [entry for raw in empty for entry in raw.broken]
        held[0].notes += [note for raw in empty for note in raw.notes]
        return held
    if not any(raw.broken for raw in raws):
        raise DataError(f"there is no row: {'; '.join(note for raw in raws for note in raw.notes)}.")
    return raws


def _with_renderings(
    columns: pa.Table, at: np.ndarray, seen: Examined, spec: DataSpec
) -> tuple[pa.Table, list[str]]:
    """Add the column of renderings where they are not the default; return lines for people, too."""
    spans, backgrounds = (seen.facts.column(name).to_pylist() for name in ("span", "background"))
    chosen, lines = renderings(spans, backgrounds, spec.background, spec.bits)
    if any(chosen):
        of_picture = dict(zip(seen.good, chosen, strict=True))
        values = [of_picture.get(int(position)) for position in at]
        columns = replaced(columns, COLUMN, pa.array(values, pa.string()))
    return columns, lines


def _sides(columns: pa.Table, broken: Mapping[int, Any]) -> dict[str, tuple[int, int]]:
    """Return (rows set aside, all rows) per side; rows that could not be read have no side."""
    if not broken or "split" not in columns.column_names:
        return {}
    marks = ["" if mark is None else str(side_of(mark)) for mark in columns.column("split").to_pylist()]
    held, gone = Counter(marks), Counter(marks[row] for row in broken)
    return {side: (gone[side], held[side]) for side in sorted(gone) if side}


def _guess_lines(raws: Sequence[Raw], guesses: Sequence[Sequence[str]]) -> list[str]:
    """Return the guesses as lines; a guess that holds for every file is printed once."""
    common = [line for line in guesses[0] if all(line in mine for mine in guesses)]
    own = [
        f"{raw.name}: {line}"
        for raw, mine in zip(raws, guesses, strict=True)
        for line in mine
        if line not in common
    ]
    return common + own


def _concatenated(parts: Sequence[CanonicalFile]) -> tuple[pa.Table, pa.ChunkedArray]:
    """Concatenate the rows and the images of several files."""
    tables = [
        replaced(part.columns, "image", pc.add(part.columns.column("image"), start))
        for part, start in zip(parts, _starts([len(part.pictures) for part in parts]), strict=True)
    ]
    pictures = pa.chunked_array([chunk for part in parts for chunk in part.pictures.chunks], LOCATION)
    return _joined(tables), pictures


def _starts(lengths: Sequence[int]) -> list[int]:
    return [int(n) for n in np.cumsum([0, *lengths])[:-1]]


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Concatenate the rows of several files; columns with conflicting types become text."""
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
