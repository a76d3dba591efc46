"""A diagnosis as a self-contained page, and the same numbers as JSON beside it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from everclip.contracts import EvalSet
from everclip.data.pictures.images import decode
from everclip.data.pictures.picture_error import PictureError
from everclip.diagnosis import diagnosis_figures as figures
from everclip.diagnosis.diagnose import Compared
from everclip.diagnosis.diagnosis_text import ROLES, queries_line, resolved_counts, set_cells
from everclip.diagnosis.records import (
    Diagnosis,
    FlipCounts,
    FlippedImage,
    PartChange,
    QueryChange,
    SetDiagnosis,
)
from everclip.files import write_text_atomic
from everclip.metrics import Kind, get
from everclip.report import formats, over_time_page
from everclip.report.html import render
from everclip.report.inline_images import data_uri
from everclip.report.over_time_text import CAUTION, hides
from everclip.report.over_time_text import trend as trend_of

SHOWN_IMAGES = 12
"""Lost and gained images, each, that the page shows of a set."""

SHOWN_QUERIES, SHOWN_RESULTS = 6, 5
_SIDE = 112  # pixels of an image on the page

_STATES = {"safe": "right", "unchanged": "right", "unsafe": "wrong"}


def write_diagnosis(compared: Compared, page: Path) -> tuple[Path, Path]:
    """Write the page and `.json` beside it; return both paths.

    Args:
        compared: the diagnosis with its sets.
        page: a path that ends in `.html`.
    """
    found = compared.diagnosis
    numbers = page.with_suffix(".json")
    write_text_atomic(numbers, found.model_dump_json(indent=1) + "\n")
    write_text_atomic(page, render("diagnosis.html.j2", _context(compared, numbers.name)))
    return page, numbers


def _context(compared: Compared, numbers: str) -> dict[str, Any]:
    found = compared.diagnosis
    first, *rest = found.verdict.sentence.split(". ", 1)
    parts = [_set_part(s, compared.sets[s.name]) for s in found.sets]
    return {
        "title": f"{found.new} against {found.old}",
        "found": found,
        "first": first if first.endswith(".") else f"{first}.",
        "rest": rest[0] if rest else "",
        "state": _STATES.get(found.verdict.state, ""),
        "level": formats.percent(found.confidence, 0),
        "tolerance": formats.plain_percent(found.verdict.tolerance),
        "numbers_file": numbers,
        "rows": [
            (s.name, ROLES[s.role], get(s.score.metric, s.kind).label, *set_cells(s)) for s in found.sets
        ],
        "scores": figures.scores(found),
        "dated": _dated(found),
        "parts": parts,
        "spaces": [part for part in parts if part["space"]],
        "blocks": figures.blocks(found),
        "blind": "everclip blind-pairs DATA --model MODEL",
    }


def _dated(found: Diagnosis) -> dict[str, Any] | None:
    if found.over_time is None:
        return None
    of = found.over_time
    return {
        "hides": hides(of),
        "trend": trend_of(of),
        "caution": CAUTION,
        "figure": over_time_page.figure(of),
    }


def _set_part(s: SetDiagnosis, of: EvalSet) -> dict[str, Any]:
    return {
        "name": s.name,
        "anchor": "".join(c if c.isalnum() else "-" for c in s.name),
        "counts": resolved_counts(s),
        "classes": figures.classes(s),
        "class_count": len(s.classes),
        "groups": [(column, [_group_row(part) for part in parts]) for column, parts in s.groups.items()],
        "flips": [
            (title, _cards(some, of)) for title, some in (("Lost", s.lost), ("Gained", s.gained)) if some
        ],
        "flip_rows": [_flip_row(flip, s.kind) for flip in s.flips],
        "queries_line": queries_line(s),
        "queries": []
        if s.queries is None
        else [_query(q, of) for q in s.queries.most_changed[:SHOWN_QUERIES]],
        "reliability": figures.reliability(s),
        "rotations": figures.rotations(s),
        "space": _space_rows(s),
    }


def _group_row(part: PartChange) -> tuple[str, ...]:
    return (
        part.name,
        f"{part.items:,}",
        formats.plain_percent(part.old),
        formats.plain_percent(part.new),
        formats.points(part.new - part.old),
        "resolved" if part.resolved else "not resolved",
    )


def _flip_row(flip: FlipCounts, kind: Kind) -> tuple[str, ...]:
    relative = "" if flip.relative_negative is None else f"{flip.relative_negative:.2f}"
    return (
        get(flip.event, kind).label,
        f"{flip.items:,}",
        *(
            f"{formats.plain_percent(rate.value)} ({formats.span(rate.low, rate.high, 1)})"
            for rate in (flip.negative, flip.positive)
        ),
        relative,
    )


def _cards(flipped: Sequence[FlippedImage], of: EvalSet) -> list[dict[str, Any]]:
    return [
        {
            "image": thumbnail(of, image.position),
            "truth": image.truth,
            "answers": [
                (word, answer.answer, formats.percent(answer.probability, 0), answer.answer == image.truth)
                for word, answer in (("old", image.old), ("new", image.new))
            ],
        }
        for image in flipped[:SHOWN_IMAGES]
    ]


def _query(query: QueryChange, of: EvalSet) -> dict[str, Any]:
    return {
        "text": query.text,
        "kept": formats.percent(query.kept, 0),
        "old": [thumbnail(of, row) for row in query.old[:SHOWN_RESULTS]],
        "new": [thumbnail(of, row) for row in query.new[:SHOWN_RESULTS]],
    }


def _space_rows(s: SetDiagnosis) -> list[tuple[str, str, str]]:
    rows = [(v.label, _number(v.old), _number(v.new)) for v in s.space]
    for hubs in s.hubs:
        name = f"Hubness, {hubs.direction} (first {hubs.old.k})"
        rows.append((f"{name}: skewness", _number(hubs.old.skewness), _number(hubs.new.skewness)))
        rows.append(
            (f"{name}: never found", formats.percent(hubs.old.never), formats.percent(hubs.new.never))
        )
    if s.calibration is not None:
        old, new = s.calibration.old, s.calibration.new
        rows.append(("Calibration error", formats.percent(old.error), formats.percent(new.error)))
        rows.append(("Logit scale", _number(old.logit_scale), _number(new.logit_scale)))
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}".replace("-", formats.MINUS)


def thumbnail(of: EvalSet, row: int) -> str | None:
    """Return an image of a set as a data URI; `None` if it cannot be read any more."""
    try:
        image = decode(*of.data.encoded(row)).convert("RGB")
    except PictureError:
        return None
    image.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=80)
    return data_uri(out.getvalue(), "image/jpeg")
