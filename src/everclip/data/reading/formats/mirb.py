"""Read MIRB as it is published: one JSON file per task beside `images/`; see `mirb_tasks` and `mirb_rows`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa

from everclip.data.reading.formats.folder_options import FolderOptions
from everclip.data.reading.formats.listing import Listing, others_note
from everclip.data.reading.formats.mirb_rows import asked, rows_of
from everclip.data.reading.formats.mirb_tasks import TASKS, is_mirb, mirb_questions, task_of
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.formats.system_files import brief
from everclip.data.wording import counted
from everclip.errors import DataError

_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "caption": pa.string(),
        "question": pa.string(),
        "question_task": pa.string(),
        "question_category": pa.string(),
        "question_kind": pa.string(),
        "question_place": pa.int64(),
        "question_size": pa.int64(),
        "question_answer": pa.int64(),
        "question_role": pa.string(),
        "question_texts": pa.list_(pa.string()),
        "question_values": pa.list_(pa.float64()),
        "question_choices": pa.int64(),
        "question_target": pa.int64(),
        "question_weak": pa.bool_(),
    }
)


def read_mirb(listing: Listing, options: FolderOptions) -> list[Raw] | None:
    """Read the questions that a dual encoder can answer, or return `None` if the folder is no MIRB.

    Raises:
        DataError: for a file of another form, images that are not unpacked, or no question that can be answered.
    """
    if not is_mirb(listing.path, listing.files):
        return None
    if "images.zip" in listing.files and "images" not in listing.folders:
        raise DataError(f"{listing.path}: images.zip is not unpacked; unpack it here.")
    rows: list[dict[str, Any]] = []
    lacking: list[str] = []
    for name, questions in mirb_questions(listing.path).items():
        if TASKS[name].unsupported:
            continue
        lost: dict[str, list[str]] = {}
        for question, found in zip(questions, asked(questions, listing.path), strict=True):
            if isinstance(found, str):
                lost.setdefault(found, []).append(question.id)
            else:
                rows += rows_of(question, found)
        lacking += [
            f"{name}: {counted(len(ids), 'question')} of {len(questions):,} left out ({why}): {brief(ids)}"
            for why, ids in lost.items()
        ]
    if not rows:
        why = "".join(f"\n{line}" for line in lacking)
        raise DataError(f"{listing.path}: MIRB without a question that a dual encoder can answer.{why}")
    files = [file for file in listing.files if file.endswith(".json") and task_of(file[: -len(".json")])]
    labels = [f"question {row['question']}, image {row['question_place']}" for row in rows]
    return [
        Raw(
            listing.path.name,
            pa.Table.from_pylist(rows, schema=_SCHEMA),
            None,
            root=listing.path,
            known={name: name for name in ("id", "image", "caption")},
            labels=labels,
            notes=[*listing.notes, *lacking, *others_note(listing, files)],
            read_beside=tuple(files),
        )
    ]


def tasks_left_out(folder: Path, scored: Collection[str]) -> dict[str, str]:
    """Return the tasks of MIRB that are not scored, with the reason; empty for a folder that is no MIRB.

    Args:
        folder: where the files are.
        scored: names of the tasks that are scored.
    """
    if not folder.is_dir() or not is_mirb(folder, [file.name for file in folder.iterdir()]):
        return {}
    held = mirb_questions(folder)
    return {
        name: task.unsupported or (_NONE if name in held else f"there is no file {name}.json")
        for name, task in TASKS.items()
        if name not in scored and (name in held or not task.variant_of)
    }


_NONE = "none of its questions can be answered; the notes say why"
