"""Read MMVP-VLM as it is published: `Questions.csv` beside `MLLM_VLM Images/PATTERN/ID.jpg`.

A question is a statement that is true of its image. The questions 1 and 2 form a pair, 3 and 4, and so on; the odd
id is its first image (Tong et al. 2024, arXiv 2401.06209). A file `fixes.csv` with the columns `Question ID` and
`Statement` replaces statements that are known to be wrong.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from everclip.data.reading.blanks import is_blank, trimmed
from everclip.data.reading.columns import describe, plain_name
from everclip.data.reading.formats.files import read_file
from everclip.data.reading.formats.folder_options import FolderOptions
from everclip.data.reading.formats.listing import Listing, ending_of, others_note
from everclip.data.reading.formats.raw import IMAGE_ENDINGS, Raw
from everclip.data.reading.formats.system_files import brief
from everclip.data.reading.formats.whole_numbers import LARGEST, whole_number
from everclip.data.wording import counted
from everclip.errors import DataError

QUESTIONS, IMAGES, FIXES = "Questions.csv", "MLLM_VLM Images", "fixes.csv"
TEMPLATE = "a photo of {}"
"""The published text around a statement."""


@dataclass(frozen=True)
class _Columns:
    """Columns of a table of questions."""

    raw: Raw
    values: Mapping[str, list[object]]

    @classmethod
    def of(cls, path: Path, names: tuple[str, ...], options: FolderOptions) -> _Columns:
        """Read a table that must have these columns.

        Raises:
            DataError: if one is missing.
        """
        raw = read_file(path, options.reading)
        held = {plain_name(name): name for name in raw.columns.column_names}
        for name in names:
            if plain_name(name) not in held:
                raise DataError(
                    f"{path}: no column {name!r}; columns are {describe(raw.columns.column_names)}. Expected "
                    f"{', '.join(names)}."
                )
        return cls(raw, {name: raw.columns.column(held[plain_name(name)]).to_pylist() for name in names})

    def ids(self) -> list[int]:
        """Return the question ids.

        Raises:
            DataError: for one that is no number from 1, or an id twice.
        """
        found: dict[int, int] = {}
        for row, value in enumerate(self.values["Question ID"]):
            text = trimmed(str(value))
            number = whole_number(text) if text.isdecimal() else 0
            if not 1 <= number < LARGEST:
                raise DataError(
                    f"{self.raw.row_name(row)}: Question ID is {value!r}; expected a number from 1."
                )
            if number in found:
                first = self.raw.number(found[number])
                raise DataError(
                    f"{self.raw.row_name(row)}: question {text} is in row {first} already; an id is that of one image."
                )
            found[number] = row
        return list(found)

    def statements(self) -> list[str]:
        """Return the statements; an empty text for one that is missing."""
        return ["" if value is None else trimmed(str(value)) for value in self.values["Statement"]]


def read_mmvp(listing: Listing, options: FolderOptions) -> list[Raw] | None:
    """Read the published layout of MMVP-VLM, or return `None` if the folder is another one.

    Raises:
        DataError: for a table without its columns, an id that is twice there or no number, or a correction of a
            question that does not exist.
    """
    if QUESTIONS not in listing.files or IMAGES not in listing.folders:
        return None
    table = _Columns.of(listing.path / QUESTIONS, ("Question ID", "Type", "Statement"), options)
    ids, statements = table.ids(), table.statements()
    patterns = ["" if value is None else trimmed(str(value)) for value in table.values["Type"]]
    notes = [*table.raw.notes, *listing.notes, *_fixed(listing, ids, statements, options)]
    read = [QUESTIONS, FIXES] if FIXES in listing.files else [QUESTIONS]
    files = _files(listing.path / IMAGES)
    columns = pa.table(
        {
            "id": [str(number) for number in ids],
            "image": [
                files.get((pattern.lower(), number), f"{IMAGES}/{pattern}/{number}.jpg")
                for number, pattern in zip(ids, patterns, strict=True)
            ],
            "caption": statements,
            "pair": [str((number + 1) // 2) for number in ids],
            "pattern": patterns,
            "template": [TEMPLATE] * len(ids),
        }
    )
    name = f"{listing.path.name}/{QUESTIONS}"
    notes += [
        f"{name}: MMVP-VLM, {len(ids):,} statements; the published text around each is {TEMPLATE!r} (--template for "
        "another)",
        *others_note(listing, read),
    ]
    raw = Raw(
        name,
        columns,
        table.raw.numbers,
        table.raw.broken,
        root=listing.path,
        known={column: column for column in ("id", "image", "caption", "pair")},
        notes=notes,
        flaws={
            row: ("empty-caption", "the statement is empty")
            for row, text in enumerate(statements)
            if is_blank(text)
        },
        read_beside=tuple(read[1:]),
    )
    return [raw]


def _files(folder: Path) -> dict[tuple[str, int], str]:
    """Return (pattern in lower case, question id) -> path of its image; published files end in `.jpg`."""
    found: dict[tuple[str, int], str] = {}
    for pattern in sorted(os.listdir(folder)):
        inner = folder / pattern
        for file in sorted(os.listdir(inner)) if inner.is_dir() else ():
            stem = file.rpartition(".")[0]
            if ending_of(file) in IMAGE_ENDINGS and stem.isdecimal():
                found.setdefault((trimmed(pattern).lower(), int(stem)), f"{IMAGES}/{pattern}/{file}")
    return found


def _fixed(listing: Listing, ids: list[int], statements: list[str], options: FolderOptions) -> list[str]:
    """Replace the statements that the list of corrections names, in place; return what to say about it.

    Raises:
        DataError: for a question that does not exist, or an empty statement.
    """
    if FIXES not in listing.files:
        return []
    fixes = _Columns.of(listing.path / FIXES, ("Question ID", "Statement"), options)
    rows = {number: row for row, number in enumerate(ids)}
    numbers = fixes.ids()
    for number, text in zip(numbers, fixes.statements(), strict=True):
        if number not in rows:
            raise DataError(f"{listing.path / FIXES}: question {number} is not in {QUESTIONS}.")
        if is_blank(text):
            raise DataError(f"{listing.path / FIXES}: the statement of question {number} is empty.")
        statements[rows[number]] = text
    return [
        f"{listing.path.name}/{FIXES}: replaces {counted(len(numbers), 'statement')} "
        f"({'question' if len(numbers) == 1 else 'questions'} {brief(map(str, numbers))})"
    ]
