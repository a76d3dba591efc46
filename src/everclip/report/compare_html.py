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
from everclip.report.runs import Run
from everclip.report.side_tables import side_tables
from everclip.report.tables import cell_text, describe_difference, interval_notes

FILE = "comparison.html"


def write_comparison(
    folders: Sequence[Path | str],
    output: Path | str,
    *,
    force: bool = False,
    baseline: str | None = None,
    comparison: Comparison | None = None,
) -> Path:
    """Write a page that compares runs, and its figures under `figures/` (or `<name>-figures/`).

    Args:
        folders: run folders; see `compare`, also for `force`, `baseline` and the errors.
        output: a file ending in `.html`, or a folder for `comparison.html`.
        force: compare runs that are not comparable.
        baseline: label of the method to subtract.
        comparison: the result of `compare`, if already computed.

    Returns:
        The path of the page.
    """
    target = Path(output)
    page = target if target.suffix in (".html", ".htm") else target / FILE
    figures = page.parent / (f"{page.stem}-figures" if page is target else "figures")
    context = _context(comparison or compare(folders, force=force, baseline=baseline))
    context["side"] = side_tables([Run(folder) for folder in folders])
    for figure in [context["tradeoff"], context["bars"], *(curve for _, curve in context["curves"])]:
        if figure is not None:
            write_bytes_atomic(figures / f"{figure.name}.png", figure.png)
    write_text_atomic(page, render("comparison.html.j2", context))
    return page


def _context(comparison: Comparison) -> dict[str, Any]:
    return {
        "title": f"{len(comparison.methods)} methods on {comparison.benchmark}",
        "comparison": comparison,
        "level": percent(comparison.confidence, 0),
        "heads": [(heading(key), meaning(key)) for key in comparison.shown],
        "table": _main(comparison),
        "differences": _differences(comparison),
        "columns": [
            {
                "name": name,
                "group": group,
                "values": [describe(m.columns[name], "") for m in comparison.methods],
            }
            for name, group in comparison.column_groups.items()
        ],
        "notes": comparison.notes,
        "fine": interval_notes(comparison),
        "left_out": comparison.left_out,
        "tradeoff": compare_figures.tradeoff(comparison),
        "curves": compare_figures.curves(comparison),
        "bars": compare_figures.bars(comparison),
    }


def _main(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "label": method.label,
            "members": method.members,
            "cells": [_split(cell_text(method, key)) for key in comparison.shown],
            "seconds": cell_text(method, "seconds"),
        }
        for method in (*comparison.before, *comparison.methods)
    ]


def _differences(comparison: Comparison) -> list[dict[str, Any]]:
    rows = []
    for method in comparison.methods:
        mine = {d.quantity: d for d in comparison.differences if d.method == method.label}
        if mine:
            cells = [
                {
                    "text": _split(describe_difference(mine[key]).removesuffix(" n.r.")),
                    "open": (change := mine[key].change) is not None
                    and not change.resolved
                    and not change.nothing,
                }
                for key in comparison.shown
            ]
            rows.append({"label": method.label, "cells": cells})
    return rows


def _split(text: str) -> tuple[str, str]:
    """Split a cell into the number and its interval, which goes on the line below."""
    value, bracket, rest = text.partition(" (")
    return value, rest.removesuffix(")") if bracket else ""
