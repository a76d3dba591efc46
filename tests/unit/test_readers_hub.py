"""Data sets of the hub, from a cache that the test writes; the network is never asked."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reader_data import load, photo

from everclip.errors import ConfigError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with one data set, as `hf download` leaves it, and no network."""
    import datasets
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "prepared"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True, raising=False)
    place = tmp_path / "hub/datasets--shop--photos"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(COMMIT)
    folder = place / "snapshots" / COMMIT / "data"
    folder.mkdir(parents=True)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "text": datasets.Value("string"),
        }
    )
    for number, split in enumerate(("train", "test")):
        rows: dict[str, Any] = {
            "image": [{"bytes": photo(10 * number + i), "path": None} for i in range(3)],
            "label": [0, 1, number],
            "text": [f"{split} {i}" for i in range(3)],
        }
        pq.write_table(
            pa.table(rows, schema=features.arrow_schema), folder / f"{split}-00000-of-00001.parquet"
        )
    return tmp_path


def test_all_splits_are_read_and_named(hub: Path) -> None:
    table = load("hub:shop/photos").table
    assert sorted(zip(table.column("split"), table.column("caption"), strict=True)) == [
        (split, f"{split} {i}") for split in ("test", "train") for i in range(3)
    ]
    assert table.where("split", lambda s: s == "test").column("class_name") == ["cat", "dog", "dog"]
    assert photo(11) in table.column("image")


def test_one_split_of_one_revision(hub: Path) -> None:
    table = load(f"hub:shop/photos@{COMMIT}", split="train").table
    assert table.column("caption") == ["train 0", "train 1", "train 2"]
    with pytest.raises(
        ConfigError, match=r"data\.split: hub:shop/photos has no split 'dev'; it has (test|train), "
    ):
        load("hub:shop/photos", split="dev")


def test_pictures_are_mapped_not_held(hub: Path) -> None:
    before = pa.total_allocated_bytes()
    table = load("hub:shop/photos").table
    assert len(table) == 6
    assert pa.total_allocated_bytes() - before < 3 * len(photo(0))


def test_code_of_a_data_set_is_not_run(hub: Path) -> None:
    folder = hub / "hub/datasets--shop--photos/snapshots" / COMMIT
    (folder / "photos.py").write_text("raise SystemExit('was run')")
    assert len(load("hub:shop/photos").table) == 6


@pytest.mark.parametrize("source", ["hub:shop/nothing", "hub:shop/photos@v2"])
def test_what_is_not_in_the_cache_says_where_was_looked_and_the_ways_on(hub: Path, source: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(source)
    message = str(caught.value)
    for part in (
        source,
        "Looked for: ",
        "datasets--shop--",
        "hf download --repo-type dataset shop/",
        "data.source",
    ):
        assert part in message


@pytest.mark.parametrize("source", ["hub:photos", "hub:", "hub:a/b/c/d", "hub:../x"])
def test_names_that_cannot_be_are_refused(source: str) -> None:
    with pytest.raises(ConfigError, match="expected hub:OWNER/NAME"):
        load(source)


def test_configurations_are_named(hub: Path) -> None:
    folder = hub / "hub/datasets--shop--photos/snapshots" / COMMIT
    files = {name: f"data/{name}-*.parquet" for name in ("train", "test")}
    configs = [{"config_name": n, "data_files": f} for n, f in files.items()]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    assert len(load("hub:shop/photos/test").table) == 3
    with pytest.raises(ConfigError, match="Config name is missing"):
        load("hub:shop/photos")
