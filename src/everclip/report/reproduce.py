"""Build the command that reproduces a run, with only the settings that differ from its benchmark's."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from everclip.config import BUDGET_KEYS, resolve_config
from everclip.errors import EverclipError
from everclip.report.runs import Run

_IGNORED = (
    *("output", "checkpoint", "trackers", "report", "benchmark"),
    *("training.workers", "training.memory_check", "evaluation.cache"),
)


def command(run: Run) -> str:
    """Return the shell command that reproduces a run, however the run was started.

    If the benchmark cannot be found by its name (a user's own file), return the recorded command, else a short form.
    """
    benchmark = run.results.benchmark.removesuffix(" (changed)")
    words = [f"method={run.name}", f"seed={run.results.seed}"]
    try:
        default = resolve_config(benchmark, words).model_dump(mode="json")
        words += [f"{key}={_value(value)}" for key, value in _changed(default, run.config)]
    except EverclipError:
        recorded = run.results.provenance.get("command")
        if recorded:
            return shlex.join(map(str, recorded)) if isinstance(recorded, list | tuple) else str(recorded)
    return shlex.join(["everclip", "run", benchmark, *words])


def _changed(default: Mapping[str, Any], config: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    changes: list[tuple[str, Any]] = []
    for key, value in config.items():
        name = f"{path}{key}"
        if name in _IGNORED or default.get(key) == value:
            continue
        if isinstance(value, Mapping) and isinstance(default.get(key), Mapping):
            changes += _changed(default[key], value, f"{name}.")
        elif not (value is None and key in BUDGET_KEYS):  # setting one budget clears the others
            changes.append((name.replace("method.settings.", "method."), value))
    return changes


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
