"""Lists and tables that call pictures by a name without ending or by a number: MXNet's `.lst`, ids, Oxford's pets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from build import picture, text

from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError, DataError

CLASSES = ("cat", "dog", "bird", "bus")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(16):
        picture(tmp_path / "images" / f"im{i:03d}.png", CLASSES[i % 4], (16, 16), seed=i)
    return tmp_path


def lines(row: Callable[[int], str], rows: range = range(16)) -> str:
    return "".join(row(i) + "\n" for i in rows)


def load(source: Path, **options: Any) -> Loaded:
    return read(DataSpec(source=str(source), **options))


def names(found: Loaded) -> list[Any]:
    return found.table.column("class_name")


def said(found: Loaded, words: str) -> bool:
    return any(words in line for line in found.guesses)


# -- MXNet ----------------------------------------------------------------------------------------------------


def test_a_list_of_mxnet_is_read_by_itself_and_in_its_folder(folder: Path) -> None:
    def row(i: int) -> str:
        return f"{i}\t{i % 4:.6f}\timages/im{i:03d}.png"

    train = text(folder / "train.lst", lines(row, range(12)))
    text(folder / "val.lst", lines(row, range(12, 16)))
    assert Counter(names(load(train))) == dict.fromkeys("0123", 3)
    found = load(folder)
    assert Counter(found.table.column("split")) == {"train": 12, "validation": 4}
    assert said(found, "a list of MXNet")
    text(folder / "classnames.txt", "cat\ndog\nbird\nbus\n")
    assert Counter(names(load(train))) == dict.fromkeys(CLASSES, 3)


def test_objects_in_a_list_of_mxnet_give_a_class_where_all_are_of_one(folder: Path) -> None:
    def row(i: int) -> str:
        other = i % 4 if i else 3
        objects = [f"{c}\t0.1\t0.1\t0.5\t0.5" for c in (i % 4, other)]
        return f"{i}\t2\t5\t{chr(9).join(objects)}\timages/im{i:03d}.png"

    found = load(text(folder / "train.lst", lines(row)), quarantine_limit=1)
    assert Counter(names(found)) == {"0": 3, "1": 4, "2": 4, "3": 4}
    assert [entry.detail for entry in found.quarantine.entries] == [
        "objects of 2 classes (0, 3); expected one class per image"
    ]


def test_several_labels_and_broken_lines_of_mxnet_are_named(folder: Path) -> None:
    source = text(folder / "train.lst", lines(lambda i: f"{i}\t1\t0\t1\timages/im{i:03d}.png"))
    with pytest.raises(DataError, match=r"train\.lst: line 1 gives 3 labels for one image"):
        load(source)
    source = text(
        folder / "train.lst", lines(lambda i: f"{i}\t{i % 4}\timages/im{i:03d}.png") + "16 1 x.png\n" * 5
    )
    found = load(source, quarantine_limit=1)
    assert len(found.table) == 16
    assert "train.lst, row 17 (line 17)" in found.quarantine.entries[0].name


def test_packed_pictures_are_said_to_be_unpacked(folder: Path) -> None:
    source = folder / "train.rec"
    source.write_bytes(b"\n#\xd7\xce" * 9)
    with pytest.raises(ConfigError, match="Unpack it into images"):
        load(source)


# -- names without endings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [" ", "\t"])
@pytest.mark.parametrize("start", ["", "images/"])
def test_lists_of_names_without_endings_are_read(folder: Path, separator: str, start: str) -> None:
    def row(i: int) -> str:
        return f"{start}im{i:03d}{separator}{CLASSES[i % 4]}"

    train = text(folder / "lists/train.txt", lines(row, range(12)))
    text(folder / "lists/test.txt", lines(row, range(12, 16)))
    assert Counter(names(load(train))) == dict.fromkeys(CLASSES, 3)
    found = load(folder)
    assert Counter(found.table.column("split")) == {"train": 12, "test": 4}
    assert said(found, "an image's name without its ending")


def test_several_columns_behind_the_name_are_asked_about(folder: Path) -> None:
    content = "#Image CLASS SPECIES\n" + lines(lambda i: f"im{i:03d} {i % 4 + 1} {i % 2 + 1}")
    source = text(folder / "annotations/trainval.txt", content)
    with pytest.raises(DataError, match=r"'2', '3' may hold classes: data.columns.class_name=2"):
        load(source)
    assert set(names(load(source, columns={"class_name": "2"}))) == set("1234")


def test_a_list_of_names_alone_says_to_give_the_folder(folder: Path) -> None:
    source = text(folder / "train.txt", lines(lambda i: f"im{i:03d}"))
    with pytest.raises(DataError, match="name images and nothing else: give the folder"):
        load(source)


def test_lines_of_another_width_are_set_aside_by_name(folder: Path) -> None:
    content = lines(lambda i: f"im{i:03d} {CLASSES[i % 4]}" + (" more" if i == 9 else ""))
    found = load(text(folder / "list.txt", content), quarantine_limit=1)
    assert len(found.table) == 15
    assert [(e.name, e.detail) for e in found.quarantine.entries] == [
        ("list.txt, row 10 (line 10)", "3 cells, expected 2")
    ]


def test_texts_that_name_no_picture_are_no_lists(folder: Path) -> None:
    text(folder / "README.txt", "about this\ndata here\n")
    for i in range(16):
        text(folder / "images" / f"im{i:03d}.txt", f"photo {i}\n")
    assert load(folder).table.has("caption")


# -- tables of ids ----------------------------------------------------------------------------------------------


def test_a_table_of_ids_that_is_given_by_itself_finds_its_pictures(folder: Path) -> None:
    source = text(folder / "train.csv", "id,label\n" + lines(lambda i: f"im{i:03d},{CLASSES[i % 4]}"))
    for given in (source, folder):
        assert Counter(names(load(given))) == dict.fromkeys(CLASSES, 4)
    assert len(load(source, root=str(folder / "images")).table) == 16


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_numbers_without_the_zeros_in_front_are_ids(tmp_path: Path, kind: str) -> None:
    for i in range(16):
        picture(tmp_path / "train2017" / f"{i:012d}.png", CLASSES[i % 4], (16, 16), seed=i)
    source = tmp_path / f"captions.{kind}"
    ids, captions = [i // 2 for i in range(32)], [f"a {CLASSES[i // 2 % 4]}, text {i}" for i in range(32)]
    if kind == "csv":
        text(
            source, "image_id,caption\n" + "".join(f'{i},"{c}"\n' for i, c in zip(ids, captions, strict=True))
        )
    else:
        pq.write_table(pa.table({"image_id": ids, "caption": captions}), source)
    for given in (source, tmp_path):
        found = load(given)
        assert len(found.table) == 32
        assert len(set(found.table.identities())) == 16


def test_labels_that_are_also_names_of_pictures_are_no_ids(tmp_path: Path) -> None:
    for i in range(16):
        picture(tmp_path / f"{i}.png", CLASSES[i % 4], (16, 16), seed=i)
    source = text(tmp_path / "list.csv", "number,label\n" + lines(lambda i: f"{15 - i},{i % 4}"))
    found = load(source)
    assert said(found, "image = column 'number'")
    assert Counter(names(found)) == dict.fromkeys("0123", 4)


@pytest.mark.parametrize("mark", ["", "abcd1234-"])
def test_tables_of_label_studio_name_pictures_by_their_place_on_its_server(tmp_path: Path, mark: str) -> None:
    for i in range(8):
        picture(tmp_path / f"im{i}.png", CLASSES[i % 4], (16, 16), seed=i)
    rows = "".join(f"/data/upload/1/{mark}im{i}.png,{i},{CLASSES[i % 4]}\n" for i in range(8))
    source = text(tmp_path / "export.csv", "image,id,choice\n" + rows)
    for given in (source, tmp_path):
        assert Counter(names(load(given))) == dict.fromkeys(CLASSES, 2)
