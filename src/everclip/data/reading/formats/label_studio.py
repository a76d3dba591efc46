"""Read Label Studio's JSON export: tasks with `data` and `annotations`; choices are classes, text areas captions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa

from everclip.data.reading.formats.json_forms import names_a_picture
from everclip.data.reading.formats.json_stream import elements
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.formats.text_file import is_text
from everclip.data.reading.quarantine import Entry
from everclip.errors import DataError

_UPLOADED = re.compile(r"^/?data/upload/(?:\d+/)?")

_CLASSES = ("choices", "rectanglelabels", "polygonlabels", "ellipselabels", "brushlabels", "keypointlabels")


def read_label_studio(path: Path, encoding: str | None = None) -> Raw:
    """Read an export: one row per caption, or one row with the chosen class.

    Raises:
        DataError: if no task names an image.
    """
    rows: list[tuple[str | None, ...]] = []
    broken: list[Entry] = []
    number = 0
    for key, task in elements(path, encoding):
        if key != "" or not isinstance(task, dict):
            continue
        number += 1
        where = f"{path.name}, task {task.get('id', number)}"
        file = _file(task.get("data"))
        if file is None:
            broken.append(Entry(number, where, "no-image", "`data` names no image"))
            continue
        classes, captions = _annotated(task)
        if len(classes) > 1:
            detail = f"{len(classes)} classes ({', '.join(classes[:4])}); expected one"
            broken.append(Entry(number, where, "missing-label", detail))
        elif not classes and not captions:
            broken.append(Entry(number, where, "missing-label", "neither a choice nor a text is annotated"))
        else:
            texts: list[str | None] = [*captions] or [None]
            rows += [(file, text, classes[0] if classes else None) for text in texts]
    if not rows and not broken:
        raise DataError(f"{path}: holds no task of Label Studio.")
    names = ("image", "caption", "class_name")
    held = [i for i in range(len(names)) if i == 0 or any(row[i] is not None for row in rows)]
    columns = pa.table({names[i]: pa.array([row[i] for row in rows], pa.string()) for i in held})
    return Raw(
        path.name,
        columns,
        None,
        broken,
        root=path.parent,
        known={name: name for name in columns.column_names},
        labels=columns.column("image").to_pylist(),
        notes=[f"{path.name}: Label Studio: {len(rows):,} rows of {number:,} tasks"],
    )


def _file(data: Any) -> str | None:
    """Return the image's path or URL: the value of `image`, else the one value that looks like an image."""
    if not isinstance(data, dict):
        return None
    values = [
        data[key] for key in ("image", "img", "picture", "photo", "url") if isinstance(data.get(key), str)
    ]
    values += [v for v in data.values() if isinstance(v, str) and names_a_picture(v)]
    values = [v for v in values if is_text(v)]
    if not values:
        return None
    try:
        parts = urlsplit(values[0])
    except ValueError:  # not a URL
        return None
    if "local-files" in parts.path and (local := parse_qs(parts.query).get("d")):
        return str(local[0])
    return _UPLOADED.sub("", unquote(values[0])) if not parts.scheme else str(values[0])


def _annotated(task: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the annotated classes and captions; cancelled annotations do not count."""
    classes: dict[str, None] = {}
    captions: dict[str, None] = {}
    for annotation in task.get("annotations") or task.get("completions") or []:
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        for result in annotation.get("result") or []:
            value = result.get("value") if isinstance(result, dict) else None
            if not isinstance(value, dict):
                continue
            for key, given in value.items():
                kept = captions if key == "text" else classes if key in _CLASSES else None
                if kept is None:
                    continue
                texts = [given] if isinstance(given, str) else given if isinstance(given, list) else []
                kept.update(
                    dict.fromkeys(t for t in texts if isinstance(t, str) and t.strip() and is_text(t))
                )
    return list(classes), list(captions)
