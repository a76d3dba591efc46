"""Captions in many languages as they are published: Crossmodal-3600, and COCO's captions by machine translation.

Crossmodal-3600 (XM3600, arXiv 2205.12522) is a folder with `captions.jsonl`: per line an object with `image/key` and,
for each language, an object whose `caption` is a list of texts. The images are `images/KEY.jpg`, or `KEY.jpg`.

The translated COCO captions are a folder of the code of CLL-CLIP (arXiv 2401.17186), `data`:

    annotations/coco/en/train.json                       a list of {image, caption}, an entry per caption
    corpus/multilingual_coco/36langs/coco_en.tsv.gz      its captions, a line each
    corpus/multilingual_coco/36langs/coco_en-de.tsv.gz   source TAB translation: line n translates entry n
    MSCOCO/                                              the images
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from everclip.data.reading.formats.jsonl import parsed
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.quarantine import Entry
from everclip.errors import DataError, did_you_mean

XM3600 = "captions.jsonl"
KEY = "image/key"
COCO = Path("corpus/multilingual_coco/36langs")
ANNOTATIONS = Path("annotations/coco/en/train.json")
IMAGES = "MSCOCO"
_FILE = re.compile(r"coco_en(?:-([\w-]+))?\.tsv\.gz")

Row = tuple[str, str, str]
"""Image, caption, language."""


class _Places(Sequence[str]):
    """Names of rows for people, made when asked: there may be twenty million."""

    def __init__(self, files: Sequence[str], file_of: Sequence[int], lines: Sequence[int]) -> None:
        self._files, self._file_of, self._lines = files, file_of, lines

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, at: Any) -> Any:
        return f"{self._files[self._file_of[at]]}, line {self._lines[at]}"


def read_languages(folder: Path, languages: Sequence[str] | None = None) -> Raw | None:
    """Read a folder in one of these layouts; `None` if it has neither.

    Args:
        folder: the folder.
        languages: those to read; default: all.

    Raises:
        DataError: if a file is missing or damaged, or a language is not there.
    """
    if (folder / COCO).is_dir():
        return _coco(folder, languages)
    if (folder / XM3600).is_file() and _is_xm3600(folder / XM3600):
        return _xm3600(folder, languages)
    return None


# -- Crossmodal-3600 ------------------------------------------------------------------------------------------


def _is_xm3600(path: Path) -> bool:
    with open(path, "rb") as file:
        return f'"{KEY}"'.encode() in file.read(65_536)


def _xm3600(folder: Path, languages: Sequence[str] | None) -> Raw:
    rows: list[Row] = []
    numbers: list[int] = []
    broken: list[Entry] = []
    known: dict[str, None] = {}
    with open(folder / XM3600, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            found = parsed(line)
            place = f"{XM3600}, line {number}"
            if isinstance(found, dict) and not isinstance(found.get(KEY), str):
                found = "no-image", f"no {KEY!r}"
            if isinstance(found, tuple):
                broken.append(Entry(number, place, *found))
                continue
            held = {name: value for name, value in found.items() if isinstance(value, dict)}
            known |= dict.fromkeys(held)
            for language in held if languages is None else languages:
                texts = _texts(held.get(language))
                rows += [(f"{found[KEY]}.jpg", text, language) for text in texts]
                numbers += [number] * len(texts)
                if not texts and language in known:
                    broken.append(Entry(number, f"{place}, {language}", "empty-caption", "no caption"))
    _require(languages, known, folder / XM3600)
    if not rows:
        raise DataError(f"{folder / XM3600}: no line holds a caption.")
    inside = folder / "images"
    labels = _Places([XM3600], [0] * len(rows), numbers)
    return _raw(folder, rows, labels, numbers, broken, inside if inside.is_dir() else folder)


def _texts(value: Any) -> list[str]:
    held = value.get("caption") if isinstance(value, dict) else None
    return [text for text in held if isinstance(text, str) and text.strip()] if isinstance(held, list) else []


# -- COCO, translated -----------------------------------------------------------------------------------------


def _coco(folder: Path, languages: Sequence[str] | None) -> Raw:
    images = _annotated(folder / ANNOTATIONS)
    files = {m[1] or "en": p for p in sorted((folder / COCO).iterdir()) if (m := _FILE.fullmatch(p.name))}
    _require(languages, files, folder / COCO)
    if not files:
        raise DataError(f"{folder / COCO}: holds no file like coco_en.tsv.gz or coco_en-de.tsv.gz.")
    chosen = list(files) if languages is None else list(languages)
    parts, file_of, lines, broken = [], [], [], []
    for place, language in enumerate(chosen):
        texts, bad = _translations(files[language], language, len(images), folder)
        broken += bad
        kept = [i for i, text in enumerate(texts) if text is not None]
        parts.append(
            pa.table(
                {
                    "image": images.take(pa.array(kept, pa.int64())),
                    "caption": pa.array([texts[i] for i in kept], pa.string()),
                    "language": pa.array([language] * len(kept), pa.string()),
                }
            )
        )
        file_of += [place] * len(kept)
        lines += [i + 1 for i in kept]
    names = [files[language].name for language in chosen]
    labels = _Places(names, file_of, lines)
    root = folder / IMAGES
    return Raw(
        folder.name,
        pa.concat_tables(parts),
        lines,
        broken,
        root if root.is_dir() else folder,
        {name: name for name in ("image", "caption", "language")},
        labels,
        root_fixed=True,
    )


def _annotated(path: Path) -> pa.Array:
    """Return the image of each entry of the English annotations."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; it names the image of each line of the translations.")
    try:
        entries = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: no valid JSON ({error}).") from error
    if not isinstance(entries, list):
        raise DataError(f"{path}: holds {type(entries).__name__}, expected a list of {{image, caption}}.")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise DataError(f"{path}, entry {number}: no `image`, so no translation of it has an image.")
    return pa.array([entry["image"] for entry in entries], pa.string())


def _translations(
    path: Path, language: str, count: int, folder: Path
) -> tuple[list[str | None], list[Entry]]:
    """Return the text of each line, `None` where there is none, and one entry per such line."""
    texts: list[str | None] = []
    broken: list[Entry] = []
    for number, line in enumerate(_lines(path), 1):
        cells = line.split("\t")
        wanted = 1 if language == "en" else 2
        text = cells[-1].strip()
        if len(cells) != wanted:
            why = f"{len(cells)} cells, expected {'a caption' if wanted == 1 else 'source TAB translation'}"
            broken.append(Entry(number, f"{path.name}, line {number}", "bad-row", why))
        elif not text:
            broken.append(Entry(number, f"{path.name}, line {number}", "empty-caption", "no text"))
        texts.append(text if len(cells) == wanted and text else None)
    if len(texts) != count:
        raise DataError(
            f"{path}: {len(texts):,} lines, and {folder / ANNOTATIONS} has {count:,} entries; line n must translate "
            "entry n. Is a download cut short?"
        )
    return texts, broken


def _lines(path: Path) -> Iterator[str]:
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            for line in file:
                number += 1
                yield line.rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read after line {number:,} ({error}).") from error


# -- shared ---------------------------------------------------------------------------------------------------


def _require(languages: Sequence[str] | None, known: Sequence[str] | dict[str, Any], path: Path) -> None:
    for language in languages or ():
        if language not in known:
            raise DataError(
                f"{path}: holds no captions in {language!r} (data.languages).{did_you_mean(language, known)} It has "
                f"{', '.join(known) or 'none'}."
            )


def _raw(
    folder: Path,
    rows: list[Row],
    labels: Sequence[str],
    numbers: Sequence[int],
    broken: list[Entry],
    images: Path,
) -> Raw:
    names = ("image", "caption", "language")
    columns = pa.table(
        {name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(names)}
    )
    known = {name: name for name in names}
    return Raw(folder.name, columns, numbers, broken, images, known, labels, root_fixed=True)
