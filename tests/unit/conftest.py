"""Small pictures and tables for unit tests."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from everclip.data.table import Table


@pytest.fixture
def png() -> Callable[..., bytes]:
    """Return a function (colour, side) -> PNG bytes."""

    def make(colour: Any = (200, 30, 30), side: int = 12) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (side, side), colour).save(file, "PNG")
        return file.getvalue()

    return make


@pytest.fixture
def table(png: Callable[..., bytes]) -> Callable[..., Table]:
    """Return a function (count, **columns) -> Table of distinct pictures with captions and classes."""

    def make(count: int = 10, prefix: str = "s", **columns: Sequence[Any]) -> Table:
        ids = [f"{prefix}{i}" for i in range(count)]
        given: dict[str, Any] = {
            "id": ids,
            "image_id": ids,
            "image": pa.array([png((i * 9 % 256, 40, 80)) for i in range(count)], pa.binary()),
            "caption": [f"thing {prefix}{i}" for i in range(count)],
            "class_key": [f"c{i % 3}" for i in range(count)],
            "class_name": [f"class {i % 3}" for i in range(count)],
        }
        return Table(pa.table({**given, **columns}), name="toy")

    return make
