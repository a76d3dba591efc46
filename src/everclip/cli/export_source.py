"""What the card of an export says about a model: from what it was made, what it learned, how well."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everclip.contracts import Task
    from everclip.learner import Learner
    from everclip.models.backbone import Backbone
    from everclip.store.versions import Store

SCORES = ("known", "new", "retention")
"""Metrics of a run that a card shows, before the run and at its last row."""


def card_of(backbone: Backbone) -> dict[str, Any]:
    from everclip import __version__
    from everclip.training.environment import versions

    return {
        "format": 1,
        "versions": {**versions(), "everclip": __version__},
        "assumed": list(backbone.notes),
    }


def source_of_learner(folder: Path, learner: Learner) -> dict[str, Any]:
    """Return the source of a learned model, with the metrics of its run if there is one."""
    from everclip.evaluation.results import FILE, Results

    source: dict[str, Any] = {
        "kind": "learner",
        "name": folder.resolve().name,
        "method": {
            "name": learner.method.preset,
            "settings": learner.method.settings.model_dump(mode="json"),
        },
        "training": learner.training.model_dump(mode="json"),
        "seed": learner.seed,
        "learned_tasks": sorted(learner.learned),
        "learned": [_task(task) for task in learner.tasks if task.index in learner.learned],
        "start": learner.method.backbone.config.model_dump(mode="json", exclude_none=True),
    }
    if (folder / FILE).is_file():
        results = Results.read(folder)
        source |= {
            "kind": "run",
            "benchmark": results.benchmark,
            "status": results.status,
            "tasks": [task.name for task in results.tasks],
            "headline": results.headline,
            "metrics": results.metrics,
            "learned": [
                {
                    "name": t.name,
                    "rows": t.samples,
                    "classes": t.classes,
                    "language": t.language,
                    "time": t.time,
                }
                for t in results.tasks
                if t.index in learner.learned
            ],
            "scores": _scores(folder),
            "data": results.provenance.get("data", {}),
            "towers_before": results.provenance.get("towers_before", {}),
        }
    return source


def _task(task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "rows": len(task.train),
        "classes": None if task.classes is None else len(task.classes),
        "language": task.language,
        "time": task.time,
    }


def _scores(folder: Path) -> list[dict[str, Any]]:
    """Return the scores of a run before it and at its last row, with the interval of the last."""
    from everclip.report.estimates import estimate, metric_cells
    from everclip.report.runs import Run

    run = Run(folder)
    found = []
    for key in SCORES if run.last >= 0 else ():
        first, last = (estimate(run, metric_cells(run, key, row), draws=2000) for row in (0, run.last))
        if last is not None:
            row = {"name": key, "before": None if first is None else first.value, "last": last.value}
            found.append({**row, "low": last.low, "high": last.high})
    return found


def source_of_version(store: Store, version: str, learner: Learner) -> dict[str, Any]:
    """Return the source of a version of a store: what it and its ancestors learned, and its gates."""
    of = store.version(version)
    line = [store.version(one) for one in reversed(store.ancestors(version))]
    data = [one.data for one in line if one.data is not None]
    return {
        **source_of_learner(store.path, learner),
        "kind": "version",
        "name": f"{store.title}@{version}",
        "version": version,
        "state": of.state,
        "start": {"name": store.settings.origin},
        "learned": [{"name": one.name, "rows": one.rows} for one in data],
        "data": {one.name: one.fingerprint for one in data},
        "gates": [gate.model_dump(mode="json") for gate in of.gates],
        "numbers": of.numbers,
    }
