"""Records as JSON files with the SHA-256 of their content: damage is noticed when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from everclip.errors import CheckpointError

R = TypeVar("R", bound=BaseModel)


def sealed(record: BaseModel) -> str:
    """Return a record as JSON with the SHA-256 of its content."""
    body = record.model_dump(mode="json")
    return json.dumps({"sha256": _seal(body), "content": body}, indent=1)


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_sealed(path: Path, kind: type[R]) -> R:
    """Read a record.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return unsealed(text, kind, path)


def unsealed(text: str, kind: type[R], place: object) -> R:
    """Return the record that `sealed` wrote.

    Args:
        text: what it wrote.
        kind: of the record.
        place: where it was read, for people.

    Raises:
        CheckpointError: if it is damaged.
    """
    try:
        document = json.loads(text)
        if "sha256" in document:
            if _seal(document["content"]) != document["sha256"]:
                raise CheckpointError(
                    f"{place}: damaged: its content is not the one it was written with (SHA-256)."
                )
            document = document["content"]
        return kind.model_validate(document)
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        raise _unreadable(place, error) from error


def _unreadable(place: object, error: Exception) -> CheckpointError:
    return CheckpointError(f"{place}: cannot be read ({str(error).splitlines()[0]}).")
