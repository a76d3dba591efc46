"""Find and read the files that `data.source` names."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from everclip.data.reading.class_in_name import with_classes_in_names
from everclip.data.reading.formats.class_names import with_class_names
from everclip.data.reading.formats.emoji_questions import SOURCE, read_emoji_questions
from everclip.data.reading.formats.files import NAMED, TABLES, is_readable, read_part
from everclip.data.reading.formats.picture_index import with_sides_of_paths, without_system_rows
from everclip.data.reading.formats.raw import IMAGE_ENDINGS, Raw
from everclip.data.reading.formats.sides import sides_of_names, with_splits
from everclip.data.reading.formats.system_files import brief, is_system_path
from everclip.data.reading.source_path import expanded
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError, did_you_mean
from everclip.urls import is_remote, require_no_secrets

FORMS = (
    "builtin:emoji, catalog:NAME, hub:OWNER/NAME, a folder (of class folders, of images with a metadata file, of "
    f"tables or shards), a pattern with *, a URL of shards, or a file ending in {', '.join((*TABLES, *NAMED))}"
)

_REMEDIES: dict[tuple[str, ...], str] = {
    (
        ".xlsx",
        ".xlsm",
        ".xls",
        ".ods",
        ".numbers",
    ): "A spreadsheet: export it as CSV (UTF-8) and give that file.",
    (".pkl", ".pickle", ".npy", ".npz", ".pt", ".mat", ".h5", ".hdf5", ".lmdb", ".db", ".sqlite"): (
        "Write the rows as Parquet, CSV or JSON lines with the images' paths, or give them from Python "
        "(everclip.data.reading.sources.read_rows)."
    ),
    (".arrow",): (
        "A data set that `datasets` saved: write it as Parquet, in Python: "
        "datasets.load_from_disk(FOLDER).to_parquet('data.parquet')."
    ),
    (".rec", ".tfrecord", ".tfrecords", ".beton"): (
        "Unpack it into images with a list or table of their labels, or into WebDataset shards (.tar)."
    ),
    (".xml", ".yaml", ".yml", ".html"): (
        "Export the labels as a CSV with the columns `image` and `label`, or as COCO JSON."
    ),
}
"""Remedies for unsupported files, by their endings."""


def read_sources(spec: DataSpec, root: Path | None, labelled: bool = True) -> list[Raw]:
    """Read every file that the sources of a `data:` block name; `labelled` as in `FolderOptions`.

    Raises:
        ConfigError: for a source that does not exist or has an unknown format.
        DataError: for a source that cannot be read.
    """
    if not spec.sources:
        raise ConfigError(f"data.source: no source is given; expected {FORMS}.")
    parts = _with_distinct_names([_read(source, spec, root, labelled) for source in spec.sources])
    if len(parts) == 1:
        return parts[0]
    # Files named train..., test... give the sides, as they do in a folder.
    sides = sides_of_names(Path(source).name for source in spec.sources) if _by_names(spec) else {}
    flat = [
        (raw, sides.get(Path(s).name)) for s, found in zip(spec.sources, parts, strict=True) for raw in found
    ]
    return with_splits(flat) if all(raw.split is None for raw, _ in flat) else [raw for raw, _ in flat]


def _by_names(spec: DataSpec) -> bool:
    """Whether names of files and folders give sides: not if the user sets `columns.split` to nothing."""
    return spec.columns.get("split") != ""


def _with_distinct_names(parts: list[list[Raw]]) -> list[list[Raw]]:
    """Give files with equal names in several folders different names.

    Raises:
        ConfigError: for a file that is named twice: its rows would count twice.
    """
    every = [raw for found in parts for raw in found]
    places = {id(raw): "" if raw.root is None else os.path.realpath(raw.root) for raw in every}
    twice, count = Counter((places[id(raw)], raw.name) for raw in every).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"data.source: {twice[1]!r} is named twice, so its rows would count twice.")
    names = Counter(raw.name for raw in every)
    # The common part of their paths differs between machines.
    shared = os.path.commonpath([p for p in places.values() if p] or [""])

    def named(raw: Raw) -> Raw:
        if names[raw.name] == 1:
            return raw
        folder = os.path.relpath(places[id(raw)], shared)
        return replace(raw, name=folder if raw.root_fixed else os.path.join(folder, Path(raw.name).name))

    return [[named(raw) for raw in found] for found in parts]


def _read(source: str, spec: DataSpec, root: Path | None, labelled: bool = True) -> list[Raw]:
    if spec.class_in_name is not None and source.startswith(("hub:", "builtin:", "catalog:")):
        raise ConfigError(f"data.class_in_name: applies to files and folders, not to {source!r}.")
    if source.startswith("builtin:"):
        if source.partition("@")[0] == SOURCE:
            return [read_emoji_questions(source, spec)]
        if source != "builtin:emoji":
            raise ConfigError(
                f"data.source: {source!r} is not known.{did_you_mean(source, ['builtin:emoji', SOURCE])}"
            )
        from everclip.data.reading.formats.emoji import read_emoji

        return [read_emoji(source, spec)]
    if spec.styles is not None:
        raise ConfigError("data.styles: applies to builtin:emoji only.")
    if source.startswith("catalog:"):
        from everclip.data.reading.formats.catalog import read_catalog

        plain = spec.model_copy(update={"place": None, "root": None})
        return read_catalog(spec, source, root, lambda other: _read(other, plain, root))
    if source.startswith("hub:"):
        from everclip.data.reading.formats.hub import read_hub

        return read_hub(source, spec.split)
    if spec.split is not None:
        raise ConfigError("data.split: applies to hub:OWNER/NAME only; choose rows of files with `where`.")
    if is_remote(source):
        require_no_secrets(os.path.expandvars(source), "data.source")  # later messages name the URL
        return _read_remote(source, spec)
    raws = [without_system_rows(raw) for raw in _read_path(source, root or Path(), spec, labelled)]
    if spec.class_in_name is None:
        return raws
    path = (root or Path()) / expanded(source)
    folder = path if path.is_dir() else path.parent
    return with_class_names(with_classes_in_names(raws, spec.class_in_name), folder, spec.encoding)


def _read_remote(source: str, spec: DataSpec) -> list[Raw]:
    if Path(source).suffix.lower() in set(TABLES + NAMED) - {".tar", ".parquet"}:
        raise ConfigError(f"data.source: {source!r} is a URL; download it first and give the file or folder.")
    if spec.class_in_name is not None:
        raise ConfigError(f"data.class_in_name: applies to files and folders here, not to {source!r}.")
    from everclip.data.reading.formats.remote_shards import read_remote

    return read_remote(source, spec.encoding, _by_names(spec))


def _pattern(path: Path) -> str:
    """Return a pattern in which the names of existing folders are escaped: `[2024] spring/*.tar`."""
    parts = path.parts
    known = next((i for i in range(len(parts), 0, -1) if os.path.isdir(Path(*parts[:i]))), 0)
    return str(Path(glob.escape(str(Path(*parts[:known]))), *parts[known:])) if known else str(path)


def _read_path(source: str, start: Path, spec: DataSpec, labelled: bool) -> list[Raw]:
    path = start / expanded(source)
    try:
        os.path.realpath(path).encode()
        os.stat(path)
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"data.source: {source!a}: the path is not UTF-8; rename its folders and files."
        ) from error
    except (FileNotFoundError, NotADirectoryError):
        pass  # reported below, or a pattern
    except (OSError, ValueError) as error:  # too long, no permission, a loop of links, a NUL
        raise ConfigError(f"data.source: {source[:200]!r}: {getattr(error, 'strerror', error)}.") from error
    if path.is_dir():
        from everclip.data.reading.formats.folder import read_folder
        from everclip.data.reading.formats.folder_options import FolderOptions
        from everclip.data.reading.formats.languages import read_languages

        published = read_languages(path, spec.languages)
        if published is not None:
            return [published]
        into = None if spec.root is None else start / os.path.expanduser(spec.root)
        options = FolderOptions(labelled, _by_names(spec), into, spec.reading, spec.columns)
        return read_folder(path, options)
    if path.is_file() and is_readable(path):
        from everclip.data.reading.formats.single_file import read_single_file

        into = None if spec.root is None else start / os.path.expanduser(spec.root)
        raw = read_single_file(path, spec.reading, into, spec.columns)
        raw = with_sides_of_paths(raw) if _by_names(spec) else raw
        return with_class_names([raw], path.parent, spec.encoding, spec.columns)
    if any(c in source for c in "*?["):
        return _read_pattern(path, spec)
    raise ConfigError(_unreadable(source, path))


def _unreadable(source: str, path: Path) -> str:
    """Return why a path is not a valid source, with the remedy."""
    name = path.name.lower()
    if is_readable(path):
        return f"data.source: {path}: no such file."
    if name.endswith(
        (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z", ".rar", ".gz", ".bz2", ".xz")
    ):
        return f"data.source: {path.name!r} is compressed; unpack it and give the folder or the file in it."
    if path.suffix[1:].lower() in IMAGE_ENDINGS:
        return f"data.source: {source!r} is a single image; give the folder or a table that names it."
    if not path.suffix and not path.exists():
        return f"data.source: {path}: no such folder; expected {FORMS}."
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file() and _describes_yolo(path):
        return f"data.source: {path.name!r} describes data of YOLO; give the folder: {path.parent}."
    remedy = next((" " + text for endings, text in _REMEDIES.items() if name.endswith(endings)), "")
    return f"data.source: {source!r} is no source; expected {FORMS}.{remedy}"


def _describes_yolo(path: Path) -> bool:
    """Whether a YAML file is a data set description of YOLO: class names and image folders."""
    with open(path, "rb") as file:
        keys = set(re.findall(rb"^(\w+)\s*:", file.read(65_536), re.MULTILINE))
    return b"names" in keys and bool({b"train", b"val", b"path"} & keys)


def _read_pattern(path: Path, spec: DataSpec) -> list[Raw]:
    """Read the files that match a pattern, in order; skip files left by systems and programs."""
    names = sorted(glob.glob(_pattern(path), recursive=True))
    fitting = [Path(name) for name in names if Path(name).is_file()]
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
    start = len(list(fixed))
    found = [file for file in fitting if not is_system_path("/".join(file.parts[start:]))]
    if not found:
        raise ConfigError(f"data.source: {path}: no file fits the pattern.")
    sides = sides_of_names(file.name for file in found) if _by_names(spec) else {}
    raws = with_splits([(read_part(file, spec.reading), sides.get(file.name)) for file in found])
    if len(found) < len(fitting):
        read = set(found)
        left = [file.name for file in fitting if file not in read]
        raws[0].notes.append(f"ignored, left by a system or a program: {len(left):,} ({brief(left)})")
    return with_class_names(raws, found[0].parent, spec.encoding, spec.columns)
