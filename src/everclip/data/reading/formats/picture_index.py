"""Find the images below a folder by a path, the end of a path, or a name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from everclip.data.reading.box_tables import with_classes_of_predictions
from everclip.data.reading.columns import choose, plain_name
from everclip.data.reading.content_columns import columns_by_content
from everclip.data.reading.formats.listing import pictures_below
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.formats.sides import SWITCH, sides_of_names
from everclip.data.reading.formats.system_files import brief, is_system_path
from everclip.data.reading.one_hot import with_one_hot_classes
from everclip.data.reading.path_matching import without_mark
from everclip.errors import ConfigError, DataError

_LOOKED_AT = 20


class PictureIndex:
    """The images below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = list(pictures_below(folder))
        self._whole = set(self.files)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for file in self.files:
            self._by_name[_name(file)].append(file)
            self._by_stem[_without_zeros(_name(file).rpartition(".")[0])].append(file)

    @cached_property
    def _by_path(self) -> dict[str, list[str]]:
        """The images by every end of their path with at least one folder, without file ending."""
        found: dict[str, list[str]] = defaultdict(list)
        for file in self.files:
            parts = file.rpartition(".")[0].split("/")
            for start in range(len(parts) - 1):
                found["/".join(parts[start:])].append(file)
        return found

    def find_by_stem(self, named: str | None) -> str | None:
        """Return the one image whose path or name without ending equals the text, as ids of competitions do.

        Numbers are compared without leading zeros, since tables lose them.
        """
        plain = (named or "").strip()
        found = self._by_path.get(plain, []) if "/" in plain else self._by_stem.get(_without_zeros(plain), [])
        return found[0] if len(found) == 1 else None

    def find_any(self, named: str) -> str | None:
        """Return the one image that matches a name, with or without ending."""
        return self.find(named) or self.find_by_stem(named.replace("\\", "/").removeprefix("./"))

    def find(self, named: str | None) -> str | None:
        """Return the one image that matches a name or path, relative to the folder; `None` if none or several do."""
        if not named:
            return None
        path = re.sub(r"#\d+$", "", named.strip()).replace("\\", "/").removeprefix("./").lstrip("/")
        if path in self._whole:
            return path
        held = self._by_name.get(_name(path)) or self._by_name.get(without_mark(_name(path)), [])
        if len(held) > 1:  # the longest common end decides, if only one has it
            parts = path.split("/")
            for count in range(len(parts), 1, -1):
                end = "/" + "/".join(parts[-count:])
                alike = [file for file in held if ("/" + file).endswith(end)]
                if alike:
                    return alike[0] if len(alike) == 1 else None
            return None
        return held[0] if held else None


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _without_zeros(name: str) -> str:
    """Return a number without leading zeros, other names unchanged."""
    return name.lstrip("0") or "0" if name.isdecimal() else name


def picture_column(raw: Raw, user_columns: Mapping[str, str] | None = None) -> str | None:
    """Return the text column that names images, if the rows have one and also captions or classes.

    Args:
        raw: the rows.
        user_columns: canonical names to columns, as the user says.
    """
    try:
        chosen, _ = choose(raw.columns.schema, user_columns or {}, raw.known, raw.name)
    except (ConfigError, DataError):
        return None
    columns_by_content(raw, chosen, user_columns or {})
    column = chosen.get("image")
    if column is None or not {"caption", "class_name", "class_key"} & set(chosen):
        return None
    return column if pa.types.is_string(raw.columns.schema.field(column).type) else None


def has_labels(raw: Raw, user_columns: Mapping[str, str]) -> bool:
    """Whether rows hold captions or classes, or the columns are invalid (reported later)."""
    try:
        names, _ = choose(raw.columns.schema, user_columns, raw.known, raw.name)
    except (ConfigError, DataError):
        return True
    columns_by_content(raw, names, user_columns)
    raw, _ = with_one_hot_classes(raw, names, user_columns)
    with_classes_of_predictions(raw, names, [])
    return bool({"caption", "class_name", "class_key"} & set(names))


def holds_pictures(raw: Raw) -> bool:
    """Whether the rows contain their images."""
    kinds = [field.type for field in raw.columns.schema]
    return any(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind)
        for kind in kinds
    )


def with_picture_column(raw: Raw, index: PictureIndex) -> Raw:
    """Use the text column whose values are images of the folder as `image`, if no column name fits.

    Ids that are image names without ending become file names. An id occurs in one row only, unlike a label.
    """
    texts = [field.name for field in raw.columns.schema if pa.types.is_string(field.type)]
    fitting = [name for name in texts if _fits(raw, name, index.find)]
    if fitting:
        note = f"{raw.name}: image = column {fitting[0]!r}, whose values are images of the folder"
        note += f" (not read: {brief(map(repr, fitting[1:]))}, of images as well)" if fitting[1:] else ""
        return replace(raw, known={**raw.known, "image": fitting[0]}, notes=[*raw.notes, note])
    numbers = [field.name for field in raw.columns.schema if pa.types.is_integer(field.type)]
    for name in [*texts, *numbers]:
        values = [None if v is None else str(v) for v in raw.columns.column(name).to_pylist()]
        # An id occurs in one row only, unlike a label; but an image may have several captions.
        ids = len(set(values)) == len(values) or plain_name(name).endswith("id")
        if ids and _all_fit(values, index.find_by_stem):
            files = [index.find_by_stem(value) or value for value in values]
            note = f"{raw.name}: image = column {name!r}, whose values are images of the folder without their ending"
            raw = replace(raw, known={**raw.known, "image": "image"}, notes=[*raw.notes, note])
            return raw.with_columns({"image": files})
    return raw


def _all_fit(values: Sequence[str | None], find: Callable[[str | None], str | None]) -> bool:
    """Whether at least half of the first distinct values are images of the folder."""
    head = list(dict.fromkeys(value for value in values if value))[:_LOOKED_AT]
    return len(head) > 1 and 2 * sum(find(value) is not None for value in head) >= len(head)


def _fits(raw: Raw, column: str, find: Callable[[str | None], str | None]) -> bool:
    """Whether at least half of the first values of a column are images of the folder."""
    values = [value for value in raw.columns.column(column).slice(0, _LOOKED_AT).to_pylist() if value]
    return bool(values) and 2 * sum(find(value) is not None for value in values) >= len(values)


def named_pictures(raw: Raw, index: PictureIndex, column: str | None) -> list[str | None]:
    """Return for each row the image below the folder that it names, or `None`."""
    if column is None:
        return [None] * raw.columns.num_rows
    found: dict[str | None, str | None] = {}
    values: list[str | None] = raw.columns.column(column).to_pylist()
    return [found.setdefault(v, index.find(v)) if v not in found else found[v] for v in values]


def with_paths(raw: Raw, index: PictureIndex, column: str, files: Sequence[str | None]) -> Raw:
    """Replace image names in rows by paths from the index's folder.

    Rows without an existing image keep their value, so that the quarantine shows it.
    """
    values = raw.columns.column(column).to_pylist()
    moved = [i for i, file in enumerate(files) if file is not None and file != values[i]]
    if not moved:
        return raw
    paths = pa.array([file or value for file, value in zip(files, values, strict=True)], pa.string())
    return replace(
        raw,
        columns=raw.columns.set_column(raw.columns.column_names.index(column), column, paths),
        root=index.folder,
        root_fixed=True,
        notes=[
            *raw.notes,
            f"{raw.name}: {len(moved):,} images were found by name ({values[moved[0]]} is {files[moved[0]]})",
        ],
    )


def without_system_rows(raw: Raw) -> Raw:
    """Leave out rows that name files left by systems and programs (`._a.png`)."""
    column = picture_column(raw)
    if column is None or raw.root_fixed:
        return raw
    values = raw.columns.column(column).to_pylist()
    system_rows = {
        i
        for i, value in enumerate(values)
        if value is not None and "://" not in value and is_system_path(value)
    }
    if not system_rows:
        return raw
    names = brief(str(values[i]) for i in sorted(system_rows))
    note = f"{raw.name}: rows ignored, left by a system or a program: {len(system_rows):,} ({names})"
    kept = raw.take([i for i in range(len(values)) if i not in system_rows])
    return replace(kept, notes=[*raw.notes, note])


def unnamed_note(index: PictureIndex, named: Iterable[str | None], by: str) -> list[str]:
    """Return a line about images that no row names."""
    held = set(named)
    left = [file for file in index.files if file not in held]
    return (
        [f"{index.folder.name}: images that {by} does not name, not read: {len(left):,} ({brief(left)})"]
        if left
        else []
    )


def with_sides_of_paths(
    raw: Raw, files: Sequence[str | None] | None = None, known: Mapping[str, str] | None = None
) -> Raw:
    """Take the sides from folders in the images' paths (`train/`, `test/`), if the rows have no side.

    Images in a folder named `test` are never trained on.

    Args:
        raw: the rows.
        files: the images' paths; default: those in the rows.
        known: sides of the first folders, if they are known.
    """
    if "split" in raw.known or "split" in raw.columns.column_names or raw.split is not None:
        return raw
    if files is None:
        column = picture_column(raw)
        files = [] if column is None else raw.columns.column(column).to_pylist()
    folders = [[] if file is None else re.split(r"[/\\]", file)[:-1] for file in files]
    for depth in range(max(map(len, folders), default=0)):
        tops = [parts[depth] if depth < len(parts) else None for parts in folders]
        sides = sides_of_names(sorted({top for top in tops if top is not None}))
        if depth == 0 and known and len(set(known.values())) > 1:
            sides = {top: known[top] for top in dict.fromkeys(tops) if top is not None and top in known}
        elif len(set(sides.values())) < 2:
            continue
        if not sides:
            continue
        values = pa.array([None if top is None else sides.get(top) for top in tops], pa.string())
        said = ", ".join(f"{top}: {side}" for top, side in sides.items())
        notes = [*raw.notes, f"{raw.name}: sides are the folders of the images ({said}; {SWITCH})"]
        return replace(raw, columns=raw.columns.append_column("split", values), notes=notes)
    return raw
