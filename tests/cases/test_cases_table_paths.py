"""Paths in tables: of other machines, in other forms, and where the pictures lie elsewhere."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest
from build import picture, text
from case_tables import captions, details, loaded

from everclip.data.reading.references import Resolver, image_locations
from everclip.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(12):
        picture(tmp_path / f"{i}.png", "bee", (16, 16), seed=i)
    return tmp_path


# -- paths (B07, B15, B18, S03) -------------------------------------------------------------------------------


def cats(folder: Path, count: int = 6) -> None:
    for i in range(count):
        picture(folder / f"images/cat/{i}.png", "cat", (16, 16), seed=i)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("images\\cat\\{}.png", "kind of slash"),
        (".\\images\\cat\\{}.png", "kind of slash"),
        ("./images/cat/{}.png", None),
        ("C:\\Users\\me\\data\\images\\cat\\{}.png", "'C:/Users/me/data', of another machine"),
        ("/home/me/data/images/cat/{}.png", "'/home/me/data', of another machine"),
        ("file:///C:/Users/me/images/cat/{}.png", "of another machine"),
        ("Images/Cat/{}.PNG", "letter case"),
        ("images/cat/{}", "missing ending"),
        (" images/cat/{}.png ", "blanks around"),
        ("images%2Fcat%2F{}.png", "marks of URLs"),
    ],
)
def test_b18_paths_are_read_where_that_is_safe(tmp_path: Path, pattern: str, said: str | None) -> None:
    cats(tmp_path)
    rows = "".join(f"{pattern.format(i)},cat {i}\r\n" for i in range(6))
    found = loaded(text(tmp_path / "a.csv", "file,caption\r\n" + rows))
    assert captions(found) == [f"cat {i}" for i in range(6)]
    assert [found.table.origin(i) for i in range(6)] == [
        str(tmp_path / f"images/cat/{i}.png") for i in range(6)
    ]
    if said is not None:
        assert any(said in line for line in found.guesses)


def test_b18_urls_of_files(tmp_path: Path) -> None:
    cats(tmp_path)
    rows = "".join(f"file://{tmp_path}/images/cat/{i}.png,cat {i}\n" for i in range(6))
    assert len(loaded(text(tmp_path / "url.csv", "file,caption\n" + rows)).table) == 6


def test_b18_paths_of_another_machine_without_their_files_say_so(tmp_path: Path) -> None:
    cats(tmp_path)
    found = loaded(text(tmp_path / "a.csv", "file,caption\nD:\\x\\0.jpg,a\nimages/cat/0.png,b\n"))
    assert captions(found) == ["b"]
    assert "outside-root" in details(found)[1]
    assert "of another machine" in details(found)[1]


def test_a_path_that_is_nearly_another_rows_file_is_not_taken(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    found = loaded(text(tmp_path / "a.csv", "file,caption\na.png,one\nA.png,two\n"))
    assert captions(found) == ["one"]
    assert "differs in letter case" in details(found)[2]


def test_near_names_never_lead_out_of_the_folder(tmp_path: Path) -> None:
    picture(tmp_path / "out.png")
    picture(tmp_path / "in/x.png")
    (tmp_path / "in/link.png").symlink_to(tmp_path / "out.png")
    rows = ["..\\out.png,a", "LINK.png,b", "%2e%2e/out.png,c", "x.png,d"]
    found = loaded(text(tmp_path / "in/a.csv", "file,caption\n" + "\n".join(rows)))
    assert captions(found) == ["d"]
    assert found.quarantine.counts()["outside-root"] == 3


@pytest.mark.parametrize("stored", ["NFD", "NFC"])
def test_b07_names_in_another_unicode_form_are_found(tmp_path: Path, stored: str) -> None:
    words = ["Müller", "Übung", "café", "naïve", "Å", "日本が"]
    written = "NFC" if stored == "NFD" else "NFD"
    for i, word in enumerate(words):
        picture(tmp_path / "img" / (unicodedata.normalize(stored, word) + ".png"), "bird", (16, 16), seed=i)
    rows = "".join(f"img/{unicodedata.normalize(written, w)}.png,a bird at {w}\n" for w in words)
    found = loaded(text(tmp_path / "list.csv", "file,caption\n" + rows))
    assert len(found.table) == 6
    assert any("Unicode form" in line for line in found.guesses)


def test_s03_another_ending_and_another_folder_are_said(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png", seed=i)
    picture(tmp_path / "deep/er/z.png", seed=9)
    found = loaded(text(tmp_path / "a.csv", "file,caption\n0.png,a\n1.jpg,b\nz.png,c\nq.png,d\n"))
    assert captions(found) == ["a"]
    assert "'1.png' is there: the ending differs" in details(found)[2]
    assert f"data.root={tmp_path / 'deep/er'}" in details(found)[3]
    assert details(found)[4].endswith("; 3 images are there that no row names, as '1.png'")


def test_b15_captions_without_a_root_find_the_folder_beside(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"Images/{1000 + i}_ab.jpg", "tram", (16, 16), seed=i)
    rows = "".join(
        f"{1000 + i}_ab.jpg,A tram {w} line {i} .\n" for i in range(4) for w in ("on", "of", "near")
    )
    for name in ("captions.txt", "captions.csv"):
        found = loaded(text(tmp_path / name, "image,caption\n" + rows))
        assert len(found.table) == 12
        assert any("paths start from 'Images'" in line for line in found.guesses)


def test_two_folders_that_could_be_meant_are_both_named(tmp_path: Path) -> None:
    for i in range(2):
        picture(tmp_path / f"large/{i}.png", seed=i)
        picture(tmp_path / f"small/{i}.png", "dog", seed=i)
    path = text(tmp_path / "a.csv", "image,caption\n0.png,a\n1.png,b\n")
    with pytest.raises(DataError, match=r"files of this name are there, in other folders"):
        loaded(path, quarantine_limit=0.5)
    assert len(loaded(path, root=str(tmp_path / "large")).table) == 2


# -- tables of several parts ----------------------------------------------------------------------------------


def test_b07_a_file_that_a_later_part_of_the_table_names_is_not_taken_for_another(tmp_path: Path) -> None:
    picture(tmp_path / "photo.png")
    column = pa.chunked_array([["PHOTO.png"], ["photo.png"]])
    _, problems = image_locations(column, Resolver(tmp_path, None), "shop.parquet")
    assert [(row, reason) for row, reason, _ in problems] == [(0, "missing-file")]
    assert "another row names it" in problems[0][2]


def test_urls_of_one_ending_are_told_apart_across_the_parts_of_a_table(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    column = pa.chunked_array([["https://a.example/1.png"], ["https://b.example/1.png"]])
    _, problems = image_locations(column, Resolver(None, tmp_path), "shop.parquet")
    assert [(row, reason) for row, reason, _ in problems] == [(0, "not-downloaded"), (1, "not-downloaded")]
    assert "2 URLs end in '1.png'" in problems[0][2]


def test_b07_among_too_many_files_none_is_taken_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everclip.data.reading.path_matching._MOST_FILES", 2)
    for i in range(3):
        picture(tmp_path / f"photo{i}.png", seed=i)
    table = text(tmp_path / "shop.csv", "image,caption\nPHOTO0.png,a\nphoto1.png,b\n")
    found = loaded(table)
    assert [entry.reason for entry in found.quarantine.entries] == ["missing-file"]
    assert any("more than 2 files are below" in line for line in found.guesses)
