"""Captions that are lists written as text."""

from __future__ import annotations

import time

import pyarrow as pa
import pytest

from everclip.data.reading.caption_cells import with_caption_lists


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        ('["a cat", "a dog"]', ["a cat", "a dog"]),
        ("['a cat', 'it\\'s a dog',]", ["a cat", "it's a dog"]),
        (' [ "one" ] ', ["one"]),
        ("[a cat]", ["[a cat]"]),
        ("['a cat', 2]", ["['a cat', 2]"]),
        ("'a cat'] and ['a dog'", ["'a cat'] and ['a dog'"]),
        ('["a cat\', "b"]', ['["a cat\', "b"]']),
        ("[]", ["[]"]),
        ('["]', ['["]']),
    ],
)
def test_a_list_written_as_text_is_a_list(cell: str, captions: list[str]) -> None:
    columns, lines = with_caption_lists(pa.table({"caption": ["plain", cell]}), "shop.csv")
    found = columns.column("caption").to_pylist()
    assert found == (["plain", cell] if captions == [cell] else [["plain"], captions])
    assert bool(lines) == (captions != [cell])


def test_a_long_cell_of_blanks_takes_no_time() -> None:
    started = time.process_time()
    with_caption_lists(
        pa.table({"caption": ["['a'" + " " * 99_000 + "x", "['a'" + " " * 99_000 + "]"]}), "shop.csv"
    )
    assert time.process_time() - started < 1
