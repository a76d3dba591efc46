"""Tables with a row per object and its box (`filename, class, xmin, ymin, xmax, ymax`): a class per picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

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


def with_row_per_picture(raw: Raw, names: Mapping[str, str], lines: list[str]) -> Raw:
    """Keep one row of each picture where rows are objects with boxes; a picture of several classes is set aside.

    Args:
        raw: the rows.
        names: canonical names to columns.
        lines: for people; what was done is added.
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
