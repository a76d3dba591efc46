"""Read MXNet's `.lst`: each line holds a number, one or more labels and an image's path, separated by tabs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from everclip.data.reading.formats.detections import detection_note, no_class
from everclip.data.reading.formats.dialect import is_picture_like
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.formats.text_file import open_text, text_encoding
from everclip.data.reading.quarantine import Entry
from everclip.errors import DataError

_LOOKED_AT = 20


def read_mxnet_list(path: Path, encoding: str | None) -> Raw | None:
    """Read a list of MXNet, or return `None` if the file is another kind of list.

    Args:
        path: the file.
        encoding: as the user says.

    Raises:
        DataError: for lines with several labels that are not objects.
    """
    found = text_encoding(path, encoding)
    with open_text(path, found.name) as file:
        lines = [(i, line.rstrip("\r\n").split("\t")) for i, line in enumerate(file, 1) if line.strip()]
    head = lines[:_LOOKED_AT]
    if not head or not all(_labels(cells) for _, cells in head):
        return None
    images: list[str] = []
    classes: list[str | None] = []
    flaws: dict[int, tuple[str, str]] = {}
    broken: list[Entry] = []
    objects = 0
    for row, (line, cells) in enumerate(lines, 1):
        labels = _labels(cells)
        if not labels:
            why = "expected a number, labels and the path of an image, separated by tabs"
            broken.append(Entry(row, f"{path.name}, row {row} (line {line})", "bad-row", why))
            continue
        held = [labels[0]] if len(labels) == 1 else _objects(labels)
        if held is None:
            raise DataError(
                f"{path.name}: line {line} gives {len(labels)} labels for one image ({' '.join(labels)[:40]}): "
                "everclip learns one class per image; write one label in each line, or captions."
            )
        objects += len(labels) > 1
        if len(held) != 1:
            flaws[len(images)] = ("missing-label", no_class(held))
        images.append(cells[-1].strip())
        classes.append(held[0] if len(held) == 1 else None)
    notes = [found.note] if found.note else []
    notes.append(f"{path.name}: a list of MXNet: number, label and path in each line")
    if objects:
        several = sum(detail != no_class([]) for _, detail in flaws.values())
        one = len(images) - len(flaws)
        notes.append(detection_note(path.name, "MXNet's objects", one, several, len(flaws) - several))
    names = {"image": images, "class_name": classes}
    return Raw(
        path.name,
        pa.table({name: pa.array(values, pa.string()) for name, values in names.items()}),
        [i for i, (_, cells) in enumerate(lines, 1) if _labels(cells)],
        broken,
        root=path.parent,
        known={name: name for name in names},
        notes=notes,
        textual=True,
        flaws=flaws,
    )


def _labels(cells: Sequence[str]) -> list[str]:
    """Return the labels of a line; nothing if the line is not in MXNet's format."""
    if len(cells) < 3 or not cells[0].strip().isdecimal() or not is_picture_like(cells[-1]):
        return []
    try:
        values = [float(cell) for cell in cells[1:-1]]
    except ValueError:
        return []
    return [str(int(v)) if v.is_integer() else str(v) for v in values]


def _objects(labels: Sequence[str]) -> list[str] | None:
    """Return the classes of an image's objects from (header width, object width, header..., objects...)."""
    if not all(label.isdecimal() for label in labels[:2]):
        return None
    head, width = int(labels[0]), int(labels[1])
    objects = labels[head:]
    if head < 2 or width < 5 or not objects or len(objects) % width:
        return None
    return sorted(set(objects[::width]))
