"""What `everclip check --output` writes: the sheet, the document, and lists to work through."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from everclip.files import write_bytes_atomic, write_text_atomic
from everclip.prepare.check.inspect import Inspected
from everclip.prepare.check.inspect_texts import text_column
from everclip.prepare.check.sheet import sample_sheet

FILES = ("check.json", "sheet.png", "quarantine.csv", "duplicates.csv", "leaks.csv")


def write_all(found: Inspected, folder: Path) -> None:
    """Write `check.json`, `sheet.png`, `quarantine.csv`, `duplicates.csv` and `leaks.csv`.

    Raises:
        CheckpointError: if the folder cannot be written.
    """
    document = found.check.model_dump(mode="json")
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    write_text_atomic(folder / "check.json", text + "\n")
    write_bytes_atomic(folder / "sheet.png", sample_sheet(found))
    entries = ((e.row, e.name, e.reason, e.detail) for e in found.quarantine.entries)
    write_text_atomic(folder / "quarantine.csv", _csv(("row", "name", "reason", "detail"), entries))
    write_text_atomic(folder / "duplicates.csv", _csv(_GROUP, _groups(found)))
    write_text_atomic(folder / "leaks.csv", _csv(_LEAK, _leaks(found)))


_GROUP = ("group", "kind", "id", "origin", "split", "text")
_LEAK = (
    "side",
    "kind",
    "difference",
    "id",
    "origin",
    "text",
    "other_side",
    "other_id",
    "other_origin",
    "other_text",
)


def _groups(found: Inspected) -> Iterable[Sequence[Any]]:
    table, texts = found.table, text_column(found.table)
    for number, group in enumerate(found.duplicates.groups, start=1):
        for row in group.rows:
            yield number, group.kind, table.ids[row], table.origin(row), found.sides[row], texts[row]
    for row in found.duplicates.repeated:
        yield "", "repeated row", table.ids[row], table.origin(row), found.sides[row], texts[row]


def _leaks(found: Inspected) -> Iterable[Sequence[Any]]:
    table, texts = found.table, text_column(found.table)
    for leak in found.duplicates.leaks:
        held = (table.ids[leak.row], table.origin(leak.row), texts[leak.row])
        other = (table.ids[leak.other], table.origin(leak.other), texts[leak.other])
        yield leak.side, leak.kind, round(leak.difference, 2), *held, leak.other_side, *other


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return file.getvalue()


def _cell(value: Any) -> Any:
    """Keep a spreadsheet from taking a user's text for a formula."""
    return (
        f"'{value}"
        if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
        else value
    )
