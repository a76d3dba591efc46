"""Read classes from file names (`cat.0.jpg`, `Egyptian_Mau_12.jpg`) by a pattern that the user gives.

Nothing is read from names silently: if they seem to contain classes, a message proposes the pattern.
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
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.formats.sides import side_of_name
from everclip.data.reading.formats.system_files import brief
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
"""Names that cameras and programs write; they are not classes."""
_SHAPES = {
    _NUMBERED: "{class}{start}{open}#{close}",
    _NUMBER_FIRST: "#{start}{class}",
    _NUMBER_INSIDE: "{class}{start}#{next}*",
}
"""Expressions for names, and the patterns that they correspond to."""
_LEAST_EACH = 2


@dataclass(frozen=True)
class Guess:
    """A pattern that fits the names of files.

    Attributes:
        pattern: for `data.class_in_name`.
        counts: images per class.
    """

    pattern: str
    counts: Counter[str]

    def sentence(self) -> str:
        """Return a sentence with the classes and the setting that reads them."""
        shown = brief(f"{name} {count:,}" for name, count in self.counts.most_common())
        return (
            f" The names of the images look as if classes stood in them ({shown}): if so, say "
            f'"data.class_in_name={self.pattern}".'
        )


def guess(files: Sequence[str]) -> Guess | None:
    """Return the pattern that fits all names, if it gives two or more classes of two or more images on average."""
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
        if any(_MADE_BY_PROGRAMS.fullmatch(name) or side_of_name(name) for name in counts):
            continue
        return Guess(shape.format(**{**fitting[0], "class": CLASS}), counts)
    return None


class UnlabelledError(DataError):
    """Images without labels whose names seem to contain classes; `pattern` reads them."""

    def __init__(self, message: str, pattern: str) -> None:
        super().__init__(message)
        self.pattern = pattern


def with_classes_in_names(raws: Sequence[Raw], pattern: str) -> list[Raw]:
    """Take the class of each row from its image's name, in place of any other class.

    Args:
        raws: parts of the data. A part in which no name fits, such as the test images of a competition, is left out.
        pattern: `{class}_#`.

    Raises:
        ConfigError: if the images have no names.
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
            f"data.class_in_name: {pattern!r} fits no name of {len(names):,} images ({brief(names)}); # stands for a "
            "number, * for anything."
        )
    left = [raw for raw, classes in found if not any(classes)]
    if left:
        count = sum(raw.columns.num_rows for raw in left)
        kept[0][0].notes.append(
            f"images whose names do not fit {pattern!r} have no label, not read: {count:,} "
            f"({brief(raw.name for raw in left)})"
        )
    return [_with_classes(raw, classes, pattern) for raw, classes in kept]


def _with_classes(raw: Raw, classes: Sequence[str | None], pattern: str) -> Raw:
    flaws = {
        row: ("missing-label", f"its name is not of the form {pattern!r}")
        for row, name in enumerate(classes)
        if name is None
    }
    counts = Counter(name for name in classes if name is not None)
    shown = brief(f"{name} {count:,}" for name, count in counts.most_common())
    note = f"{raw.name}: classes are parts of the images' names, by the pattern {pattern!r} ({shown})"
    columns = raw.columns.drop_columns([c for c in ("class_key",) if c in raw.columns.column_names])
    known = {ours: theirs for ours, theirs in raw.known.items() if ours != "class_key"}
    raw = replace(raw, columns=columns, known=known, flaws={**raw.flaws, **flaws}, notes=[*raw.notes, note])
    return raw.with_columns({"class_name": classes})


def _names(raw: Raw) -> list[str]:
    """Return the names of the images without folders and endings.

    Raises:
        ConfigError: if the images are stored in the rows, without names.
    """
    chosen, _ = choose(raw.columns.schema, {}, raw.known, raw.name)
    columns_by_content(raw, chosen, {})
    column = chosen.get("image")
    paths: Sequence[str | None] | None = raw.labels
    if column is not None and pa.types.is_string(raw.columns.schema.field(column).type):
        paths = raw.columns.column(column).to_pylist()
    if paths is None:
        raise ConfigError(f"data.class_in_name: the images of {raw.name} have no names to read a class from.")
    return [os.path.splitext(os.path.basename((path or "").replace("\\", "/")))[0] for path in paths]
