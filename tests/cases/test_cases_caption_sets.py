"""The JSON files of captioning sets: COCO, Karpathy's splits, Label Studio; several captions are one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from build import picture, text

from everclip.data.reading.formats.coco import read_coco
from everclip.data.reading.formats.json_forms import json_form
from everclip.data.reading.formats.karpathy import read_karpathy
from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec
from everclip.errors import DataError


def loaded(source: Path, **options: Any) -> Loaded:
    return read(DataSpec(source=str(source), **{"quarantine_limit": 1.0, **options}))


def coco(folder: Path, images: int = 4, captions: int = 5) -> Path:
    document = {
        "info": {"year": 2017},
        "licenses": [{"id": 1, "name": "none"}],
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "license": 1} for i in range(images)],
        "annotations": [
            {"id": 10 * i + j, "image_id": i, "caption": f"tram {i} {j}"}
            for i in range(images)
            for j in range(captions)
        ],
    }
    for i in range(images):
        picture(folder / f"val2017/{i:012d}.jpg", "tram", seed=200 + i)
    return text(folder / "annotations/captions_val2017.json", json.dumps(document))


# -- COCO -----------------------------------------------------------------------------------------------------


def test_b15_coco_captions_given_as_a_file_find_their_pictures(tmp_path: Path) -> None:
    path = coco(tmp_path)
    assert json_form(path) == "coco"
    found = loaded(path)
    assert len(found.table) == 20
    assert found.table.column("caption")[:2] == ["tram 0 0", "tram 0 1"]
    assert len(set(found.table.identities())) == 4
    assert len({found.table.image_key(i) for i in range(20)}) == 4, "each picture is read once"
    assert any("20 captions of 4 images" in line for line in found.guesses)
    assert any("'../val2017'" in line and "data.root" in line for line in found.guesses)


def test_coco_captions_with_a_given_root(tmp_path: Path) -> None:
    path = coco(tmp_path)
    moved = path.rename(tmp_path / "val2017" / "c.json")
    assert len(loaded(moved).table) == 20
    assert len(loaded(moved, root=str(tmp_path / "val2017")).table) == 20
    assert read_coco(moved, tmp_path / "val2017").root == tmp_path / "val2017"


def test_coco_annotations_without_their_picture_are_set_aside_by_name(tmp_path: Path) -> None:
    document = {
        "annotations": [
            {"image_id": 0, "caption": "a"},
            {"image_id": 9, "caption": "b"},
            {"image_id": 0, "caption": ["c"]},
            {"image_id": 0, "caption": "  "},
            {"image_id": 0, "caption": float("nan")},
        ],
        "images": [{"id": 0, "file_name": "0.png"}, {"id": 1, "file_name": "1.png"}],
    }
    picture(tmp_path / "0.png")
    found = loaded(text(tmp_path / "c.json", json.dumps(document)))
    assert found.table.column("caption") == ["a"]
    assert found.quarantine.counts() == {"bad-row": 1, "no-image": 1, "empty-caption": 2}
    assert any("without a caption" in line and "1.png" in line for line in found.guesses)


def test_coco_objects_give_a_class_where_there_is_one(tmp_path: Path) -> None:
    document = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(4)],
        "annotations": [
            {"image_id": 0, "category_id": 3, "bbox": [0, 0, 1, 1]},
            {"image_id": 0, "category_id": 3, "bbox": [1, 0, 1, 1]},
            {"image_id": 1, "category_id": 7},
            {"image_id": 2, "category_id": 3},
            {"image_id": 2, "category_id": 7},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
    for i in range(4):
        picture(tmp_path / f"images/{i}.png", seed=i)
    found = loaded(text(tmp_path / "_annotations.coco.json", json.dumps(document)))
    assert found.table.column("class_name") == ["cat", "dog"]
    assert found.table.column("class_key") == ["3", "7"]
    assert found.quarantine.counts() == {"missing-label": 2}
    details = [entry.detail for entry in found.quarantine.entries]
    assert any("cat, dog" in detail for detail in details)
    assert any("no annotation" in detail for detail in details)


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_a_coco_file_that_is_cut_short_is_refused_where_it_ends(tmp_path: Path, cut: int) -> None:
    path = coco(tmp_path)
    text(path, path.read_text()[:-cut])
    with pytest.raises(DataError, match=r"captions_val2017\.json: not a readable JSON file: .*character"):
        loaded(path)


def test_a_large_file_is_read_element_by_element(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from everclip.data.reading.formats import json_stream

    path = coco(tmp_path)
    whole = read_coco(path).columns.to_pylist()
    monkeypatch.setattr(json_stream, "_BLOCK", 7)
    assert read_coco(path).columns.to_pylist() == whole
    monkeypatch.setattr(json_stream, "MAX_ELEMENT", 5)
    with pytest.raises(DataError, match="more than 5 characters"):
        read_coco(path)


@pytest.mark.parametrize(("image", "annotation"), [(1, "1"), ("1", 1), (1.0, 1), (1, 1.0)])
def test_coco_ids_are_numbers_or_texts(tmp_path: Path, image: Any, annotation: Any) -> None:
    picture(tmp_path / "0.png")
    images = [{"id": image, "file_name": "0.png"}]
    document = {"images": images, "annotations": [{"image_id": annotation, "caption": "a tram"}]}
    found = loaded(text(tmp_path / "captions.json", json.dumps(document)))
    assert found.table.column("caption") == ["a tram"]


def test_coco_pictures_of_one_id_are_set_aside(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png", seed=i)
    images = [{"id": i, "file_name": f"{j}.png"} for i, j in ((1, 0), (1, 1), (2, 2), (2, 2), (None, 0))]
    captions = [{"image_id": i, "caption": "a tram"} for i in (1, 2, [2])]
    path = text(tmp_path / "captions.json", json.dumps({"images": images, "annotations": captions}))
    found = loaded(path)
    assert [Path(found.table.origin(0)).name, len(found.table)] == ["2.png", 1]
    (entry,) = found.quarantine.entries
    assert (entry.reason, entry.detail) == ("duplicate-id", "`images` gives the id 1 to 0.png and 1.png")
    assert any("without an id or a file name, ignored: 2 of" in line for line in found.guesses)
    objects = [{"image_id": i, "category_id": 7} for i in (1, 2)]
    found = loaded(text(path, json.dumps({"images": images, "annotations": objects})))
    assert [entry.reason for entry in found.quarantine.entries] == ["duplicate-id"]


# -- Karpathy -------------------------------------------------------------------------------------------------


def karpathy(folder: Path, with_folders: bool) -> Path:
    images = []
    for i, split in enumerate(("train", "restval", "val", "test")):
        place = {"filepath": f"val{i % 2}", "cocoid": 100 + i} if with_folders else {}
        file = f"{place.get('filepath', '')}/{i}.jpg".lstrip("/")
        picture(folder / "images" / file, "bus", seed=i)
        sentences = [
            {"tokens": ["bus", str(i), str(j)], "raw": f"Bus {i} {j}.", "sentid": j} for j in range(5)
        ]
        images.append({**place, "filename": f"{i}.jpg", "split": split, "imgid": i, "sentences": sentences})
    return text(folder / "dataset_x.json", json.dumps({"images": images, "dataset": "x"}))


@pytest.mark.parametrize("with_folders", [True, False])
def test_karpathys_split_is_kept_and_restval_is_trained_on(tmp_path: Path, with_folders: bool) -> None:
    path = karpathy(tmp_path, with_folders)
    assert json_form(path) == "karpathy"
    found = loaded(path)
    assert found.table.column("split") == ["train"] * 10 + ["val"] * 5 + ["test"] * 5
    assert found.table.column("caption")[5] == "Bus 1 0."
    assert len(set(found.table.identities())) == 4
    assert any("'restval' counts as 'train'" in line for line in found.guesses)
    assert read_karpathy(path, tmp_path / "images").root_fixed


def test_karpathys_sentences_without_raw_are_their_tokens(tmp_path: Path) -> None:
    picture(tmp_path / "0.jpg")
    images = [
        {"filename": "0.jpg", "split": "train", "sentences": [{"tokens": ["a", "cat"]}, {"raw": 3}, "a dog"]},
        {"filename": "1.jpg", "split": "train", "sentences": []},
        {"split": "train", "sentences": [{"raw": "x"}]},
    ]
    found = loaded(text(tmp_path / "k.json", json.dumps({"images": images})))
    assert found.table.column("caption") == ["a cat", "a dog"]
    assert found.quarantine.counts() == {"empty-caption": 1, "no-image": 1}


# -- other JSON -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [None, "data", "annotations"])
def test_an_array_of_objects_is_rows(tmp_path: Path, wrapped: str | None) -> None:
    picture(tmp_path / "0.png")
    rows = [{"image": "0.png", "caption": "a"}, {"image": "0.png", "caption": "b"}]
    document = rows if wrapped is None else {"version": 1, wrapped: rows}
    found = loaded(text(tmp_path / "a.json", json.dumps(document, indent=1)))
    assert found.table.column("caption") == ["a", "b"]


def test_captions_by_the_names_of_files(tmp_path: Path) -> None:
    for i in range(2):
        picture(tmp_path / f"imgs/{i}.png", seed=i)
    document = {"0.png": ["a", "b"], "1.png": "c"}
    found = loaded(text(tmp_path / "captions.json", json.dumps(document)))
    assert found.table.column("caption") == ["a", "b", "c"]


@pytest.mark.parametrize("document", ["{}", "[]", "3", '"x"', '{"a": [1, 2]}', "", "[1, 2", "{'a': 1}"])
def test_json_without_rows_is_refused(tmp_path: Path, document: str) -> None:
    with pytest.raises(DataError, match=r"a\.json"):
        loaded(text(tmp_path / "a.json", document))


def test_arrays_per_split_mark_their_rows(tmp_path: Path) -> None:
    for i in range(2):
        picture(tmp_path / f"{i}.png", seed=i)
    document = {"train": [{"image": "0.png", "caption": "a"}], "test": [{"image": "1.png", "caption": "b"}]}
    found = loaded(text(tmp_path / "a.json", json.dumps(document)))
    assert found.table.column("split") == ["train", "test"]
    document = {"train": [["0.png", 3, "cat"]], "val": [], "test": [["1.png", 4, "dog"]]}
    found = loaded(text(tmp_path / "split_zhou_x.json", json.dumps(document)))
    assert found.table.column("class_key") == ["3", "4"]
    assert found.table.column("class_name") == ["cat", "dog"]
    assert found.table.column("split") == ["train", "test"]


def test_two_arrays_of_no_known_form_are_refused_by_name(tmp_path: Path) -> None:
    document = {"one": [{"image": "0.png", "caption": "a"}], "two": [{"image": "1.png", "caption": "b"}]}
    with pytest.raises(DataError, match="under 'one' and under 'two'"):
        loaded(text(tmp_path / "a.json", json.dumps(document)))


def test_s05_label_studio_choices_are_classes_and_texts_are_captions(tmp_path: Path) -> None:
    def task(number: int, image: str, *values: dict[str, Any], cancelled: bool = False) -> dict[str, Any]:
        results = [{"type": "x", "value": value} for value in values]
        return {
            "id": number,
            "data": {"image": image},
            "annotations": [{"was_cancelled": cancelled, "result": results}],
        }

    names = ["0.png", "sub/1.png", "2.png", "3.png", "4.png"]
    for i, name in enumerate(names):
        picture(tmp_path / name, seed=i)
    tasks = [
        task(1, "/data/upload/7/0.png", {"choices": ["cat"]}),
        task(2, "/data/local-files/?d=sub/1.png", {"choices": ["dog"]}, {"text": ["a dog", "one dog"]}),
        task(3, "2.png", {"choices": ["cat", "dog"]}),
        task(4, "3.png", {"choices": ["cat"]}, cancelled=True),
        task(5, "4.png", {"rectanglelabels": ["bird"], "x": 1}),
    ]
    found = loaded(text(tmp_path / "export.json", json.dumps(tasks)))
    assert found.table.column("class_name") == ["cat", "dog", "dog", "bird"]
    assert found.table.column("caption") == ["cat", "a dog", "one dog", "bird"]
    assert found.quarantine.counts() == {"missing-label": 2}
