"""Folders as users have them: what lies beside the data changes nothing, and known layouts are recognised."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from build import encoded, picture, tar, text
from case_folders import classes, counts, load, said

from everclip.errors import DataError

# -- sides by name --------------------------------------------------------------------------------------------


def test_b01_a_line_per_table_says_its_side_and_how_to_turn_that_off(tmp_path: Path) -> None:
    for number, name in enumerate(["train_station", "test_tubes", "val-gardena", "office"]):
        picture(tmp_path / f"img/{name}.png", "dog", (16, 16), number)
        text(tmp_path / f"{name}.csv", f"file,caption\nimg/{name}.png,{name}\n")
    loaded = load(tmp_path)
    assert counts(loaded, "split") == {"None": 1, "test": 1, "train": 1, "validation": 1}
    assert said(loaded, "test_tubes.csv: test, by the name", "data.columns.split=")
    assert said(loaded, "train_station.csv: training, by the name")
    assert said(loaded, "val-gardena.csv: validation, by the name")
    assert said(loaded, "office.csv: training, since the name gives no side")
    off = load(tmp_path, columns={"split": ""})
    assert (len(off.table), off.table.has("split")) == (4, False)


def test_b01_a_folder_called_train_beside_other_classes_is_a_class(tmp_path: Path) -> None:
    loaded = load(classes(tmp_path, ["bus", "train", "tram"]))
    assert counts(loaded, "class_name") == {"bus": 2, "train": 2, "tram": 2}
    assert said(loaded, "train is a class and no side, since bus, tram hold images as well")


def test_b01_two_folders_called_after_sides_can_be_classes(tmp_path: Path) -> None:
    classes(tmp_path, ["train", "test"])
    with pytest.raises(
        DataError, match=r"test, train were taken for sides .* if they are classes: data\.columns\.split="
    ):
        load(tmp_path)
    off = load(tmp_path, columns={"split": ""})
    assert counts(off, "class_name") == {"test": 2, "train": 2}


@pytest.mark.parametrize(
    ("names", "sides"),
    [
        (("Train", "TEST", "Validation"), {"train", "test", "validation"}),
        (("training_set", "test_set"), {"train", "test"}),
        (("train2017", "val2017"), {"train", "validation"}),
        (("train", "holdout"), {"train", "test"}),
        (("train", "hold-out"), {"train", "test"}),
        (("train", "dev"), {"train", "validation"}),
        (("animals_train", "animals_test"), {"train", "test"}),
    ],
)
def test_folders_of_sides_are_known_however_they_are_written(
    tmp_path: Path, names: tuple[str, ...], sides: set[str]
) -> None:
    for number, name in enumerate(names):
        classes(tmp_path / name, ["cat", "dog"], 1, 500 * number)
    loaded = load(tmp_path)
    assert set(counts(loaded, "split")) == sides
    assert set(counts(loaded, "class_name")) == {"cat", "dog"}
    assert all(said(loaded, f"/{name}: ", "by the name") for name in names)


def test_many_files_of_a_side_are_one_line(tmp_path: Path) -> None:
    for side in ("train", "test"):
        for i in range(8):
            data = {"image": [encoded("cat", (8, 8), i + 9 * (side == "test"))], "caption": [f"{side} {i}"]}
            pq.write_table(pa.table(data), tmp_path / f"{side}-{i:05d}-of-00008.parquet")
    loaded = load(tmp_path)
    assert counts(loaded, "split") == {"test": 8, "train": 8}
    assert len([line for line in loaded.guesses if "by the name" in line]) == 2
    assert said(loaded, "8 files (train-00000-of-00008.parquet,", "training")


def test_sides_inside_class_folders_are_sides(tmp_path: Path) -> None:
    for number, name in enumerate(["cat", "dog"]):
        classes(tmp_path / name, ["train", "test"], 2, 100 * number)
    loaded = load(tmp_path)
    assert counts(loaded, "class_name") == {"cat": 4, "dog": 4}
    assert counts(loaded, "split") == {"test": 4, "train": 4}
    assert said(loaded, "sides are the names of the folders inside")
    assert not load(tmp_path, columns={"split": ""}).table.has("split")


def test_a_table_beside_folders_of_sides_leaves_the_sides_as_they_are(tmp_path: Path) -> None:
    lines = ["file,label"]
    for number, side in enumerate(("train", "test")):
        classes(tmp_path / side, ["cat", "dog"], 2, 300 * number)
        lines += [f"{side}/{name}/{i}.png,{name}" for name in ("cat", "dog") for i in range(2)]
    text(tmp_path / "labels.csv", "\n".join(lines) + "\n")
    loaded = load(tmp_path)
    assert counts(loaded, "split") == {"test": 4, "train": 4}
    assert counts(loaded, "class_name") == {"cat": 4, "dog": 4}


# -- foreign neighbours ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "foreign",
    ["__MACOSX", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found", "System Volume Information"],
)
def test_b03_a_foreign_folder_changes_nothing_and_is_named(tmp_path: Path, foreign: str) -> None:
    for number, side in enumerate(("train", "test")):
        classes(tmp_path / side, ["cat", "dog"], 2, 300 * number)
        picture(tmp_path / foreign / side / "cat/0.png", seed=99)
    loaded = load(tmp_path)
    assert counts(loaded, "class_name") == {"cat": 4, "dog": 4}
    assert counts(loaded, "split") == {"test": 4, "train": 4}
    assert said(loaded, "left by a system or a program: 1", foreign)


def test_b03_a_folder_of_annotations_beside_sides_is_named(tmp_path: Path) -> None:
    for number, side in enumerate(("train", "test")):
        classes(tmp_path / side, ["cat", "dog"], 2, 300 * number)
    text(tmp_path / "annotations/instances.json", "{}")
    text(tmp_path / "README.md", "x")
    loaded = load(tmp_path)
    assert counts(loaded, "split") == {"test": 4, "train": 4}
    assert said(loaded, "folders without an image, ignored: 1 (annotations)")
    assert said(loaded, "files beside the data, not read: 1 (README.md)")


def test_b03_foreign_files_and_folders_beside_and_inside_class_folders(tmp_path: Path) -> None:
    classes(tmp_path, ["cat", "dog"])
    text(tmp_path / "__MACOSX/cat/._0.png", b"\0\5\x16\7")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png"):
        text(tmp_path / "cat" / name, b"x")
    picture(tmp_path / "dog/.ipynb_checkpoints/0-checkpoint.png", seed=77)
    loaded = load(tmp_path)
    assert counts(loaded, "class_name") == {"cat": 2, "dog": 2}
    assert loaded.quarantine.entries == ()
    assert said(loaded, "left by a system or a program: 5", "Thumbs.db")


def test_b03_foreign_members_of_an_archive_are_counted(tmp_path: Path) -> None:
    members: list[tuple[str, str | bytes]] = []
    for i in range(3):
        members += [(f"{i}.png", encoded("cat", (16, 16), i)), (f"{i}.txt", f"cat {i}")]
        members += [(f"__MACOSX/._{i}.png", b"\0\5\x16\7"), (f"._{i}.txt", b"\0\5\x16\7")]
    loaded = load(tar(tmp_path / "0.tar", members))
    assert (len(loaded.table), loaded.quarantine.entries) == (3, ())
    assert said(loaded, "left by a system or a program: 6")


def test_b03_foreign_pictures_that_a_list_names_are_passed_over(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", seed=1)
    text(tmp_path / "._a.png", b"\0\5\x16\7")
    text(tmp_path / "metadata.csv", "file_name,text\na.png,one\n._a.png,two\n__MACOSX/._a.png,three\n")
    for source in (tmp_path, tmp_path / "metadata.csv"):
        loaded = load(source)
        assert (len(loaded.table), loaded.quarantine.entries) == (1, ())
        assert said(loaded, "left by a system or a program: 2")


def test_an_archive_in_a_folder_is_named_with_the_remedy(tmp_path: Path) -> None:
    text(tmp_path / "train.zip", b"PK")
    with pytest.raises(DataError, match=r"compressed files, ignored: 1 \(train\.zip\); unpack"):
        load(tmp_path)
    classes(tmp_path, ["cat", "dog"])
    assert said(load(tmp_path), "compressed files, ignored: 1 (train.zip)")


def test_a_table_that_names_no_picture_here_changes_nothing(tmp_path: Path) -> None:
    classes(tmp_path, ["cat", "dog"])
    text(tmp_path / "submission.csv", "file,label\nx.png,cat\n")
    text(tmp_path / "classes.csv", "id,name\n0,cat\n")
    loaded = load(tmp_path)
    assert counts(loaded, "class_name") == {"cat": 2, "dog": 2}
    assert said(loaded, "files beside the data, not read: 2 (classes.csv, submission.csv)")


def test_a_table_of_a_few_pictures_beside_class_folders_is_named(tmp_path: Path) -> None:
    classes(tmp_path, ["cat", "dog"], 5)
    text(tmp_path / "wrong.csv", "file,label\ncat/0.png,dog\n")
    loaded = load(tmp_path)
    assert counts(loaded, "class_name") == {"cat": 5, "dog": 5}
    assert said(loaded, "wrong.csv: names 1 of 10 images only", "as data")


# -- wrapped folders ------------------------------------------------------------------------------------------


def test_b04_sides_in_wrapped_folders(tmp_path: Path) -> None:
    classes(tmp_path / "training_set/training_set", ["cats", "dogs"], 4)
    classes(tmp_path / "test_set/test_set", ["cats", "dogs"], 2, 500)
    loaded = load(tmp_path)
    assert counts(loaded, "class_name") == {"cats": 6, "dogs": 6}
    assert counts(loaded, "split") == {"test": 4, "train": 8}


@pytest.mark.parametrize("where", ["animals", "a/b/c", "archive/animals/animals", "data"])
def test_b04_a_wrapper_is_no_class(tmp_path: Path, where: str) -> None:
    classes(tmp_path / where, ["ant", "bee", "bird"])
    (tmp_path / "empty").mkdir()
    loaded = load(tmp_path)
    assert counts(loaded, "class_name") == {"ant": 2, "bee": 2, "bird": 2}
    assert said(loaded, "the data are those of its folder")
    assert said(loaded, "without an image, ignored: 1 (empty)")


def test_b04_a_wrapper_around_sides(tmp_path: Path) -> None:
    classes(tmp_path / "archive/animals/train", ["ant", "bee"], 3)
    classes(tmp_path / "archive/animals/test", ["ant", "bee"], 1, 500)
    assert counts(load(tmp_path), "split") == {"test": 2, "train": 6}


def test_folders_of_equal_folders_are_domains_of_one_set_of_classes(tmp_path: Path) -> None:
    classes(tmp_path / "photo", ["cat", "dog"])
    classes(tmp_path / "sketch", ["cat", "dog"], 2, 500)
    loaded = load(tmp_path)
    assert counts(loaded, "class_name") == {"cat": 4, "dog": 4}
    assert counts(loaded, "domain") == {"photo": 4, "sketch": 4}
    assert said(loaded, "column `domain`")


def test_a_class_may_hold_folders_and_one_without_a_picture_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "cat/2020/1.png", seed=1)
    picture(tmp_path / "cat/2021/2.png", seed=2)
    picture(tmp_path / "dog/3.png", seed=3)
    (tmp_path / "bird").mkdir()
    loaded = load(tmp_path)
    assert counts(loaded, "class_name") == {"cat": 2, "dog": 1}
    assert said(loaded, "without an image, ignored: 1 (bird)")


def test_links_that_lead_in_circles_end(tmp_path: Path) -> None:
    classes(tmp_path / "data", ["cat", "dog"])
    (tmp_path / "data/cat/again").symlink_to(tmp_path / "data")
    loaded = load(tmp_path / "data")
    assert len(loaded.table) == 4
    assert "a link to a folder above it; remove the link" in loaded.quarantine.entries[0].detail
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop/train").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError):
        load(tmp_path / "loop")


# -- names of classes -----------------------------------------------------------------------------------------


def shards(folder: Path, count: int = 2, seed: int = 0) -> None:
    tar(
        folder / "0.tar",
        [
            member
            for k in range(3)
            for i in range(count)
            for member in (
                (f"s{k}{i}.png", encoded("cat", (16, 16), seed + 9 * k + i)),
                (f"s{k}{i}.cls", str(k)),
            )
        ],
    )


def test_b11_class_names_beside_shards(tmp_path: Path) -> None:
    shards(tmp_path / "train")
    shards(tmp_path / "test", 1, 500)
    text(tmp_path / "classnames.txt", "cat\ndog\nbird\n")
    loaded = load(tmp_path)
    assert counts(loaded, "class_name") == {"cat": 3, "dog": 3, "bird": 3}
    assert counts(loaded, "class_key") == {"0": 3, "1": 3, "2": 3}
    assert counts(loaded, "split") == {"test": 3, "train": 6}
    assert said(loaded, "classnames.txt (0 = cat, 1 = dog, 2 = bird)")
    assert not said(loaded, "not read", "classnames.txt")
    for part in (tmp_path / "test", tmp_path / "test/0.tar"):  # the list lies above, or beside
        text(tmp_path / "test/classes.txt", "cat\ndog\nbird\n")
        assert counts(load(part), "class_name") == {"cat": 1, "dog": 1, "bird": 1}


@pytest.mark.parametrize(
    ("folders", "file", "content", "names"),
    [
        (("0", "1", "2"), "classes.txt", "cat\ndog\nbird\n", {"cat", "dog", "bird"}),
        (("1", "2", "3"), "labels.txt", "cat\ndog\nbird", {"cat", "dog", "bird"}),
        (("00", "01"), "classnames.txt", "0 cat\n1 dog\n", {"cat", "dog"}),
        (("n01440764", "n02102040"), "synset_words.txt", "n01440764 tench, Tinca\nn02102040 dog\n", {"tench", "dog"}),
        (("1", "21"), "cat_to_name.json", '{"21": "fire lily", "1": "rose"}', {"fire lily", "rose"}),
        (("0", "1"), "class_to_idx.json", '{"cat": 0, "dog": 1}', {"cat", "dog"}),
        (("0", "1"), "imagenet_class_index.json", '{"0": ["n01", "cat"], "1": ["n02", "a_dog"]}', {"cat", "a dog"}),
        (("7", "8"), "classes.txt", "cat\ndog\n", {"7", "8"}),
        (("cat", "dog"), "classes.txt", "x\ny\n", {"cat", "dog"}),
    ],
)  # fmt: skip
def test_b11_class_names_beside_numbered_folders(
    tmp_path: Path, folders: tuple[str, ...], file: str, content: str, names: set[str]
) -> None:
    classes(tmp_path / "data", folders)
    text(tmp_path / "data" / file, content)
    assert set(counts(load(tmp_path / "data"), "class_name")) == names


# -- img2dataset ----------------------------------------------------------------------------------------------


def meta(count: int, shard: int) -> pa.Table:
    return pa.table(
        {
            "url": [f"http://example.org/{shard}{i}.jpg" for i in range(count)],
            "caption": [f"bus {shard}{i}" for i in range(count)],
            "key": [f"{shard:05d}{i:04d}" for i in range(count)],
        }
    )


def test_b14_shards_with_tables_of_the_same_name(tmp_path: Path) -> None:
    for shard in range(2):
        members: list[tuple[str, str | bytes]] = []
        for i in range(3):
            key = f"{shard:05d}{i:04d}"
            members += [(f"{key}.jpg", encoded("bus", (16, 16), 10 * shard + i, "JPEG"))]
            members += [
                (f"{key}.txt", f"bus {key}"),
                (f"{key}.json", json.dumps({"key": key, "caption": f"bus {key}"})),
            ]
        tar(tmp_path / f"{shard:05d}.tar", members)
        pq.write_table(meta(4, shard), tmp_path / f"{shard:05d}.parquet")
        text(tmp_path / f"{shard:05d}_stats.json", json.dumps({"count": 4, "successes": 3}))
    loaded = load(tmp_path)
    assert (len(loaded.table), loaded.quarantine.entries) == (6, ())
    assert said(loaded, "tables that belong to shards of the same name, not read: 2")
    assert said(loaded, "00000_stats.json")


def test_b14_numbered_folders_with_tables_of_the_same_name(tmp_path: Path) -> None:
    for shard in range(2):
        for i in range(3):
            key = f"{shard:05d}/{shard:05d}{i:04d}"
            picture(tmp_path / f"{key}.jpg", "bus", (16, 16), 10 * shard + i)
            text(tmp_path / f"{key}.txt", f"bus {key}")
            text(tmp_path / f"{key}.json", json.dumps({"caption": f"bus {key}"}))
        pq.write_table(meta(4, shard), tmp_path / f"{shard:05d}.parquet")
        text(tmp_path / f"{shard:05d}_stats.json", "{}")
    loaded = load(tmp_path)
    assert (len(loaded.table), loaded.quarantine.entries) == (6, ())
    assert not loaded.table.has("class_name")
    assert said(loaded, "tables that belong to folders of the same name, not read: 2")
    assert len(load(tmp_path / "00000").table) == 3


# -- metadata that do not match -------------------------------------------------------------------------------


def test_s03_pictures_that_the_metadata_do_not_name_are_mentioned(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"{i}.png", "cat", (16, 16), i)
    text(tmp_path / "metadata.csv", "file_name,text\n0.png,a\n1.png,b\n7.png,c\n")
    loaded = load(tmp_path)
    assert (len(loaded.table), loaded.quarantine.counts()) == (2, {"missing-file": 1})
    assert said(loaded, "images that metadata.csv does not name, not read: 2 (2.png, 3.png)")


def test_s03_pictures_of_a_sub_folder_are_found(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"images/{i}.png", "cat", (16, 16), i)
    text(tmp_path / "metadata.csv", "file_name,text\n" + "".join(f"{i}.png,cat {i}\n" for i in range(3)))
    loaded = load(tmp_path)
    assert (len(loaded.table), loaded.quarantine.entries) == (3, ())


# -- folders that bring their own rows ------------------------------------------------------------------------


def _shop(folder: Path, seed: int) -> Path:
    for i in range(2):
        picture(folder / f"{i}.png", "cat", (16, 16), seed + i)
    return text(folder / "metadata.csv", f"file_name,text\n0.png,{folder.name} a\n1.png,{folder.name} b\n")


def test_b10_folders_with_their_own_metadata_or_shards_are_sources_and_no_classes(tmp_path: Path) -> None:
    _shop(tmp_path / "shop1", 0)
    members = [("0.png", encoded("cat", (16, 16), 9)), ("0.txt", "shop2 a")]
    tar(tmp_path / "shop2/0.tar", members)
    loaded = load(tmp_path)
    assert loaded.table.column("caption") == ["shop1 a", "shop1 b", "shop2 a"]
    assert not loaded.table.has("class_name")
    assert said(loaded, "shop1, shop2 hold shards or a metadata file each", "sources of their own")


def test_b10_a_side_beside_another_source_stays_a_side(tmp_path: Path) -> None:
    _shop(tmp_path / "test", 0)
    _shop(tmp_path / "reference", 5)
    loaded = load(tmp_path)
    assert counts(loaded, "split") == {"None": 2, "test": 2}  # rows without a mark are learned
    assert said(loaded, "test: test, by the name")
    assert not said(loaded, "is a class and no side")


def test_b04_test_pictures_without_labels_do_not_stop_the_labelled_side(tmp_path: Path) -> None:
    classes(tmp_path / "train", ["cat", "dog"])
    for i in range(3):
        picture(tmp_path / f"test/{i}.png", "cat", (16, 16), 90 + i)
    loaded = load(tmp_path)
    assert counts(loaded, "class_name") == {"cat": 2, "dog": 2}
    assert said(loaded, "images without a label cannot be learned or measured, not read: 3 (test)")
