"""Tables: the same rows from every format, a broken row costs nothing but itself, columns are guessed aloud."""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reader_data import ROWS, load, photo, reasons, write_pictures, write_table

from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError, DataError
from micro import picture

FORMATS = ["csv", "tsv", "jsonl", "parquet"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pictures(tmp_path)
    return tmp_path


# -- guesses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_obvious_columns_are_guessed_and_every_guess_is_said(folder: Path, kind: str) -> None:
    loaded = load(write_table(folder / f"rows.{kind}", ROWS))
    assert loaded.columns == {
        "id": "id",
        "image": "file",
        "caption": "text",
        "class_name": "label",
        "time": "year",
    }
    assert loaded.guesses == (
        "image = column 'file'",
        "caption = column 'text'",
        "class_name = column 'label'",
        "time = column 'year'",
    )
    assert loaded.table.column("caption") == [row["text"] for row in ROWS]
    assert loaded.table.column("image")[2] == (folder / "p/2.png").read_bytes()
    assert loaded.quarantine.share == 0


def test_two_columns_that_could_be_meant_are_both_named_with_the_setting(folder: Path) -> None:
    path = write_table(folder / "rows.csv", [{"file": "p/0.png", "text": "x", "title": "y"}])
    with pytest.raises(
        DataError, match=r"'text', 'title' could each be the caption.*data\.columns\.caption=text"
    ):
        load(path)
    assert load(path, columns={"caption": "title"}).table.column("caption") == ["y"]


def test_a_canonical_name_is_no_guess_and_an_empty_one_means_none(folder: Path) -> None:
    rows = [
        {"image": "p/0.png", "file": "zzz", "caption": "x", "text": "y", "year": "2020", "date": "2020-01"}
    ]
    path = write_table(folder / "rows.csv", rows)
    with pytest.raises(DataError, match="could each be the time"):
        load(path)
    loaded = load(path, columns={"time": ""})
    assert loaded.guesses == (
        "not read as captions: 'text' (to read them as well: data.columns.caption=\"caption, text\")",
    )
    assert loaded.table.column("caption") == ["x"]
    assert not loaded.table.has("time")


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"image": "a"}, "no column 'a'"), ({"time": "text", "language": "text"}, "given for several")],
)
def test_columns_that_cannot_be_meant_are_refused(
    folder: Path, columns: dict[str, str], message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        load(write_table(folder / "rows.csv", [{"file": "p/0.png", "text": "x"}]), columns=columns)


# -- text -----------------------------------------------------------------------------------------------------


def test_cells_of_a_csv_stay_what_they_are(folder: Path) -> None:
    cells = ["NA", "null", "007", "1.50", "None", "nan", "TRUE", " x "]
    rows = [{"image": "p/0.png", "caption": cell, "label": cell} for cell in cells]
    table = load(write_table(folder / "rows.csv", rows)).table
    assert table.column("caption") == cells
    assert table.column("class_name") == cells


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["2023", "2024", ""], [2023, 2024, None]),
        (["1.5", "2", ""], [1.5, 2.0, None]),
        (["007", "008", "009"], ["007", "008", "009"]),
        (["2024-01", "2024-02-03", "x"], ["2024-01", "2024-02-03", "x"]),
    ],
)
def test_only_times_that_are_numbers_become_numbers(
    folder: Path, cells: list[str], expected: list[Any]
) -> None:
    rows = [{"image": f"p/{i}.png", "caption": "x", "time": cell} for i, cell in enumerate(cells)]
    assert load(write_table(folder / "rows.csv", rows)).table.column("time") == expected


def test_dates_become_iso_text_so_that_prefixes_compare(folder: Path) -> None:
    stamps = [datetime.datetime(2024, 1, 5), datetime.datetime(2024, 2, 1)]
    columns = {
        "image": ["p/0.png", "p/1.png"],
        "caption": ["x", "y"],
        "time": pa.array(stamps, pa.timestamp("ns")),
        "seen": [stamps[0], datetime.datetime(2024, 1, 5, 12, 30)],
        "day": [stamp.date() for stamp in stamps],
    }
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    table = load(folder / "rows.parquet").table
    assert table.column("time") == ["2024-01-05", "2024-02-01"]
    assert table.column("seen") == ["2024-01-05T00:00:00", "2024-01-05T12:30:00"]
    assert table.column("day") == ["2024-01-05", "2024-02-01"]


def write_times(folder: Path, times: pa.Array) -> Path:
    """Write a Parquet of two rows with a column `time`."""
    images = ["p/0.png", "p/1.png"]
    pq.write_table(pa.table({"image": images, "caption": ["x", "y"], "time": times}), folder / "rows.parquet")
    return folder / "rows.parquet"


@pytest.mark.parametrize(
    ("stored", "kind", "number", "shown"),
    [
        (pa.int64(), pa.timestamp("ms"), 1_700_000_000_000_000, "1700000000000000"),  # it counts microseconds
        (pa.int64(), pa.timestamp("us", "UTC"), -(2**62), "-4611686018427387904"),
        (pa.int32(), pa.date32(), 2**30, "1073741824"),
    ],
)
def test_a_date_that_no_calendar_has_is_shown_as_it_is(
    folder: Path, stored: pa.DataType, kind: pa.DataType, number: int, shown: str
) -> None:
    times = load(write_times(folder, pa.array([number, 0], stored).cast(kind))).table.column("time")
    assert times[0].endswith(f"{shown}, outside the years 1 to 9999")
    assert times[1].startswith("1970-01-01")


def test_a_time_zone_that_is_not_known_is_named(folder: Path) -> None:
    path = write_times(folder, pa.array([0, 1], pa.timestamp("us", "Mars/Base")))
    with pytest.raises(DataError, match=r"'time' holds times of the zone 'Mars/Base', which is not known"):
        load(path)


def test_a_blank_time_is_missing(folder: Path) -> None:
    assert load(write_times(folder, pa.array(["2024", " "]))).table.column("time") == ["2024", None]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"p/1.png", "bad-row"),
        (b"p/1.png,y,z", "bad-row"),
        (b'p/1.png,"y" z', "bad-row"),
        (b'p/1.png,"never closed', "bad-row"),
        (b'"p/1.png,y', "bad-row"),
        (b"p/1.png,caf\xe9", "bad-utf8"),
        (b"p/1.png,", "empty-caption"),
        (b"p/1.png,   ", "empty-caption"),
        (b",y", "no-image"),
    ],
)
def test_a_broken_line_of_a_csv_costs_nothing_but_itself(folder: Path, line: bytes, reason: str) -> None:
    lines = [b"image,caption", b"p/0.png,first", line, b"p/2.png,caf\xc3\xa9", b'p/0.png,"two\nlines"', b""]
    (folder / "rows.csv").write_bytes(b"\n".join(lines))
    loaded = load(folder / "rows.csv")
    assert loaded.table.column("caption") == ["first", "café", "two\nlines"]
    assert reasons(loaded) == [(2, reason)]
    assert (loaded.quarantine.total, loaded.quarantine.share) == (4, 0.25)


def test_a_file_full_of_stray_quotes_is_read_in_time_that_grows_with_its_length(folder: Path) -> None:
    lines = ["image,caption", *['p/0.png,"5" nail'] * 2000, "p/0.png,last"]
    (folder / "rows.csv").write_text("\n".join(lines))
    loaded = load(folder / "rows.csv")
    assert loaded.table.column("caption") == ["last"]
    assert loaded.quarantine.counts() == {"bad-row": 2000}


def test_other_separators_and_a_byte_order_mark_are_understood_aloud(folder: Path) -> None:
    (folder / "rows.csv").write_bytes(b"\xef\xbb\xbfimage;caption\np/0.png;a, b\n")
    loaded = load(folder / "rows.csv")
    assert loaded.table.column("caption") == ["a, b"]
    assert loaded.guesses[0] == "rows.csv: cells are separated by ';'"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "names no columns"),
        ("画像,説明\n".encode("shift_jis"), "Save it as UTF-8"),
        (b"image,image\np/0.png,x\n", "'image' stands in the first line more than once"),
        (b"image,caption\n", "holds no rows"),
    ],
)
def test_a_csv_without_a_sound_first_line_is_refused(folder: Path, data: bytes, message: str) -> None:
    (folder / "rows.csv").write_bytes(data)
    with pytest.raises(DataError, match=message):
        load(folder / "rows.csv")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"image": "p/1.png", "caption": "y"', "bad-row"),
        (b"[1, 2]", "bad-row"),
        (b"[" * 100_000, "bad-row"),
        (b'{"image": "p/1.png", "caption": "caf\xe9"}', "bad-utf8"),
        (b'{"image": "p/1.png", "caption": "\\ud800"}', "bad-utf8"),
        (b'{"image": "p/1.png", "caption": null}', "empty-caption"),
        (b'{"caption": "y"}', "no-image"),
        (b'{"image": "p/1.png", "caption": ' + b"9" * 5000 + b"}", "bad-row"),
    ],
)
def test_a_broken_json_line_costs_nothing_but_itself(folder: Path, line: bytes, reason: str) -> None:
    good = [json.dumps({"image": f"p/{i}.png", "caption": f"{i}"}).encode() for i in (0, 2)]
    (folder / "rows.jsonl").write_bytes(b"\n".join([good[0], line, b"", good[1]]))
    loaded = load(folder / "rows.jsonl")
    assert loaded.table.column("caption") == ["0", "2"]
    assert reasons(loaded) == [(2, reason)]


def test_columns_whose_values_change_their_type_cost_no_row(folder: Path) -> None:
    rows = [
        {"image": "p/0.png", "caption": "x", "more": 1},
        {"image": "p/1.png", "caption": "y", "more": {"a": [2]}},
    ]
    table = load(write_table(folder / "rows.jsonl", rows)).table
    assert table.column("more") == ["1", "{'a': [2]}"]


# -- Parquet --------------------------------------------------------------------------------------------------


def test_rows_of_a_damaged_row_group_are_set_aside(folder: Path) -> None:
    rows = [{"image": photo(i), "caption": f"{i}"} for i in range(12)]
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4, compression="zstd")
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 400] = bytes(400)
    path.write_bytes(data)
    loaded = load(path)
    assert loaded.table.column("caption") == [str(i) for i in (0, 1, 2, 3, 8, 9, 10, 11)]
    assert reasons(loaded) == [(row, "bad-row") for row in (5, 6, 7, 8)]


def test_names_and_pictures_as_datasets_writes_them(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "text": datasets.Value("string"),
        }
    )
    rows = {
        "image": [{"bytes": photo(0), "path": None}, {"bytes": None, "path": "p/1.png"}],
        "label": [1, 0],
        "text": ["a", "b"],
    }
    pq.write_table(pa.table(rows, schema=features.arrow_schema), folder / "rows.parquet")
    table = load(folder / "rows.parquet").table
    assert table.column("class_name") == table.column("class_key") == ["dog", "cat"]
    assert table.column("image") == [photo(0), (folder / "p/1.png").read_bytes()]


def test_a_large_file_is_mapped_and_gives_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from everclip.data.reading.formats import parquet

    rows = [{"image": photo(i), "caption": f"{i}", "label": f"{i % 3}"} for i in range(10)]
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    before = load(path)
    monkeypatch.setattr(parquet, "IN_MEMORY", 0)
    for _ in range(2):  # written, then found again
        mapped = load(path)
        assert mapped.table.fingerprint == before.table.fingerprint
        assert mapped.table.column("image") == before.table.column("image")
    monkeypatch.setattr(parquet, "spilled", lambda *a: pytest.fail("was written again"))
    load(path)


def test_text_in_a_parquet_file_that_is_not_utf8(folder: Path) -> None:
    texts = pa.array([b"x", b"caf\xe9", b"z"], pa.binary()).view(pa.string())
    pq.write_table(
        pa.table({"image": [photo(i) for i in range(3)], "caption": texts}), folder / "rows.parquet"
    )
    assert reasons(load(folder / "rows.parquet")) == [(2, "bad-utf8")]


# -- labels, captions, ids ------------------------------------------------------------------------------------


def test_labels_that_are_missing_or_nan(folder: Path) -> None:
    labels = pa.array([3.0, float("nan"), None, 4.0])
    pq.write_table(
        pa.table({"image": [photo(i) for i in range(4)], "label": labels}), folder / "rows.parquet"
    )
    loaded = load(folder / "rows.parquet")
    assert loaded.table.column("class_key") == ["3", "4"]
    assert reasons(loaded) == [(2, "missing-label"), (3, "missing-label")]


def test_a_sample_without_a_caption_takes_its_class_name(folder: Path) -> None:
    rows = [
        {"image": f"p/{i}.png", "caption": c, "label": n}
        for i, (c, n) in enumerate([("x", "a"), ("", "b"), ("", "")])
    ]
    loaded = load(write_table(folder / "rows.csv", rows))
    assert loaded.table.column("caption") == ["x", "b"]
    assert reasons(loaded) == [(3, "empty-caption")]
    # Data without any caption have no such column: they are learned and measured by class.
    bare = load(write_table(folder / "bare.csv", [{"image": "p/0.png", "caption": "", "label": "a"}]))
    assert not bare.table.has("caption")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_list_of_captions_becomes_rows_of_one_picture(folder: Path, kind: str) -> None:
    rows = [
        {"id": 7, "image": "p/0.png", "captions": [{"text": "a", "lang": "en"}, {"text": "b", "lang": "de"}]},
        {"id": 8, "image": "p/1.png", "captions": [{"text": "c", "lang": "en"}]},
        {"id": 9, "image": "p/2.png", "captions": []},
    ]
    loaded = load(write_table(folder / f"rows.{kind}", rows))
    table = loaded.table
    assert table.ids == ["7-0", "7-1", "8"]
    assert table.column("caption") == ["a", "b", "c"]
    assert table.column("language") == ["en", "de", "en"]
    images = table.column("image_id")
    assert images[0] == images[1] != images[2]
    assert table.image_key(0) == table.image_key(1) != table.image_key(2)
    assert reasons(loaded) == [(3, "empty-caption")]
    assert loaded.facts.column("sha256").to_pylist() == [table.content(i) for i in range(3)]


def test_ids_that_are_missing_or_stand_twice(folder: Path) -> None:
    rows = [{"id": i, "image": "p/0.png", "caption": "x"} for i in ("a", "", "a", "b")]
    loaded = load(write_table(folder / "rows.csv", rows))
    assert loaded.table.ids == ["a", "b"]
    assert reasons(loaded) == [(2, "missing-id"), (3, "duplicate-id")]


def test_files_that_number_their_rows_each_from_one_are_told_apart(folder: Path) -> None:
    for name in ("train", "test"):
        write_table(
            folder / f"{name}.csv", [{"id": i, "image": f"p/{i}.png", "caption": "x"} for i in (0, 1)]
        )
    loaded = load(folder / "t*.csv")
    assert loaded.table.ids == ["test.csv/0", "test.csv/1", "train.csv/0", "train.csv/1"]
    assert "ids repeat between files" in loaded.guesses[-1]
    assert loaded.table.column("split") == ["test", "test", "train", "train"]


# -- sources --------------------------------------------------------------------------------------------------


def test_several_files_are_one_table_whatever_types_they_have(folder: Path) -> None:
    one = write_table(
        folder / "a.csv", [{"image": "p/0.png", "caption": "x", "time": "2020", "only": "here"}]
    )
    two = write_table(folder / "b.jsonl", [{"image": "p/1.png", "caption": "y", "time": "2021-05"}])
    loaded = load((str(one), str(two)))
    assert loaded.table.column("time") == ["2020", "2021-05"]
    assert loaded.table.column("only") == ["here", None]
    assert not loaded.table.has("split")


def test_variables_and_the_home_folder_are_put_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(folder / "rows.csv", [{"image": "p/0.png", "caption": "x"}])
    monkeypatch.setenv("MY_DATA", str(folder))
    monkeypatch.setenv("HOME", str(folder))
    assert len(load("${MY_DATA}/rows.csv").table) == len(load("~/rows.csv").table) == 1
    with pytest.raises(ConfigError, match="variable NOT_SET is not set"):
        load("${NOT_SET}/rows.csv")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("https://example.org/rows.csv", {}, "is a URL; download it first"),
        ("rows.tar.gz", {}, "is compressed; unpack it"),
        ("photo.jpg", {}, "is a single image"),
        ("none*.csv", {}, "no file fits the pattern"),
        ("nowhere", {}, "no such folder"),
        ("rows.csv", {"split": "train"}, r"data\.split: applies to hub"),
        ("rows.csv", {"root": "nowhere"}, r"data\.root: nowhere: no such folder"),
        ((), {}, "no source is given"),
    ],
)
def test_sources_that_cannot_be_read_say_what_to_give(
    source: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(source, **options)


def test_above_the_limit_reading_stops_with_the_table(folder: Path) -> None:
    rows = [{"image": f"p/{i}.png", "caption": "x"} for i in (0, 1, 2, 7)]
    path = write_table(folder / "rows.csv", rows)
    with pytest.raises(
        DataError, match=r"1 of 4 rows set aside \(25\.0%\): 1 missing-file(.|\n)*quarantine_limit = 1\.0%"
    ):
        load(path, quarantine_limit=0.01)
    assert load(path, quarantine_limit=0.25).quarantine.counts() == {"missing-file": 1}
    with pytest.raises(ValueError, match="less than or equal to 1"):
        DataSpec(source="x", quarantine_limit=2)


def six_rows(path: Path, **more: Any) -> Path:
    draw = np.random.default_rng(0)
    images = [picture((20 * i, 90, 30), i, draw) for i in range(6)]
    columns = {"image": pa.array(images, pa.binary()), "caption": [f"thing {i}" for i in range(6)], **more}
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"caption": [1.5] * 6}, "expected text"),
        ({"caption": [[1.5]] * 6}, "expected text"),
        ({"keywords": ["red,green"] * 6}, "expected lists"),
        ({"id": [None, *"abcde"]}, "missing-id"),
        ({"image": pa.array([None] * 6, pa.binary())}, "no-image"),
        ({"image": pa.array([b"hello"] * 6, pa.binary())}, "row 1: begins with 68656c6c6f"),
    ],
)
def test_columns_of_the_wrong_kind_are_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(DataSpec(source=str(six_rows(tmp_path / "data.parquet", **more))))


def test_a_mapped_column_takes_the_place_of_one_that_had_its_name(tmp_path: Path) -> None:
    path = six_rows(tmp_path / "data.parquet", title=[f"title {i}" for i in range(6)])
    table = read(DataSpec(source=str(path), columns={"caption": "title"})).table
    assert table.column("caption")[0] == "title 0"
