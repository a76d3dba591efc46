"""The pictures below a folder, found by what a list calls them: a path, the end of a path, or a name."""

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
from everclip.data.reading.formats.foreign import is_foreign_path, some
from everclip.data.reading.formats.listing import pictures_below
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.formats.sides import SWITCH, sides_of
from everclip.data.reading.near_files import without_mark
from everclip.data.reading.one_hot import with_classes
from everclip.errors import ConfigError, DataError

_LOOKED_AT = 20


class PictureIndex:
    """The pictures below a folder."""

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
        """The pictures by every end of their path that has a folder in it, without their ending."""
        found: dict[str, list[str]] = defaultdict(list)
        for file in self.files:
            parts = file.rpartition(".")[0].split("/")
            for start in range(len(parts) - 1):
                found["/".join(parts[start:])].append(file)
        return found

    def find_by_stem(self, named: str | None) -> str | None:
        """Return the one picture whose path or name without its ending is the text: an id, as competitions have it.

        Numbers are compared without the zeros in front, which tables lose.
        """
        plain = (named or "").strip()
        found = self._by_path.get(plain, []) if "/" in plain else self._by_stem.get(_without_zeros(plain), [])
        return found[0] if len(found) == 1 else None

    def find_any(self, named: str) -> str | None:
        """Return the one picture that a list means, with or without its ending."""
        return self.find(named) or self.find_by_stem(named.replace("\\", "/").removeprefix("./"))

    def find(self, named: str | None) -> str | None:
        """Return the one picture that a list means, as a path from the folder; `None` if there is none or several."""
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
    """Return a number without the zeros in front and other names as they are."""
    return name.lstrip("0") or "0" if name.isdecimal() else name


def picture_column(raw: Raw, given: Mapping[str, str] | None = None) -> str | None:
    """Return the text column that names pictures, if the rows have one and something to learn from.

    Args:
        raw: the rows.
        given: canonical names to columns, as the user says.
    """
    try:
        chosen, _ = choose(raw.columns.schema, given or {}, raw.known, raw.name)
    except (ConfigError, DataError):
        return None
    columns_by_content(raw, chosen, given or {})
    column = chosen.get("image")
    if column is None or not {"caption", "class_name", "class_key"} & set(chosen):
        return None
    return column if pa.types.is_string(raw.columns.schema.field(column).type) else None


def says_something(raw: Raw, given: Mapping[str, str]) -> bool:
    """Whether rows hold captions or classes, by the names of their columns or their cells; or say what is wrong."""
    try:
        names, _ = choose(raw.columns.schema, given, raw.known, raw.name)
    except (ConfigError, DataError):
        return True
    columns_by_content(raw, names, given)
    raw, _ = with_classes(raw, names, given)
    with_classes_of_predictions(raw, names, [])
    return bool({"caption", "class_name", "class_key"} & set(names))


def holds_pictures(raw: Raw) -> bool:
    """Whether the rows bring their pictures with them."""
    kinds = [field.type for field in raw.columns.schema]
    return any(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind)
        for kind in kinds
    )


def with_picture_column(raw: Raw, index: PictureIndex) -> Raw:
    """Take the text column whose values are pictures of the folder for that of the pictures, if no name says which.

    Ids that name pictures without their ending become names; an id stands in one row only, unlike a label.
    """
    texts = [field.name for field in raw.columns.schema if pa.types.is_string(field.type)]
    fitting = [name for name in texts if _fits(raw, name, index.find)]
    if fitting:
        note = f"{raw.name}: image = column {fitting[0]!r}, whose values are pictures of the folder"
        note += f" (not read: {some(map(repr, fitting[1:]))}, of pictures as well)" if fitting[1:] else ""
        return replace(raw, known={**raw.known, "image": fitting[0]}, notes=[*raw.notes, note])
    numbers = [field.name for field in raw.columns.schema if pa.types.is_integer(field.type)]
    for name in [*texts, *numbers]:
        values = [None if v is None else str(v) for v in raw.columns.column(name).to_pylist()]
        # An id stands in one row only, unlike a label; but a picture may have several captions.
        ids = len(set(values)) == len(values) or plain_name(name).endswith("id")
        if ids and _all_fit(values, index.find_by_stem):
            files = [index.find_by_stem(value) or value for value in values]
            note = f"{raw.name}: image = column {name!r}, whose values are pictures of the folder without their ending"
            raw = replace(raw, known={**raw.known, "image": "image"}, notes=[*raw.notes, note])
            return raw.with_columns({"image": files})
    return raw


def _all_fit(values: Sequence[str | None], find: Callable[[str | None], str | None]) -> bool:
    """Whether half of the first different values are pictures of the folder."""
    head = list(dict.fromkeys(value for value in values if value))[:_LOOKED_AT]
    return len(head) > 1 and 2 * sum(find(value) is not None for value in head) >= len(head)


def _fits(raw: Raw, column: str, find: Callable[[str | None], str | None]) -> bool:
    """Whether half of the first values of a column are pictures of the folder."""
    values = [value for value in raw.columns.column(column).slice(0, _LOOKED_AT).to_pylist() if value]
    return bool(values) and 2 * sum(find(value) is not None for value in values) >= len(values)


def named_pictures(raw: Raw, index: PictureIndex, column: str | None) -> list[str | None]:
    """Return the picture below the folder that every row names, or `None`."""
    if column is None:
        return [None] * raw.columns.num_rows
    found: dict[str | None, str | None] = {}
    values: list[str | None] = raw.columns.column(column).to_pylist()
    return [found.setdefault(v, index.find(v)) if v not in found else found[v] for v in values]


def with_paths(raw: Raw, index: PictureIndex, column: str, files: Sequence[str | None]) -> Raw:
    """Return rows whose pictures are named by paths from the index's folder.

    Rows whose picture is not there keep what they say, so that they are set aside with it.
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
            f"{raw.name}: {len(moved):,} pictures were found by name ({values[moved[0]]} is {files[moved[0]]})",
        ],
    )


def without_foreign_rows(raw: Raw) -> Raw:
    """Leave out rows that name what a system or a program left beside the pictures (`._a.png`)."""
    column = picture_column(raw)
    if column is None or raw.root_fixed:
        return raw
    values = raw.columns.column(column).to_pylist()
    foreign = {
        i
        for i, value in enumerate(values)
        if value is not None and "://" not in value and is_foreign_path(value)
    }
    if not foreign:
        return raw
    names = some(str(values[i]) for i in sorted(foreign))
    note = f"{raw.name}: rows passed over, left by a system or a program: {len(foreign):,} ({names})"
    kept = raw.take([i for i in range(len(values)) if i not in foreign])
    return replace(kept, notes=[*raw.notes, note])


def unnamed_note(index: PictureIndex, named: Iterable[str | None], by: str) -> list[str]:
    """Return a line about pictures that no row names."""
    held = set(named)
    left = [file for file in index.files if file not in held]
    return (
        [f"{index.folder.name}: pictures that {by} does not name, not read: {len(left):,} ({some(left)})"]
        if left
        else []
    )


def with_sides_of_paths(
    raw: Raw, files: Sequence[str | None] | None = None, known: Mapping[str, str] | None = None
) -> Raw:
    """Take the sides from folders in the pictures' paths (`train/`, `test/`), if the rows say no side.

    Pictures that a user put into a folder called `test` are never trained on, whatever else names them.

    Args:
        raw: the rows.
        files: their pictures' paths; default: as they stand in the rows.
        known: sides of the first folders, where they are known from elsewhere.
    """
    if "split" in raw.known or "split" in raw.columns.column_names or raw.split is not None:
        return raw
    if files is None:
        column = picture_column(raw)
        files = [] if column is None else raw.columns.column(column).to_pylist()
    folders = [[] if file is None else re.split(r"[/\\]", file)[:-1] for file in files]
    for depth in range(max(map(len, folders), default=0)):
        tops = [parts[depth] if depth < len(parts) else None for parts in folders]
        sides = sides_of(sorted({top for top in tops if top is not None}))
        if depth == 0 and known and len(set(known.values())) > 1:
            sides = {top: known[top] for top in dict.fromkeys(tops) if top is not None and top in known}
        elif len(set(sides.values())) < 2:
            continue
        if not sides:
            continue
        values = pa.array([None if top is None else sides.get(top) for top in tops], pa.string())
        said = ", ".join(f"{top}: {side}" for top, side in sides.items())
        notes = [*raw.notes, f"{raw.name}: sides are the folders of the pictures ({said}; {SWITCH})"]
        return replace(raw, columns=raw.columns.append_column("split", values), notes=notes)
    return raw
