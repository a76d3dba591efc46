"""Rows from Python: any iterable of mappings, its pictures kept out of memory."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from reader_data import photo, write_pictures

from everclip.data.reading.sources import read_rows
from everclip.errors import DataError


def test_pictures_are_bytes_paths_or_pil(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["0.png"])
    picture = Image.open(io.BytesIO(photo(1)))
    rows: list[dict[str, Any]] = [
        {"picture": photo(0), "text": "a"},
        {"picture": tmp_path / "0.png", "text": "b"},
        {"picture": picture, "text": "c", "year": 2024},
        {"picture": {"bytes": photo(2), "path": None}, "text": "d"},
    ]
    loaded = read_rows(rows)
    assert loaded.table.column("caption") == ["a", "b", "c", "d"]
    assert loaded.table.column("time") == [None, None, 2024, None]
    assert loaded.table.content(0) == loaded.table.content(1)
    assert Image.open(io.BytesIO(loaded.table.value("image", 2))).tobytes() == picture.tobytes()
    assert "image = column 'picture'" in loaded.guesses


def test_a_generator_of_many_rows_costs_no_memory_for_its_pictures() -> None:
    made = photo(0, 200, 200)

    def rows() -> Iterator[dict[str, Any]]:
        for i in range(600):
            yield {"image": made, "caption": f"{i}"}

    before = pa.total_allocated_bytes()
    loaded = read_rows(rows())
    assert len(loaded.table) == 600
    assert pa.total_allocated_bytes() - before < 5 * len(made)
    assert loaded.table.value("image", 599) == made


def test_columns_are_mapped_and_bad_rows_set_aside() -> None:
    rows = [{"a": photo(0), "b": "x"}, {"a": b"no picture", "b": "y"}, {"a": None, "b": "z"}, {"b": "w"}]
    loaded = read_rows(rows, {"image": "a", "caption": "b"}, "shop", quarantine_limit=1)
    assert loaded.table.column("caption") == ["x"]
    assert [(e.row, e.name, e.reason) for e in loaded.quarantine.entries] == [
        (2, "shop, row 2", "not-an-image"),
        (3, "shop, row 3", "no-image"),
        (4, "shop, row 4", "no-image"),
    ]
    with pytest.raises(DataError, match=r"shop: 3 of 4 rows set aside"):
        read_rows(rows, {"image": "a", "caption": "b"}, "shop")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no rows"),
        (["x"], "a row is of type str, expected a mapping"),
        ([{"image": 3, "caption": "x"}], "an image is of type int"),
        ([{"drawing": b"", "caption": "x"}], r"no key of the rows is an image \(keys: drawing, caption\)"),
    ],
)
def test_rows_that_cannot_be_are_refused(rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(rows)


def test_a_root_confines_the_paths(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["in/0.png", "1.png"])
    rows = [{"image": "0.png", "caption": "x"}, {"image": "../1.png", "caption": "y"}]
    loaded = read_rows(rows, root=tmp_path / "in", quarantine_limit=1)
    assert loaded.quarantine.counts() == {"outside-root": 1}
