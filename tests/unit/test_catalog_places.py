"""Whether a public data set is complete, where it lies, and what other sources call its classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import public_data
from everclip.data.catalog.cards import Counts, cards
from everclip.data.reading.quarantine import Entry, Quarantine
from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError, DataError
from everclip.evaluation.results import Results
from everclip.running.remarks import published_note
from everclip.scenarios.load import load_scenario
from public_data import load, sides


def test_an_incomplete_data_set_is_refused_with_what_is_missing(public_root: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"Textures \(DTD\) in .*: 6 of 1,880 train images, 2 of 1,880 val images, 4 of 1,880 test images; "
        r"2 of 47 classes \(none of braided, bubbly, bumpy and 42 more\). Expected images/, .* get it from https.*"
        r"scenario.counts=noted",
    ):
        read(DataSpec(source="catalog:dtd", root=str(public_root)))
    lines = read(DataSpec(source="catalog:dtd", root=str(public_root), counts="noted")).guesses
    assert any("6 of 1,880 train images" in line for line in lines)


def test_a_complete_data_set_needs_no_leave(
    public_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Complete by the split file of CoOp, which leaves a class out; or by the card's counts."""
    for name in ("caltech101/zhou", "flowers/zhou", "cars/zhou", "sun397/zhou"):
        assert len(read(DataSpec(source=f"catalog:{name}", root=str(public_root))).table) > 9
    public_data.eurosat(tmp_path)
    small = cards()["eurosat"].model_copy(update={"counts": Counts(train=40, test=10)})
    monkeypatch.setitem(cards(), "eurosat", small)
    assert sides(read(DataSpec(source="catalog:eurosat", root=str(tmp_path))).table) == {
        "train": 40,
        "test": 10,
    }
    public_data.draw(tmp_path / "eurosat" / "2750" / "River" / "River_9.jpg")
    with pytest.raises(DataError, match=r"EuroSAT \(RGB\) in .*: 11 of 10 test images\. Expected 2750"):
        read(DataSpec(source="catalog:eurosat", root=str(tmp_path)))


def test_a_data_set_of_a_hub_is_read_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "prepared"))
    place, commit = tmp_path / "hub/datasets--some--digits", "0123456789abcdef0123456789abcdef01234567"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(commit)
    folder = place / "snapshots" / commit / "data"
    folder.mkdir(parents=True)
    names = [str(digit) for digit in range(10)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    for side in ("train", "test"):
        data = [(tmp_path / public_data.draw(tmp_path / f"{side}{i}.png")).read_bytes() for i in range(3)]
        rows = {"image": [{"bytes": d, "path": None} for d in data], "label": [7, 0, 9]}
        path = folder / f"{side}-00000-of-00001.parquet"
        pq.write_table(pa.table(rows, schema=features.arrow_schema), path)
    whole = {
        "name": "mine", "version": 1, "summary": "for tests", "kind": "sources", "protocol": "mtil", "counts": "noted",
        "sources": [{"name": "MNIST", "data": {"source": "catalog:mnist"}}], "places": {"mnist": "hub:some/digits"},
    }  # fmt: skip
    scenario = load_scenario(whole)
    assert [e.name for e in scenario.tasks[0].classes or ()] == ["7 - seven", "0 - zero", "9 - nine"]
    assert len(scenario.eval_sets[0].data) == 3
    assert any("3 of 60,000 train images" in line for line in scenario.guesses)


def test_listed_files_that_are_not_there_are_counted(public_root: Path, tmp_path: Path) -> None:
    shutil.copytree(public_root / "dtd", tmp_path / "dtd")
    next((tmp_path / "dtd" / "dtd" / "images" / "banded").glob("*train*")).unlink()
    with pytest.raises(DataError, match=r"5 of 1,880 train images"):
        read(DataSpec(source="catalog:dtd", root=str(tmp_path)))


def test_where_data_sets_are_is_said(
    public_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVERCLIP_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"catalog:NAME.*Set EVERCLIP_DATA, or scenario.root=FOLDER"):
        read(DataSpec(source="catalog:dtd"))
    with pytest.raises(ConfigError, match=r"DTD\) is not below .*Expected .*dtd.* people get it from https"):
        read(DataSpec(source="catalog:dtd", root=str(tmp_path)))
    monkeypatch.setenv("EVERCLIP_DATA", str(public_root))
    assert len(read(DataSpec(source="catalog:dtd", counts="noted")).table) == 12


def test_a_place_of_another_layout_gives_the_same_classes(tmp_path: Path) -> None:
    """Tables of a hub and class folders call classes by name, own label or number."""
    for name, texts in (("numbers", ["0", "1", "2"]), ("words", ["zero", "one", "two"]), ("folders", None)):
        if texts is None:
            for side in ("train", "test"):
                public_data.class_folders(tmp_path / name / side, ["zero", "one", "two"], 2)
            place = tmp_path / name
        else:
            images = [public_data.draw(tmp_path / name / f"{i}.png") for i in range(6)]
            data = [(tmp_path / name / image).read_bytes() for image in images]
            place = tmp_path / f"{name}.parquet"
            rows = {
                "label": texts * 2,
                "split": ["train"] * 3 + ["test"] * 3,
                "image": pa.array(data, pa.binary()),
            }
            pq.write_table(pa.table(rows), place)
        table = read(DataSpec(source="catalog:mnist", place=str(place), counts="noted")).table
        assert set(table.column("class_name")) == {"0 - zero", "1 - one", "2 - two"}, name
        assert set(table.column("split")) == {"train", "test"}
    pq.write_table(
        pa.table({"label": ["nought"], "image": pa.array([b"x"], pa.binary())}), tmp_path / "odd.parquet"
    )
    with pytest.raises(DataError, match=r"the class 'nought' is none of the 10 of MNIST \(0 - zero, "):
        read(DataSpec(source="catalog:mnist", place=str(tmp_path / "odd.parquet"), counts="noted"))


def test_a_place_without_a_split_is_split_only_where_the_published_split_is_random(tmp_path: Path) -> None:
    public_data.class_folders(tmp_path / "eurosat", list(cards()["eurosat"].labels), 2)
    found = read(DataSpec(source="catalog:eurosat", root=str(tmp_path), counts="noted"))
    assert sides(found.table) == {"train": 16, "test": 4}
    assert any("not the published split" in line for line in found.guesses)
    public_data.class_folders(tmp_path / "dtd", ["banded", "braided"], 2)
    with pytest.raises(DataError, match=r"no split is given, but .* has one of its own"):
        load(tmp_path, "dtd")


# -- what numbers stand for -----------------------------------------------------------------------------------

ASSUMED = "assumed to be in the order of the data set's labels"


def numbered(folder: Path, labels: list[int], features: object = None) -> Path:
    """Write a table whose classes are numbers, a row per label and side; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    data = [public_data.png() for _ in labels * 2]
    rows = {
        "label": labels * 2,
        "split": ["train"] * len(labels) + ["test"] * len(labels),
        "image": pa.array([{"bytes": d, "path": None} for d in data]),
    }
    path = folder / "rows.parquet"
    schema = None if features is None else features.arrow_schema  # type: ignore[attr-defined]
    pq.write_table(pa.table(rows, schema=schema), path)
    return path


def eurosat(place: Path) -> tuple[list[str], list[str]]:
    """Return the classes and the lines for people of a place of EuroSAT."""
    found = read(DataSpec(source="catalog:eurosat", place=str(place), counts="noted"))
    named = [name for name, side in zip(found.table.column("class_name"), found.table.column("split"), strict=True)
             if side == "train"]  # fmt: skip
    return named, [line for line in found.guesses if ASSUMED in line]


def test_numbers_without_names_are_taken_in_the_cards_order_and_that_is_said(tmp_path: Path) -> None:
    names, lines = eurosat(numbered(tmp_path, [0, 9]))
    assert names == [cards()["eurosat"].names[0], cards()["eurosat"].names[9]]
    assert lines == [
        f"eurosat: classes are numbers in column 'label', {ASSUMED} (0 = annual crop land); nothing beside the rows "
        "says so"
    ]


def test_digits_are_what_mnist_calls_its_classes(tmp_path: Path) -> None:
    found = read(DataSpec(source="catalog:mnist", place=str(numbered(tmp_path, [7, 0])), counts="noted"))
    assert found.table.column("class_name")[:2] == ["7 - seven", "0 - zero"]
    assert not any(ASSUMED in line for line in found.guesses)


README = """---
license: mit
dataset_info:
{}  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': River
          '1': SeaLake
          '2': Forest
---
# A data set
"""
INFO = {"features": {"label": {"names": ["River", "SeaLake", "Forest"], "_type": "ClassLabel"}}}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("README.md", README.format("")),
        ("README.md", README.format("- config_name: all\n")),
        ("dataset_info.json", json.dumps(INFO)),
        ("dataset_infos.json", json.dumps({"default": INFO})),
    ],
)
@pytest.mark.parametrize("inner", [".", "data"])
def test_names_declared_beside_a_table_decide_what_its_numbers_mean(
    tmp_path: Path, file: str, text: str, inner: str
) -> None:
    """An order other than the card's: by the card's own, 0 would be annual crop land."""
    table = numbered(tmp_path / inner, [0, 1, 2])
    (tmp_path / file).write_text(text)
    for place in (table, tmp_path):
        if place is tmp_path and inner == ".":
            continue  # a folder with a JSON file of another kind beside its table
        names, lines = eurosat(place)
        assert names == ["river", "lake or sea", "forest"]
        assert lines == []


def test_names_in_the_schema_decide_what_numbers_mean(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "label": datasets.ClassLabel(names=["River", "SeaLake", "Forest"]),
            "split": datasets.Value("string"),
            "image": datasets.Image(),
        }
    )
    assert eurosat(numbered(tmp_path, [0, 1, 2], features)) == (["river", "lake or sea", "forest"], [])


def test_a_declared_name_that_is_none_of_the_data_sets_is_refused(tmp_path: Path) -> None:
    table = numbered(tmp_path, [0, 1])
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO).replace("SeaLake", "Moon"))
    with pytest.raises(DataError, match=r"the class 'Moon' is none of the 10 of EuroSAT"):
        eurosat(table)


@pytest.mark.parametrize(
    "text",
    ["", "no head", "---\n[: broken\n---\n", "---\n- a\n---\n", "---\ndataset_info: 3\n---\n",
     "---\ndataset_info:\n- features: [{name: label, dtype: {class_label: {names: [[], {}]}}}]\n---\n",
     "---\ndataset_info:\n- features: [{name: [label], dtype: {class_label: {names: {'0': River}}}}]\n---\n",
     "---\ndataset_info:\n- features: [{name: {label: 1}, dtype: x}, {dtype: x}, 3]\n---\n"],
)  # fmt: skip
def test_what_declares_nothing_leaves_the_order_assumed(tmp_path: Path, text: str) -> None:
    table = numbered(tmp_path, [0])
    (tmp_path / "README.md").write_text(text)
    names, lines = eurosat(table)
    assert (names, len(lines)) == (["annual crop land"], 1)
    assert lines[0].endswith("; nothing beside the rows says so")


def test_declarations_that_contradict_each_other_are_said_to(tmp_path: Path) -> None:
    table = numbered(tmp_path, [0])
    (tmp_path / "README.md").write_text(README.format(""))
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO).replace("River", "Forest"))
    names, lines = eurosat(table)
    assert (names, len(lines)) == (["annual crop land"], 1)
    assert lines[0].endswith("; the files beside the rows name them in different orders")


# -- what numbers rest on -------------------------------------------------------------------------------------


def test_pictures_of_a_benchmark_that_are_set_aside_stand_in_its_results(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., tuple[int, str, str]],
) -> None:
    """Complete by its files, so it is not refused; two pictures cannot be opened, one of them for testing."""
    public_data.eurosat(tmp_path)
    monkeypatch.setitem(
        cards(), "eurosat", cards()["eurosat"].model_copy(update={"counts": Counts(train=40, test=10)})
    )
    whole = read(DataSpec(source="catalog:eurosat", root=str(tmp_path))).table
    for side in ("train", "test"):
        file = whole.origin(whole.column("split").index(side))
        Path(file).write_bytes(Path(file).read_bytes()[:60])
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "mine", "version": 1, "summary": "for tests", "kind": "sources", "protocol": "mtil",
                "root": str(tmp_path), "training": {"steps": 1, "batch_size": 4},
                "sources": [{"name": "land", "data": {"source": "catalog:eurosat", "quarantine_limit": 0.1}}],
            }
        )
    )  # fmt: skip
    code, _, err = command(
        "run", str(tmp_path / "mine.yaml"), "backbone=builtin:tiny", f"output={tmp_path / 'run'}",
        "training.threads=1", "training.device=cpu", "report=false",
    )  # fmt: skip
    assert code == 0, err
    results = Results.read(tmp_path / "run")
    (said,) = [event.message for event in results.events if event.kind == "quarantine"]
    assert said == (
        "catalog:eurosat: 2 of 50 rows set aside (4.0%): 2 truncated (1 of 10 test, 1 of 40 train); scores on it use "
        "9 of its 10 test images and are not exactly those of the benchmark; each row is in quarantine.csv"
    )
    assert (results.columns[0].samples, results.tasks[0].samples) == (9, 39)
    assert "2 of 50 rows set aside" in err


def test_training_pictures_that_are_set_aside_leave_the_measured_ones_whole(tmp_path: Path) -> None:
    public_data.eurosat(tmp_path)
    whole = read(DataSpec(source="catalog:eurosat", root=str(tmp_path), counts="noted")).table
    Path(whole.origin(whole.column("split").index("train"))).write_bytes(b"")
    found = read(DataSpec(source="catalog:eurosat", root=str(tmp_path), counts="noted", quarantine_limit=0.1))
    assert found.quarantine.sides == {"train": (1, 40)}
    quarantine = replace(found.quarantine, counted=True)
    assert published_note(quarantine) == "; all of its test images are measured"
    assert published_note(Quarantine("mine.csv", 2, found.quarantine.entries, {"test": (1, 2)})) == ""


def test_completeness_is_claimed_only_where_it_is_known(tmp_path: Path) -> None:
    """A row without a side may be one for testing, and where counts are noted one may be missing altogether."""
    public_data.eurosat(tmp_path)
    whole = read(DataSpec(source="catalog:eurosat", root=str(tmp_path), counts="noted")).table
    Path(whole.origin(whole.column("split").index("train"))).write_bytes(b"")
    found = read(DataSpec(source="catalog:eurosat", root=str(tmp_path), counts="noted", quarantine_limit=0.1))
    assert not found.quarantine.counted
    assert published_note(found.quarantine) == "; counts=noted, so test images may be missing"
    for counted in (True, False):
        stray = Entry(None, "pets, 'test/\\udcff.jpg'", "bad-utf8")
        mixed = replace(found.quarantine, entries=(*found.quarantine.entries, stray), counted=counted)
        assert published_note(mixed) == (
            "; the sides of 1 of these rows are not known, so test images may be missing"
        )
