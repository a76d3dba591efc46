"""A look: a few new test images that the model did not name right before training, and its answers at every row."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from everclip.data.sampling.order import unit_hash
from everclip.evaluation.results import Answer, Example
from everclip.report import formats
from everclip.report.inline_images import inline_image
from everclip.report.runs import Run

SHOWN = 6
"""The number of images."""

MOST = 12
"""The largest number of images: their thumbnails are part of the page."""

NO_ANSWER = "not asked"
"""What stands where the protocol does not score the image yet."""


def chosen(run: Run, count: int = SHOWN) -> list[Example]:
    """Choose examples of the tasks' sets that row 0 does not answer right; later rows play no part.

    The images of a set are ordered by a hash of set and id. Of each set in the order of learning the first image is
    taken, then of each set the second, until there are `count`. So all runs of a stream with one start model show the
    same images.

    Args:
        run: the run; its setting `evaluation.examples` says how many images of each set have recorded answers.
        count: at most this many, and at most `MOST`.
    """
    queues = []
    for column in run.columns("task"):
        new = [e for e in run.results.examples if e.column == column.name and not _is_right(_answer(e, 0))]
        queues.append(sorted(new, key=lambda e: unit_hash("examples", e.column, e.id)))
    turns = range(max(map(len, queues), default=0))
    taken = [queue[turn] for turn in turns for queue in queues if turn < len(queue)][: min(count, MOST)]
    place = {column.name: i for i, column in enumerate(run.columns("task"))}
    return sorted(taken, key=lambda e: place[e.column])


def table(run: Run, count: int = SHOWN) -> dict[str, Any] | None:
    """Return the rows of the look for the template; `None` if there is no image, or no row after row 0."""
    found = chosen(run, count) if run.last >= 1 else []
    if not found:
        return None
    rows = [
        {
            "image": inline_image(run.folder, example.picture),
            "truth": example.truth,
            "column": example.column,
            "cells": [_cell(_answer(example, row.index)) for row in run.results.rows],
        }
        for example in found
    ]
    return {"heads": [run.label(row) for row in run.results.rows], "rows": rows}


def text(run: Run, rows: Sequence[int] | None = None, count: int = SHOWN) -> str:
    """Return the look in one line per image: `avocado (2016), rank 40 to 1 - before: kiwi fruit; after 2016: right`.

    The ranks are those of the true answer at the first and at the last row shown.

    Args:
        run: the run.
        rows: indices of the rows to show; default: all.
        count: as in `chosen`.
    """
    shown = [row for row in run.results.rows if rows is None or row.index in rows]
    lines = []
    for example in chosen(run, count):
        answers = [(run.label(row), _words(_answer(example, row.index))) for row in shown]
        runs = [
            (said, [label for label, _ in part]) for said, part in groupby(answers, key=lambda pair: pair[1])
        ]
        # One answer at every row needs no list of rows; a single row is named.
        whole = len(runs) == 1 and len(shown) > 1
        parts = [f"{said} at every row" if whole else f"{_span(labels)}: {said}" for said, labels in runs]
        ranks = _ranks([_answer(example, row.index) for row in shown])
        lines.append(f"  {example.truth} ({example.column}){ranks} - {'; '.join(parts)}")
    return "\n".join(lines)


def _answer(example: Example, row: int) -> Answer | None:
    return next((answer for answer in example.answers if answer.row == row), None)


def _is_right(answer: Answer | None) -> bool:
    return answer is not None and answer.correct


def _ranks(answers: Sequence[Answer | None]) -> str:
    """Return the first and the last rank: `, rank 40 to 1`; nothing if no rank was recorded."""
    ranks = [a.rank for a in answers if a is not None and a.rank is not None]
    if not ranks:
        return ""
    return f", rank {ranks[0]:,}" + (f" to {ranks[-1]:,}" if len(ranks) > 1 else "")


def _words(answer: Answer | None) -> str:
    if answer is None or not answer.answers:
        return NO_ANSWER
    return "right" if answer.correct else answer.answers[0][0]


def _span(labels: Sequence[str]) -> str:
    """Join the labels of consecutive rows: `after 2016`, `after 2016 to 2018`, `before to after 2017`."""
    if len(labels) == 1:
        return labels[0]
    first, last = labels[0], labels[-1]
    return f"{first} to {last.removeprefix('after ') if first.startswith('after ') else last}"


def _cell(answer: Answer | None) -> dict[str, Any]:
    if answer is None or not answer.answers:
        return {"best": "", "score": "", "correct": None, "rank": None}
    best, score = answer.answers[0]
    return {"best": best, "score": formats.number(score, 2), "correct": answer.correct, "rank": answer.rank}
