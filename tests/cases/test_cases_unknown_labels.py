"""Tables whose columns of labels have no known name, hold several labels, or none: what is read, and what is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from build import picture, text

from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec
from everclip.errors import DataError

CLASSES = ("cat", "dog", "bird", "bus")


def load(source: Path, **options: Any) -> Loaded:
    return read(DataSpec(source=str(source), **options))


def table(
    folder: Path, header: str, cells: Callable[[int], str], name: str = "train.csv", rows: int = 24
) -> Path:
    for i in range(rows):
        picture(folder / f"im{i}.png", CLASSES[i % 4], (16, 16), seed=i)
    return text(folder / name, f"image,{header}\n" + "".join(f"im{i}.png,{cells(i)}\n" for i in range(rows)))


@pytest.mark.parametrize(
    ("header", "cells", "hint"),
    [
        (
            "tags",
            lambda i: f"{CLASSES[i % 4]} clear" if i % 2 else CLASSES[i % 4],
            "'tags' holds several labels",
        ),
        ("attribute_ids", lambda i: f"{i % 4} {i % 3}", "'attribute_ids' hold several numbers"),
        ("Target", lambda i: f"{i % 4} {i % 3}" if i % 3 else str(i % 4), "'Target' holds several labels"),
        (
            "Finding Labels",
            lambda i: f"{CLASSES[i % 4]}|{CLASSES[i % 3]}",
            '"data.columns.caption=Finding Labels"',
        ),
        ("labels", lambda i: f'"{CLASSES[i % 4]}, {CLASSES[i % 3]}"', "'labels' holds several labels"),
        ("PredictionString", lambda i: f"{i % 4} 1.0 10 10 40 40", "'PredictionString' hold several numbers"),
        ("one,two,three", lambda i: f"{i % 2},{int(i % 3 > 0)},1", "'one', 'two', 'three' hold 0 and 1"),
        ("breed", lambda i: CLASSES[i % 4], "'breed' may hold classes: data.columns.class_name=breed"),
        ("fine_label", lambda i: str(i % 4), "'fine_label' may hold classes"),
        ("productName", lambda i: f"nice big {CLASSES[i % 4]} {i}", "'productName' may hold captions"),
    ],
)
def test_what_columns_may_hold_is_said(
    tmp_path: Path, header: str, cells: Callable[[int], str], hint: str
) -> None:
    source = table(tmp_path, header, cells)
    for given in (source, tmp_path):
        with pytest.raises(DataError) as error:
            load(given)
        assert hint in str(error.value)


def test_objects_in_json_are_said(tmp_path: Path) -> None:
    table(tmp_path, "x", str)
    (tmp_path / "train.csv").unlink()
    talk = '[{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]'
    source = text(
        tmp_path / "talk.json",
        "[" + ", ".join(f'{{"image": "im{i}.png", "conversations": {talk}}}' for i in range(8)) + "]",
    )
    with pytest.raises(DataError, match=r"'conversations' holds lists of objects with from, value"):
        load(source)


def test_objects_in_a_cell_give_a_class_where_all_are_of_one(tmp_path: Path) -> None:
    def cells(i: int) -> str:
        return f"n0{i % 4} 1 2 30 40" + (f" n0{i % 3} 5 5 9 9" if i % 12 == 0 else " n09 5 5 9 9" * (i == 5))

    found = load(table(tmp_path, "PredictionString", cells), quarantine_limit=1)
    assert Counter(found.table.column("class_name")) == {"n00": 6, "n01": 5, "n02": 6, "n03": 6}
    assert [e.detail for e in found.quarantine.entries] == [
        "objects of 2 classes (n01, n09); expected one class per image"
    ]


def test_marks_of_minus_one_do_not_make_a_column_vanish(tmp_path: Path) -> None:
    found = load(table(tmp_path, "edema,effusion", lambda i: "1,0" if i % 2 else "-1,1"))
    assert Counter(found.table.column("class_name")) == {"edema": 12, "effusion": 12}


def test_a_table_of_pictures_without_labels_does_not_stop_the_labelled_one(tmp_path: Path) -> None:
    for i in range(16):
        picture(tmp_path / "train" / f"im{i}.png", CLASSES[i % 4], (16, 16), seed=i)
    for i in range(4):
        picture(tmp_path / "test" / f"te{i}.png", CLASSES[i % 4], (16, 16), seed=50 + i)
    text(tmp_path / "train.csv", "id,label\n" + "".join(f"im{i},{CLASSES[i % 4]}\n" for i in range(16)))
    text(tmp_path / "test.csv", "id\n" + "".join(f"te{i}\n" for i in range(4)))
    found = load(tmp_path)
    assert len(found.table) == 16
    assert any("test.csv: names 4 images and holds no captions or classes" in line for line in found.guesses)


@pytest.mark.parametrize("labels", ["ImageId,PredictionString\n{}", "ImageId\n{}"])
def test_a_table_of_few_pictures_does_not_decide_where_class_folders_hold_the_rest(
    tmp_path: Path, labels: str
) -> None:
    inner = tmp_path / "ILSVRC" / "Data"
    for j, name in enumerate(("n01440764", "n01443537", "n01484850")):
        for i in range(4):
            picture(inner / "train" / name / f"{i}.png", CLASSES[j], (16, 16), seed=10 * j + i)
    for i in range(4):
        picture(inner / "val" / f"val_{i}.png", "cat", (16, 16), seed=90 + i)
    cell = ",n01440764 1 2 3 4" if "String" in labels else ""
    text(tmp_path / "LOC_val_solution.csv", labels.format("".join(f"val_{i}{cell}\n" for i in range(4))))
    text(tmp_path / "LOC_synset_mapping.txt", "n01440764 tench\nn01443537 goldfish, gold\nn01484850 shark\n")
    found = load(tmp_path)
    assert len(found.table) == 12
    assert "tench" in found.table.column("class_name")
    assert any("LOC_val_solution.csv: names 4" in line for line in found.guesses)
