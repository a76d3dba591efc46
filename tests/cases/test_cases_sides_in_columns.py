"""Sides of rows that a column says under another name than `split`, or with other words than train, val, test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from build import picture, text

from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec
from everclip.data.sampling.splits import side_of
from everclip.errors import DataError

CLASSES = ("cat", "dog")


def table(folder: Path, column: str, mark: Callable[[int], object], rows: int = 16) -> Path:
    for i in range(rows):
        picture(folder / f"{i}.png", CLASSES[i // 2 % 2], (16, 16), seed=i)
    lines = [f"{i}.png,{CLASSES[i // 2 % 2]},{mark(i)}\n" for i in range(rows)]
    return text(folder / "list.csv", f"file,label,{column}\n" + "".join(lines))


def load(source: Path, **columns: str) -> Loaded:
    return read(DataSpec(source=str(source), columns=columns))


def sides(found: Loaded) -> dict[Any, int]:
    return dict(Counter(side_of(mark) for mark in found.table.column("split")))


@pytest.mark.parametrize(
    ("column", "marks"),
    [
        ("subset", ("train", "test")),
        ("set", ("Train", "Test")),
        ("Usage", ("Training", "PublicTest")),
        ("data set", ("TRAIN", "TEST")),
        ("anything", ("train_2", "test2017")),
        ("phase", ("trainval", "testA")),
        ("split_name", ("training", "held-out")),
        ("is_test", ("0", "1")),
        ("isTest", ("False", "True")),
        ("is_training_image", ("1", "0")),
    ],
)
def test_a_column_whose_values_are_sides_keeps_them(
    tmp_path: Path, column: str, marks: tuple[str, str]
) -> None:
    source = table(tmp_path, column, lambda i: marks[i % 4 == 0])
    for given in (source, tmp_path):
        found = load(given)
        assert sides(found) == {"test": 4, "train": 12}
        assert any(line.startswith(f"split = column '{column}'") for line in found.guesses)


def test_rows_for_validation_are_the_few_of_a_column_of_truth(tmp_path: Path) -> None:
    assert sides(load(table(tmp_path, "is_valid", lambda i: i % 4 == 0))) == {"val": 4, "train": 12}
    # True for most rows: whether a picture is sound, no side.
    assert not load(table(tmp_path, "is_valid", lambda i: i % 4 != 0)).table.has("split")


def test_init_config_trains_on_no_row_that_such_a_column_marks_as_test(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    source = table(tmp_path / "data", "subset", lambda i: "test" if i % 4 == 0 else "train")
    code, _, err = command("init-config", source, "-o", tmp_path / "my.yaml")
    assert code == 0, err
    assert "the 4 rows marked as test are measured, and never trained on" in err
    assert "column: split" in (tmp_path / "my.yaml").read_text()


def test_a_column_of_sides_keeps_its_name_for_conditions(tmp_path: Path) -> None:
    found = load(table(tmp_path, "subset", lambda i: "test" if i % 4 == 0 else "train"))
    assert found.table.column("subset") == found.table.column("split")


def test_the_user_may_say_that_there_are_no_sides(tmp_path: Path) -> None:
    source = table(tmp_path, "subset", lambda i: "test" if i % 4 == 0 else "train")
    assert not load(source, split="").table.has("split")


def test_numbers_and_unknown_words_are_said_and_not_guessed(tmp_path: Path) -> None:
    found = load(table(tmp_path, "fold", lambda i: i % 5))
    assert not found.table.has("split")
    assert any(
        "column 'fold' may say sides, but its values (0, 1, 2, 3) name none" in g for g in found.guesses
    )
    found = load(table(tmp_path, "split", lambda i: "AB"[i % 2]))
    assert any("'A', 'B' name no side (train, val, test)" in line for line in found.guesses)


def test_two_columns_of_sides_are_asked_about(tmp_path: Path) -> None:
    table(tmp_path, "one", lambda i: "train")
    rows = [
        f"{i}.png,{CLASSES[i // 2 % 2]},{'train' if i % 2 else 'test'},{'val' if i % 3 else 'train'}\n"
        for i in range(16)
    ]
    source = text(tmp_path / "list.csv", "file,label,one,two\n" + "".join(rows))
    with pytest.raises(
        DataError, match=r"'one', 'two' could each say the sides. Say which with data.columns.split=one"
    ):
        load(source)


@pytest.mark.parametrize(
    ("mark", "side"),
    [
        ("test-dev", "test"), ("val2017", "val"), ("testA", "test"), ("PrivateTest", "test"), ("seen_val", "val"),
        ("Held out", "test"), ("validate", "val"), ("testset", "test"), ("train_val", "train"), ("restval", "train"),
        ("contest", "train"), ("A", "train"), ("", "train"),
    ],
)  # fmt: skip
def test_marks_of_sides_are_known_by_their_words(mark: str, side: str) -> None:
    assert side_of(mark) == side


@pytest.mark.parametrize(
    ("first", "second"), [("trainset", "testset"), ("train", "validate"), ("trainval", "test")]
)
def test_folders_called_after_sides_in_other_words_are_sides(tmp_path: Path, first: str, second: str) -> None:
    for side in (first, second):
        for name in CLASSES:
            picture(tmp_path / side / name / "0.png", name, (16, 16), seed=len(side))
    assert sorted(sides(load(tmp_path)).values()) == [2, 2]
