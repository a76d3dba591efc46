"""Reference data of a scenario: unlabelled images and texts that belong to no task."""

from __future__ import annotations

from pathlib import Path

from everclip.contracts import Reference
from everclip.data.reading.formats.text_file import is_text, open_text, text_encoding
from everclip.data.reading.spec import DataSpec
from everclip.data.table import Table
from everclip.errors import DataError
from everclip.scenarios.conditions import matcher
from everclip.scenarios.reading import Reader, has_values
from everclip.scenarios.spec import ReferenceSpec, Where

MAX_TEXT = 10_000
"""Limit on the characters of one line; no CLIP tokenizer reads that many."""


def reference_of(spec: ReferenceSpec | None, reader: Reader) -> Reference | None:
    """Read the reference data of a scenario, if it has any. Test images are removed later (`remove_leaks`).

    Raises:
        ConfigError: for a source that does not exist.
        DataError: for data that cannot be read, or for `images` or `texts` that hold none.
    """
    if spec is None:
        return None
    images = None if spec.images is None else _images(spec.images, spec.images_where, reader)
    texts = () if spec.texts is None else _texts(spec.texts, spec.texts_where, reader)
    return Reference(images, texts)


def _images(spec: DataSpec, where: Where, reader: Reader) -> Table:
    key = "reference.images"
    table = matcher(where, f"{key}_where")(reader.read(spec, key, labelled=False))
    if len(table) == 0:
        raise DataError(f"{spec.label} ({key}): no image fits reference.images_where ({where}).")
    return table


def _texts(spec: DataSpec, where: Where, reader: Reader) -> tuple[str, ...]:
    """Return the distinct texts in the order of the source."""
    key = "reference.texts"
    if isinstance(spec.source, str) and spec.source.endswith(".txt"):
        found = _lines(reader.paths.located(spec, key), reader)
    else:
        table = reader.read(spec, key)
        found = _captions(matcher(where, "reference.texts_where")(table), key)
    texts = tuple(dict.fromkeys(text for text in found if text))
    if not texts:
        raise DataError(f"{spec.label} ({key}): it holds no text.")
    return texts


def _captions(table: Table, key: str) -> list[str]:
    for column in ("caption", "class_name"):
        if has_values(table, column):
            return [str(value) for value in table.column(column) if value]
    raise DataError(
        f"{table.name} ({key}): has neither captions nor class names; columns are {', '.join(table.column_names)}. "
        "Name them with `columns: {caption: NAME}`, or give a .txt file with a text per line."
    )


def _lines(spec: DataSpec, reader: Reader) -> list[str]:
    path = str(spec.source)
    found = []
    try:
        encoding = text_encoding(Path(path), spec.encoding)
        reader.guesses += [encoding.note] if encoding.note else []
        with open_text(Path(path), encoding.name) as file:
            for number, line in enumerate(file, 1):
                if len(line) > MAX_TEXT:
                    raise DataError(
                        f"{path}:{number}: {len(line):,} characters in a line; at most {MAX_TEXT:,}."
                    )
                if not is_text(line):
                    raise DataError(f"{path}:{number}: is not UTF-8; save it as UTF-8. {encoding.remedy}")
                found.append(line.strip())
    except OSError as error:
        raise DataError(f"{path} (reference.texts): {error.strerror}.") from error
    return found
