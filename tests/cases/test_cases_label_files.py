"""Labels as files of the field hold them: JSON by picture or by class, ids without endings, CUB's numbered lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from build import picture, text

from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec
from everclip.errors import DataError

CLASSES = ("cat", "dog", "bird", "bus")
COUNT = 12


def load(source: Path, **options: Any) -> Loaded:
    return read(DataSpec(source=str(source), **options))


def pictures(folder: Path, form: str = "{}.png") -> None:
    for i in range(COUNT):
        picture(folder / form.format(i), CLASSES[i % 4], (16, 16), seed=i)


def said(found: Loaded, *parts: str) -> bool:
    return any(all(part in line for part in parts) for line in found.guesses)


DOCUMENTS: dict[str, Any] = {
    "class by picture": {f"{i}.png": CLASSES[i % 4] for i in range(COUNT)},
    "images by class": {c: [f"{i}.png" for i in range(COUNT) if CLASSES[i % 4] == c] for c in CLASSES},
    "pairs": [[f"{i}.png", CLASSES[i % 4]] for i in range(COUNT)],
    "pairs under a key": {"labels": [[f"{i}.png", CLASSES[i % 4]] for i in range(COUNT)]},
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_json_of_pictures_and_classes_is_read_as_classes(tmp_path: Path, name: str) -> None:
    pictures(tmp_path)
    file = text(tmp_path / "labels.json", json.dumps(DOCUMENTS[name]))
    for source in (tmp_path, file):
        found = load(source)
        rows = zip(found.table.column("class_name"), range(COUNT), strict=True)
        assert sorted(c for c, _ in rows) == sorted(CLASSES * 3)
        assert not found.table.has("caption")


def test_numbers_by_picture_are_classes_with_names_from_a_list(tmp_path: Path) -> None:
    pictures(tmp_path)
    text(tmp_path / "labels.json", json.dumps({f"{i}.png": i % 4 for i in range(COUNT)}))
    assert set(load(tmp_path).table.column("class_name")) == set("0123")
    text(tmp_path / "classnames.txt", "cat\ndog\nbird\nbus\n")
    assert set(load(tmp_path).table.column("class_name")) == set(CLASSES)


def test_captions_by_picture_stay_captions_and_labels_can_be_made_some(tmp_path: Path) -> None:
    pictures(tmp_path)
    file = text(tmp_path / "a.json", json.dumps({f"{i}.png": f"picture {i}" for i in range(COUNT)}))
    assert load(file).table.column("caption")[3] == "picture 3"
    file = text(tmp_path / "a.json", json.dumps(DOCUMENTS["class by picture"]))
    assert said(load(file), "data.columns.caption=text if they are captions")
    assert load(file, columns={"caption": "text"}).table.column("caption")[1] == "dog"


def test_texts_beside_pictures_that_repeat_are_classes(tmp_path: Path) -> None:
    pictures(tmp_path / "img")
    for i in range(COUNT):
        text(tmp_path / f"txt/{i}.txt", CLASSES[i % 4])
    found = load(tmp_path)
    assert set(found.table.column("class_name")) == set(CLASSES)
    assert said(found, "hold classes: few short texts")
    assert load(tmp_path, columns={"caption": "text"}).table.has("caption")


def test_ids_without_the_ending_name_the_pictures_of_the_folder(tmp_path: Path) -> None:
    pictures(tmp_path / "train")
    rows = "".join(f"{i},{CLASSES[i % 4]}\n" for i in range(COUNT))
    text(tmp_path / "trainLabels.csv", "id,label\n" + rows)
    found = load(tmp_path)
    assert len(found.table) == COUNT
    assert said(found, "image = column 'id', whose values are images of the folder without their ending")
    text(tmp_path / "trainLabels.csv", "id,breed\n" + rows)
    with pytest.raises(DataError, match=r"columns are id, breed.*data\.columns\.class_name=NAME"):
        load(tmp_path)
    assert set(load(tmp_path, columns={"class_name": "breed"}).table.column("class_name")) == set(CLASSES)


def test_numbers_of_labels_are_no_names_of_pictures(tmp_path: Path) -> None:
    pictures(tmp_path)
    text(tmp_path / "a.csv", "name,label\n" + "".join(f"x{i},{i % 4}\n" for i in range(COUNT)))
    with pytest.raises(DataError, match="no column `image`"):
        load(tmp_path)


def test_a_second_column_of_pictures_is_named(tmp_path: Path) -> None:
    pictures(tmp_path)
    rows = "".join(f"{i}.png,{(i + 1) % COUNT}.png,text {i}\n" for i in range(COUNT))
    text(tmp_path / "a.csv", "image_1,image_2,caption\n" + rows)
    assert said(load(tmp_path), "image = column 'image_1'", "not read: 'image_2', of images as well")


def test_columns_of_texts_without_names_are_all_captions(tmp_path: Path) -> None:
    pictures(tmp_path)
    text(tmp_path / "a.csv", "".join(f"{i}.png,a picture {i},again {i} here\n" for i in range(COUNT)))
    found = load(tmp_path)
    assert found.table.column("caption")[:2] == ["a picture 0", "again 0 here"]
    assert load(tmp_path, columns={"caption": "3"}).table.column("caption")[0] == "again 0 here"


def test_cubs_numbered_lists_say_the_sides(tmp_path: Path) -> None:
    for i in range(COUNT):
        picture(tmp_path / f"images/{i % 4 + 1:03}.{CLASSES[i % 4]}/{i}.jpg", "cat", (16, 16), seed=i)
    names = [f"{i % 4 + 1:03}.{CLASSES[i % 4]}/{i}.jpg" for i in range(COUNT)]
    text(tmp_path / "images.txt", "".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    text(tmp_path / "train_test_split.txt", "".join(f"{i} {int(i <= 8)}\n" for i in range(1, COUNT + 1)))
    found = load(tmp_path)
    assert sorted(found.table.column("split")) == ["test"] * 4 + ["train"] * 8
    assert said(found, "sides are those of the lists images.txt, train_test_split.txt")
    assert not load(tmp_path, columns={"split": ""}).table.has("split")
