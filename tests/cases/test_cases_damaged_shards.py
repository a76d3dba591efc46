"""A folder of shards of which one is damaged: said which and where, nothing lost silently, and a way to go on."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from build import encoded, tar

from everclip.config import resolve_config
from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec
from everclip.errors import DataError
from everclip.learner.evaluate import load_model
from everclip.running.remarks import data_remarks, write_quarantine
from everclip.scenarios.load import load_scenario

SAMPLES = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shard in range(3):
        members: list[tuple[str, str | bytes]] = []
        for i in range(SAMPLES):
            members += [
                (f"{shard}{i}.png", encoded("cat", (32, 32), 10 * shard + i)),
                (f"{shard}{i}.txt", f"picture {shard}{i}"),
            ]
        tar(tmp_path / "shards" / f"{shard:05}.tar", members)
    return tmp_path / "shards"


def cut(folder: Path, share: float = 0.5) -> Path:
    file = folder / "00001.tar"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    return file


def load(source: Path | str, **options: Any) -> Loaded:
    return read(DataSpec(source=str(source), **options))


def test_a_cut_shard_stops_the_load_and_says_where_and_what_is_whole(folder: Path) -> None:
    cut(folder)
    for source in (folder, f"{folder}/*.tar", folder / "00001.tar"):
        with pytest.raises(DataError) as error:
            load(source)
        said = str(error.value)
        assert "00001.tar: it is cut short inside '1" in said
        assert "members before it are whole, the last is '1" in said
        assert "data.damaged_archives=noted" in said


def test_one_damaged_shard_of_many_is_not_hidden_by_the_limit_of_rows(folder: Path) -> None:
    cut(folder)
    with pytest.raises(DataError, match="Damaged archives stop the load"):
        load(folder, quarantine_limit=0.9)


def test_noted_goes_on_with_what_is_whole_and_keeps_what_was_lost(folder: Path) -> None:
    cut(folder)
    found = load(folder, damaged_archives="noted")
    assert 2 * SAMPLES < len(found.table) < 3 * SAMPLES
    assert found.quarantine.counts()["damaged-archive"] == 1
    members = [("a.png", b"x"), ("a.txt", "no picture"), ("b.png", encoded()), ("b.txt", "b")]
    whole = tar(folder.parent / "other/0.tar", members)
    with pytest.raises(DataError, match=r"More than data\.quarantine_limit"):  # other rows count as ever
        load(whole, damaged_archives="noted")


def test_limited_goes_on_as_long_as_few_of_the_shards_are_damaged(
    folder: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    cut(folder)
    (folder / "00002.tar").write_bytes(b"")
    limited = {"damaged_archives": "limited"}
    with pytest.raises(DataError, match=r"More than data\.quarantine_limit = 60\.0% .*\(2 of 3\)"):
        load(folder, **limited, quarantine_limit=0.6)
    found = load(folder, **limited, quarantine_limit=0.7)
    assert SAMPLES < len(found.table) < 2 * SAMPLES
    assert {e.name for e in found.quarantine.entries if e.reason == "damaged-archive"} == {
        "00001.tar",
        "00002.tar",
    }
    code, out, _ = command("check", folder, "damaged_archives=limited", "quarantine_limit=0.6")
    assert (code, "STOP: archives are damaged" in " ".join(out.split())) == (3, True)
    code, out, _ = command("check", folder, "damaged_archives=limited", "quarantine_limit=0.7")
    assert (code, "archives are damaged" in " ".join(out.split())) == (0, True)
    picture, text = ("a.png", encoded()), ("a.txt", "a")
    whole = tar(folder.parent / "other/0.tar", [("b.png", b"x"), ("b.txt", "no picture"), picture, text])
    with pytest.raises(DataError, match="of the rows cannot be used"):  # other rows count as ever
        load(whole, **limited)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\0" * 4096])
def test_a_shard_that_is_no_archive_does_not_hide_the_others(folder: Path, content: bytes) -> None:
    (folder / "00001.tar").write_bytes(content)
    for source in (folder, f"{folder}/*.tar"):
        with pytest.raises(DataError, match=r"00001\.tar: not a readable tar archive"):
            load(source)
        assert len(load(source, damaged_archives="noted").table) == 2 * SAMPLES


def test_bytes_lost_in_the_middle_are_said_with_the_members_before_them(folder: Path) -> None:
    file = folder / "00001.tar"
    data = bytearray(file.read_bytes())
    start = 512 * (len(data) // 1024)
    data[start : start + 3000] = b"\xff" * 3000
    file.write_bytes(data)
    with pytest.raises(
        DataError, match=r"00001\.tar: .*the members there are lost; \d+ members before it are whole"
    ):
        load(folder)
    assert len(load(folder, damaged_archives="noted").table) > 2 * SAMPLES


def test_a_shard_alone_that_is_no_archive_is_refused(folder: Path) -> None:
    (folder / "00001.tar").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"not a readable tar archive.*It is empty: download or write it again"
    ):
        load(folder / "00001.tar", damaged_archives="noted")


@pytest.mark.parametrize("size", [1024, 10240])
def test_an_archive_without_members_is_whole_and_said(folder: Path, size: int) -> None:
    """What a writer leaves that closes a shard in which it wrote nothing; tar pads it to 10,240 bytes."""
    (folder / "00001.tar").write_bytes(b"\0" * size)
    loaded = load(folder)
    assert len(loaded.table) == 2 * SAMPLES
    assert loaded.quarantine.entries == ()
    assert "00001.tar: an archive without members" in loaded.guesses
    with pytest.raises(DataError, match=r"there is no row: 00001\.tar: an archive without members"):
        load(folder / "00001.tar")


def test_check_reads_on_and_stops_in_words(
    folder: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    cut(folder)
    code, out, _ = command("check", folder)
    assert code == 3
    assert "STOP: archives are damaged or cut short (1 place)" in " ".join(out.split())
    code, out, _ = command("check", folder, "damaged_archives=noted")
    assert code == 0
    assert "archives are damaged or cut short" in " ".join(out.split())


def test_what_was_lost_is_in_the_results_of_a_run(
    folder: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    cut(folder)
    code, _, err = command("init-config", folder, "damaged_archives=noted", "-o", tmp_path / "my.yaml")
    assert code == 0, err
    assert "damaged_archives: noted" in (tmp_path / "my.yaml").read_text()
    scenario = load_scenario(resolve_config(str(tmp_path / "my.yaml")).scenario)
    said = dict(data_remarks(scenario, load_model("builtin:tiny").method.backbone))
    assert "1 damaged-archive" in said["quarantine"]
    write_quarantine(scenario, tmp_path)
    assert "it is cut short inside" in (tmp_path / "quarantine.csv").read_text()


def test_a_parquet_file_that_is_cut_does_not_hide_the_others(tmp_path: Path) -> None:
    for part in range(3):
        pictures = [encoded("cat", (32, 32), 10 * part + i) for i in range(4)]
        table = pa.table({"image": pictures, "caption": [f"picture {part}{i}" for i in range(4)]})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    cut_file = tmp_path / "1.parquet"
    cut_file.write_bytes(cut_file.read_bytes()[:-100])
    for source in (tmp_path, f"{tmp_path}/*.parquet"):
        with pytest.raises(
            DataError, match=r"1\.parquet: not a readable Parquet file[\s\S]*damaged_archives=noted"
        ):
            load(source)
        assert len(load(source, damaged_archives="noted").table) == 8


def test_a_shard_that_is_cut_between_two_members_is_said(folder: Path) -> None:
    file = folder / "00001.tar"
    with tarfile.open(file) as archive:
        start = archive.getmembers()[6].offset
    file.write_bytes(file.read_bytes()[:start])
    found = load(folder)
    assert len(found.table) == 2 * SAMPLES + 3
    assert [line for line in found.guesses if "may be cut short" in line] == [
        "00001.tar: has no mark of an archive's end, so it may be cut short, its last sample is '12'"
    ]
