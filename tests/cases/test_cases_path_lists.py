"""Lists of `path label` without a header, as ImageNet, Caffe and their like have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from build import picture, text

from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec
from everclip.errors import DataError

CLASSES = ("cat", "dog", "bird", "bus")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(12):
        picture(tmp_path / "images" / f"im{i}.png", CLASSES[i % 4], (16, 16), seed=i)
    return tmp_path


def lines(row: Callable[[int], str], rows: range = range(12)) -> str:
    return "".join(row(i) + "\n" for i in rows)


def load(source: Path, **options: Any) -> Loaded:
    return read(DataSpec(source=str(source), **options))


def names(found: Loaded) -> list[Any]:
    return found.table.column("class_name")


@pytest.mark.parametrize("separator", [" ", "\t"])
@pytest.mark.parametrize("start", ["", "images/"])
def test_numbers_behind_paths_are_classes(folder: Path, separator: str, start: str) -> None:
    source = text(folder / "val.txt", lines(lambda i: f"{start}im{i}.png{separator}{i % 4}"))
    for given in (source, folder):
        found = load(given)
        assert sorted(names(found)) == sorted(str(i % 4) for i in range(12))
        assert any("class_name = column '2'" in line for line in found.guesses)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classnames.txt", "cat\ndog\nbird\nbus\n"),
        ("labels.txt", "0 cat\n1 dog\n2 bird\n3 bus\n"),
        ("synset_words.txt", "n02123045 cat, puss\nn02123046 dog\nn02123047 bird\nn02123048 bus\n"),
    ],
)
@pytest.mark.parametrize("columns", [{}, {"class_name": "2"}])
def test_numbers_take_their_names_from_a_list_beside(
    folder: Path, name: str, content: str, columns: dict[str, str]
) -> None:
    source = text(folder / "val.txt", lines(lambda i: f"images/im{i}.png {i % 4}"))
    text(folder / name, content)
    for given in (source, folder):
        found = load(given, columns=columns)
        assert set(names(found)) == set(CLASSES)
        assert set(found.table.column("class_key")) == set("0123")
        assert any(f"names of the classes are from {folder.name}/{name}" in line for line in found.guesses)


def test_a_dictionary_of_all_words_does_not_number_classes(folder: Path) -> None:
    source = text(folder / "val.txt", lines(lambda i: f"images/im{i}.png {i % 4}"))
    text(folder / "words.txt", "".join(f"n0000{i:04d}\tword {i}\n" for i in range(50)))
    assert set(names(load(source))) == set("0123")


def test_names_behind_paths_are_classes_of_one_word_or_several(folder: Path) -> None:
    source = text(folder / "list.txt", lines(lambda i: f"images/im{i}.png {CLASSES[i % 4]}"))
    assert names(load(source))[:4] == list(CLASSES)
    source = text(folder / "list.txt", lines(lambda i: f"images/im{i}.png golden {CLASSES[i % 4]}"))
    found = load(source)
    assert names(found)[1] == "golden dog"
    assert any(
        "whose texts repeat: 4 in 12 rows (captions: data.columns.caption=2)" in line
        for line in found.guesses
    )
    assert load(source, columns={"caption": "2"}).table.column("caption")[1] == "golden dog"


def test_captions_stay_captions_and_ids_stay_unread(folder: Path) -> None:
    source = text(folder / "list.txt", lines(lambda i: f"images/im{i}.png picture number {i}"))
    assert load(source).table.column("caption")[3] == "picture number 3"
    source = text(folder / "list.txt", lines(lambda i: f"images/im{i}.png a{i * 7}"))
    with pytest.raises(DataError, match="neither captions nor classes"):
        load(source)


def test_names_of_pictures_may_hold_blanks(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / f"my cat {i}.png", "cat", (16, 16), seed=i)
    source = text(tmp_path / "list.txt", lines(lambda i: f"my cat {i}.png {i % 2}", range(6)))
    assert names(load(source)) == list("010101")


def test_several_numbers_are_no_captions(folder: Path) -> None:
    source = text(folder / "list.txt", lines(lambda i: f"images/im{i}.png 0 {i % 2} 1"))
    with pytest.raises(DataError, match=r"several numbers \('0 0 1'\): several classes of one image"):
        load(source)


def test_lists_of_sides_are_sides(folder: Path) -> None:
    text(folder / "train.txt", lines(lambda i: f"images/im{i}.png {i % 4}", range(8)))
    text(folder / "test.txt", lines(lambda i: f"images/im{i}.png {i % 4}", range(8, 12)))
    found = load(folder)
    assert found.table.column("split") == ["test"] * 4 + ["train"] * 8
    assert set(names(found)) == set("0123")


def test_folders_of_sides_without_class_folders_need_the_lists(tmp_path: Path) -> None:
    for i in range(12):
        picture(tmp_path / ("train" if i < 8 else "val") / f"im{i}.png", CLASSES[i % 4], (16, 16), seed=i)
    text(tmp_path / "train.txt", lines(lambda i: f"im{i}.png {i % 4}", range(8)))
    text(tmp_path / "val.txt", lines(lambda i: f"im{i}.png {i % 4}", range(8, 12)))
    found = load(tmp_path)
    assert len(names(found)) == 12
    assert found.table.column("split").count("validation") == 4


def test_class_folders_say_more_than_numbers_in_lists(tmp_path: Path) -> None:
    for i in range(12):
        picture(tmp_path / CLASSES[i % 4] / f"im{i}.png", CLASSES[i % 4], (16, 16), seed=i)
    text(tmp_path / "all.txt", lines(lambda i: f"{CLASSES[i % 4]}/im{i}.png {i % 4}"))
    found = load(tmp_path)
    assert set(names(found)) == set(CLASSES)
    assert any("not read" in line and "all.txt" in line for line in found.guesses)


def test_one_list_whose_paths_lie_in_folders_of_sides_says_the_sides(tmp_path: Path) -> None:
    for i in range(12):
        picture(tmp_path / ("train" if i < 8 else "test") / f"im{i}.png", CLASSES[i % 4], (16, 16), seed=i)
    source = text(tmp_path / "list.csv", lines(lambda i: f"{'train' if i < 8 else 'test'}/im{i}.png,{i % 4}"))
    assert load(source).table.column("split") == ["train"] * 8 + ["test"] * 4


def test_numbers_without_names_are_said_to_mean_nothing(
    folder: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    source = text(folder / "val.txt", lines(lambda i: f"images/im{i}.png {i % 4}"))
    _, out, _ = command("check", source)
    assert "classes are called by numbers ('0', '1', '2')" in out
    assert "classnames.txt beside" in " ".join(out.split())


def test_a_number_may_stand_before_the_path(folder: Path) -> None:
    source = text(folder / "list.txt", lines(lambda i: f"{i % 4} images/im{i}.png"))
    assert names(load(source))[:4] == list("0123")
    source = text(folder / "images.txt", lines(lambda i: f"{i} images/im{i}.png"))  # numbers of rows
    with pytest.raises(DataError, match="neither captions nor classes"):
        load(source)
