"""A folder: of class folders, of pictures with a metadata file, of tables, of shards; or of one of these per split.

Pictures alone serve where nobody looks at labels: as reference data.

Listed by ourselves rather than by `datasets`: paths must be kept inside the folder, and what cannot be read must be
counted instead of ending the load.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from everclip.data.quarantine import Entry
from everclip.data.readers.files import TABLES, read_file, split_of, with_splits
from everclip.data.readers.raw import FOREIGN_ENDINGS, IMAGE_ENDINGS, Raw
from everclip.data.readers.reading import PLAIN, Reading
from everclip.errors import DataError

METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet")


def read_folder(path: Path, labelled: bool = True, reading: Reading = PLAIN) -> list[Raw]:
    """Read a folder; what lies in it decides how.

    Args:
        path: the folder.
        labelled: whether captions or classes are needed; if not, pictures beside folders count as those in them.
        reading: what the user says about tables and text files.

    Raises:
        DataError: if it holds nothing that can be read, or several things at once.
    """
    try:
        names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    metadata = [name for name in METADATA if name in names]
    if len(metadata) > 1:
        raise DataError(f"{path}: holds {' and '.join(metadata)}; name the one to read as data.source.")
    if metadata:
        return [replace(read_file(path / metadata[0], reading), name=f"{path.name}/{metadata[0]}")]
    tables = [name for name in names if Path(name).suffix.lower() in TABLES and (path / name).is_file()]
    kinds = sorted({Path(name).suffix.lower() for name in tables})
    if len(kinds) > 1:
        raise DataError(
            f"{path}: holds files of several kinds ({', '.join(kinds)}); say which with data.source={path}/*{kinds[0]}."
        )
    if tables:
        return with_splits([(read_file(path / name, reading), split_of(name)) for name in tables])
    folders = [name for name in names if (path / name).is_dir()]
    beside = [name for name in names if name not in folders]
    if folders and not labelled and _pictures(beside):
        return [_every(path, folders, beside)]
    splits = [name for name in folders if split_of(name) is not None]
    if splits and len(splits) == len(folders):
        found = [
            (replace(raw, name=f"{name}/{raw.name}"), split_of(name))
            for name in splits
            for raw in read_folder(path / name, labelled, reading)
        ]
        found[0][0].notes[:0] = _loose(path, beside, "split")
        return with_splits(found)
    if folders == ["data"] and not _pictures(names):
        return read_folder(path / "data", labelled, reading)
    if folders:
        return [_class_folders(path, folders, beside)]
    expected = (
        f"Expected one folder per class, or a file {METADATA[0]} with the columns `file_name` and `caption` or "
        "`label`."
    )
    if not _pictures(names):
        raise DataError(f"{path}: holds no picture, table or archive. {expected}")
    return [_bare(path, names, f"{path}: holds pictures without a metadata file. {expected}")]


def _pictures(names: list[str]) -> list[str]:
    return [name for name in names if _ending(name) in IMAGE_ENDINGS]


def _ending(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""


def _class_folders(path: Path, folders: list[str], beside: list[str]) -> Raw:
    """Read a folder whose folders are classes."""
    broken: list[Entry] = []
    found = [(file, name) for name in folders for file in _below(path / name, broken, path)]
    files, classes, notes = _told_pictures(path, found, broken)
    if not files and not broken:
        raise DataError(
            f"{path}: none of its {len(folders)} folders holds a picture ({', '.join(IMAGE_ENDINGS)})."
        )
    notes += _loose(path, beside, "class")
    notes = [f"{path.name}: classes are the names of the {len(set(classes))} folders", *notes]
    return _raw(path, {"image": files, "class_name": classes}, broken, notes)


def _loose(path: Path, beside: list[str], what: str) -> list[str]:
    loose = len(_pictures(beside))
    return [f"{path.name}: passed over, since no folder names their {what}: {loose}"] if loose else []


def _every(path: Path, folders: list[str], beside: list[str]) -> Raw:
    """Read all pictures of a folder, in whichever of its folders they are, without classes."""
    broken: list[Entry] = []
    below = [file for name in folders for file in _below(path / name, broken, path)]
    files, _, notes = _told_pictures(path, [(f, "") for f in [*(path / n for n in beside), *below]], broken)
    return _raw(path, {"image": files}, broken, notes)


def _bare(path: Path, names: list[str], unlabelled: str) -> Raw:
    """Read a folder of pictures that have neither classes nor captions."""
    broken: list[Entry] = []
    files, _, notes = _told_pictures(path, [(path / name, "") for name in names], broken)
    return replace(_raw(path, {"image": files}, broken, notes), unlabelled=unlabelled)


def _told_pictures(
    path: Path, found: list[tuple[Path, str]], broken: list[Entry]
) -> tuple[list[str], list[str], list[str]]:
    """Tell pictures from other files.

    Args:
        path: the folder.
        found: files below it with their classes.
        broken: takes the files that cannot be named.

    Returns:
        The pictures' paths from the folder, their classes, and lines about what else was there.
    """
    files: list[str] = []
    classes: list[str] = []
    others: Counter[str] = Counter()
    for file, name in found:
        ending = _ending(file.name)
        if ending not in IMAGE_ENDINGS and ending not in FOREIGN_ENDINGS:
            others[f".{ending}" if ending else "no ending"] += 1
            continue
        shown = str(file.relative_to(path))
        if not shown.isprintable() and any("\ud800" <= c <= "\udfff" for c in shown):
            broken.append(Entry(None, f"{path.name}, {shown!a}", "bad-utf8", "the file's name is not UTF-8"))
            continue
        files.append(shown)
        classes.append(name)
    kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
    notes = [f"{path.name}: passed over, as no pictures: {others.total()} ({kinds})"] if others else []
    return files, classes, notes


def _raw(path: Path, columns: dict[str, list[str]], broken: list[Entry], notes: list[str]) -> Raw:
    return Raw(
        path.name,
        pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}),
        None,
        broken,
        root=path,
        root_fixed=True,
        known={name: name for name in columns},
        labels=columns["image"],
        notes=notes,
    )


def _below(folder: Path, broken: list[Entry], root: Path) -> Iterator[Path]:
    """Yield the files below a folder in order of their names; links to folders are not followed."""
    if folder.is_symlink():
        broken.append(Entry(None, str(folder.relative_to(root.parent)), "outside-root", "a link to a folder"))
        return

    def unreadable(error: OSError) -> None:
        shown = os.path.relpath(str(error.filename), root.parent)
        broken.append(Entry(None, shown, "unreadable-file", f"the folder: {error.strerror}"))

    for place, inner, files in os.walk(folder, onerror=unreadable):
        inner.sort()
        for name in list(inner):
            if name.startswith("."):
                inner.remove(name)
            elif os.path.islink(os.path.join(place, name)):
                inner.remove(name)
                shown = os.path.relpath(os.path.join(place, name), root.parent)
                broken.append(Entry(None, shown, "outside-root", "a link to a folder"))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(place, name)
