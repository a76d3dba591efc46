"""Small data sets of drawn pictures for the tests of scenarios: every picture is different unless asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from micro import picture


def pictures(count: int, seed: int = 0) -> list[bytes]:
    """Return different pictures; equal seeds give equal pictures."""
    draw = np.random.default_rng(seed)
    return [picture((i * 7 % 200, seed * 31 % 200, 90), i, draw) for i in range(count)]


def write(path: Path, count: int = 60, seed: int = 0, **columns: Sequence[Any]) -> Path:
    """Write a Parquet of pictures; `columns` are cycled to its length."""
    rows = {name: [values[i % len(values)] for i in range(count)] for name, values in columns.items()}
    rows.setdefault("id", [f"{path.stem}-{i}" for i in range(count)])
    images = pa.array(pictures(count, seed), pa.binary())
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**rows, "image": images}), path)
    return path


def document(kind: str, source: Path | None, **changes: Any) -> dict[str, Any]:
    """Return a scenario document; a value of `None` removes a key."""
    whole = {
        "name": "mine",
        "version": 1,
        "summary": "for tests",
        "kind": kind,
        "data": None if source is None else {"source": str(source)},
        "split": {"test": 0.3, "validation": 0.2},
        "headline": {"protocol": "own"},
        **changes,
    }
    return {key: value for key, value in whole.items() if value is not None}
