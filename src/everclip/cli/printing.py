"""What all verbs print alike: JSON, and lines beside their result."""

from __future__ import annotations

import json
import math
from typing import Any

import typer


def note(line: str) -> None:
    """Print a line that is no result: the standard output stays for programs."""
    typer.echo(line, err=True)


def json_text(document: object) -> str:
    """Return a document as JSON: readable text, and `null` for a number that JSON does not have (NaN, infinity)."""
    return json.dumps(_finite(document), indent=1, allow_nan=False, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
