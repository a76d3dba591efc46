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
        document = json.loads(path.read_text(encoding="utf-8"))
        if "sha256" in document:
            if _seal(document["content"]) != document["sha256"]:
                raise CheckpointError(
                    f"{path}: damaged: its content is not the one it was written with (SHA-256)."
                )
            document = document["content"]
        return kind.model_validate(document)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        raise CheckpointError(f"{path}: cannot be read ({str(error).splitlines()[0]}).") from error
