"""Shards far away: read by blocks through fsspec, each block once, in bounded space, and exact as if they were here."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
import torch
from reader_data import load, photo, write_table, write_tar

from everclip.cli.init_config import _from_folder
from everclip.config import CaptionConfig, RunConfig
from everclip.contracts import Source, Stream
from everclip.data.pictures import remote
from everclip.data.pictures.images import ImageStore, PixelFormat
from everclip.data.pictures.remote import Blocks, RemoteFile
from everclip.data.sampling.batches import BatchMaker
from everclip.data.sampling.read_ahead import REMEMBERED, ReadAhead
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.schema import validated
from everclip.training.buffer import Buffer
from everclip.training.stream_memory import BufferMemory
from everclip.urls import require_no_secrets

PIXELS = PixelFormat(8, (0.5,) * 3, (0.25,) * 3)
SMALL = 2048


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two shards in a folder and at `memory://shop/`; blocks are small, the cache is empty."""
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "BLOCK", SMALL)
    forget()
    here = tmp_path / "shop"
    here.mkdir()
    for shard in range(2):
        rows = [(f"{shard}{i}", photo(10 * shard + i, 16, 16)) for i in range(6)]
        members = [
            pair for key, data in rows for pair in ((f"{key}.png", data), (f"{key}.txt", key.encode()))
        ]
        write_tar(here / f"{('train', 'test')[shard]}-{shard}.tar", members)
    put(here)
    yield here
    fsspec.filesystem("memory").rm("/shop", recursive=True)
    forget()


def put(here: Path) -> None:
    fsspec.filesystem("memory").put(f"{here}/", "/shop/", recursive=True)


def forget() -> None:
    remote.remote_file.cache_clear()
    remote.blocks.cache_clear()


def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return a list that every request to far away is added to."""
    asked: list[tuple[str, int]] = []
    fetched = RemoteFile._fetched

    def counted(self: RemoteFile, number: int) -> bytes:
        asked.append((self.name, number))
        return fetched(self, number)

    monkeypatch.setattr(RemoteFile, "_fetched", counted)
    return asked


def test_shards_far_away_give_the_rows_of_shards_here(far: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests(monkeypatch)
    here = load(far).table
    for source in ("memory://shop", "memory://shop/*.tar"):
        there = load(source)
        assert there.table.fingerprint == here.fingerprint
        assert there.table.column("split") == here.column("split") == ["test"] * 6 + ["train"] * 6
        assert there.table.column("image") == here.column("image")
        assert any("training.shuffle_window" in line for line in there.guesses)
    assert there.table.is_remote
    assert not here.is_remote
    sizes = {path.name: -(-path.stat().st_size // SMALL) for path in far.iterdir()}
    assert sorted(asked) == sorted((name, n) for name, count in sizes.items() for n in range(count)), (
        "every block was fetched exactly once, in two loads"
    )
    forget()
    load("memory://shop")
    assert len(asked) == sum(sizes.values()), "another process finds the blocks on disk"


def test_a_parquet_file_far_away(far: Path) -> None:
    rows = [{"image": photo(i), "caption": f"thing {i}", "time": "2024-05"} for i in range(5)]
    write_table(far / "more" / "a.parquet", rows)
    put(far)
    there = load("memory://shop/more/a.parquet").table
    assert there.fingerprint == load(far / "more" / "a.parquet").table.fingerprint
    assert there.column("time") == ["2024-05"] * 5


def maker(window: int | None) -> BatchMaker:
    return BatchMaker(
        PIXELS, lambda p: PIXELS.tensor(p.resize((8, 8))),
        lambda texts: torch.tensor([[len(t), sum(map(ord, t))] for t in texts]),
        None, CaptionConfig(), 0, ImageStore(), window=window,
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_and_their_blocks_are_fetched_ahead(
    far: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = load(far).table, load("memory://shop").table
    shutil.rmtree(Path(str(remote.blocks()._folder)))
    asked = requests(monkeypatch)
    streams = [{"main": Stream((Source(table),), 4)} for table in (here, there)]
    whole = [b["main"] for b in maker(4).batches(streams[0], "s", 0, 9, 0)]
    far_batches = maker(4).batches(streams[1], "s", 4, 9, workers)
    later = [b["main"] for b in far_batches]
    for one, two in zip(whole[4:], later, strict=True):
        assert one["id"] == two["id"]
        assert torch.equal(one["image"], two["image"])
    assert len(asked) == len(set(asked)), "no block twice"


def test_the_blocks_on_disk_are_bounded_and_the_oldest_go_first(tmp_path: Path) -> None:
    blocks = Blocks(tmp_path, 1000)
    for number in range(30):
        assert (
            blocks.get("key", number, 100, lambda n=number: bytes([n]) * 100, 10, 20) == bytes([number]) * 10
        )
        assert blocks.get("key", 0, 100, lambda: bytes(100), 0, 1) == b"\0"  # always in use
        assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= 1000
    assert (tmp_path / "key" / "29").exists()
    assert not (tmp_path / "key" / "1").exists()
    assert Blocks(tmp_path, 1000)._held == sum(path.stat().st_size for path in tmp_path.glob("*/*"))


def test_threads_that_want_one_block_wait_for_one_request(tmp_path: Path) -> None:
    blocks, begun, go, calls = Blocks(tmp_path, 1000), threading.Event(), threading.Event(), []

    def fetch() -> bytes:
        calls.append(1)
        begun.set()
        assert go.wait(10)
        return b"abcdef"

    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(blocks.get("key", 0, 6, fetch, 1, 3))) for _ in range(4)
    ]
    threads[0].start()
    assert begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert found == [b"bc"] * 4
    assert len(calls) == 1


def test_a_shard_that_is_cut_short_is_named(far: Path) -> None:
    path = far / "train-0.tar"
    path.write_bytes(path.read_bytes()[:3500])
    put(far)
    with pytest.raises(DataError, match=r"train-0\.tar.*\n.*Damaged archives stop the load"):
        load("memory://shop", quarantine_limit=0.01)
    loaded = load("memory://shop", quarantine_limit=0.01, damaged_archives="noted")
    assert {entry.name.split(",")[0] for entry in loaded.quarantine.entries} == {"train-0.tar"}
    assert loaded.table.column("split").count("test") == 6


def test_content_that_changed_after_it_was_read_is_named(far: Path) -> None:
    table = load("memory://shop").table
    assert table.value("image", 0)
    (far / "test-1.tar").write_bytes(bytes((far / "test-1.tar").stat().st_size))
    put(far)
    forget()
    with pytest.raises(
        DataError, match=r"memory:///shop/test-1\.tar: .* have changed since the data were read"
    ):
        table.value("image", 0)


def test_an_outage_stops_the_work_and_is_no_broken_image(far: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", tried.append)
    system = type(fsspec.filesystem("memory"))

    class ClientError(Exception):  # as of aiohttp and gcsfs: no `OSError`
        pass

    def fail(self: object, *args: object, **options: object) -> bytes:
        raise ClientError("the network is down")

    monkeypatch.setattr(system, "cat_file", fail)
    with pytest.raises(
        DataError, match=r"memory:///shop/.*\.tar: cannot be read \(ClientError: the network is down\)"
    ):
        load("memory://shop")
    assert 1.0 in tried
    assert 2.0 in tried, "it was tried again"
    tried.clear()
    monkeypatch.setattr(system, "ukey", fail)
    with pytest.raises(DataError, match=r"train-0\.tar: cannot be read \(ClientError"):
        RemoteFile("memory://shop/train-0.tar")
    assert tried == [1.0, 2.0]


def test_a_block_on_disk_that_was_cut_short_is_fetched_again(tmp_path: Path) -> None:
    whole = bytes(range(100))
    for cut in (0, 50, 101):
        blocks = Blocks(tmp_path / str(cut), 10_000)
        blocks.get("key", 0, 100, lambda: whole)
        path = tmp_path / str(cut) / "key" / "0"
        path.write_bytes(bytes(cut))
        assert blocks.get("key", 0, 100, lambda: whole, 60, 70) == whole[60:70]
        path.write_bytes(bytes(cut))
        blocks.get("key", 0, 100, lambda: whole, stop=0)
        assert path.read_bytes() == whole, "also when it is fetched ahead"


def test_the_size_of_a_last_block_is_that_of_the_rest(far: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = 3000
    monkeypatch.setattr(remote, "BLOCK", block)
    file = RemoteFile("memory://shop/train-0.tar")
    last = file.size // block
    assert file.size % block, "the last block is short"
    asked = requests(monkeypatch)
    assert file.read(last * block, block) == file.read(last * block, block)
    assert asked == [(file.name, last)], "the second time it came from the disk"


@pytest.mark.parametrize("name", ["ETag", "mtime", "Last-Modified", "LastModified"])
def test_a_new_state_of_a_file_gives_a_new_key_where_the_ukey_stays(
    far: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of `https://`: fsspec makes its `ukey` from the URL."""
    system = type(fsspec.filesystem("memory"))
    keys = []
    with monkeypatch.context() as patch:
        patch.setattr(system, "ukey", lambda self, path: "same")
        for state in ("one", "two", "two"):
            patch.setattr(system, "info", lambda self, path, s=state: {"size": 5, name: s})
            keys.append(RemoteFile("memory://shop/train-0.tar").key)
    assert keys[0] != keys[1] == keys[2]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://KEY:s3cret@bucket/a.tar", "holds an account, a key or a query"),
        ("https://host/a.tar?X-Amz-Signature=s3cret", "holds an account, a key or a query"),
        ("s3://KEY:s3/cret@bucket/s3cret@a.csv", "holds an account, a key or a query"),
        ("https://s3cret@host/a.zip", "holds an account, a key or a query"),
        ("s3://KEY:s3cret@bucket/a.csv", "holds an account, a key or a query"),
        ("memory://nowhere/*.tar", "none is there"),
        ("memory://shop/a.csv", "is a URL; download it first"),
        ("nothing-known://shop/a.tar", "cannot be read"),
    ],
)
def test_urls_that_cannot_be_read_say_why_and_show_no_secret(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as found:
        load(url)
    assert "s3cret" not in str(found.value)
    assert "KEY" not in str(found.value)


@pytest.mark.parametrize(
    "url",
    [
        "abfs://container@account.dfs.core.windows.net/a.tar",
        "s3://bucket/2024-0?/a-*.tar",
        "s3://bucket/?/date=2024-01-01/*.tar",
        "https://host:8080/who@where/a.tar",
        "hf://datasets/OWNER/NAME@main/a.tar",
    ],
)
def test_containers_ports_revisions_and_patterns_are_no_secrets(url: str) -> None:
    require_no_secrets(url, "data.source")


def test_the_message_on_an_address_of_a_run_folder_does_not_show_it() -> None:
    with pytest.raises(ConfigError, match="holds an account, a key or a query") as found:
        validated(RunConfig, {"output": "s3://KEY:s3cret@bucket/run"}, "")
    assert "s3cret" not in str(found.value)


def test_processes_that_share_a_folder_share_its_limit(tmp_path: Path) -> None:
    limit, size = 20_000, 100
    processes = [Blocks(tmp_path, limit) for _ in range(8)]
    most = 0
    for number in range(60):
        for own, blocks in enumerate(processes):
            blocks.get(str(own), number, size, lambda: bytes(size))
        if number % 4 == 0:
            most = max(most, sum(path.stat().st_size for path in tmp_path.glob("*/*")))
    assert limit / 2 < most <= 1.4 * limit, "each may add a twentieth before it looks again"


def test_reading_ahead_stops_inside_a_step() -> None:
    begun, go, fetched = threading.Event(), threading.Event(), list[int]()

    class Slow:
        def fetch(self, position: int) -> None:
            fetched.append(position)
            begun.set()
            assert go.wait(10)

    ahead = ReadAhead(lambda step: [(Slow(), i) for i in range(100)], 0, 1, 1)  # type: ignore[misc]
    ahead.until(0)
    assert begun.wait(10)
    closing = threading.Thread(target=ahead.close)
    closing.start()
    assert ahead._closed.wait(10)
    go.set()
    closing.join(10)
    assert fetched == [0], "the other 99 rows of the step are left"


def test_a_window_is_fetched_ahead_but_no_more_than_a_memory_remembers() -> None:
    far_maker, memory = maker(16_384), BufferMemory(Buffer("reservoir", 4, 0), {}, "a", numbers(200), 1, 2)
    shuffled, once = Stream((), 64), Stream((), 64, order="once")
    stored = replace(once, memory=memory)
    assert far_maker._steps_ahead([shuffled], 1) == 256, "a whole window ahead"
    assert far_maker._steps_ahead([once], 1) == 4, "a stream that is seen once has no window"
    assert far_maker._steps_ahead([once, shuffled], 1) == 256
    assert maker(None)._steps_ahead([shuffled], 3) == 8
    for workers in (1, 100):
        assert far_maker._steps_ahead([stored, shuffled], workers) < REMEMBERED


def test_reading_ahead_does_not_restart_the_memory_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    table = numbers(200)
    memory = BufferMemory(Buffer("reservoir", 4, 0), {}, "a", table, 1, 2)
    starts: list[int] = []
    monkeypatch.setattr(memory, "_restart", lambda: starts.append(1))
    stream = Stream((Source(table),), 1, order="once", memory=memory)
    ahead = maker(16_384)._steps_ahead([stream], 40)
    for step in range(150):
        memory.drawn(step + ahead - 1)
        memory.drawn(step)
    assert not starts


def numbers(count: int) -> Table:
    return Table(pa.table({"id": [str(i) for i in range(count)], "image": [b""] * count}))


def test_a_configuration_keeps_a_url_as_it_is(tmp_path: Path) -> None:
    block = _from_folder({"source": ["s3://bucket/2024/*.tar", "shop.csv"], "root": "memory://a"}, tmp_path)
    assert block["source"][0] == "s3://bucket/2024/*.tar"
    assert block["source"][1].endswith("/shop.csv")
    assert block["root"] == "memory://a"
