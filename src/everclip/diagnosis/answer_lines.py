"""Read the answers of a generative model: JSON lines with a question's id and the model's text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from everclip.data.reading.formats.system_files import brief
from everclip.errors import DataError

IDS = ("question_id", "id")
"""Keys of the id, as MMVP's script writes it and in short; MIRB may have `task` and `index` in place of one."""

TEXTS = ("response", "prediction")
"""Keys of the model's text, as the scripts of MMVP and of MIRB write it."""


@dataclass(frozen=True)
class AnswerLine:
    """The answer to one question.

    Attributes:
        row: its line in the file, from 1.
        id: of the question.
        text: what the model wrote.
        fields: the whole line.
    """

    row: int
    id: str
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)


def read_answers(path: Path, name_of: Callable[[str], str] = str) -> list[AnswerLine]:
    """Read a file of answers.

    Args:
        path: the file.
        name_of: returns the name under which an id counts, so that two names of one question are the same.

    Raises:
        DataError: for a file that cannot be read, or a line that is no answer or answers a question again; names file
            and row.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}.") from error
    found: dict[str, AnswerLine] = {}
    for row, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not raw.strip():
            continue
        line = _line(f"{path}, row {row}", row, raw, name_of)
        if line.id in found:
            raise DataError(
                f"{path}, row {row}: question {line.id!r} is answered in row {found[line.id].row} already."
            )
        found[line.id] = line
    if not found:
        raise DataError(f"{path}: holds no answer.")
    return list(found.values())


def _line(where: str, row: int, raw: bytes, name_of: Callable[[str], str]) -> AnswerLine:
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise DataError(f"{where}: is {type(fields).__name__}; expected an object with an id and a response.")
    name = next((fields[key] for key in IDS if key in fields), None)
    if name is None and {"task", "index"} <= set(fields):
        name = f"{fields['task']}/{fields['index']}"
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise DataError(f"{where}: has no id; expected {' or '.join(IDS)}, or task and index.")
    key = next((key for key in TEXTS if key in fields), None)
    if key is None:
        raise DataError(f"{where}: has no answer; expected {' or '.join(TEXTS)}.")
    if not isinstance(fields[key], str):
        raise DataError(f'{where}: {key} is {fields[key]!r:.60}; expected text ("" for no answer).')
    return AnswerLine(row, name_of(str(name).strip()), fields[key], fields)


def number_name(text: str) -> str:
    """Return a whole number without leading zeros, as text of any length; other text as it is."""
    return (text.lstrip("0") or "0") if text.isascii() and text.isdecimal() else text


def require_all(path: Path, lines: Sequence[AnswerLine], known: Sequence[str], what: str) -> None:
    """Check that every question is answered, and that every answer has a question.

    Args:
        path: the file of the answers.
        lines: the answers.
        known: ids of the questions.
        what: where the questions are from, for messages.

    Raises:
        DataError: with the row of an unknown id, or the ids that have no answer.
    """
    ids = set(known)
    unknown = [line for line in lines if line.id not in ids]
    if unknown:
        first = unknown[0]
        more = f", nor are those of {len(unknown) - 1:,} more rows" if len(unknown) > 1 else ""
        raise DataError(f"{path}, row {first.row}: question {first.id!r} is not in {what}{more}.")
    answered = {line.id for line in lines}
    lacking = [name for name in known if name not in answered]
    if lacking:
        raise DataError(
            f"{path}: no answer to {len(lacking):,} of {len(known):,} questions: {brief(lacking)}."
        )
