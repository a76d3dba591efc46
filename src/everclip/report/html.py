"""Write one self-contained HTML file per run: figures and images are embedded, and the page makes no request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from everclip.files import write_bytes_atomic, write_text_atomic
from everclip.report import (
    anytime,
    classes,
    dynamic,
    figures,
    languages,
    look,
    old_and_new,
    rotations,
    routing,
    sections,
)
from everclip.report.canvas import Drawing
from everclip.report.diagnosis_link import diagnosis_link
from everclip.report.events import events
from everclip.report.reproduce import command
from everclip.report.runs import Run
from everclip.report.sentences import headline, retention
from everclip.training.run_place import changed_run

FILE = "report.html"
FIGURES = (
    "together",
    "anytime",
    "matrix",
    "curves",
    "forgetting",
    "retention",
    "representation",
    "rotations",
    "routes",
    "experts",
    "cost",
)
"""The figures that a report may draw. Each is also written as a PNG file."""


@cache
def environment() -> Environment:
    """Return the template environment. Escaping is always on, because names come from users' data."""
    return Environment(
        loader=PackageLoader("everclip.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, context: Mapping[str, Any]) -> str:
    """Render a page of this package."""
    return environment().get_template(template).render(**context)


def write_report(folder: Path | str) -> Path:
    """Write `report.html` and `figures/*.png` into a run folder, from its `results.json` and `config.yaml`.

    Works for a run that has not finished. Figures of an earlier report that are no longer drawn are removed.

    Args:
        folder: the run folder, or the URL of one. At a URL, the report is written there, too.

    Returns:
        The path of the page; for a URL, that of its copy on this machine.

    Raises:
        DataError: if the folder holds no readable result.
        RunFolderError: if another process works on the run at the URL.
    """
    with changed_run(folder, "report") as path:
        return _write_report(path)


def _write_report(folder: Path) -> Path:
    run = Run(folder)
    by_class = classes.parts(run)
    context = {**_tables(run), **(drawn := _figures(run)), "by_class": by_class}
    write_figures(folder / "figures", [*drawn["files"], *(part["figure"] for part in by_class)])
    path = folder / FILE
    write_text_atomic(path, render("report.html.j2", context))
    return path


def write_figures(folder: Path, figures: Iterable[Drawing | None]) -> None:
    """Write figures as PNG and remove those of earlier reports."""
    written = {f"{figure.name}.png": figure.png for figure in figures if figure is not None}
    for name, data in written.items():
        write_bytes_atomic(folder / name, data)
    known = {f"{name}.png" for name in FIGURES} | {p.name for p in folder.glob("confusion*.png")}
    for name in known - set(written):
        (folder / name).unlink(missing_ok=True)


def _tables(run: Run) -> dict[str, Any]:
    results = run.results
    return {
        "title": f"{run.name} on {results.benchmark}",
        "diagnosis": diagnosis_link(run.folder, run),
        "results": results,
        "method": run.name,
        "headline": headline(run),
        "lead": retention(run),
        "tiles": sections.tiles(run),
        "look": look.table(run),
        "together": old_and_new.table(run),
        "dynamic": dynamic.table(run),
        "matrix": sections.matrix(run),
        "how_measured": sections.how_measured(run),
        "ambiguous_note": sections.ambiguous_note(run),
        "guard_lines": sections.guard_lines(run),
        "metrics": sections.metrics(run),
        "all_scores": sections.all_scores(run),
        "examples": sections.examples(run),
        "events": events(run),
        "provenance": sections.provenance(run),
        "command": command(run),
        "config": yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True) if run.config else "",
        "cost_facts": sections.costs(run),
        "definitions": figures.drawn_spaces(),
    }


def _figures(run: Run) -> dict[str, Any]:
    lost, kept = sections.forgetting_per_task(run), sections.changes_since_start(run)
    panels, curves = figures.curves(run)
    spaces, representation = figures.representation(run)
    moved = rotations.figure(run)
    matrix = figures.matrix(run)
    forgetting = figures.changes("forgetting", lost, "points against the best earlier row", _alt(lost))
    retention = figures.changes("retention", kept, "points against row 0", _alt(kept))
    seconds = figures.seconds_by_stage(run)
    routes, (experts, all_experts) = routing.routes(run), routing.experts(run)
    together, curve = old_and_new.figure(run), anytime.figure(run)
    overlap = languages.overlap(run)
    return {
        "anytime": curve,
        "anytime_note": anytime.note(run),
        "together_figure": together,
        "panels": panels,
        "spaces": spaces,
        "rotations": moved,
        "forgetting": forgetting,
        "forgetting_rows": sections.change_rows(lost),
        "why_no_forgetting": "" if lost else sections.why_no_forgetting(run),
        "missing_rows": sections.missing_rows(run),
        "retention": retention,
        "retention_rows": sections.change_rows(kept),
        "routes": routes,
        "route_rows": routing.route_rows(run),
        "language_rows": languages.language_rows(run),
        "vocabularies": languages.has_vocabularies(run),
        "overlap": overlap,
        "experts": experts,
        "seconds": seconds,
        "files": [
            together,
            curve,
            matrix,
            curves,
            forgetting,
            retention,
            representation,
            moved,
            routes,
            overlap,
            all_experts,
            seconds,
        ],
    }


def _alt(entries: sections.Named) -> str:
    return "; ".join(f"{name}: {sections.verdict(change)}" for name, change in entries) + "."
