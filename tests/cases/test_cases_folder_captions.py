"""Texts, JSON and lists of captions beside pictures in a folder, in any encoding."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from build import encoded, picture, tar, text
from case_folders import classes, counts, load, said

from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.errors import DataError

# -- captions beside pictures ---------------------------------------------------------------------------------


def test_b15_pictures_with_a_text_each(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"{i:03d}.jpg", "tram", (16, 16), i)
        text(tmp_path / f"{i:03d}.txt", f"a tram, number {i}\n" + ("a second line\n\n" if i == 0 else ""))
    picture(tmp_path / "bare.jpg", "tram", (16, 16), 50)
    loaded = load(tmp_path)
    assert loaded.table.column("caption")[:3] == ["a tram, number 0", "a second line", "a tram, number 1"]
    assert len(set(loaded.table.identities())) == 4  # lines of one file are captions of one picture
    assert said(loaded, "images without a .txt file, not read: 1 (bare.jpg)")
    assert said(loaded, "several lines of a .txt file are several captions: 1 files")


def test_pictures_with_json_each(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png", "cat", (16, 16), i)
        text(tmp_path / f"{i}.json", json.dumps({"caption": f"cat {i}", "year": 2020 + i}))
    loaded = load(tmp_path)
    assert loaded.table.column("caption") == ["cat 0", "cat 1", "cat 2"]
    assert loaded.table.column("time") == [2020, 2021, 2022]


def test_pairs_in_class_folders_keep_their_classes(tmp_path: Path) -> None:
    for number, name in enumerate(["cat", "dog"]):
        for i in range(2):
            picture(tmp_path / f"{name}/{i}.png", "cat", (16, 16), 9 * number + i)
            text(tmp_path / f"{name}/{i}.txt", f"{name} {i}")
    loaded = load(tmp_path)
    assert counts(loaded, "class_name") == {"cat": 2, "dog": 2}
    assert loaded.table.column("caption")[3] == "dog 1"


def test_boxes_beside_pictures_are_no_captions(tmp_path: Path) -> None:
    for number, name in enumerate(["cat", "dog"]):
        for i in range(2):
            picture(tmp_path / f"{name}/{i}.png", "cat", (16, 16), 9 * number + i)
            text(tmp_path / f"{name}/{i}.txt", "0 0.5 0.5 0.25 0.125\n")
    loaded = load(tmp_path)
    assert not loaded.table.has("caption")
    assert said(loaded, "hold numbers, no captions")


def test_b10_lines_of_a_text_in_a_shard_are_captions(tmp_path: Path) -> None:
    words = ("one", "a nice", "some", "the", "another")
    members: list[tuple[str, str | bytes]] = []
    for i in range(4):
        members += [(f"s{i}.png", encoded("cat", (16, 16), i))]
        members += [(f"s{i}.txt", "\n".join(f"{w} thing number {i}" for w in (words if i else words[:1])))]
    tar(tmp_path / "0.tar", members)
    text(tmp_path / "nshards.txt", "1\n")
    loaded = load(tmp_path)
    assert len(loaded.table) == 16
    assert loaded.table.column("caption")[:2] == ["one thing number 0", "one thing number 1"]
    assert len(set(loaded.table.identities())) == 4
    assert said(loaded, "several captions: 3 members")


def test_members_of_a_shard_in_any_order_are_joined(tmp_path: Path) -> None:
    pictures = [(f"{i}.png", encoded("cat", (16, 16), i)) for i in range(3)]
    loaded = load(tar(tmp_path / "0.tar", [*pictures, *((f"{i}.txt", f"cat {i}") for i in (2, 0, 1))]))
    assert loaded.table.column("caption") == ["cat 0", "cat 1", "cat 2"]
    assert loaded.quarantine.entries == ()
    assert said(loaded, "members of 2 keys do not stand next to each other")


# -- lists of captions beside pictures ------------------------------------------------------------------------


def pictures(folder: Path, names: Iterable[str], seed: int = 0) -> None:
    for number, name in enumerate(names):
        picture(folder / name, "tram", (16, 16), seed + number)


def test_b15_flickr8k_captions_beside_images(tmp_path: Path) -> None:
    pictures(tmp_path / "Images", [f"{1000 + i}_ab.jpg" for i in range(4)])
    lines = [f"{1000 + i}_ab.jpg,A tram {w} line {i} .\n" for i in range(4) for w in ("on", "of", "near")]
    text(tmp_path / "captions.txt", "image,caption\n" + "".join(lines))
    loaded = load(tmp_path)
    assert (len(loaded.table), loaded.quarantine.entries) == (12, ())
    assert len(set(loaded.table.identities())) == 4
    assert not loaded.table.has("class_name")
    assert said(loaded, "captions.txt")


def test_b15_flickr8k_token_file_and_lists_of_sides(tmp_path: Path) -> None:
    names = [f"{1000 + i}_ab.jpg" for i in range(6)]
    pictures(tmp_path / "Flicker8k_Dataset", names)
    lines = [f"{name}#{k}\tA tram {k} of {name[:4]}\n" for name in names for k in range(2)]
    text(tmp_path / "Flickr8k_text/Flickr8k.token.txt", "".join(lines))
    for side, part in (("train", names[:3]), ("dev", names[3:4]), ("test", names[4:])):
        text(tmp_path / f"Flickr8k_text/Flickr_8k.{side}Images.txt", "\n".join(part) + "\n")
    loaded = load(tmp_path)
    assert (len(loaded.table), loaded.quarantine.entries) == (12, ())
    assert counts(loaded, "split") == {"train": 6, "validation": 2, "test": 4}
    assert said(loaded, "sides are those of the lists", "testImages.txt", "data.columns.split=")
    assert not load(tmp_path, columns={"split": ""}).table.has("split")


def test_b15_coco_captions_and_folders_of_pictures(tmp_path: Path) -> None:
    for side, seed in (("train", 0), ("val", 50)):
        names = [f"{seed + i:012d}.jpg" for i in range(3)]
        pictures(tmp_path / f"{side}2017", names, seed)
        document = {
            "images": [{"id": seed + i, "file_name": name} for i, name in enumerate(names)],
            "annotations": [
                {"id": 10 * (seed + i) + j, "image_id": seed + i, "caption": f"tram {seed + i} {j}"}
                for i in range(3)
                for j in range(2)
            ],
        }
        text(tmp_path / f"annotations/captions_{side}2017.json", json.dumps(document))
        boxes = {**document, "annotations": [{"id": 1, "image_id": seed, "category_id": 1}]}
        text(tmp_path / f"annotations/instances_{side}2017.json", json.dumps(boxes))
    loaded = load(tmp_path)
    assert (len(loaded.table), loaded.quarantine.entries) == (12, ())
    assert counts(loaded, "split") == {"train": 6, "validation": 6}
    assert said(loaded, "captions_val2017.json: validation, by the name")


def test_b15_karpathy_beside_pictures(tmp_path: Path) -> None:
    pictures(tmp_path / "images", [f"{i}.jpg" for i in range(4)])
    document = {
        "images": [
            {"filename": f"{i}.jpg", "split": s, "sentences": [{"raw": f"tram {i} {j}"} for j in range(2)]}
            for i, s in enumerate(("train", "train", "val", "test"))
        ]
    }
    text(tmp_path / "dataset_flickr8k.json", json.dumps(document))
    loaded = load(tmp_path)
    assert (len(loaded.table), loaded.quarantine.entries) == (8, ())
    assert counts(loaded, "split") == {"train": 4, "val": 2, "test": 2}


def test_two_lists_of_the_same_pictures_are_one_data_set(tmp_path: Path) -> None:
    pictures(tmp_path / "images", [f"{i}.jpg" for i in range(4)])
    text(tmp_path / "captions.csv", "image,caption\n" + "".join(f"{i}.jpg,tram {i}\n" for i in range(4)))
    text(tmp_path / "captions.txt", "image,caption\n" + "".join(f"{i}.jpg,tram {i}\n" for i in range(4)))
    loaded = load(tmp_path)
    assert len(loaded.table) == 4
    assert said(loaded, "captions.txt: not read, since captions.csv names the same images")


def test_lists_of_sides_beside_class_folders(tmp_path: Path) -> None:
    classes(tmp_path / "images", ["pie", "soup"], 4)
    for side, numbers in (("train", (0, 1, 2)), ("test", (3,))):
        lines = [f"{name}/{i}" for name in ("pie", "soup") for i in numbers]
        text(tmp_path / f"meta/{side}.txt", "\n".join(lines) + "\n")
    loaded = load(tmp_path)
    assert counts(loaded, "class_name") == {"pie": 4, "soup": 4}
    assert counts(loaded, "split") == {"train": 6, "test": 2}


def test_a_table_with_unknown_names_of_columns_beside_its_pictures(tmp_path: Path) -> None:
    pictures(tmp_path / "bilder", [f"{i}.jpg" for i in range(3)])
    text(tmp_path / "liste.csv", "bild,titel\n" + "".join(f"{i}.jpg,Tram {i}\n" for i in range(3)))
    with pytest.raises(DataError, match=r"columns are bild, titel.*data\.columns\.caption=NAME"):
        load(tmp_path)
    loaded = load(tmp_path, columns={"image": "bild", "caption": "titel"})
    assert (len(loaded.table), loaded.quarantine.entries) == (3, ())


def test_labels_as_yolo_writes_them_are_classes_of_pictures(tmp_path: Path) -> None:
    """An export of boxes of one class: the pictures have that class, and what is not read is named."""
    pictures(tmp_path / "images", [f"{i}.jpg" for i in range(3)])
    for i in range(3):
        text(tmp_path / f"labels/{i}.txt", "0 0.5 0.5 0.2 0.2\n")
    text(tmp_path / "classes.txt", "tram\n")
    text(tmp_path / "notes.json", '{"categories": [{"id": 0, "name": "tram"}]}')
    loaded = load(tmp_path)
    assert loaded.table.column("class_name") == ["tram"] * 3
    assert said(loaded, "files beside the data, not read: 1 (notes.json)")
    assert len(load(tmp_path, labelled=False).table) == 3


def test_roboflow_folders_with_a_table_each(tmp_path: Path) -> None:
    for number, side in enumerate(("train", "valid", "test")):
        pictures(tmp_path / side, [f"{side}{i}.jpg" for i in range(3)], 50 * number)
        rows = "".join(f"{side}{i}.jpg,{'cat' if i else 'dog'}\n" for i in range(3))
        text(tmp_path / side / "_annotations.csv", "filename,class\n" + rows)
    text(tmp_path / "README.roboflow.txt", "x")
    loaded = load(tmp_path)
    assert counts(loaded, "class_name") == {"cat": 6, "dog": 3}
    assert counts(loaded, "split") == {"train": 3, "validation": 3, "test": 3}


def test_a_form_to_hand_in_is_no_data(tmp_path: Path) -> None:
    """As competitions pack their data: the labels of `sample_submission.csv` are made up."""
    for number, side in enumerate(("train", "test")):
        pictures(tmp_path / side, [f"{side}{i}.png" for i in range(4)], 50 * number)
    text(tmp_path / "train.csv", "file,label\n" + "".join(f"train{i}.png,{'ab'[i % 2]}\n" for i in range(4)))
    text(tmp_path / "sample_submission.csv", "file,label\n" + "".join(f"test{i}.png,a\n" for i in range(4)))
    loaded = load(tmp_path)
    assert counts(loaded, "class_name") == {"a": 2, "b": 2}
    assert said(loaded, "not read: 4 (test/test0.png")
    assert said(loaded, "files beside the data, not read: 1 (sample_submission.csv)")


def test_a_table_that_says_no_side_leaves_pictures_of_the_test_folder_there(tmp_path: Path) -> None:
    for number, side in enumerate(("train", "test")):
        pictures(tmp_path / side, [f"{side}{i}.png" for i in range(4)], 50 * number)
        rows = "".join(f"{side}{i}.png,{'ab'[i % 2]}\n" for i in range(4))
        text(tmp_path / f"{'train' if side == 'train' else 'labels'}.csv", "file,label\n" + rows)
    assert counts(load(tmp_path), "split") == {"train": 4, "test": 4}


def test_tables_beside_shards_are_named(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", [("a.png", encoded()), ("a.txt", "a cat")])
    text(tmp_path / "notes.csv", "a,b\n1,2\n")
    loaded = load(tmp_path)
    assert len(loaded.table) == 1
    assert said(loaded, "files beside the data, not read: 1 (notes.csv)")


def test_hundreds_of_class_folders_in_a_folder_of_a_side(tmp_path: Path) -> None:
    from everclip.data.reading.formats.folder import read_folder

    data = encoded("cat", (8, 8))
    for i in range(400):
        (tmp_path / f"train/c{i:03d}").mkdir(parents=True)
        (tmp_path / f"train/c{i:03d}/0.png").write_bytes(data)
    (raw,) = read_folder(tmp_path)
    assert len(set(raw.columns.column("class_name").to_pylist())) == raw.columns.num_rows == 400


def test_masks_beside_pictures_are_no_data(tmp_path: Path) -> None:
    classes(tmp_path / "images", ["cat", "dog"])
    classes(tmp_path / "masks", ["cat", "dog"], 2, 500)
    loaded = load(tmp_path)
    assert counts(loaded, "class_name") == {"cat": 2, "dog": 2}
    assert said(loaded, "folders beside the images, not read: 1 (masks)")


def test_class_folders_that_are_links_are_named_with_the_remedy(tmp_path: Path) -> None:
    classes(tmp_path / "elsewhere", ["cat", "dog"])
    classes(tmp_path / "data", ["ant", "bee"])
    (tmp_path / "data/cat").symlink_to(tmp_path / "elsewhere/cat")
    loaded = load(tmp_path / "data")
    assert counts(loaded, "class_name") == {"ant": 2, "bee": 2}
    (entry,) = loaded.quarantine.entries
    assert entry.reason == "outside-root"
    assert f"a link to the folder {tmp_path}/elsewhere/cat" in entry.detail
    assert "say data.root=FOLDER" in entry.detail
    assert "cp -rL" in entry.detail
    everything = load(tmp_path / "data", root=str(tmp_path / "elsewhere"))
    assert counts(everything, "class_name") == {"ant": 2, "bee": 2, "cat": 2}
    assert everything.quarantine.entries == ()


def test_pictures_that_are_links_say_what_to_do_and_that_works(tmp_path: Path) -> None:
    classes(tmp_path / "elsewhere", ["cat", "dog"])
    classes(tmp_path / "data", ["ant"])
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir()
        for i in range(2):
            (tmp_path / f"data/{name}/{i}.png").symlink_to(tmp_path / f"elsewhere/{name}/{i}.png")
    entries = load(tmp_path / "data").quarantine.entries
    assert len(entries) == 4
    assert f"say data.root={tmp_path}/elsewhere/cat or a folder above it" in entries[0].detail
    everything = load(tmp_path / "data", root=str(tmp_path))
    assert counts(everything, "class_name") == {"ant": 2, "cat": 2, "dog": 2}
    assert everything.quarantine.entries == ()


def test_a_link_to_nothing_is_called_one(tmp_path: Path) -> None:
    classes(tmp_path, ["cat", "dog"])
    (tmp_path / "cat/x.png").symlink_to("/nowhere/x.png")
    (entry,) = load(tmp_path).quarantine.entries
    assert "a link leads to /nowhere/x.png, where nothing is" in entry.detail


def test_links_in_a_ring_end(tmp_path: Path) -> None:
    classes(tmp_path, ["cat", "dog"])
    (tmp_path / "cat/more").symlink_to(tmp_path / "dog")
    (tmp_path / "dog/more").symlink_to(tmp_path / "cat")
    (tmp_path / "dog/up").symlink_to(tmp_path)
    loaded = load(tmp_path, root=str(tmp_path))
    assert set(loaded.table.column("class_name")) == {"cat", "dog"}
    assert any(entry.reason == "outside-root" for entry in loaded.quarantine.entries)


# -- encodings of the texts beside pictures -------------------------------------------------------------------


@pytest.mark.parametrize(("encoding", "given"), [("cp1252", "cp1252"), ("utf-16", None), ("utf-8-sig", None)])
def test_b03_texts_beside_pictures_may_be_of_another_encoding(
    encoding: str, given: str | None, tmp_path: Path
) -> None:
    for i in range(4):
        picture(tmp_path / f"shop/{i}.png", seed=i)
        text(tmp_path / f"shop/{i}.txt", f"café {i}", encoding)
    table = read(DataSpec(source=str(tmp_path / "shop"), encoding=given)).table
    assert table.column("caption") == [f"café {i}" for i in range(4)]


def test_b03_a_text_beside_a_picture_is_never_guessed(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"shop/{i}.png", seed=i)
        text(tmp_path / f"shop/{i}.txt", f"café {i}", "cp1252" if i == 3 else "utf-8")
    loaded = read(DataSpec(source=str(tmp_path / "shop"), quarantine_limit=1.0))
    assert [entry.reason for entry in loaded.quarantine.entries] == ["bad-utf8"]
    assert (
        "byte 3 is not UTF-8; say the encoding with data.encoding=NAME" in loaded.quarantine.entries[0].detail
    )


@pytest.mark.parametrize(("encoding", "given"), [("utf-8", None), ("utf-16", None), ("cp1252", "cp1252")])
def test_b02_lists_of_sides_may_hold_blanks_and_be_of_another_encoding(
    encoding: str, given: str | None, tmp_path: Path
) -> None:
    names = [f"{side}/é {i}.png" for side in ("cat", "dog") for i in range(4)]
    for seed, name in enumerate(names):
        picture(tmp_path / "pets" / name, seed=seed)
    text(tmp_path / "pets/train.txt", "\n".join(n for n in names if n[-5] in "12"), encoding)
    text(tmp_path / "pets/test.txt", "\n".join(n for n in names if n[-5] == "3"), encoding)
    loaded = read(DataSpec(source=str(tmp_path / "pets"), encoding=given))
    assert loaded.table.column("split") == [None, "train", "train", "test"] * 2
    assert said(loaded, "sides are those of the lists test.txt, train.txt")
    assert said(loaded, "training: 2 rows that no list names")
    assert not said(loaded, "files beside the data, not read")


def test_b05_class_names_may_be_of_another_encoding(tmp_path: Path) -> None:
    for name in "01":
        for i in range(2):
            picture(tmp_path / f"drinks/{name}/{i}.png", seed=10 * int(name) + i)
    text(tmp_path / "drinks/classes.txt", "café\nthé\n", "cp1252")
    source = str(tmp_path / "drinks")
    assert (
        read(DataSpec(source=source, encoding="cp1252")).table.column("class_name")
        == ["café"] * 2 + ["thé"] * 2
    )
    numbers = read(DataSpec(source=source))
    assert numbers.table.column("class_name") == ["0", "0", "1", "1"]
    assert said(numbers, "classes.txt: byte 3 is not UTF-8; say the encoding with data.encoding=NAME")
