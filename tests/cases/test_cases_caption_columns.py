"""Tables with captions in several columns: numbered, repeated, one per language, or named by the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from build import picture, text

from everclip.data.reading.sources import Loaded, read, read_rows
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(3):
        picture(tmp_path / f"{i}.png", "bee", (16, 16), seed=i)
    return tmp_path


def table(folder: Path, header: str, cells: int = 2) -> Path:
    rows = (f"{i}.png," + ",".join(f"{'abc'[k]} bee {i}" for k in range(cells)) + "\n" for i in range(3))
    return text(folder / "list.csv", f"image,{header}\n" + "".join(rows))


def load(source: Path, **options: Any) -> Loaded:
    return read(DataSpec(source=str(source), **options))


BOTH = [f"{letter} bee {i}" for i in range(3) for letter in "ab"]


@pytest.mark.parametrize(
    "header",
    [
        "caption_1,caption_2",
        "caption1,caption2",
        "caption 0,caption 1",
        "text_0,text_1",
        "Caption-1,Caption-2",
        "caption,caption.1",  # as pandas writes a repeated header
        "caption,caption",
        "caption,caption_2",
        "sentence (1),sentence (2)",
    ],
)
def test_numbered_and_repeated_columns_are_captions_of_one_picture(folder: Path, header: str) -> None:
    found = load(table(folder, header))
    assert found.table.column("caption") == BOTH
    assert len(set(found.table.column("image_id"))) == 3
    assert any("each is a caption of the image" in line for line in found.guesses)
    assert not any("not read" in line for line in found.guesses)


def test_numbers_count_as_numbers_and_empty_cells_are_no_captions(folder: Path) -> None:
    source = text(
        folder / "list.csv",
        "image,caption_10,caption_2,caption_1\n0.png,c,b,a\n1.png,,b,\n2.png, ,\u00a0,a\n",
    )
    found = load(source)
    assert found.table.column("caption") == ["a", "b", "c", "b", "a"]
    assert found.columns["caption"] == "caption_1, caption_2, caption_10"


def test_what_is_written_out_reads_the_same_columns_again(folder: Path) -> None:
    source = table(folder, "caption_1,caption_2")
    given = {"caption": load(source).columns["caption"]}
    table(folder, "caption_1,caption_2,caption_3", 3)
    assert load(source, columns=given).table.column("caption") == BOTH
    assert len(load(source).table.column("caption")) == 9


def test_one_column_that_is_named_is_taken_alone(folder: Path) -> None:
    found = load(table(folder, "caption_1,caption_2"), columns={"caption": "caption_2"})
    assert found.table.column("caption") == BOTH[1::2]


def test_several_columns_can_be_named_by_name_or_number(folder: Path) -> None:
    source = table(folder, "title,description")
    assert load(source).table.column("caption") == BOTH[::2]
    assert any("not read as captions: 'description'" in line for line in load(source).guesses)
    for given in ("title, description", "2,3"):
        assert load(source, columns={"caption": given}).table.column("caption") == BOTH
    with pytest.raises(DataError, match=r"no column 'descr'.*Did you mean 'description'"):
        load(source, columns={"caption": "title,descr"})
    with pytest.raises(ConfigError, match="'title' is named twice"):
        load(source, columns={"caption": "title,title"})


def test_a_column_per_language_says_the_language(folder: Path) -> None:
    found = load(table(folder, "caption_en,caption_de"))
    assert found.table.column("caption") == BOTH
    assert found.table.column("language") == ["en", "de"] * 3


def test_two_sets_of_numbered_columns_are_asked_about(folder: Path) -> None:
    with pytest.raises(DataError, match=r"'title_1', 'text_1'.*columns\.caption="):
        load(table(folder, "title_1,text_1"))


def test_a_table_in_a_folder_parquet_and_rows_of_a_program_are_read_alike(folder: Path) -> None:
    assert load(table(folder, "caption_1,caption_2").parent).table.column("caption") == BOTH
    columns = {"image": [f"{i}.png" for i in range(3)], "text_1": BOTH[::2], "text_2": BOTH[1::2]}
    pq.write_table(pa.table(columns), folder / "list.parquet")
    assert load(folder / "list.parquet").table.column("caption") == BOTH
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    assert read_rows(rows, root=folder).table.column("caption") == BOTH


def test_a_number_among_captions_of_json_lines_is_set_aside(folder: Path) -> None:
    source = text(
        folder / "a.jsonl",
        '{"image": "0.png", "caption_1": "a bee", "caption_2": 7}\n'
        '{"image": "1.png", "caption_1": "a bee", "caption_2": "two"}\n',
    )
    found = load(source, quarantine_limit=1.0)
    assert found.table.column("caption") == ["a bee", "two"]  # of the second row
    assert found.quarantine.counts() == {"bad-row": 2}
