"""Cells that hold lists and objects where a text or a picture is expected: none of them becomes text by `repr`."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from build import encoded, picture, text

from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec
from everclip.errors import DataError
from everclip.learner import make_task
from everclip.prepare.check.advice_classes import names_of_classes


def loaded(source: Path, **options: Any) -> Loaded:
    return read(DataSpec(source=str(source), **{"quarantine_limit": 1.0, **options}))


def lines(folder: Path, rows: list[dict[str, Any]]) -> Path:
    return text(folder / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(4):
        picture(tmp_path / f"{i}.png", "bee", (16, 16), seed=i)
    return tmp_path


def test_b09_objects_of_languages_are_captions_in_these_languages(folder: Path) -> None:
    rows = [{"image": f"{i}.png", "caption": {"en": f"bee {i}", "de": f"Biene {i}"}} for i in range(4)]
    table = loaded(lines(folder, rows)).table
    assert table.column("caption")[:2] == ["bee 0", "Biene 0"]
    assert table.column("language") == ["en", "de"] * 4


def test_b09_objects_of_unknown_keys_are_refused_by_their_keys(folder: Path) -> None:
    rows = [{"image": f"{i}.png", "caption": {"short": "bee", "score": "9"}} for i in range(4)]
    with pytest.raises(DataError, match="objects of short, score; expected texts"):
        loaded(lines(folder, rows))


@pytest.mark.parametrize(
    "cell", ["{'en': 'a bee'}", '{"raw": "a bee", "tokens": [1]}', "{'text': 'a bee', 'id': 3}"]
)
def test_b09_objects_written_as_text_give_their_texts(folder: Path, cell: str) -> None:
    quoted = cell.replace('"', '""')
    found = loaded(text(folder / "a.csv", f'image,caption\n0.png,"{quoted}"\n1.png,{{plain}}\n'))
    assert found.table.column("caption") == ["a bee", "{plain}"]
    assert any("1 captions are objects written as text" in line for line in found.guesses)


def test_b09_objects_written_as_text_that_say_no_caption_are_set_aside(folder: Path) -> None:
    found = loaded(text(folder / "a.csv", "image,caption\n0.png,\"{'score': 1}\"\n1.png,a bee\n"))
    assert found.table.column("caption") == ["a bee"]
    (entry,) = found.quarantine.entries
    assert (entry.row, entry.reason) == (1, "bad-row")
    assert entry.detail == "the caption is an object of score, written as text (expected text)"


def test_lists_of_classes_are_named_with_what_can_be_done(folder: Path) -> None:
    path = lines(folder, [{"image": f"{i}.png", "label": ["cat", "dog"][: 1 + i % 2]} for i in range(4)])
    with pytest.raises(DataError, match=r"'label' holds lists.*data\.columns\.caption=label"):
        loaded(path)
    with pytest.raises(DataError, match="row 2 has 2 names; expected one per row"):
        loaded(path, columns={"class_name": "label"})
    assert len(loaded(path, columns={"caption": "label"}).table) == 6


def test_lists_of_one_class_are_classes(folder: Path) -> None:
    path = lines(folder, [{"image": f"{i}.png", "label": [["cat", "dog"][i % 2]]} for i in range(4)])
    assert loaded(path, columns={"class_name": "label"}).table.column("class_name") == ["cat", "dog"] * 2


def test_pictures_as_objects_with_a_path_and_as_lists_of_one(folder: Path) -> None:
    rows: list[dict[str, Any]] = [{"image": {"path": f"{i}.png"}, "caption": f"bee {i}"} for i in range(4)]
    assert len(loaded(lines(folder, rows)).table) == 4
    rows = [{"image": [f"{i}.png"], "caption": f"bee {i}"} for i in range(4)]
    assert len(loaded(lines(folder, rows)).table) == 4
    data = [[{"bytes": (folder / f"{i}.png").read_bytes(), "path": None}] for i in range(4)]
    pq.write_table(pa.table({"images": data, "text": [f"bee {i}" for i in range(4)]}), folder / "a.parquet")
    assert len(loaded(folder / "a.parquet", columns={"image": "images"}).table) == 4


def test_several_pictures_in_a_row_are_refused_with_the_remedy(folder: Path) -> None:
    rows = [{"image": ["0.png", "1.png"], "caption": "bees"}]
    with pytest.raises(DataError, match="lists of up to 2 images; expected one image per row"):
        loaded(lines(folder, rows))


def test_texts_beside_pictures_in_another_case_or_unicode_form_are_theirs(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / (unicodedata.normalize("NFD", f"M\u00fcller {i}") + ".png"), "bee", (16, 16), i)
        text(tmp_path / f"m\u00fcller {i}.TXT", f"bee {i}")
    found = loaded(tmp_path)
    assert sorted(found.table.column("caption")) == [f"bee {i}" for i in range(4)]
    assert found.quarantine.entries == ()


# -- files that are something else than they seem -------------------------------------------------------------


def test_json_lines_with_commas_or_as_an_array_are_read(folder: Path) -> None:
    rows = [json.dumps({"image": f"{i}.png", "caption": f"bee {i}"}) for i in range(4)]
    for content in (",\n".join(rows) + ",\n", "[\n" + ",\n".join(rows) + "\n]\n"):
        found = loaded(text(folder / "a.jsonl", content))
        assert found.table.column("caption") == [f"bee {i}" for i in range(4)]
        assert found.quarantine.entries == ()
        assert any("commas at the ends of" in line for line in found.guesses)


def test_lines_as_python_prints_them_say_so(folder: Path) -> None:
    with pytest.raises(DataError, match="as Python prints it, with single quotes"):
        loaded(text(folder / "a.jsonl", "{'image': '0.png', 'caption': 'bee'}\n" * 2))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("<!DOCTYPE html>\n<html></html>\n", "a web page; download the file again"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    ],
)
def test_a_table_that_is_a_page_or_a_pointer_says_so(folder: Path, content: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        loaded(text(folder / "a.csv", content))


def test_b03_a_json_beside_a_folder_of_parquet_decides_nothing(tmp_path: Path) -> None:
    for side, count in (("train", 4), ("test", 2)):
        data = [{"bytes": encoded("bee", (16, 16), seed=count + i), "path": None} for i in range(count)]
        captions = [f"bee {i}" for i in range(count)]
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": data, "text": captions}), tmp_path / f"data/{side}-0.parquet")
    text(tmp_path / "dataset_infos.json", '{"default": {"features": {}}}')
    found = loaded(tmp_path)
    assert sorted(found.table.column("split")) == ["test"] * 2 + ["train"] * 4
    assert any("dataset_infos.json" in line for line in found.guesses)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("data-00000-of-00001.arrow", "state.json", "dataset_info.json"), r"d\.to_parquet"),
        (("dataset_dict.json", "train/state.json"), r"part\.to_parquet"),
    ],
)
def test_what_datasets_saved_comes_with_the_lines_that_write_parquet(
    tmp_path: Path, files: tuple[str, ...], words: str
) -> None:
    for name in files:
        text(tmp_path / name, "{}")
    with pytest.raises(DataError, match=words):
        loaded(tmp_path)


# -- names of classes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "code", "shown"),
    [
        (["0.0", "1.0"], "numbers", "'0.0', '1.0'"),
        (["-1", "1"], "numbers", "'-1', '1'"),
        (["True", "False"], "numbers", "'True'"),
        (["n02123045", "n02084071"], "numbers", "'n02123045'"),
        (["class_0", "class_1"], "numbers", "'class_0'"),
        (["cat", "cat|dog"], "several-names", "'cat|dog'"),
        (["golden_retriever", "cat"], "written-names", "'golden_retriever'"),
        (["001.Black Albatross", "002.Laysan Albatross"], "written-names", "'001.Black Albatross'"),
        (["golden retriever", "3 dogs", "salt, pepper"], "", ""),
    ],
)
def test_names_that_nobody_would_say_are_told(names: list[str], code: str, shown: str) -> None:
    found = {finding.code: finding.message for finding in names_of_classes(names)}
    assert (shown in found[code]) if code else not found


# -- paths and lines ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("dataset/v1/{}.png", "paths begin with 'dataset/v1'"),
        ("'{}.png'", "without regard to quotes around them"),
    ],
)
def test_b18_paths_with_a_folder_in_front_or_quotes_are_found(folder: Path, form: str, words: str) -> None:
    rows = "".join(f"{form.format(i)},bee {i}\n" for i in range(4))
    found = loaded(text(folder / "a.csv", "image,caption\n" + rows))
    assert len(found.table) == 4
    assert any(words in line for line in found.guesses)


def test_b17_a_line_that_repeats_the_header_says_so(folder: Path) -> None:
    found = loaded(text(folder / "a.csv", "image,caption\n0.png,a\nimage,caption\n1.png,b\n"))
    (entry,) = found.quarantine.entries
    assert (entry.row, entry.reason) == (2, "bad-row")
    assert "repeats the names of the columns" in entry.detail


@pytest.mark.parametrize("side", [[], [[]], {"a": 1}])
def test_a_column_of_sides_that_holds_lists_or_objects_ends_in_words(side: object) -> None:
    with pytest.raises(DataError, match=r"column 'split' holds|no-image"):
        make_task([{"image": None, "caption": "a", "split": side}])
