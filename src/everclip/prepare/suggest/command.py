"""The commands of a suggestion."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from everclip.config import BUDGET_KEYS
from everclip.prepare.suggest.advice import Choice


def command(
    data: str,
    stream: bool,
    model: Mapping[str, Any],
    block: Mapping[str, Any],
    training: Mapping[str, Any],
    choices: Sequence[Choice],
    other: str | None = None,
) -> tuple[str, ...]:
    """Return the commands to type, with all given settings. For a source of data, the first writes its stream.

    Args:
        data: a source, or a stream.
        stream: whether it is a stream, which has further settings itself.
        model: settings of the backbone. Empty for the backbone of the stream: naming it again would drop the stream's
            other settings of it.
        block: settings of the data block, for a source.
        training: explicit training settings.
        choices: the suggested settings.
        other: a preset that may be as good; then commands run both and compare them.
    """
    name = Path(data.rstrip("/")).name.partition(".")[0] or "mine"
    file = data if stream else f"{name}.yaml"
    first = () if stream else (shlex.join(["everclip", "init-config", data, *_flat(block), "-o", file]),)
    words = [f"backbone={model['name']}"] if "name" in model else []
    words += _flat({k: v for k, v in model.items() if k != "name"}, "backbone.")
    run = ["everclip", "run", file, *words]
    if other is None:
        return (*first, shlex.join([*run, *_settings(training, choices)]))
    runs = {
        str(next(c.value for c in choices if c.key == "method")): choices,
        other: [Choice(key="method", value=other, reason="")],
    }
    folders = {preset: f"runs/{name}-{preset}" for preset in runs}
    lines = [
        shlex.join([*run, *_settings(training, chosen), f"output={folders[preset]}"])
        for preset, chosen in runs.items()
    ]
    return (*first, *lines, shlex.join(["everclip", "compare", *folders.values()]))


def _settings(training: Mapping[str, Any], choices: Sequence[Choice]) -> list[str]:
    """Return settings as typed: explicit training settings that are not among the choices, then the choices."""
    chosen = {choice.key for choice in choices}
    kept = {
        key: value
        for key, value in training.items()
        if f"training.{key}" not in chosen and key not in BUDGET_KEYS
    }
    return [*_flat(kept, "training."), *(f"{c.key}={value_text(c.value)}" for c in choices)]


def value_text(value: Any) -> str:
    """Return a value as typed after `key=`."""
    if isinstance(value, list | tuple):
        plain = all(isinstance(v, int | float) or re.fullmatch(r"[\w.:/-]+", str(v)) for v in value)
        return f"[{','.join(map(str, value))}]" if plain else json.dumps(list(value), ensure_ascii=False)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flat(block: Mapping[str, Any], prefix: str = "") -> list[str]:
    words = []
    for key, value in block.items():
        words += (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else [f"{prefix}{key}={value_text(value)}"]
        )
    return words
