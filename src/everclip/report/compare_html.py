"""A comparison as one self-contained page, with its figures as PNG beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from everclip.files import write_bytes_atomic, write_text_atomic
from everclip.report import compare_figures
from everclip.report.comparing import compare
from everclip.report.comparison import Comparison, describe, heading, meaning
from everclip.report.formats import percent
from everclip.report.html import render
from everclip.report.tables import cell_text, describe_difference, methods_of_intervals

FILE = "comparison.html"


def write_comparison(
    folders: Sequence[Path | str],
    output: Path | str,
    *,
    force: bool = False,
    baseline: str | None = None,
    comparison: Comparison | None = None,
) -> Path:
    """Write a page that shows runs side by side, and its figures under `figures/` (or `<name>-figures/`).

    Args:
        folders: run folders; see `compare`, also for `force`, `baseline` and the errors.
        output: a file ending in `.html`, or a folder, which then gets `comparison.html`.
        force: compare what does not belong together.
        baseline: label of the method to subtract.
        comparison: what `compare` returned, if it is at hand.

    Returns:
        The path of the page.
    """
    found = comparison or compare(folders, force=force, baseline=baseline)
    given = Path(output)
    page = given if given.suffix in (".html", ".htm") else given / FILE
    figures = page.parent / (f"{page.stem}-figures" if page is given else "figures")
    context = _context(found)
    drawn = [context["tradeoff"], context["bars"], *(picture for _, picture in context["curves"])]
    for picture in drawn:
        if picture is not None:
            write_bytes_atomic(figures / f"{picture.name}.png", picture.png)
    write_text_atomic(page, render("comparison.html.j2", context))
    return page


def _context(found: Comparison) -> dict[str, Any]:
    return {
        "title": f"{len(found.methods)} methods on {found.benchmark}",
        "comparison": found,
        "level": percent(found.confidence, 0),
        "heads": [(heading(key), meaning(key)) for key in found.shown],
        "table": _main(found),
        "differences": _differences(found),
        "columns": [
            {"name": name, "group": group, "values": [describe(m.columns[name], "") for m in found.methods]}
            for name, group in found.column_groups.items()
        ],
        "notes": found.notes,
        "fine": methods_of_intervals(found),
        "left_out": found.left_out,
        "tradeoff": compare_figures.tradeoff(found),
        "curves": compare_figures.curves(found),
        "bars": compare_figures.bars(found),
    }


def _main(found: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "label": method.label,
            "members": method.members,
            "cells": [_split(cell_text(method, key)) for key in found.shown],
            "seconds": cell_text(method, "seconds"),
        }
        for method in (*found.before, *found.methods)
    ]


def _differences(found: Comparison) -> list[dict[str, Any]]:
    rows = []
    for method in found.methods:
        mine = {d.quantity: d for d in found.differences if d.method == method.label}
        if mine:
            cells = [
                {
                    "text": _split(describe_difference(mine[key]).removesuffix(" n.r.")),
                    "open": (change := mine[key].change) is not None
                    and not change.resolved
                    and not change.nothing,
                }
                for key in found.shown
            ]
            rows.append({"label": method.label, "cells": cells})
    return rows


def _split(text: str) -> tuple[str, str]:
    """The number, and its interval for the line below."""
    value, bracket, rest = text.partition(" (")
    return value, rest.removesuffix(")") if bracket else ""
