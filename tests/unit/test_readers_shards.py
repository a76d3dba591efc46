"""Shards: members of a key are a sample, pictures are found by their place, and nothing leads out of the archive."""

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import pytest
from reader_data import load, photo, reasons, write_tar

from everclip.data.reading.formats.shards import read_shard
from everclip.data.reading.sources import Loaded
from everclip.errors import ConfigError, DataError


def members(count: int = 4) -> list[tuple[str, bytes]]:
    found = []
    for i in range(count):
        found += [
            (f"{i:03}.png", photo(i)),
            (f"{i:03}.txt", f"thing {i}".encode()),
            (f"{i:03}.cls", b"%d" % (i % 2)),
        ]
    return found


def keys(loaded: Loaded) -> list[str]:
    return loaded.table.column("__key__")


def test_members_of_a_key_are_a_sample(tmp_path: Path) -> None:
    extra = [("000.json", b'{"year": 2024, "source": "shop"}'), ("000.npy", b"passed over")]
    parts = members()
    loaded = load(write_tar(tmp_path / "a.tar", parts[:3] + extra + parts[3:]))
    table = loaded.table
    assert table.ids == [hashlib.sha256(photo(i)).hexdigest()[:16] for i in range(4)]  # not their places
    assert table.column("caption") == [f"thing {i}" for i in range(4)]
    assert table.column("class_name") == ["0", "1", "0", "1"]
    assert table.column("time") == [2024, None, None, None]
    assert table.column("image") == [photo(i) for i in range(4)]
    assert loaded.quarantine.entries == ()


def test_shards_of_a_folder_and_of_a_pattern(tmp_path: Path) -> None:
    for name in ("train-000", "train-001", "test-000"):
        write_tar(tmp_path / f"{name}.tar", members(2))
    for source in (tmp_path, tmp_path / "*.tar"):
        table = load(source).table
        assert table.column("split") == ["test"] * 2 + ["train"] * 4
        assert table.column("__key__") == ["000", "001"] * 3


@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("../out.png", tarfile.REGTYPE, ""),
        ("/../out.png", tarfile.REGTYPE, ""),
        ("a/../../out.png", tarfile.REGTYPE, ""),
        ("link.png", tarfile.SYMTYPE, "/etc/hostname"),
        ("link.png", tarfile.LNKTYPE, "../000.png"),
        ("dev.png", tarfile.CHRTYPE, ""),
        ("fifo.png", tarfile.FIFOTYPE, ""),
        ("sparse.png", tarfile.GNUTYPE_SPARSE, ""),
        ("..\\out.png", tarfile.REGTYPE, ""),
    ],
)
def test_members_that_lead_out_or_are_no_files_are_set_aside(
    tmp_path: Path, name: str, kind: bytes, link: str
) -> None:
    def change(info: tarfile.TarInfo) -> None:
        if info.name == name:
            info.type, info.linkname, info.size = kind, link, 0

    loaded = load(write_tar(tmp_path / "a.tar", [*members(2), (name, b"")], change))
    assert len(loaded.table) == 2
    assert loaded.quarantine.counts() == {"unsafe-member": 1}
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("001.json", b"{"), "bad-row"),
        (("001.json", b"[1]"), "bad-row"),
        (("001.txt", b"caf\xe9"), "bad-utf8"),
        (("001.jpg", b"two"), "bad-row"),
        (("001.txt", b"  "), "empty-caption"),
    ],
)
def test_a_broken_member_costs_its_sample(tmp_path: Path, member: tuple[str, bytes], reason: str) -> None:
    parts = [m for m in members(3) if m[0] not in ("001.txt", "001.cls")]
    loaded = load(write_tar(tmp_path / "a.tar", [*parts[:4], member, *parts[4:]]))
    assert reasons(loaded) == [(2, reason)]
    assert keys(loaded) == ["000", "002"]


def test_a_sample_without_a_picture_is_counted(tmp_path: Path) -> None:
    loaded = load(write_tar(tmp_path / "a.tar", members(3)[1:]))
    assert reasons(loaded) == [(1, "no-image")]


def test_past_a_damaged_head_the_next_sound_one_is_found(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", members(6))
    with tarfile.open(path) as archive:
        start = archive.getmember("002.png").offset
    data = bytearray(path.read_bytes())
    data[start + 10 : start + 60] = b"\xff" * 50
    path.write_bytes(data)
    loaded = load(path)
    assert set(keys(loaded)) == {"000", "001", "003", "004", "005"}
    assert loaded.quarantine.counts() == {
        "damaged-archive": 1,
        "no-image": 1,
    }  # the damage, and the text left without it


def test_an_archive_that_ends_early_keeps_what_came_before(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", members(6))
    with tarfile.open(path) as archive:
        picture = archive.getmember("004.png")
    path.write_bytes(path.read_bytes()[: picture.offset_data + 50])
    loaded = load(path)
    assert keys(loaded) == ["000", "001", "002", "003"]
    assert sorted(reason for _, reason in reasons(loaded)) == ["damaged-archive", "truncated"]


@pytest.mark.parametrize("size", [-1, -(10**9), 10**12])
def test_sizes_that_lead_back_or_beyond_the_end_do_not_loop(tmp_path: Path, size: int) -> None:
    data = bytearray(write_tar(tmp_path / "a.tar", members(3)).read_bytes())
    info = tarfile.TarInfo("evil.png")
    info.size = size
    data[: tarfile.BLOCKSIZE] = info.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(data)
    loaded = load(tmp_path / "a.tar")
    assert keys(loaded) == ["001", "002"]
    assert loaded.quarantine.entries


@pytest.mark.parametrize("data", [b"", b"x" * 5000, b"\x1f\x8b" + bytes(2000), bytes(8192)])
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tar: not a readable tar archive"):
        load(tmp_path / "a.tar")


def test_memory_holds_places_not_pictures(tmp_path: Path) -> None:
    raw = read_shard(write_tar(tmp_path / "a.tar", members(3)))
    images: Any = raw.columns.column("image")
    assert images.chunk(0).field("bytes").null_count == 3
    assert raw.columns.nbytes < 2000


def test_compressed_archives_are_refused_with_the_way_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unpack it"):
        load(tmp_path / "a.tar.gz")
