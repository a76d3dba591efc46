"""Read detection data, files with the objects of each image: VOC (XML), YOLO (numbers), LabelMe (JSON).

everclip learns one class or caption per image. An image whose objects all have one class has that class; other
images are set aside. Positions of objects are not read.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from everclip.data.reading.formats.class_folders import FolderImages
from everclip.data.reading.formats.class_names import with_class_names
from everclip.data.reading.formats.folder_options import FolderOptions
from everclip.data.reading.formats.listing import Listing, others_note
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.formats.text_file import is_text, small_text
from everclip.data.reading.quarantine import Entry
from everclip.errors import DataError

Form = Literal["voc", "yolo", "labelme", "other"]
"""The format of the objects; `other`: neither captions nor a known format."""

REMEDY = (
    "everclip learns one class or caption per image: cut each object out into an image of its own (a folder per "
    "class), or write captions (metadata.csv with the columns `file_name` and `caption`)"
)
_TITLES = {"voc": "Pascal VOC", "yolo": "YOLO", "labelme": "LabelMe"}
_NUMBERS = re.compile(r"[-+.\deE\s]+")
_YOLO = re.compile(r"(\d+)(?:\s+[-+.\deE]+){4,}\s*")
_OBJECT = re.compile(r"<object\b.*?</object>", re.DOTALL)
_PART = re.compile(r"<part\b.*?</part>", re.DOTALL)
_NAME = re.compile(r"<name>\s*(.*?)\s*</name>", re.DOTALL)
_MOST = 0.8
"""Share of the first lines that must have a format; images with other lines are set aside."""
_MOST_YAML = 1 << 20


class SeveralClassesError(DataError):
    """No image shows objects of only one class."""

    def __init__(self, where: str, title: str, several: int, none: int) -> None:
        super().__init__(
            f"{where}: detection data ({title}): {several:,} images show objects of several classes, {none:,} none. "
            f"{REMEDY}."
        )


def detection_form(ending: str, texts: Sequence[str]) -> Form | None:
    """Return the format of the objects in the files beside images, or `None` if they may be captions.

    Args:
        ending: of the files, without a dot.
        texts: the content of the first files.
    """
    held = [text for text in texts if text.strip()]
    if ending == "xml":
        return "voc" if held and all("<annotation" in text for text in held) else "other"
    if ending == "json":
        return "labelme" if held and all('"shapes"' in text for text in held) else None
    if not held or not all(map(_NUMBERS.fullmatch, held)):
        return None
    lines = [line for text in held for line in text.splitlines() if line.strip()]
    fitting = sum(_YOLO.fullmatch(line) is not None for line in lines)
    return "yolo" if fitting >= _MOST * len(lines) else "other"


def _of_voc(text: str) -> list[str]:
    objects = (_NAME.search(_PART.sub("", found)) for found in _OBJECT.findall(text))
    return [html.unescape(found.group(1)) for found in objects if found is not None]


def _of_yolo(text: str) -> list[str]:
    found = [_YOLO.fullmatch(line) for line in text.splitlines() if line.strip()]
    if not all(found):
        raise ValueError("a line is not of the form `class x y width height`")
    return [str(int(line.group(1))) for line in found if line is not None]


def _of_labelme(text: str) -> list[str]:
    found = json.loads(text)
    shapes = found.get("shapes") if isinstance(found, dict) else None
    if not isinstance(shapes, list):
        raise ValueError("no list `shapes`")
    return [
        shape["label"] for shape in shapes if isinstance(shape, dict) and isinstance(shape.get("label"), str)
    ]


_READERS: dict[str, Callable[[str], list[str]]] = {"voc": _of_voc, "yolo": _of_yolo, "labelme": _of_labelme}


def read_detections(
    listing: Listing,
    found: FolderImages,
    annotations: Sequence[str | tuple[str, str] | None],
    form: Form,
    texts: Path,
    options: FolderOptions,
) -> Raw:
    """Return one row per image whose objects have one class.

    Args:
        listing: the folder of the images.
        found: its images.
        annotations: content of each image's file, or (reason, detail), or `None` without a file.
        form: of the objects.
        texts: the folder of the files.
        options: how the folder is read.

    Raises:
        SeveralClassesError: if no image shows objects of only one class.
    """
    rows: list[tuple[str, str]] = []
    several = none = 0
    for file, held in zip(found.files, annotations, strict=True):
        classes = _classes(held, form)
        if isinstance(classes, tuple):
            problem = classes
        elif len(classes) == 1:
            rows.append((file, classes[0]))
            continue
        else:
            several, none = several + bool(classes), none + (not classes)
            problem = ("missing-label", no_class(classes))
        found.broken.append(Entry(None, f"{listing.path.name}, {file}", *problem))
    name = listing.path.name
    if not rows:
        raise SeveralClassesError(str(listing.path), _TITLES[form], several, len(found.files) - several)
    notes = [detection_note(name, _TITLES[form], len(rows), several, none)]
    found.others.clear()  # the files of the objects
    stems = {Path(file).stem for file in found.files}
    read = [file for file in listing.files if Path(file).stem in stems]
    notes += [*listing.notes, *others_note(listing, read)]
    found.files = [file for file, _ in rows]
    raw = found.raw({"class_name": [label for _, label in rows]}, notes)
    return _with_names(raw, texts, listing.path, options.reading.encoding) if form == "yolo" else raw


def detection_note(name: str, title: str, read: int, several: int, none: int) -> str:
    """Return a line about the images that were read and those that were set aside."""
    line = (
        f"{name}: detection data ({title}): {read:,} images show objects of one class, which is their class"
    )
    if several or none:
        line += (
            f"; set aside: {several:,} of several, {none:,} of none (cut the objects out, or write captions)"
        )
    return line + "; positions of objects are not read"


def no_class(classes: Sequence[str]) -> str:
    """Return why an image has no single class."""
    if not classes:
        return "no annotation names a class"
    return f"objects of {len(classes)} classes ({', '.join(classes[:4])}); expected one class per image"


def _classes(held: str | tuple[str, str] | None, form: Form) -> list[str] | tuple[str, str]:
    """Return the distinct classes of an image's objects in order, or (reason, detail)."""
    if held is None or isinstance(held, tuple):
        return [] if held is None else held
    try:
        names = _READERS[form](held)
    except (ValueError, RecursionError) as error:
        return "bad-row", f"its file is not readable as {_TITLES[form]} ({error})"
    if not all(map(is_text, names)):
        return "bad-utf8", "a class name is not text"
    return sorted({name.strip() for name in names} - {""})


def _with_names(raw: Raw, texts: Path, pictures: Path, encoding: str | None) -> Raw:
    """Replace YOLO's class numbers by names from `data.yaml` or a list (`classes.txt`) beside the files."""
    numbers = raw.columns.column("class_name").to_pylist()
    places = dict.fromkeys((texts, pictures, *list(texts.parents)[:2], *list(pictures.parents)[:2]))
    for place in places:
        for file in sorted([*place.glob("*.yaml"), *place.glob("*.yml")])[:5]:
            names = _yaml_names(file)
            if names is not None and all(number in names for number in numbers):
                shown = ", ".join(f"{n} = {names[n]}" for n in sorted(set(numbers), key=int)[:5])
                raw.notes.append(
                    f"{raw.name}: names of the classes are from {file.parent.name}/{file.name} ({shown})"
                )
                raw.read_beside += (file.name,)
                return raw.with_columns({"class_key": numbers, "class_name": [names[n] for n in numbers]})
    for place in (texts, pictures.parent):
        (named,) = with_class_names([raw], place, encoding)
        if named is not raw:
            return named
    return raw


def _yaml_names(file: Path) -> dict[str, str] | None:
    """Return the names of classes by number that a YAML file of YOLO holds."""
    try:
        found: Any = yaml.safe_load(small_text(file, _MOST_YAML))
    except (OSError, DataError, ValueError, RecursionError, yaml.YAMLError):
        return None  # not of YOLO; the numbers stay, with a note
    names = found.get("names") if isinstance(found, Mapping) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping) or not names:
        return None
    return {str(number): str(name) for number, name in names.items()}
