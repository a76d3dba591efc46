"""Writes the files of `everclip check --output`: the sample sheet, the check as JSON, and lists as CSV."""

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


def write_all(inspected: Inspected, folder: Path) -> None:
    """Write `check.json`, `sheet.png`, `quarantine.csv`, `duplicates.csv` and `leaks.csv`.

    Raises:
        CheckpointError: if the folder cannot be written.
    """
    document = inspected.check.model_dump(mode="json")
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    write_text_atomic(folder / "check.json", text + "\n")
    write_bytes_atomic(folder / "sheet.png", sample_sheet(inspected))
    entries = ((e.row, e.name, e.reason, e.detail) for e in inspected.quarantine.entries)
    write_text_atomic(folder / "quarantine.csv", _csv(("row", "name", "reason", "detail"), entries))
    write_text_atomic(folder / "duplicates.csv", _csv(_GROUP, _groups(inspected)))
    write_text_atomic(folder / "leaks.csv", _csv(_LEAK, _leaks(inspected)))


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


def _groups(inspected: Inspected) -> Iterable[Sequence[Any]]:
    table, texts = inspected.table, text_column(inspected.table)
    for number, group in enumerate(inspected.duplicates.groups, start=1):
        for row in group.rows:
            yield number, group.kind, table.ids[row], table.origin(row), inspected.sides[row], texts[row]
    for row in inspected.duplicates.repeated:
        yield "", "repeated row", table.ids[row], table.origin(row), inspected.sides[row], texts[row]


def _leaks(inspected: Inspected) -> Iterable[Sequence[Any]]:
    table, texts = inspected.table, text_column(inspected.table)
    for leak in inspected.duplicates.leaks:
        row = (table.ids[leak.row], table.origin(leak.row), texts[leak.row])
        other = (table.ids[leak.other], table.origin(leak.other), texts[leak.other])
        yield leak.side, leak.kind, round(leak.difference, 2), *row, leak.other_side, *other


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return file.getvalue()


def _cell(value: Any) -> Any:
    """Prefix text that a spreadsheet would take for a formula."""
    return (
        f"'{value}"
        if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
        else value
    )
