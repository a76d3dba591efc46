"""A folder that grows: every file once, oldest first, none that is still being written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import everclip
from everclip.errors import ConfigError


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def put(folder: Path, name: str, when: float) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x")
    os.utime(file, (when, when))


def test_files_come_once_in_the_order_of_their_arrival(tmp_path: Path) -> None:
    clock = Clock()
    for name, when in (("cat/b.png", 50), ("dog/a.jpg", 40), ("cat/c.PNG", 60), ("cat/notes.txt", 1)):
        put(tmp_path, name, when)
    stream = everclip.growing_folder(tmp_path, 2, patience=3, now=lambda: clock.time, sleep=clock.sleep)
    assert [Path(row["image"]).name for row in next(stream)] == ["a.jpg", "b.png"]
    assert [row["class_name"] for row in next(stream)] == ["cat"]
    put(tmp_path, "owl/new.png", clock.time + 0.5)  # still being written at the next look
    assert [(row["class_name"], Path(row["image"]).name) for row in next(stream)] == [("owl", "new.png")]
    assert clock.time >= 101.5
    assert list(stream) == []


def test_while_files_arrive_batches_are_full_and_the_rest_comes_when_none_does(tmp_path: Path) -> None:
    clock = Clock()

    def sleep(seconds: float) -> None:
        for part in (0.25, 0.5, 0.75, 1.0):  # four files a second, for five seconds
            if clock.time < 105:
                put(tmp_path, f"cat/{clock.time + part}.png", clock.time + part)
        clock.time += seconds

    stream = everclip.growing_folder(tmp_path, 8, patience=3, now=lambda: clock.time, sleep=sleep)
    assert [len(rows) for rows in stream] == [8, 8, 4]


def test_a_file_that_is_still_written_is_waited_for(tmp_path: Path) -> None:
    clock = Clock()
    put(tmp_path, "cat/new.png", clock.time)
    stream = everclip.growing_folder(tmp_path, 8, patience=0, now=lambda: clock.time, sleep=clock.sleep)
    assert [len(rows) for rows in stream] == [1]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        everclip.growing_folder(tmp_path / "none")
    with pytest.raises(ConfigError, match="must be positive"):
        everclip.growing_folder(tmp_path, 0)
