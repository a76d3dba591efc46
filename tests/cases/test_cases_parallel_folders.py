"""Folders of pictures beside folders of texts, and detection data: captions, a class a picture, or a refusal."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from build import picture, text

from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError, DataError

CLASSES = ("cat", "dog", "bird", "bus")


def load(source: Path, **options: Any) -> Loaded:
    return read(DataSpec(source=str(source), **{"quarantine_limit": 1.0, **options}))


def said(found: Loaded, *parts: str) -> bool:
    return any(all(part in line for part in parts) for line in found.guesses)


def pictures(folder: Path, numbers: Sequence[int] = range(8)) -> None:
    for i in numbers:
        picture(folder / f"{i}.jpg", CLASSES[i % 4], (16, 16), seed=i)


def xml(*names: str) -> str:
    objects = (
        f"<object>\n<name>{n}</name><part><name>head</name></part><bndbox><xmin>1</xmin></bndbox></object>"
        for n in names
    )
    return f"<annotation><filename>x.jpg</filename>{''.join(objects)}</annotation>"


def box(number: int) -> str:
    return f"{number} 0.5 0.5 0.2 0.25\n"


def coco(names: Sequence[Sequence[str]]) -> str:
    every = sorted({n for held in names for n in held})
    return json.dumps(
        {
            "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(len(names))],
            "annotations": [
                {"image_id": i, "category_id": every.index(n), "bbox": [1, 1, 5, 5]}
                for i, held in enumerate(names)
                for n in held
            ],
            "categories": [{"id": i, "name": n} for i, n in enumerate(every)],
        }
    )


# -- texts in a folder of their own ---------------------------------------------------------------------------


@pytest.mark.parametrize("pair", ["img txt", "images captions", "jpg text", "images labels", "photos mine"])
def test_a_folder_of_texts_gives_captions(tmp_path: Path, pair: str) -> None:
    shown, texts = pair.split()
    pictures(tmp_path / shown)
    for i in range(8):
        text(tmp_path / texts / f"{i}.txt", f"picture {i}\nagain {i}\n")
    found = load(tmp_path)
    assert found.table.column("caption")[:2] == ["picture 0", "again 0"]
    assert len(set(found.table.column("image_id"))) == 8
    assert said(found, f"the images are in {shown}/, their texts are in {texts}/")


@pytest.mark.parametrize(
    "inner", ["images/{}/{}.jpg captions/{}/{}.txt", "{}/images/{}.jpg {}/captions/{}.txt"]
)
def test_sides_above_or_below_the_two_folders_are_sides(tmp_path: Path, inner: str) -> None:
    shown, texts = inner.split()
    for i in range(8):
        side = "train" if i < 5 else "test"
        picture(tmp_path / shown.format(side, i), "cat", (16, 16), seed=i)
        text(tmp_path / texts.format(side, i), f"picture {i}")
    found = load(tmp_path)
    assert sorted(found.table.column("split")) == ["test"] * 3 + ["train"] * 5
    assert not found.table.has("class_name")


def test_class_folders_inside_both_are_classes_with_captions(tmp_path: Path) -> None:
    for i in range(8):
        picture(tmp_path / "images" / CLASSES[i % 4] / f"{i}.jpg", CLASSES[i % 4], (16, 16), seed=i)
        text(tmp_path / "captions" / CLASSES[i % 4] / f"{i}.txt", f"picture {i}")
    found = load(tmp_path)
    assert set(found.table.column("class_name")) == set(CLASSES)
    assert len(set(found.table.column("caption"))) == 8


def test_pictures_without_a_text_are_counted_and_names_that_do_not_match_are_no_pairs(tmp_path: Path) -> None:
    pictures(tmp_path / "img")
    for i in range(5):
        text(tmp_path / "txt" / f"{i}.txt", f"picture {i}")
    found = load(tmp_path)
    assert len(found.table) == 5
    assert said(found, "images without a .txt file, not read: 3 (5.jpg, 6.jpg, 7.jpg)")
    for file in (tmp_path / "txt").iterdir():
        file.rename(file.with_name(f"x{file.name}"))
    with pytest.raises(DataError, match="without a metadata file"):
        load(tmp_path)


def test_a_text_that_is_a_link_out_of_the_data_is_not_read(tmp_path: Path) -> None:
    secret = text(tmp_path / "secret", "my password")
    pictures(tmp_path / "data/img")
    for i in range(8):
        text(tmp_path / f"data/txt/{i}.txt", f"picture {i}")
    (tmp_path / "data/txt/0.txt").unlink()
    os.symlink(secret, tmp_path / "data/txt/0.txt")
    found = load(tmp_path / "data")
    assert found.quarantine.counts() == {"outside-root": 1}
    assert "my password" not in found.table.column("caption")


# -- detection data -------------------------------------------------------------------------------------------


def test_voc_with_one_class_a_picture_gives_classes_and_the_sides_of_its_lists(tmp_path: Path) -> None:
    home = tmp_path / "VOCdevkit/VOC2007"
    pictures(home / "JPEGImages")
    pictures(home / "SegmentationClass")
    for i in range(8):
        text(home / f"Annotations/{i}.xml", xml(*[f"{CLASSES[i % 4]} &amp; co"] * (1 + i % 2)))
    text(home / "ImageSets/Main/train.txt", "0\n1\n2\n3\n4\n")
    text(home / "ImageSets/Main/val.txt", "5\n6\n7\n")
    found = load(tmp_path)
    assert set(found.table.column("class_name")) == {f"{c} & co" for c in CLASSES}
    assert found.table.column("split").count("validation") == 3
    assert said(found, "detection data (Pascal VOC)", "8 images show objects of one class")
    assert said(found, "not read: 2 (ImageSets, SegmentationClass)")


@pytest.mark.parametrize(
    "names", ["names: [cat, dog, bird, bus]\n", "names:\n  0: cat\n  1: dog\n  2: bird\n  3: bus\n"]
)
@pytest.mark.parametrize("inner", ["images/{}/{}.jpg labels/{}/{}.txt", "{}/images/{}.jpg {}/labels/{}.txt"])
def test_yolo_takes_names_from_its_yaml_and_sides_from_folders(
    tmp_path: Path, names: str, inner: str
) -> None:
    shown, texts = inner.split()
    for i in range(8):
        side = "train" if i < 6 else "val"
        picture(tmp_path / shown.format(side, i), "cat", (16, 16), seed=i)
        text(tmp_path / texts.format(side, i), box(i % 4) * (1 + i % 2))
    text(tmp_path / "data.yaml", "train: ../train/images\nnc: 4\n" + names)
    found = load(tmp_path)
    assert set(found.table.column("class_name")) == set(CLASSES)
    assert sorted(found.table.column("split")) == ["train"] * 6 + ["validation"] * 2
    assert not said(found, "not read", "data.yaml")


@pytest.mark.parametrize("place", ["classes.txt", "labels/classes.txt"])
def test_yolo_takes_names_from_a_list_or_keeps_its_numbers(tmp_path: Path, place: str) -> None:
    pictures(tmp_path / "images")
    for i in range(8):
        text(tmp_path / f"labels/{i}.txt", box(i % 4))
    assert set(load(tmp_path).table.column("class_name")) == set("0123")
    text(tmp_path / place, "cat\ndog\nbird\nbus\n")
    assert set(load(tmp_path).table.column("class_name")) == set(CLASSES)


@pytest.mark.parametrize("ending", ["txt", "xml", "json"])
def test_files_of_objects_beside_the_pictures_are_read_alike(tmp_path: Path, ending: str) -> None:
    pictures(tmp_path)
    for i in range(8):
        name = CLASSES[i % 4]
        held = {
            "txt": box(i % 4),
            "xml": xml(name),
            "json": json.dumps({"shapes": [{"label": name}], "flags": {}}),
        }
        text(tmp_path / f"{i}.{ending}", held[ending])
    text(tmp_path / "classes.txt", "cat\ndog\nbird\nbus\n")
    found = load(tmp_path)
    assert set(found.table.column("class_name")) == set(CLASSES)
    assert said(found, "detection data")


def test_pictures_of_several_classes_are_set_aside_by_name(tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    for i in range(8):
        text(tmp_path / f"labels/{i}.txt", box(i % 4) + (box(3) if i == 0 else ""))
    text(tmp_path / "labels/1.txt", "")
    text(tmp_path / "labels/2.txt", "1 0.5 0.5\n")
    found = load(tmp_path)
    assert len(found.table) == 5
    why = {entry.name: entry.detail for entry in found.quarantine.entries}
    assert why["images, 0.jpg"] == "objects of 2 classes (0, 3); expected one class per image"
    assert why["images, 1.jpg"] == "no annotation names a class"
    assert "not readable as YOLO" in why["images, 2.jpg"]
    assert said(found, "set aside: 1 of several, 1 of none")


@pytest.mark.parametrize("form", ["voc", "yolo", "coco"])
def test_pictures_that_all_show_several_classes_are_refused_with_a_remedy(tmp_path: Path, form: str) -> None:
    pictures(tmp_path / ("val2017" if form == "coco" else "images"))
    for i in range(8):
        if form != "coco":
            held = xml("cat", "dog") if form == "voc" else box(0) + box(1)
            text(tmp_path / f"objects/{i}.{'xml' if form == 'voc' else 'txt'}", held)
    if form == "coco":
        text(tmp_path / "annotations/instances_val2017.json", coco([["cat", "dog"]] * 8))
    with pytest.raises(
        DataError, match=r"detection data .*8 images show objects of several classes.*cut each object"
    ):
        load(tmp_path)


def test_coco_objects_are_called_detection_data(tmp_path: Path) -> None:
    pictures(tmp_path / "val2017")
    text(tmp_path / "annotations/instances_val2017.json", coco([[CLASSES[i % 4]] * 2 for i in range(8)]))
    found = load(tmp_path)
    assert set(found.table.column("class_name")) == set(CLASSES)
    assert said(found, "detection data (COCO): 8 images show objects of one class")


def test_class_folders_say_more_than_numbers_beside_their_pictures(tmp_path: Path) -> None:
    for i in range(8):
        picture(tmp_path / CLASSES[i % 4] / f"{i}.jpg", CLASSES[i % 4], (16, 16), seed=i)
        text(tmp_path / CLASSES[i % 4] / f"{i}.txt", box(0))
    found = load(tmp_path)
    assert set(found.table.column("class_name")) == set(CLASSES)
    assert said(found, "hold numbers, no captions")


def test_yolos_yaml_as_the_source_says_to_give_the_folder(tmp_path: Path) -> None:
    file = text(tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [cat, dog]\n")
    with pytest.raises(ConfigError, match=rf"describes data of YOLO; give the folder: {tmp_path}"):
        load(file)


@pytest.mark.parametrize("header", ["filename,class,xmin,ymin,xmax,ymax", "image,label,bbox,x,y,z"])
def test_tables_with_a_row_per_box_give_a_class_per_picture(tmp_path: Path, header: str) -> None:
    pictures(tmp_path / "images")
    rows = [f"{i}.jpg,{CLASSES[i % 4]},1,2,3,4" for i in range(8) for _ in range(2)]
    file = text(tmp_path / "boxes.csv", "\n".join([header, *rows, "0.jpg,bus,1,2,3,4"]) + "\n")
    for source in (tmp_path, file):
        found = load(source)
        assert len(found.table) == 7
        assert [(e.row, e.detail) for e in found.quarantine.entries] == [
            (1, "objects of 2 classes (bus, cat); expected one class per image")
        ]
        assert said(found, "detection data (a row per box): 7 images show objects of one class")


def test_several_folders_of_texts_are_several_captions(tmp_path: Path) -> None:
    pictures(tmp_path / "img")
    for i in range(8):
        text(tmp_path / f"long/{i}.txt", f"a long text {i}\n")
        text(tmp_path / f"short/{i}.txt", f"short {i}\n")
    found = load(tmp_path)
    assert found.table.column("caption")[:2] == ["a long text 0", "short 0"]
    assert said(found, "their texts are in long/ and short/")


def test_texts_that_are_not_called_as_the_pictures_are_named(tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    for i in range(8):
        text(tmp_path / f"captions/cap_{i}.txt", f"picture {i}")
    with pytest.raises(
        DataError, match=r"the 8 texts of captions/ do not have the names of the images of images/"
    ):
        load(tmp_path)


def test_places_of_objects_in_a_list_are_no_captions(tmp_path: Path) -> None:
    pictures(tmp_path)
    file = text(tmp_path / "train.txt", "".join(f"{i}.jpg 1,2,3,4,{i % 4}\n" for i in range(8)))
    with pytest.raises(DataError, match=r"hold several numbers \('1,2,3,4,0'\)"):
        load(file)
