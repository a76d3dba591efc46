"""Read tables with one row per object and its box (`filename, class, xmin, ymin, xmax, ymax`): one class per image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa

from everclip.data.reading.columns import plain_name
from everclip.data.reading.formats.detections import detection_note, no_class
from everclip.data.reading.formats.raw import Raw

_BOXES = (
    {"xmin", "ymin", "xmax", "ymax"},
    {"x1", "y1", "x2", "y2"},
    {"bboxx1", "bboxy1", "bboxx2", "bboxy2"},
    {"xcenter", "ycenter"},
    {"bbox"},
)


def with_classes_of_predictions(raw: Raw, names: dict[str, str], lines: list[str]) -> Raw:
    """Add the class of every row whose objects are in one cell: `PredictionString`, `cat 10 10 40 40 cat 5 5 9 9`.

    Classes that are numbers are not read: they look like coordinates and scores.

    Args:
        raw: the rows.
        names: canonical names to columns; `class_name` is added.
        lines: notes for people; added to.
    """
    column = next((c for c in raw.columns.column_names if plain_name(c) == "predictionstring"), None)
    if column is None or "image" not in names or {"caption", "class_name", "class_key"} & set(names):
        return raw
    found = [_classes_in(str(cell or "")) for cell in raw.columns.column(column).to_pylist()]
    if not any(found) or any(classes is None for classes in found):
        return raw
    held = [classes or [] for classes in found]
    flaws = {
        row: ("missing-label", no_class(classes)) for row, classes in enumerate(held) if len(classes) != 1
    }
    several = sum(len(classes) > 1 for classes in held)
    lines.append(
        detection_note(
            raw.name, column, len(held) - len(flaws), several, sum(not classes for classes in held)
        )
    )
    names["class_name"] = "class_name"
    values = pa.array([classes[0] if len(classes) == 1 else None for classes in held], pa.string())
    return replace(raw, columns=raw.columns.append_column("class_name", values), flaws=raw.flaws | flaws)


def _classes_in(cell: str) -> list[str] | None:
    """Return the distinct classes in a cell of objects: a word and four numbers each, or five with a score."""
    words = cell.split()
    for width in (5, 6):
        labels = words[::width]
        numbers = [word for i, word in enumerate(words) if i % width]
        if len(words) % width == 0 and all(map(_is_number, numbers)) and not any(map(_is_number, labels)):
            return sorted(set(labels))
    return None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def with_row_per_picture(raw: Raw, names: Mapping[str, str], lines: list[str]) -> Raw:
    """Keep one row per image if the rows are objects with boxes; set images with several classes aside.

    Args:
        raw: the rows.
        names: canonical names to columns.
        lines: notes for people; added to.
    """
    held = {plain_name(column) for column in raw.columns.column_names}
    image, label = names.get("image"), names.get("class_name") or names.get("class_key")
    if image is None or label is None or "caption" in names or not any(box <= held for box in _BOXES):
        return raw
    if not pa.types.is_string(raw.columns.schema.field(image).type):
        return raw
    rows: dict[str, list[int]] = defaultdict(list)
    for row, path in enumerate(raw.columns.column(image).to_pylist()):
        rows[f"row {row}" if path is None else path].append(row)
    classes = raw.columns.column(label).to_pylist()
    flaws, several, none = dict(raw.flaws), 0, 0
    for held_rows in rows.values():
        found = sorted({str(classes[row]) for row in held_rows if classes[row] not in (None, "")})
        if len(found) == 1:
            continue
        several, none = several + bool(found), none + (not found)
        flaws[held_rows[0]] = ("missing-label", no_class(found))
    lines.append(detection_note(raw.name, "a row per box", len(rows) - several - none, several, none))
    raw.flaws = flaws
    return raw.take([held_rows[0] for held_rows in rows.values()])
