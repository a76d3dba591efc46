"""Values that a program wrote into a table as it prints them: read as what they mean, or set aside by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from build import picture, text

from everclip.data.reading.class_name_notes import notes_on_names
from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec
from everclip.errors import DataError


def load(folder: Path, column: str, cell: Callable[[int], str], **options: Any) -> Loaded:
    for i in range(8):
        picture(folder / f"{i}.png", ("cat", "dog")[i % 2], (16, 16), seed=i)
    rows = ['{}.png,"{}"\n'.format(i, cell(i).replace('"', '""')) for i in range(8)]
    return read(
        DataSpec(source=str(text(folder / "list.csv", f"image,{column}\n" + "".join(rows))), **options)
    )


@pytest.mark.parametrize(
    ("cell", "meant"),
    [
        (lambda i: f"b'a dog {i}'", "a dog 1"),
        (lambda i: f"np.str_('a dog {i}')", "a dog 1"),
        (lambda i: f'="a dog {i}"', "a dog 1"),
        (lambda i: f"array(['a dog {i}'], dtype=object)", "a dog 1"),
        (lambda i: f"array(['a dog {i}',\n       'one dog {i}'], dtype=object)", "a dog 1"),
        (lambda i: f"['a dog {i}' 'one dog {i}']", "a dog 1"),
        (lambda i: f"['a dog {i}'\n \"one dog's {i}\"]", "a dog 1"),
        (lambda i: f"array of dogs ({i})", "array of dogs (1)"),
        (lambda i: f"b {i}", "b 1"),
    ],
)
def test_captions_are_what_a_program_meant(tmp_path: Path, cell: Callable[[int], str], meant: str) -> None:
    captions = load(tmp_path, "caption", cell).table.column("caption")
    assert meant in captions
    assert len(captions) == len(set(captions)) == (16 if "one dog" in cell(1) else 8)


@pytest.mark.parametrize(
    "cell",
    [
        lambda i: f"tensor({i % 2})",
        lambda i: f"tensor({i % 2}, device='cuda:0')",
        lambda i: f"np.int64({i % 2})",
        lambda i: f"b'{i % 2}'",
        lambda i: f"{i % 2}.0",
        lambda i: f'="{i % 2}"',
    ],
)
def test_classes_are_what_a_program_meant(tmp_path: Path, cell: Callable[[int], str]) -> None:
    found = load(tmp_path, "label", cell)
    assert set(found.table.column("class_name")) == {"0", "1"}
    assert any("8 values of class_name are as a program writes them" in line for line in found.guesses)


def test_numbers_that_are_not_all_whole_stay(tmp_path: Path) -> None:
    assert set(load(tmp_path, "label", lambda i: ("1.0", "2.5")[i % 2]).table.column("class_name")) == {
        "1.0",
        "2.5",
    }


@pytest.mark.parametrize("column", ["label", "caption"])
def test_errors_of_a_spreadsheet_are_set_aside(tmp_path: Path, column: str) -> None:
    found = load(tmp_path, column, lambda i: ("a cat", "#REF!", "a dog", "#N/A")[i % 4], quarantine_limit=1)
    assert len(found.table) == 4
    assert found.quarantine.entries[0].detail == "the cell holds '#REF!', an error of a spreadsheet"


def test_captions_of_words_for_nothing_are_all_named(tmp_path: Path) -> None:
    found = load(tmp_path, "caption", lambda i: ("nan", "None", f"dog {i}", f"cat {i}")[i % 4])
    assert any("4 captions are the words 'None', 'nan'" in line for line in found.guesses)


def test_a_class_called_by_a_word_for_nothing_is_said_beside_codes() -> None:
    lines = notes_on_names(["0", "1", "nan"])
    assert lines[0].startswith("1 class is called by a word for a missing value: 'nan'")
    assert lines[1].startswith("classes are called by numbers")


def test_captions_that_are_objects_without_a_text_name_the_file(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"{i}.png", "cat", (16, 16), seed=i)
    rows = "".join(
        f'{{"image": "{i}.png", "caption": {{"short": "a", "long": "b {i}"}}}}\n' for i in range(4)
    )
    with pytest.raises(DataError, match=r"a\.jsonl: the captions are objects of short, long"):
        read(DataSpec(source=str(text(tmp_path / "a.jsonl", rows))))
