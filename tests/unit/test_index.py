"""The index of shards: the next start reads no shard, and nobody can tell."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from reader_data import load, photo, write_tar

from everclip import distributed
from everclip.data.reading import index, sources
from everclip.data.reading.sources import Loaded
from everclip.data.reading.spec import DataSpec
from everclip.errors import DataError


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards with two unusable members and a list of class names; indexes are kept for any size."""
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "LEAST_BYTES", 0)
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard, side in enumerate(("train", "test")):
        members: list[tuple[str, bytes]] = []
        for i in range(4):
            key = f"{shard}{i}"
            members += [(f"{key}.png", photo(10 * shard + i, 16, 16)), (f"{key}.cls", b"%d" % (i % 2))]
            members += [(f"{key}.json", b'{"date": "2024-0%d-01"}' % (i + 1))]
        members += [(f"{shard}x.png", b"no image"), (f"{shard}x.cls", b"0")]
        write_tar(folder / f"{side}-0.tar", members)
    (folder / "classnames.txt").write_text("cat\ndog\n")
    return folder


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, reading a shard fails."""

    def fail(*args: object, **options: object) -> Any:
        raise AssertionError("a shard is read")

    monkeypatch.setattr(sources, "read_sources", fail)


def everything(loaded: Loaded) -> tuple[Any, ...]:
    table = loaded.table
    columns = {name: table.column(name) for name in table.column_names}
    keys = [table.row_key(i)[1] for i in range(len(table))]
    table.__dict__.pop("fingerprint", None)  # compute it from the values
    aside = loaded.quarantine
    rest = (
        aside.table(),
        aside.sides,
        aside.entries,
        loaded.columns,
        loaded.guesses,
        loaded.facts.to_pylist(),
    )
    return columns, keys, table.fingerprint, table.name, [table.content(i) for i in range(len(table))], *rest


def test_the_next_start_reads_no_shard_and_finds_the_same(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(index, "LEAST_BYTES", 10**9)
        plain = load(shards)
    assert not (shards.parent / "cache" / "index").exists()
    first = load(shards)
    refuse(monkeypatch)
    later = load(shards)
    assert later.table.column("class_name") == ["cat", "dog"] * 4
    assert later.quarantine.counts() == {"not-an-image": 2}
    assert later.table.fingerprint == plain.table.fingerprint
    assert everything(later) == everything(first) == everything(plain)


@pytest.mark.parametrize("change", ["shard", "names", "more", "option", "time"])
def test_what_changes_is_read_again(shards: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load(shards)
    options = {}
    if change == "shard":
        write_tar(shards / "train-0.tar", [("9.png", photo(99)), ("9.cls", b"1")])
    elif change == "names":
        (shards / "classnames.txt").write_text("owl\nfox\n")
    elif change == "more":
        write_tar(shards / "train-1.tar", [("9.png", photo(99)), ("9.cls", b"1")])
    elif change == "time":
        os.utime(shards / "test-0.tar", ns=(1, 1))
    else:
        options = {"columns": {"time": ""}}
    refuse(monkeypatch)
    with pytest.raises(AssertionError, match="a shard is read"):
        load(shards, **options)


def test_a_damaged_index_is_made_again(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(load(shards))
    (folder,) = (shards.parent / "cache" / "index").iterdir()
    (folder / "columns.arrow").write_bytes(b"nothing")
    assert everything(load(shards)) == before
    refuse(monkeypatch)
    assert everything(load(shards)) == before


@pytest.mark.parametrize("change", ["a field more", "a field less", "another form"])
def test_an_index_of_another_version_is_made_again(
    shards: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(load(shards))
    (folder,) = (shards.parent / "cache" / "index").iterdir()
    about = json.loads((folder / "about.json").read_text())
    about["quarantine"]["entries"][0]["colour"] = "red"
    if change == "a field less":
        del about["name"]
    (folder / "about.json").write_text(json.dumps([] if change == "another form" else about))
    assert everything(load(shards)) == before
    refuse(monkeypatch)
    assert everything(load(shards)) == before


def test_bytes_that_changed_behind_the_index_are_named(shards: Path) -> None:
    table = load(shards).table
    path, facts = shards / "test-0.tar", (shards / "test-0.tar").stat()
    path.write_bytes(path.read_bytes().replace(b"IHDR", b"ihdr"))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(DataError, match=r"test-0\.tar: .* have changed since the data were read"):
        load(shards).table.value("image", 0)
    assert table.value("image", len(table) - 1)


def test_images_outside_shards_have_no_index(shards: Path) -> None:
    (shards.parent / "photos" / "cat").mkdir(parents=True)
    (shards.parent / "photos" / "cat" / "a.png").write_bytes(photo(1))
    assert len(load(shards.parent / "photos").table) == 1
    assert not (shards.parent / "cache" / "index").exists()


def test_the_first_process_of_each_machine_writes_where_no_index_is(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: 9)
    kept = shards.parent / "cache" / "index"
    monkeypatch.setenv("LOCAL_RANK", "1")
    load(shards)
    assert not kept.exists(), "the second process of a machine leaves it to the first"
    monkeypatch.setenv("LOCAL_RANK", "0")
    load(shards)
    (folder,) = kept.iterdir()
    before = folder.stat().st_mtime_ns
    load(shards)
    assert folder.stat().st_mtime_ns == before
    (folder / "about.json").write_text("")
    load(shards)
    assert (folder / "about.json").read_text(), "a damaged one is made again"


def test_a_name_that_is_too_long_has_no_index() -> None:
    assert index.index_of(DataSpec(source="x" * 5000), None, True) is None
