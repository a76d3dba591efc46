"""Lists methods, benchmarks, backbones and data sets. Does not import torch."""

from __future__ import annotations

from importlib import resources
from typing import Any

from everclip import registry
from everclip.data.catalog.cards import cards


def catalogue() -> dict[str, list[dict[str, Any]]]:
    """Return the names of methods, benchmarks, built-in backbones and public data sets, with one line each."""
    methods = [
        {"name": e.name, "summary": e.summary, "aliases": list(e.aliases)}
        for e in registry.methods().values()
    ]
    benchmarks = [{"name": e.tag, "summary": e.summary} for e in registry.benchmarks().values()]
    datasets = [{"name": f"catalog:{c.name}", "summary": f"{c.title}: {c.size}"} for c in cards().values()]
    return {"methods": methods, "benchmarks": benchmarks, "backbones": _backbones(), "datasets": datasets}


def _backbones() -> list[dict[str, Any]]:
    import json

    backbones = []
    for folder in sorted(resources.files("everclip.models.builtin").iterdir(), key=lambda p: p.name):
        card = folder.joinpath("card.json")
        if card.is_file():
            summary = json.loads(card.read_text(encoding="utf-8")).get("summary", "")
            backbones.append({"name": f"builtin:{folder.name}", "summary": summary})
    return backbones
