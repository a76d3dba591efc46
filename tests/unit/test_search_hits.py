"""The counts of what searches return: added up, bounded, safe against other writers and kills; the order of `mixed`."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everclip.errors import CheckpointError
from everclip.lock import locked
from everclip.search import hits, mapping
from everclip.search.hits import COUNTS, FOLDER, LOCK, Hits

ROOT = Path(__file__).parents[2]


def test_counts_of_several_searches_add_up(tmp_path: Path) -> None:
    assert hits.held(tmp_path) == {}
    for ids in (["a", "b"], ["b", "c"], ["b"]):
        one = Hits(tmp_path)
        one.add(ids)
        assert one.flush()
    assert hits.held(tmp_path) == {"b": 3, "a": 1, "c": 1}
    assert list(hits.held(tmp_path)) == ["b", "a", "c"]
    hits.forget(tmp_path, ["b", "unknown"])
    assert hits.held(tmp_path) == {"a": 1, "c": 1}


def test_only_ids_and_numbers_are_kept(tmp_path: Path) -> None:
    one = Hits(tmp_path)
    one.add(["a"])
    one.flush()
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == [LOCK, COUNTS]
    assert hits.pq.read_schema(tmp_path / FOLDER / COUNTS).names == ["id", "count"]


def test_counts_are_bounded_and_old_ones_fade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hits, "MOST", 10)
    one = Hits(tmp_path)
    for round_ in range(40):
        one.add([f"new {round_} {n}" for n in range(4)] + ["hot"] * 3)
        one.flush()
        found = hits.held(tmp_path)
        assert len(found) <= 10
        assert max(found, key=lambda i: found[i]) == "hot" or round_ == 0
    assert "new 0 0" not in hits.held(tmp_path)
    one.add(str(n) for n in range(100))  # between two writes, too
    assert len(one._counts) <= 20


def test_a_server_writes_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("everclip.search.hits.time.monotonic", lambda: now[0])
    one = Hits(tmp_path, every=60)
    one.add(["a"])
    one.flush_if_due()
    assert hits.held(tmp_path) == {}
    now[0] = 61.0
    one.flush_if_due()
    assert hits.held(tmp_path) == {"a": 1}


def test_while_another_process_writes_counts_stay_in_memory(tmp_path: Path) -> None:
    one = Hits(tmp_path)
    one.add(["a"])
    (tmp_path / FOLDER).mkdir()
    with locked(tmp_path / FOLDER / LOCK, "search"):
        assert not one.flush()
    assert hits.held(tmp_path) == {}
    assert one.flush()
    assert hits.held(tmp_path) == {"a": 1}


def test_where_nothing_can_be_written_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file in the place of the folder")
    one = Hits(tmp_path)
    one.add(["a"])
    assert not one.flush()
    other = Hits(tmp_path / "missing")
    other.add(["a"])
    assert not other.flush()


def test_a_damaged_file_is_named_and_begun_anew(tmp_path: Path) -> None:
    one = Hits(tmp_path)
    one.add(["a"])
    one.flush()
    (tmp_path / FOLDER / COUNTS).write_bytes(b"PAR1 nothing")
    with pytest.raises(CheckpointError, match=r"counts\.parquet: damaged"):
        hits.held(tmp_path)
    one.add(["b"])
    assert one.flush()
    assert hits.held(tmp_path) == {"b": 1}


def count_many(folder: str, name: str) -> None:
    one = Hits(Path(folder))
    for _ in range(20):
        one.add([name, "shared"])
        one.flush(wait=60)


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=count_many, args=(str(tmp_path), name)) for name in "abc"]
    for one in writers:
        one.start()
    for one in writers:
        one.join(60)
    assert hits.held(tmp_path) == {"shared": 60, "a": 20, "b": 20, "c": 20}


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import everclip.files
from everclip.search.hits import Hits
def point(name):
    if name == sys.argv[2]:
        os.kill(os.getpid(), 9)
everclip.files.crash_point = point
one = Hits(Path(sys.argv[1]))
one.add(["b"])
one.flush()
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_killed_writer_leaves_a_file_that_can_be_read(when: str, tmp_path: Path) -> None:
    one = Hits(tmp_path)
    one.add(["a"])
    one.flush()
    point = f"{when} renaming {COUNTS}"
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path, point, str(ROOT / "src")], timeout=120, check=False
    )
    assert ended.returncode == -9
    assert hits.held(tmp_path) == {"a": 1} | ({"b": 1} if when == "after" else {})
    one.add(["c"])
    assert one.flush()  # the lock went with the process
    assert hits.held(tmp_path)["c"] == 1
    assert sorted(os.listdir(tmp_path / FOLDER)) == [LOCK, COUNTS]


# -- the order of `mixed` -------------------------------------------------------------------------------------


@dataclass
class Told:
    """A job as `hottest` sees it."""

    folder: Path
    found: list[list[str]]
    lines: list[str] = field(default_factory=list)

    @property
    def index(self) -> Any:
        return self

    @property
    def new(self) -> Any:
        return self

    key = "k"

    def view(self) -> Any:
        return self

    def vectors(self, key: str) -> Any:
        return self

    def contents(self) -> dict[str, str]:
        return dict.fromkeys("abcde", "content")

    def of_texts(self, texts: list[str]) -> Any:
        return np.zeros((len(texts), 2), np.float32)

    def tell(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    """Five items, of which captions find `d` twice and `a` once."""
    made = Told(tmp_path, [["d", "a"], ["d"]])
    monkeypatch.setattr(mapping, "texts_of", lambda view, count: ["one", "two"])
    monkeypatch.setattr(mapping.tables, "nearest_of_many", lambda table, queries, top: made.found)
    return made


def test_what_searches_returned_comes_first_then_what_captions_find(job: Told) -> None:
    one = Hits(job.folder)
    one.add(["b", "c", "c", "removed from the index", "removed from the index", "removed from the index"])
    one.flush()
    assert mapping.hottest(job) == ["c", "b", "d", "a"]  # type: ignore[arg-type]
    assert job.lines == ["order: 2 items that searches returned, most often first; then by captions"]


def test_without_hits_captions_decide(job: Told) -> None:
    assert mapping.hottest(job) == ["d", "a"]  # type: ignore[arg-type]
    assert "2 items that captions find" in job.lines[0]


def test_damaged_counts_stop_nothing(job: Told) -> None:
    (job.folder / FOLDER).mkdir()
    (job.folder / FOLDER / COUNTS).write_bytes(b"")
    assert mapping.hottest(job) == ["d", "a"]  # type: ignore[arg-type]
    assert "damaged" in job.lines[0]
