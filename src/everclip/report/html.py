"""One self-contained HTML file per run: no request leaves the page, figures and pictures are inside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from everclip.files import write_bytes_atomic, write_text_atomic
from everclip.report import classes, figures, old_and_new, routing, sections
from everclip.report.canvas import Picture
from everclip.report.reproduce import command
from everclip.report.runs import Run
from everclip.report.sentences import headline, retention

FILE = "report.html"
FIGURES = (
    "together",
    "matrix",
    "curves",
    "forgetting",
    "retention",
    "representation",
    "routes",
    "experts",
    "cost",
)
"""What a report may draw; each is a file of its own, too."""


@cache
def environment() -> Environment:
    """Return the template environment. Escaping is always on: names come from users' data."""
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


def write_report(folder: Path) -> Path:
    """Write `report.html` and `figures/*.png` into a run folder, from its `results.json` and `config.yaml`.

    Works for a run that is still going on. Figures of an earlier report that no longer exist are removed.

    Args:
        folder: the run folder.

    Returns:
        The path of the page.

    Raises:
        DataError: if the folder holds no readable result.
    """
    folder = Path(folder)
    run = Run(folder)
    by_class = classes.parts(run)
    context = {**_numbers(run), **(drawn := _figures(run)), "by_class": by_class}
    write_pictures(folder / "figures", [*drawn["files"], *(part["picture"] for part in by_class)])
    path = folder / FILE
    write_text_atomic(path, render("report.html.j2", context))
    return path


def write_pictures(folder: Path, pictures: Iterable[Picture | None]) -> None:
    """Write figures as PNG and remove those of earlier reports."""
    kept = {f"{picture.name}.png": picture.png for picture in pictures if picture is not None}
    for name, data in kept.items():
        write_bytes_atomic(folder / name, data)
    known = {f"{name}.png" for name in FIGURES} | {p.name for p in folder.glob("confusion*.png")}
    for name in known - set(kept):
        (folder / name).unlink(missing_ok=True)


def _numbers(run: Run) -> dict[str, Any]:
    results = run.results
    return {
        "title": f"{run.name} on {results.benchmark}",
        "results": results,
        "method": run.name,
        "headline": headline(run),
        "lead": retention(run),
        "tiles": sections.tiles(run),
        "together": old_and_new.table(run),
        "matrix": sections.matrix(run),
        "how_measured": sections.how_measured(run),
        "doubtful": sections.doubtful(run),
        "guarded": sections.guarded(run),
        "metrics": sections.metrics(run),
        "all_scores": sections.all_scores(run),
        "examples": sections.examples(run),
        "events": sections.events(run),
        "provenance": sections.provenance(run),
        "command": command(run),
        "config": yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True) if run.config else "",
        "cost_facts": sections.costs(run),
        "definitions": figures.drawn_spaces(),
    }


def _figures(run: Run) -> dict[str, Any]:
    lost, kept = sections.lost_per_task(run), sections.kept(run)
    panels, curves = figures.curves(run)
    spaces, representation = figures.representation(run)
    matrix = figures.matrix(run)
    forgetting = figures.changes("forgetting", lost, "points against the best earlier row", _spoken(lost))
    retention = figures.changes("retention", kept, "points against row 0", _spoken(kept))
    spent = figures.spent(run)
    routes, (experts, all_experts) = routing.routes(run), routing.experts(run)
    together = old_and_new.figure(run)
    return {
        "together_figure": together,
        "panels": panels,
        "spaces": spaces,
        "forgetting": forgetting,
        "forgetting_rows": sections.change_rows(lost),
        "why_no_forgetting": "" if lost else sections.why_no_forgetting(run),
        "missing_rows": sections.missing_rows(run),
        "retention": retention,
        "retention_rows": sections.change_rows(kept),
        "routes": routes,
        "route_rows": routing.route_rows(run),
        "experts": experts,
        "spent": spent,
        "files": [
            together,
            matrix,
            curves,
            forgetting,
            retention,
            representation,
            routes,
            all_experts,
            spent,
        ],
    }


def _spoken(entries: sections.Named) -> str:
    return "; ".join(f"{name}: {sections.verdict(change)}" for name, change in entries) + "."
