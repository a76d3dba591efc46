"""Classes that stand in the names of files: `cat.0.jpg`, `Egyptian_Mau_12.jpg`, read by a pattern that the user says.

Nothing is read from names silently: where they look as if they held classes, a message proposes the pattern.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from everclip.data.reading.columns import choose
from everclip.data.reading.content_columns import columns_by_content
from everclip.data.reading.formats.foreign import some
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.formats.sides import split_of
from everclip.data.reading.name_pattern import CLASS, compiled
from everclip.errors import ConfigError, DataError

_NUMBERED = re.compile(r"(?P<name>n\d{8}|.*[^\W\d_])(?P<start>[-._ ]*)(?P<open>\(?)\d+(?P<close>\)?)")
_NUMBER_FIRST = re.compile(r"\d+(?P<start>[-._ ]+)(?P<name>[^\W\d_].*)")
_NUMBER_INSIDE = re.compile(r"(?P<name>[^\W\d_]+)(?P<start>[-._ ]+)\d+(?P<next>[-._ ]+)[^\W\d_].*")
_MADE_BY_PROGRAMS = re.compile(
    r"(img|image|dsc[a-z]?|dscn|pict?|picture|photo|foto|frame|scan|screenshot|untitled|file|p|vid|video|mvi|coco|wa"
    r"|sample|crop|page|test|train|val)([^a-z].*)?",
    re.IGNORECASE,
)
"""Beginnings of names that cameras and programs write; they are no classes."""
_SHAPES = {
    _NUMBERED: "{class}{start}{open}#{close}",
    _NUMBER_FIRST: "#{start}{class}",
    _NUMBER_INSIDE: "{class}{start}#{next}*",
}
"""How names are cut, and the patterns that say it."""
_LEAST_EACH = 2


@dataclass(frozen=True)
class Guess:
    """What the names of files look like.

    Attributes:
        pattern: that reads their classes.
        counts: pictures per class.
    """

    pattern: str
    counts: Counter[str]

    def sentence(self) -> str:
        """Return what was seen, and the setting that reads it."""
        shown = some(f"{name} {count:,}" for name, count in self.counts.most_common())
        return (
            f" The names of the pictures look as if classes stood in them ({shown}): if so, say "
            f'"data.class_in_name={self.pattern}".'
        )


def guess(files: Sequence[str]) -> Guess | None:
    """Return the pattern that fits all names, if it gives two or more classes of two or more pictures on average."""
    stems = [os.path.splitext(os.path.basename(file))[0] for file in files]
    for form, shape in _SHAPES.items():
        found = [form.fullmatch(stem) for stem in stems]
        fitting = [match.groupdict() for match in found if match is not None]
        if not fitting or len(fitting) < len(stems):
            continue
        ways = {tuple(v for k, v in sorted(match.items()) if k != "name") for match in fitting}
        counts = Counter(match["name"] for match in fitting)
        if len(ways) > 1 or len(counts) < 2 or _LEAST_EACH * len(counts) > len(stems):
            continue
        if any(_MADE_BY_PROGRAMS.fullmatch(name) or split_of(name) for name in counts):
            continue
        return Guess(shape.format(**{**fitting[0], "class": CLASS}), counts)
    return None


class UnlabelledError(DataError):
    """Pictures without a label whose names look as if they held classes; `pattern` reads them."""

    def __init__(self, message: str, pattern: str) -> None:
        super().__init__(message)
        self.pattern = pattern


def with_classes_of_names(raws: Sequence[Raw], pattern: str) -> list[Raw]:
    """Give rows the classes that stand in the names of their pictures, whatever else names classes.

    Args:
        raws: parts of the data. One none of whose names fits, as the test pictures of a competition, is left out.
        pattern: `{class}_#`.

    Raises:
        ConfigError: if the pictures have no names.
        DataError: if no name fits.
    """
    form = compiled(pattern)
    named = [(raw, _names(raw)) for raw in raws]
    found = [
        (raw, [(m := form.fullmatch(name)) and m.group("name") for name in names]) for raw, names in named
    ]
    kept = [(raw, classes) for raw, classes in found if any(classes)]
    if not kept:
        names = [name for _, held in named for name in held]
        raise DataError(
            f"data.class_in_name: {pattern!r} fits no name of {len(names):,} pictures ({some(names)}); # stands for a "
            "number, * for anything."
        )
    left = [raw for raw, classes in found if not any(classes)]
    if left:
        count = sum(raw.columns.num_rows for raw in left)
        kept[0][0].notes.append(
            f"pictures whose names do not fit {pattern!r} have no label, not read: {count:,} "
            f"({some(raw.name for raw in left)})"
        )
    return [_with_classes(raw, classes, pattern) for raw, classes in kept]


def _with_classes(raw: Raw, classes: Sequence[str | None], pattern: str) -> Raw:
    flaws = {
        row: ("missing-label", f"its name is not of the form {pattern!r}")
        for row, name in enumerate(classes)
        if name is None
    }
    counts = Counter(name for name in classes if name is not None)
    shown = some(f"{name} {count:,}" for name, count in counts.most_common())
    note = f"{raw.name}: classes are parts of the pictures' names, by the pattern {pattern!r} ({shown})"
    columns = raw.columns.drop_columns([c for c in ("class_key",) if c in raw.columns.column_names])
    known = {ours: theirs for ours, theirs in raw.known.items() if ours != "class_key"}
    raw = replace(raw, columns=columns, known=known, flaws={**raw.flaws, **flaws}, notes=[*raw.notes, note])
    return raw.with_columns({"class_name": classes})


def _names(raw: Raw) -> list[str]:
    """Return the names of the pictures without folders and endings.

    Raises:
        ConfigError: where pictures lie in the rows, without a name.
    """
    chosen, _ = choose(raw.columns.schema, {}, raw.known, raw.name)
    columns_by_content(raw, chosen, {})
    column = chosen.get("image")
    paths: Sequence[str | None] | None = raw.labels
    if column is not None and pa.types.is_string(raw.columns.schema.field(column).type):
        paths = raw.columns.column(column).to_pylist()
    if paths is None:
        raise ConfigError(
            f"data.class_in_name: the pictures of {raw.name} have no names to read a class from."
        )
    return [os.path.splitext(os.path.basename((path or "").replace("\\", "/")))[0] for path in paths]
