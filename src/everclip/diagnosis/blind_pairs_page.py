"""Blind pairs as text, JSON, and a self-contained page that shows the images of the largest gaps."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

from everclip.data.pictures.images import decode
from everclip.data.pictures.picture_error import PictureError
from everclip.diagnosis.blind_pairs import HEALED, NEW, STAYS, BlindPairs
from everclip.diagnosis.mining import MinedPairs
from everclip.files import write_text_atomic
from everclip.report.html import render as render_page
from everclip.report.inline_images import data_uri

SHOWN_IN_TEXT, SHOWN = 5, 60
_SIDE = 128  # pixels of an image on the page
_NAMES = ("class_name", "caption")


def headline(found: BlindPairs) -> str:
    """Return in one sentence how many pairs are blind, and what became of those of an earlier model."""
    images = len(found.table)
    bounds = f"cosine above {found.above:g} for {found.model}, below {found.below:g} for {found.reference}"
    text = f"{found.mined.found:,} of {images * (images - 1) // 2:,} pairs of {images:,} images are blind: {bounds}."
    if counts := found.changes:
        text += f" {counts[STAYS]:,} stay blind, {counts[NEW]:,} are new, {counts[HEALED]:,} healed."
    return text


def advice(found: BlindPairs) -> str:
    """Return what to do if there is no blind pair; empty if there is one."""
    if found.mined.found:
        return ""
    return (
        "The bounds were published for CLIP ViT-L/14 and DINOv2; other models have other cosines. Lower --above or "
        "raise --below to see the pairs with the largest difference."
    )


def mixture(found: BlindPairs) -> str:
    """Return in one sentence how many pairs a mixture of both models tells apart; empty if none was asked for."""
    mixed = found.mixture
    if mixed is None or not mixed.pairs:
        return ""
    shares = f"{mixed.weight:g} x {found.model} + {1 - mixed.weight:g} x {found.reference}"
    return (
        f"A mixture, {shares}, tells {mixed.apart:,} of {mixed.pairs:,} blind pairs apart by rank: their cosine is at "
        f"most {mixed.bound:.3f}, which as many pairs exceed as exceed {found.above:g} for {found.model}. "
        f"({mixed.below_bound:,} are at most {found.above:g}, but a mixture lowers most cosines.)"
    )


def document(found: BlindPairs) -> dict[str, Any]:
    """Return everything as JSON."""
    return {
        "model": found.model,
        "reference": found.reference,
        "above": found.above,
        "below": found.below,
        "images": len(found.table),
        "found": found.mined.found,
        "changes": found.changes,
        "over": [asdict(change) for change in found.over],
        "mixture": None if found.mixture is None else asdict(found.mixture),
        "notes": found.notes,
        "pairs": found.rows().to_pylist(),
    }


def text(found: BlindPairs) -> str:
    """Return the headline, the notes, and the pairs of the largest gaps."""
    lines = [
        headline(found),
        *filter(None, [mixture(found), advice(found)]),
        *(f"note: {note}" for note in found.notes),
        *_over(found),
    ]
    for row in _rows(found, SHOWN_IN_TEXT):
        status = f"  {row['status']}" if row["status"] else ""
        lines.append(f"  {row['clip']} {row['reference']}  {row['names'][0]}  |  {row['names'][1]}{status}")
    if len(found.mined):
        lines.insert(
            len(lines) - min(SHOWN_IN_TEXT, len(found.mined)), "  CLIP reference  (largest gap first)"
        )
    return "\n".join(lines)


ROW_HEADINGS = (
    "row",
    "blind",
    "of the start's: stay",
    "healed",
    "new",
    "healed since the row before",
    "new since the row before",
)


def _over(found: BlindPairs) -> list[str]:
    """Return what changed at each row of a run as a Markdown table; nothing without rows."""
    if not found.over:
        return []
    lines = [f"| {' | '.join(ROW_HEADINGS)} |", "|" + "---|" * len(ROW_HEADINGS)]
    for change in found.over:
        label, *counts = asdict(change).values()
        lines.append(f"| {label} | {' | '.join(f'{count:,}' for count in counts)} |")
    return lines


def write_page(found: BlindPairs, path: Path) -> Path:
    """Write the page and return its path."""
    rows, healed = _rows(found, SHOWN), _healed(found, SHOWN)
    for row in (*rows, *healed):
        row["images"] = [_thumbnail(found, position) for position in row["positions"]]
    context = {
        "title": f"What {found.model} cannot see",
        "headline": headline(found),
        "mixture": mixture(found),
        "advice": advice(found),
        "notes": found.notes,
        "rows": rows,
        "more": len(found.mined) - len(rows),
        "healed": healed,
        "more_healed": 0 if found.healed is None else len(found.healed) - len(healed),
        "found": found,
        "headings": ROW_HEADINGS,
        "over": [list(asdict(change).values()) for change in found.over],
    }
    write_text_atomic(path, render_page("blind_pairs.html.j2", context))
    return path


def _rows(found: BlindPairs, count: int) -> list[dict[str, Any]]:
    """Return the first blind pairs, in their order."""
    status = found.status or [""] * len(found.mined)
    return [_row(found, found.mined, i, status[i]) for i in range(min(count, len(found.mined)))]


def _healed(found: BlindPairs, count: int) -> list[dict[str, Any]]:
    """Return the healed pairs, those of the smallest gap first."""
    if found.healed is None:
        return []
    order = found.healed.gap.argsort(kind="stable")[:count]
    return [_row(found, found.healed, i, HEALED) for i in order.tolist()]


def _row(found: BlindPairs, pairs: MinedPairs, i: int, status: str) -> dict[str, Any]:
    return {
        "positions": [int(pairs.left[i]), int(pairs.right[i])],
        "names": [_name(found, int(side[i])) for side in (pairs.left, pairs.right)],
        "clip": f"{pairs.clip[i]:.3f}",
        "reference": f"{pairs.reference[i]:.3f}",
        "status": status,
    }


def _name(found: BlindPairs, position: int) -> str:
    """Return the class or caption of an image, and its id."""
    for column in _NAMES:
        if found.table.has(column) and (said := found.table.value(column, position)):
            return f"{str(said)[:80]} ({found.table.ids[position]})"
    return found.table.ids[position]


def _thumbnail(found: BlindPairs, position: int) -> str | None:
    """Return an image as a data URI; `None` if it cannot be read any more."""
    try:
        image = decode(*found.table.encoded(position)).convert("RGB")
    except PictureError:
        return None
    image.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=85)
    return data_uri(out.getvalue(), "image/jpeg")
