"""Tables as people have them: separators, quotes, headers, encodings, paths of other machines, values of any kind."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from build import encoded, picture, tar, text
from case_tables import captions, details, loaded

from everclip.data.reading.sources import read_rows
from everclip.data.reading.spec import DataSpec
from everclip.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(12):
        picture(tmp_path / f"{i}.png", "bee", (16, 16), seed=i)
    return tmp_path


# -- values that are no text (B08) ----------------------------------------------------------------------------


def test_b08_missing_values_in_json_lines_are_no_captions(folder: Path) -> None:
    rows = [{"image": f"{i}.png", "caption": [f"bird {i}", float("nan"), None][i % 3]} for i in range(12)]
    found = loaded(text(folder / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    assert captions(found) == [f"bird {i}" for i in range(0, 12, 3)]
    assert found.quarantine.counts() == {"empty-caption": 8}


def test_b08_missing_values_in_an_archive_are_no_captions(tmp_path: Path) -> None:
    members: list[tuple[str, str | bytes]] = []
    for i in range(8):
        caption = [f"red bird {i}", float("nan"), None, ""][i % 4]
        members += [
            (f"{i:09d}.png", encoded("bird", (16, 16), seed=i)),
            (f"{i:09d}.json", json.dumps({"caption": caption, "key": f"{i:09d}", "width": 64})),
        ]
    found = loaded(tar(tmp_path / "00000.tar", members))
    assert captions(found) == ["red bird 0", "red bird 4"]
    assert found.quarantine.counts() == {"empty-caption": 6}


def test_b08_words_for_missing_values_in_a_csv_stay_words_and_are_said(folder: Path) -> None:
    lines = "".join(f"{i}.png,{['bird', 'nan', ''][i % 3]}\n" for i in range(12))
    found = loaded(text(folder / "b.csv", "image,caption\n" + lines))
    assert captions(found) == ["bird", "nan"] * 4
    assert any("4 captions are the word 'nan'" in line for line in found.guesses)


def test_b08_labels_of_floats_are_whole_numbers_and_nan_is_none(folder: Path) -> None:
    labels = pa.array([0.0, 1.0, float("nan"), None] * 3)
    pq.write_table(
        pa.table({"image": [f"{i}.png" for i in range(12)], "label": labels}), folder / "c.parquet"
    )
    found = loaded(folder / "c.parquet")
    assert found.table.column("class_name") == ["0", "1"] * 3
    assert found.quarantine.counts() == {"missing-label": 6}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "empty-caption"),
        (np.float64("nan"), "empty-caption"),
        (None, "empty-caption"),
        ("\u00a0\u200b", "empty-caption"),
        (3, "the number 3"),
        (np.int64(3), "the number 3"),
        (2.5, "the number 2.5"),
        (True, "the truth value True"),
        ({"a": 1}, "a mapping"),
        (b"bytes", "bytes"),
        ([1, 2], "a list"),
        (np.arange(2), "a list"),
    ],
)
def test_b08_a_value_of_another_kind_beside_captions_is_no_caption(value: Any, reason: str) -> None:
    rows = [{"image": encoded(seed=i), "caption": c} for i, c in enumerate(["a dog", value, "a cat"])]
    found = read_rows(rows, quarantine_limit=1)
    assert captions(found) == ["a dog", "a cat"]
    assert reason in details(found)[2]


@pytest.mark.parametrize("value", [float("nan"), 1.5, 7, True, {"a": 1}])
def test_b08_a_column_of_no_texts_at_all_is_no_captions(value: Any) -> None:
    rows = [{"image": encoded(seed=i), "caption": value, "label": "cat"} for i in range(2)]
    if isinstance(value, float) and value != value:
        assert not read_rows(rows).table.has("caption"), "rows without a caption have their class"
    else:
        with pytest.raises(DataError, match=r"the caption is |the captions are objects of a"):
            read_rows(rows)


def test_b08_texts_and_lists_of_texts_are_all_captions() -> None:
    given: list[Any] = ["a", ["b", "c"], ("d", float("nan")), np.array(["e"])]
    rows = [{"image": encoded(seed=i), "caption": c} for i, c in enumerate(given)]
    found = read_rows(rows, quarantine_limit=1)
    assert captions(found) == ["a", "b", "c", "d", "e"]


def test_b08_labels_of_mixed_kinds_are_names_or_set_aside() -> None:
    given: list[Any] = ["cat", 3, 3.0, np.int64(3), float("nan"), None, ["x"], {"a": 1}, True]
    rows = [{"image": encoded(seed=i), "label": label} for i, label in enumerate(given)]
    found = read_rows(rows, quarantine_limit=1)
    assert found.table.column("class_name") == ["cat", "3", "3", "3", "True"]
    assert found.quarantine.counts() == {"missing-label": 2, "bad-row": 2}
    assert "the class_name is a list" in details(found)[7]


def test_b08_structs_and_bytes_in_parquet(folder: Path) -> None:
    columns = {
        "image": ["0.png", "1.png", "2.png"],
        "caption": [{"raw": "a", "tokens": ["a"]}, {"raw": None, "tokens": []}, None],
        "label": pa.array([b"x", b"caf\xe9", b"z"], pa.binary()),
    }
    pq.write_table(pa.table(columns), folder / "a.parquet")
    found = loaded(folder / "a.parquet")
    assert captions(found) == ["a", "z"]
    assert found.quarantine.counts() == {"bad-utf8": 1}


def test_b08_keywords_that_are_no_texts_are_refused() -> None:
    with pytest.raises(DataError, match="lists of int64; expected lists of texts"):
        read_rows([{"image": encoded(), "caption": "a", "keywords": [1, 2]}])


def test_captions_that_are_lists_written_as_text(folder: Path) -> None:
    cells = ['"[""a dog"", ""it\'s one""]"', "\"['b', 'c']\"", "[Intro]", '"[""broken"""', "d"]
    lines = "".join(f"{i}.png,{cell}\n" for i, cell in enumerate(cells))
    found = loaded(text(folder / "a.csv", "image,caption\n" + lines))
    assert captions(found) == ["a dog", "it's one", "b", "c", "[Intro]", '["broken"', "d"]
    assert any("2 captions are lists written as text" in line for line in found.guesses)


# -- quotes and blanks (B16) ----------------------------------------------------------------------------------


def test_b16_quotes_in_a_table_of_tabs_are_plain_text(folder: Path) -> None:
    rows = [
        '0.png\t"Vintage" tea pot, 1950s',
        '1.png\tpipe 5" x 3"',
        '2.png\t"never closed',
        "3.png\tplain",
        '4.png\t"closed"',
        "5.png\tit's 'quoted'",
        '6.png\t"say ""cheese"""',
        "7.png\ta\\tb\\nc",
        '8.png\t"two\nlines"',
        "9.png\tlast",
    ]
    found = loaded(text(folder / "a.tsv", "filepath\ttitle\n" + "\n".join(rows) + "\n"))
    assert captions(found) == [
        '"Vintage" tea pot, 1950s',
        'pipe 5" x 3"',
        '"never closed',
        "plain",
        "closed",
        "it's 'quoted'",
        'say "cheese"',
        "a\\tb\\nc",
        "two\nlines",
        "last",
    ]
    assert any("2 lines are plain text" in line for line in found.guesses)


def test_b16_quotes_of_a_csv(folder: Path) -> None:
    rows = [
        '0.png, "red, round box"',
        '1.png,"say \\"cheese\\" now"',
        '2.png,"two\r\nlines"',
        '3.png,"a ""good"" one"',
        '4.png,"Vintage" pot',
        "5.png,one, two",
        "6.png",
        "7.png, kept blank",
        '8.png,"',
        "9.png,ok,,",
    ]
    found = loaded(text(folder / "b.csv", "image,caption\r\n" + "\r\n".join(rows) + "\r\n"))
    assert captions(found) == [
        "red, round box",
        'say "cheese" now',
        "two\r\nlines",
        'a "good" one',
        " kept blank",
        "ok",
    ]
    assert sorted(details(found)) == [5, 6, 7, 9]
    assert 'double the quotes inside cells ("")' in details(found)[5]
    assert "3 cells, expected 2; quote cells" in details(found)[6]
    assert "2" in details(found)[7]
    assert "is not closed" in details(found)[9]


def test_b16_a_quote_that_is_not_closed_swallows_no_row(folder: Path) -> None:
    rows = ['0.png,"never closed', "1.png,one", "2.png,two", '3.png,ends with a quote"', "4.png,four"]
    found = loaded(text(folder / "a.csv", "image,caption\n" + "\n".join(rows) + "\n"))
    assert captions(found) == ["one", "two", 'ends with a quote"', "four"]
    assert details(found)[1].startswith("bad-row: a cell begins with a quote")


def test_b16_blanks_that_nobody_sees_are_no_caption(folder: Path) -> None:
    rows = [
        "0.png,Tom &amp; Jerry &#39;live&#39;",
        "1.png,\u00a0\u200b",
        "2.png,\ufeff\u2060",
        "3.png,\u05e9\u202e x",
    ]
    found = loaded(text(folder / "html.csv", "image,caption\n" + "\n".join(rows) + "\n"))
    assert captions(found) == ["Tom &amp; Jerry &#39;live&#39;", "\u05e9\u202e x"]
    assert found.quarantine.counts() == {"empty-caption": 2}
    assert any("1 captions hold marks of web pages" in line for line in found.guesses)


def test_b16_a_nul_is_no_text_and_old_line_ends_are_read(folder: Path) -> None:
    found = loaded(text(folder / "nul.csv", b"image,caption\n0.png,a \0 nul\n1.png,ok\n2.png,caf\xe9\n"))
    assert captions(found) == ["ok"]
    assert "NUL" in details(found)[1]
    assert "data.encoding=cp1252" in details(found)[3]
    mac = loaded(text(folder / "mac.csv", "image,caption\r0.png,old Mac\r1.png,two\r"))
    assert captions(mac) == ["old Mac", "two"]


# -- separators (B17) -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "separator", "header", "prefix", "encoding"),
    [
        ("comma.tsv", ",", "filepath,title,year", "", "utf-8"),
        ("tab.csv", "\t", "filepath\ttitle\tyear", "", "utf-8"),
        ("semicolon.csv", ";", "filepath;title;year", "", "utf-8"),
        ("semicolon.tsv", ";", "filepath;title;year", "", "utf-8"),
        ("pipe.csv", "|", "filepath|title|year", "", "utf-8"),
        ("excel_sep.csv", ";", "filepath;title;year", "sep=;\n", "utf-8"),
        ("bom.csv", ";", "filepath;title;year", "\ufeff", "utf-8"),
        ("excel_unicode.csv", "\t", "filepath\ttitle\tyear", "", "utf-16"),
        ("unmarked.csv", ",", "filepath,title,year", "", "utf-16-le"),
        ("captions.txt", ",", "filepath,title,year", "", "utf-8"),
        ("flickr30k.csv", "| ", "image_name| comment| year", "", "utf-8"),
        ("semi_comma.csv", ";", "file;title;the year, if known", "", "utf-8"),
    ],
)
def test_b17_separators_are_found_out(
    folder: Path, name: str, separator: str, header: str, prefix: str, encoding: str
) -> None:
    quote = '"' if separator == "," else ""
    rows = [f"{i}.png{separator}{quote}a bee, number {i}{quote}{separator}202{i}" for i in range(6)]
    found = loaded(text(folder / name, prefix + "\n".join([header, *rows]) + "\n", encoding))
    assert captions(found) == [f"a bee, number {i}" for i in range(6)]
    if separator != {"csv": ",", "tsv": "\t", "txt": ","}[name[-3:]]:
        assert any("separated by" in line for line in found.guesses)


def test_b17_one_column_says_that_a_separator_is_wanted(folder: Path) -> None:
    path = text(folder / "a.csv", "filepath^title\n0.png^a\n1.png^b\n")
    with pytest.raises(
        DataError, match=r"columns are 'filepath\^title'\. There is one column: .*data\.separator"
    ):
        loaded(path)
    assert captions(loaded(path, separator="^")) == ["a", "b"]
    with pytest.raises(ValueError, match="not a separator of cells"):
        DataSpec(source="a.csv", separator="ab")


def test_b17_a_column_of_pictures_with_another_name_is_said(folder: Path) -> None:
    path = text(folder / "a.csv", "Datei;Größe;Text\n0.png;12;a\n1.png;13;b\n", "cp1252")
    with pytest.raises(DataError, match=r"The cells of 'Datei' name images: say data\.columns\.image=Datei"):
        loaded(path)
    assert captions(loaded(path, columns={"image": "Datei"})) == ["a", "b"]
    assert captions(loaded(path, columns={"image": "1", "caption": "3"})) == ["a", "b"]


# -- tables without a header (S07) ----------------------------------------------------------------------------


def test_s07_a_table_without_a_header_is_read_by_what_its_cells_hold(folder: Path) -> None:
    path = text(folder / "pairs.csv", "".join(f"{i}.png,a bus number {i}\n" for i in range(6)))
    found = loaded(path)
    assert captions(found) == [f"a bus number {i}" for i in range(6)]
    assert any("no line of column names" in line and "data.header=true" in line for line in found.guesses)
    assert "image = column '1', whose cells name images" in found.guesses
    assert captions(loaded(path, header=False)) == captions(found)
    assert (
        loaded(path, columns={"class_name": "2", "image": "1"}).table.column("class_name")[0]
        == "a bus number 0"
    )


def test_s07_single_words_may_be_classes_or_captions_and_are_asked_for(folder: Path) -> None:
    path = text(folder / "pairs.csv", "".join(f"{i}.png,bus\n" for i in range(6)))
    with pytest.raises(DataError, match=r"data\.columns\.class_name=NAME"):
        loaded(path)
    assert loaded(path, columns={"class_name": "2"}).table.column("class_name") == ["bus"] * 6


def test_s07_captions_and_urls_of_conceptual_captions(folder: Path) -> None:
    lines = "".join(f"a very typical bus station {i}\thttp://lh6.example.com/{i}.png\n" for i in range(6))
    found = loaded(text(folder / "gcc.tsv", lines), downloads=str(folder))
    assert captions(found) == [f"a very typical bus station {i}" for i in range(6)]


def test_s07_flickr8k_tokens(folder: Path) -> None:
    path = text(
        folder / "Flickr8k.token.txt",
        "".join(f"{i}.png#{j}\tA bee {j} .\n" for i in range(3) for j in range(5)),
    )
    found = loaded(path)
    assert len(found.table) == 15
    assert len(set(found.table.identities())) == 3


def test_a_first_row_of_data_under_a_header_of_numbers(folder: Path) -> None:
    path = text(folder / "a.csv", "0.png,x y\n1.png,y z\n")
    with pytest.raises(DataError, match=r"no column `image`"):
        loaded(path, header=True)


# -- one-hot tables (S05) -------------------------------------------------------------------------------------


def test_s05_roboflows_table_of_classes(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / f"{i}_jpg.rf.ab{i}.jpg", "cat", (16, 16), seed=i)
    rows = ["1, 0, 0", "0, 1, 0", "0, 0, 1", "1, 0, 0", "0, 0, 0", "1, 1, 0"]
    lines = "".join(f"{i}_jpg.rf.ab{i}.jpg, {row}\n" for i, row in enumerate(rows))
    found = loaded(text(tmp_path / "_classes.csv", "filename, cat, dog, bird\n" + lines))
    assert found.table.column("class_name") == ["cat", "dog", "bird", "cat"]
    assert "no class is marked" in details(found)[5]
    assert "2 classes are marked (cat, dog)" in details(found)[6]
    assert any("of 3 (cat, dog, bird)" in line for line in found.guesses)


def test_columns_of_numbers_are_no_classes(folder: Path) -> None:
    path = text(folder / "a.csv", "filename,width,height\n0.png,16,1\n1.png,16,0\n")
    with pytest.raises(DataError, match="nothing to learn from"):
        loaded(path)


# -- one picture in several rows ------------------------------------------------------------------------------


def test_rows_of_one_file_or_of_equal_files_are_one_picture(folder: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    rows = ["0.png,a", "./0.png,b", "copy.png,c", "1.png,d"]
    found = loaded(text(folder / "a.csv", "image,caption\n" + "\n".join(rows)))
    table = found.table
    assert len(set(table.identities())) == 2
    assert table.image_key(0) == table.image_key(1)
    assert len(set(table.contents())) == 2
    assert table.origin(2).endswith("copy.png")


def test_equal_pictures_with_two_image_ids_are_one(folder: Path) -> None:
    rows = ["0.png,a,7", "0.png,b,8", "1.png,c,9"]
    found = loaded(text(folder / "a.csv", "image,caption,image_id\n" + "\n".join(rows)))
    assert found.table.identities() == ["7", "7", "9"]
    assert any("another image_id" in line for line in found.guesses)


def test_image_ids_of_two_files_that_each_count_from_zero_stay_apart(folder: Path) -> None:
    for name, first in (("train", 0), ("test", 2)):
        rows = [f"{first + i}.png,a,{i}" for i in range(2)]
        text(folder / f"{name}.csv", "image,caption,image_id\n" + "\n".join(rows))
    found = loaded(folder / "t*.csv")
    assert len(set(found.table.identities())) == 4
    assert any("image ids repeat between files" in line for line in found.guesses)


# -- siblings -------------------------------------------------------------------------------------------------


def test_lists_of_a_path_and_a_text_behind_a_blank(folder: Path) -> None:
    found = loaded(text(folder / "captions.txt", "".join(f"{i}.png A bee, number {i}\n" for i in range(4))))
    assert captions(found) == [f"A bee, number {i}" for i in range(4)]
    path = text(folder / "val.txt", "".join(f"{i}.png {i % 2}\n" for i in range(4)))
    assert loaded(path, columns={"class_key": "2"}).table.column("class_key") == ["0", "1", "0", "1"]


def test_json_lines_in_a_json_file_and_the_reverse(folder: Path) -> None:
    rows = [{"image": f"{i}.png", "caption": f"c{i}"} for i in range(3)]
    found = loaded(text(folder / "a.json", "\n".join(map(json.dumps, rows))))
    assert captions(found) == ["c0", "c1", "c2"]
    assert any("read as JSON lines" in line for line in found.guesses)
    found = loaded(text(folder / "b.jsonl", json.dumps(rows, indent=1)))
    assert captions(found) == ["c0", "c1", "c2"]
    assert any("no JSON lines, but one JSON document" in line for line in found.guesses)


def test_objects_beside_the_array_of_rows_are_no_rows(folder: Path) -> None:
    document = {"info": {"year": 2020}, "images": [{"file_name": "0.png", "caption": "a"}], "n": 1}
    assert captions(loaded(text(folder / "a.json", json.dumps(document)))) == ["a"]


def test_absolute_paths_of_this_machine_say_which_root_to_give(folder: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other")
    rows = "".join(f"{folder}/{i}.png,a {i}\n" for i in range(3))
    path = text(other / "a.csv", "image,caption\n" + rows)
    assert f"data.root={folder}" in details(loaded(path))[1]
    assert len(loaded(path, root=str(folder)).table) == 3


def test_a_link_that_leads_out_is_said_to_be_one(folder: Path) -> None:
    (folder / "in").mkdir()
    (folder / "in/0.png").symlink_to(folder / "0.png")
    found = loaded(text(folder / "in/a.csv", "image,caption\n0.png,a\n"))
    assert "a link leads to" in details(found)[1]


def test_numbers_that_lost_their_zeros_are_said(tmp_path: Path) -> None:
    picture(tmp_path / "0007.jpg")
    picture(tmp_path / "0010.jpg", seed=1)
    found = loaded(text(tmp_path / "a.csv", "image,caption\n7.jpg,a\n10,b\n0010,c\n"))
    assert captions(found) == ["c"]
    assert "'0007.jpg' is there: zeros before the number are lost" in details(found)[1]
    assert "zeros before the number are lost" in details(found)[2]


def test_pictures_that_are_called_by_numbers(tmp_path: Path) -> None:
    for i in range(2):
        picture(tmp_path / f"{i}.jpg", seed=i)
    pq.write_table(pa.table({"image": [0, 1], "caption": ["a", "b"]}), tmp_path / "a.parquet")
    assert captions(loaded(tmp_path / "a.parquet")) == ["a", "b"]


def test_columns_of_one_name_that_nobody_needs_cost_nothing(folder: Path) -> None:
    found = loaded(text(folder / "a.csv", "image,caption,x,x\n0.png,a,1,2\n"))
    assert found.table.column("x (2)") == ["2"]
    with pytest.raises(DataError, match="'label' stands in the first line more than once"):
        loaded(text(folder / "a.csv", "image,label,label\n0.png,a,b\n"))


@pytest.mark.parametrize("caption", ["x" * 100_000, "é" * 50_000, "a, " * 30_000])
def test_captions_of_any_length_are_kept(folder: Path, caption: str) -> None:
    found = loaded(text(folder / "a.csv", f'image,caption\n0.png,"{caption}"\n'))
    assert captions(found) == [caption]
    found = loaded(text(folder / "a.json", json.dumps([{"image": "0.png", "caption": caption}])))
    assert captions(found) == [caption]


def test_blanks_around_the_names_of_columns_do_not_count(folder: Path) -> None:
    found = loaded(text(folder / "a.csv", "\u00a0File Name , Caption\u200b\n0.png,a\n"))
    assert captions(found) == ["a"]


def test_urls_that_are_none_and_halves_of_signs_in_lists_are_no_crash(folder: Path) -> None:
    rows = ["http://[e,a", '0.png,"[""a"", ""\\ud800""]"', "1.png,c"]
    found = loaded(text(folder / "a.csv", "image,caption\n" + "\n".join(rows) + "\n"))
    assert captions(found)[-1] == "c"
    assert "not-downloaded" in details(found)[1]


@pytest.mark.parametrize("start", ["", "é "])
def test_a_long_word_takes_no_time(folder: Path, start: str) -> None:
    started = time.process_time()
    row = {"image": "0.png", "caption": start + "x" * 400_000}
    assert captions(loaded(text(folder / "a.json", json.dumps([row], ensure_ascii=False)))) == [
        row["caption"]
    ]
    assert time.process_time() - started < 5
