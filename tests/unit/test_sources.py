"""Reading: the same rows from every format, and clear refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError

COLUMNS = {
    "id": ["a", "b", "c"],
    "image": ["p/0.png", "p/1.png", "p/2.png"],
    "caption": ["a red, round one", 'the "quoted" one', "the third\nin two lines"],
    "class_name": ["red", "blue", "red"],
}


@pytest.fixture
def folder(tmp_path: Path, png: Callable[..., bytes]) -> Path:
    (tmp_path / "p").mkdir()
    for i in range(3):
        (tmp_path / "p" / f"{i}.png").write_bytes(png((i * 50, 0, 0)))
    return tmp_path


def write(folder: Path, kind: str, columns: dict[str, list[Any]]) -> str:
    """Write the same columns in a format; returns the file's name."""
    path = folder / f"rows.{kind}"
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if kind == "parquet":
        pq.write_table(pa.table(columns), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import csv

        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(columns), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path.name


def load(folder: Path, kind: str = "csv", given: dict[str, list[Any]] | None = None, **options: Any) -> Table:
    return read(DataSpec(source=write(folder, kind, given or COLUMNS), **options), folder).table


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_all_formats_give_equal_tables(folder: Path, kind: str) -> None:
    table = load(folder, kind)
    assert table.ids == ["a", "b", "c"]
    assert table.column("caption") == COLUMNS["caption"]
    assert table.column("image")[1] == (folder / "p" / "1.png").read_bytes()
    assert table.column("class_key") == ["red", "blue", "red"]
    assert table.fingerprint == load(folder, "parquet").fingerprint


def test_pictures_may_stand_in_the_parquet_file_itself(folder: Path) -> None:
    images = [(folder / name).read_bytes() for name in COLUMNS["image"]]
    plain = pa.table({**COLUMNS, "image": pa.array(images, pa.binary())})
    hub = pa.table({**COLUMNS, "image": [{"bytes": data, "path": None} for data in images]})
    for table in (plain, hub):
        pq.write_table(table, folder / "whole.parquet")
        assert read(DataSpec(source="whole.parquet"), folder).table.fingerprint == load(folder).fingerprint


def test_columns_are_mapped_by_name(folder: Path) -> None:
    renamed = {"file": COLUMNS["image"], "text": COLUMNS["caption"], "id": COLUMNS["id"]}
    table = load(folder, "csv", renamed, columns={"image": "file", "caption": "text"})
    assert table.column("caption") == COLUMNS["caption"]
    assert not table.has("text")


def test_without_ids_the_content_names_the_sample(folder: Path) -> None:
    images = ["p/0.png", "p/1.png", "p/0.png"]
    table = load(folder, "csv", {"image": images, "caption": ["x", "y", "z"]})
    assert len(set(table.ids)) == 3
    assert table.ids[2] == f"{table.ids[0]}-2"
    # Two captions of one picture: rows of their own, one `image_id`.
    shared = table.column("image_id")
    assert shared[0] == shared[2] != shared[1]
    again = load(folder, "jsonl", {"image": images[:2], "caption": ["x", "y"]})
    assert again.ids == table.ids[:2]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_whole_numbers_serve_as_classes_and_ids(folder: Path, kind: str) -> None:
    table = load(folder, kind, {"image": COLUMNS["image"], "id": [1, 2, 3], "class_key": [7, 8, 7]})
    assert table.ids == ["1", "2", "3"]
    assert table.column("class_key") == ["7", "8", "7"]


# -- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "p/../../secret.png", "link/secret.png"])
def test_a_path_that_leaves_the_folder_is_refused(folder: Path, path: str) -> None:
    data = folder / "data"
    data.mkdir()
    (folder / "secret.png").write_bytes((folder / "p" / "0.png").read_bytes())
    (data / "link").symlink_to(folder)
    with pytest.raises(DataError, match=r"1  outside-root: (.|\n)*rows\.csv, row 1: .* leaves "):
        load(data, "csv", {"image": [path], "caption": ["x"]})


def test_an_id_that_stands_twice_is_refused_because_pictures_are_remembered_by_it(folder: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.csv, row 3: id 'a' stands in an earlier row already"):
        load(folder, "csv", {**COLUMNS, "id": ["a", "b", "a"]})


def test_a_missing_picture_is_named_with_its_row(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"missing-file(.|\n)*rows\.csv, row 2: 'p/9\.png' \(looked for .*9\.png\)"
    ):
        load(folder, "csv", {"image": ["p/0.png", "p/9.png"], "caption": ["x", "y"]})


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"columns": {"image": "imge"}}, DataError, r"no column 'imge' \(for image\)\. Did you mean 'image'"),
        ({"columns": {"captoin": "caption"}}, ConfigError, r"data\.columns\.captoin: .*'caption'"),
        ({"styles": ["noto"]}, ConfigError, r"data\.styles: applies to builtin:emoji"),
    ],
)
def test_options_that_do_not_fit_are_named(
    folder: Path, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        load(folder, "csv", None, **options)


def test_a_table_without_pictures_says_what_it_holds(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no column `image` .* columns are drawing, caption"):
        load(folder, "csv", {"drawing": ["p/0.png"], "caption": ["x"]})


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("none.csv", r"none\.csv: no such file"),
        ("rows.xlsx", r"'rows\.xlsx' is no source; expected builtin:emoji, .* a file ending in \.parquet"),
        ("builtin:emojis", r"'builtin:emojis' is not known\. Did you mean 'builtin:emoji'"),
    ],
)
def test_a_source_that_is_not_there_is_named(folder: Path, source: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        read(DataSpec(source=source), folder)


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_damaged_file_is_named(folder: Path, kind: str) -> None:
    (folder / f"bad.{kind}").write_bytes(b'{"a": 1\x00,,,\n"x\n1,2,3')
    with pytest.raises(DataError, match=rf"bad\.{kind}: not a readable"):
        read(DataSpec(source=f"bad.{kind}"), folder)


def test_unknown_languages_and_styles_of_the_emoji_are_named() -> None:
    for options in ({"language": "xx"}, {"styles": ["notoo"]}):
        with pytest.raises(ConfigError, match="data"):
            read(DataSpec(source="builtin:emoji", **options))


def test_the_emoji_come_in_canonical_columns() -> None:
    table = read(DataSpec(source="builtin:emoji", styles=["noto"])).table
    for column in ("id", "image_id", "image", "caption", "class_key", "class_name", "concept", "time"):
        assert None not in table.column(column)
    assert len(set(table.ids)) == len(table)


def test_captions_in_chosen_languages_are_read(folder: Path) -> None:
    names = ["p/0.png", "p/1.png"]
    rows = [
        (name, f"{word} {name}", language)
        for name in names
        for word, language in (("red", "en"), ("rot", "de"))
    ]
    lines = ["image,caption,language", *(",".join(row) for row in rows), f"{names[0]},,fr"]
    (folder / "captions.csv").write_text("\n".join(lines))
    (folder / "more.csv").write_text(f"image,caption,language\n{names[1]},rouge,fr")
    both = [str(folder / "captions.csv"), str(folder / "more.csv")]
    german = read(DataSpec(source=both[0], languages=["de"]))  # the row without a caption is in French
    assert german.table.column("caption") == [f"rot {name}" for name in names]
    assert german.quarantine.total == 2
    assert not german.quarantine.entries
    found = read(DataSpec(source=both, languages=["fr", "de"], quarantine_limit=0.3))
    assert found.table.column("language") == ["de", "de", "fr"]
    assert [entry.row for entry in found.quarantine.entries] == [5]
    with pytest.raises(
        DataError, match=r"no captions in 'dee' \(data\.languages\)\. Did you mean 'de'\? It has en, de, fr"
    ):
        read(DataSpec(source=both[0], languages=["dee"]))
    (folder / "plain.csv").write_text(f"image,caption\n{names[0]},red")
    with pytest.raises(ConfigError, match="there is none; name it with data"):
        read(DataSpec(source=str(folder / "plain.csv"), languages=["de"]))
