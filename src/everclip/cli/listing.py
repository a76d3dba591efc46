"""Lists methods, benchmarks, backbones and data sets. Does not import torch."""

from __future__ import annotations

from typing import Any

from everclip import registry
from everclip.data.catalog.cards import cards
from everclip.models.builtin import builtin_models, summary

EMOJI_QUESTIONS = "emoji-multi-image@1"


def catalogue() -> dict[str, list[dict[str, Any]]]:
    """Return the names of methods, benchmarks, built-in backbones and public data sets, with one line each."""
    methods = [
        {"name": e.name, "summary": e.summary, "aliases": list(e.aliases)}
        for e in registry.methods().values()
    ]
    benchmarks = [{"name": e.tag, "summary": e.summary} for e in registry.benchmarks().values()]
    datasets = [
        {
            "name": EMOJI_QUESTIONS,
            "summary": "Questions about several emoji, built in: everclip eval MODEL --on it",
        },
        *({"name": f"catalog:{c.name}", "summary": f"{c.title}: {c.size}"} for c in cards().values()),
    ]
    return {"methods": methods, "benchmarks": benchmarks, "backbones": _backbones(), "datasets": datasets}


def _backbones() -> list[dict[str, Any]]:
    return [{"name": name, "summary": summary(folder)} for name, folder in builtin_models().items()]
