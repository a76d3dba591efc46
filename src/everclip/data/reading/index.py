"""The index of shards: everything that reading found, kept in the cache and memory-mapped.

Without it, every start would read and hash every image again, which takes hours for data that do not fit in memory. The
index holds places, hashes, texts and facts, but no image. It is used as long as no file has changed its size or time.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import PIL
import pyarrow as pa
import pyarrow.compute as pc

from everclip.data.pictures.images import RULES
from everclip.data.pictures.location import LOCATION
from everclip.data.reading.formats.remote_shards import shards_of
from everclip.data.reading.loaded import Loaded
from everclip.data.reading.quarantine import Entry, Quarantine
from everclip.data.reading.source_path import expanded
from everclip.data.reading.spec import DataSpec
from everclip.data.reading.spill import mapped
from everclip.data.table import ImageLocations, Table
from everclip.distributed import gather_objects, is_first, is_first_here
from everclip.files import cache_folder, folder_atomic, optional_write
from everclip.urls import is_remote

READING = 3
"""Version of what reading makes of shards. Increase it when it gives other rows; indexes are then made again."""

LEAST_BYTES = 64 * 1024 * 1024
"""Shards on this machine that take less together are read again instead."""

_MOST_FILES = 100_000  # in a folder; more are images
_NAME_LISTS = (".txt", ".json", ".csv", ".tsv", ".jsonl", ".parquet")

log = logging.getLogger(__name__)


def index_of(spec: DataSpec, root: Path | None, labelled: bool) -> Path | None:
    """Return the folder of a data block's index, which changes with every file; `None` where none is kept.

    Only blocks whose sources are `.tar` shards, here or far away, have one: their images lie inside the listed files.

    Args:
        spec: the block.
        root: folder that relative paths start from.
        labelled: whether captions or classes are needed.
    """
    states: list[str] = []
    size, far = 0, False
    for source in spec.sources:
        if source.startswith(("builtin:", "catalog:", "hub:")):
            return None
        if is_remote(source):
            if Path(source).suffix.lower() not in ("", ".tar"):
                return None
            files = shards_of(source)
            if not all(file.name.lower().endswith(".tar") for file in files):
                return None
            states += [f"{file.url}\0{file.key}" for file in files]
            far = True
            continue
        found = _states((root or Path()) / expanded(source))
        if found is None:
            return None
        size += found[0]
        states += found[1]
    if not far and size < LEAST_BYTES:
        return None
    parts = (READING, RULES, PIL.__version__, spec.model_dump_json(), str(labelled), *states)
    key = hashlib.sha256("\n".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()
    return cache_folder() / "index" / key[:32]


def _states(path: Path) -> tuple[int, list[str]] | None:
    """Return the bytes of the shards that a path names, and name, size and time of each file that reading may use."""
    if os.path.isdir(path):  # also for a name that is too long; reading will say so
        names = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
        folder = path
    else:
        names = glob.glob(str(path), recursive=True) if not os.path.isfile(path) else [str(path)]
        folder = path.parent
    shards = [name for name in names if name.lower().endswith(".tar")]
    if not shards or len(names) > _MOST_FILES:
        return None
    # Lists of class names lie beside the shards or in the folder above.
    beside = [str(p) for where in (folder, folder.parent) if where.is_dir() for p in where.iterdir()]
    names += [name for name in beside if name.lower().endswith(_NAME_LISTS)]
    size, states = 0, []
    for name in sorted(set(names)):
        try:
            facts = os.stat(name)
        except OSError:  # a link that leads nowhere; reading will say so
            continue
        size += facts.st_size if name.lower().endswith(".tar") else 0
        states.append(f"{os.path.realpath(name)}\0{facts.st_size}\0{facts.st_mtime_ns}")
    return size, states


def load(folder: Path | None) -> Loaded | None:
    """Return what an index holds, memory-mapped; `None` if it is not there on all processes."""
    found = None if folder is None else _load(folder)
    # Reading is shared by the processes, so either all of them do it or none.
    return found if all(gather_objects(found is not None)) else None


def _load(folder: Path) -> Loaded | None:
    if not folder.is_dir():
        return None
    try:
        return _read(folder)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, pa.ArrowException) as error:
        # Another version of everclip may have written other fields.
        log.warning(
            "%s: damaged, or of another version (%s: %s); the shards are read again.",
            folder,
            type(error).__name__,
            error,
        )
        if is_first_here():
            shutil.rmtree(folder, ignore_errors=True)
        return None


def _read(folder: Path) -> Loaded:
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    columns, pictures, rows, facts = (
        mapped(folder / f"{name}.arrow") for name in ("columns", "pictures", "rows", "facts")
    )
    chosen = rows.column("row").combine_chunks().to_numpy() if rows.num_rows else None
    table = Table(columns, chosen, about["name"], ImageLocations(pictures.column("image")))
    vars(table)["fingerprint"] = about["fingerprint"]  # the cached property: computing it needs every value
    aside = about["quarantine"]
    entries = tuple(Entry(**entry) for entry in aside.pop("entries"))
    sides = {side: (gone, held) for side, (gone, held) in aside.pop("sides").items()}
    quarantine = Quarantine(entries=entries, sides=sides, **aside)
    return Loaded(table, quarantine, about["columns"], tuple(about["guesses"]), facts)


def keep(folder: Path | None, loaded: Loaded) -> Loaded:
    """Write an index and return what was read from it, memory-mapped; `loaded` itself where none can be kept."""
    if folder is None or not _lies_in_archives(loaded.table.places):
        return loaded
    # First one process, then those of machines that do not share its cache.
    for mine in (is_first(), is_first_here() and not is_first()):
        if mine and not folder.is_dir():
            with optional_write(folder, "the shards are read again the next time."):
                folder.parent.mkdir(parents=True, exist_ok=True)
                with folder_atomic(folder) as place:
                    _write(place, loaded)
        gather_objects(None)  # all wait until it is written
    return load(folder) or loaded


def _lies_in_archives(places: pa.ChunkedArray) -> bool:
    """Whether every image is a part of a file; only then an unchanged file means an unchanged image."""
    return all(
        not pc.any(chunk.field("bytes").is_valid()).as_py()
        and pc.all(pc.or_(chunk.field("offset").is_valid(), chunk.field("path").is_null())).as_py()
        is not False
        for chunk in places.chunks
    )


def _write(place: Path, loaded: Loaded) -> None:
    table = loaded.table
    parts = {
        "columns": table.positions,
        "pictures": pa.table({"image": pa.chunked_array(table.places.chunks, LOCATION)}),
        "rows": pa.table({"row": pa.array(table.rows, pa.int64())}),
        "facts": loaded.facts,
    }
    for name, columns in parts.items():
        with (
            pa.OSFile(str(place / f"{name}.arrow"), "wb") as file,
            pa.ipc.new_file(file, columns.schema) as out,
        ):
            # One chunk: a column of thousands of small ones is slow to take from.
            out.write_table(columns.combine_chunks())
    about = {
        "name": table.name,
        "fingerprint": table.fingerprint,
        "columns": loaded.columns,
        "guesses": loaded.guesses,
        "quarantine": asdict(loaded.quarantine),
    }
    (place / "about.json").write_text(json.dumps(about), encoding="utf-8")
