"""The time of a run: every second of every session counts once, under one stage, also after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everclip.running.clock import FILE, WRITE_EVERY, Clock


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def hand() -> Hand:
    return Hand()


def begun(folder: Path, hand: Hand, known: dict[str, float] | None = None) -> Clock:
    clock = Clock(folder, hand)
    clock.begin(known or {}, writes=True)
    return clock


def test_stages_inside_each_other_count_once(tmp_path: Path, hand: Hand) -> None:
    clock = begun(tmp_path, hand)
    hand.time += 3
    clock.idle()
    with clock.stage("training"):
        hand.time += 10
        with clock.stage("checkpoints"):
            hand.time += 2
        hand.time += 5
        clock.move(4, "guard")
    hand.time += 1
    assert clock.seconds() == {"loading": 3, "training": 11, "checkpoints": 2, "guard": 4, "other": 1}
    assert clock.sessions == 1


def test_a_session_that_was_killed_counts_up_to_its_last_write(tmp_path: Path, hand: Hand) -> None:
    for _ in range(2):
        clock = begun(tmp_path, hand)
        with clock.stage("training"):
            for _ in range(20):
                hand.time += 1
                clock.tick()
            hand.time += 1  # and killed here: nothing is closed, nothing written
    third = begun(tmp_path, hand)
    hand.time += 2
    assert third.sessions == 3
    lost = 2 * WRITE_EVERY
    assert 2 * 20 - lost <= third.seconds()["training"] <= 2 * 21
    assert third.seconds()["loading"] == 2


def test_a_folder_of_an_older_version_keeps_what_its_checkpoint_says(tmp_path: Path, hand: Hand) -> None:
    clock = begun(tmp_path, hand, {"training": 7.0})
    assert clock.seconds()["training"] == 7
    assert clock.sessions == 2


@pytest.mark.parametrize(
    "text", ["", "[]", '{"sessions": [3]}', '{"sessions": [{"training": "x"}]}', '{"sessions": [{"t": NaN}]}']
)
def test_a_damaged_file_is_said_and_the_checkpoint_counts(tmp_path: Path, hand: Hand, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    clock = Clock(tmp_path, hand)
    problem = clock.begin({"training": 7.0}, writes=True)
    assert problem is not None
    assert FILE in problem
    assert clock.seconds()["training"] == 7
    clock.write()
    assert json.loads((tmp_path / FILE).read_text())["sessions"][0] == {"training": 7.0}


def test_a_file_that_cannot_be_written_is_told_once(tmp_path: Path, hand: Hand) -> None:
    (tmp_path / FILE).mkdir()
    clock = Clock(tmp_path, hand)
    clock.begin({}, writes=True)
    first = clock.write()
    assert first is not None
    assert "cannot be written" in first
    assert clock.write() is None
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_reading_writes_nothing(tmp_path: Path, hand: Hand) -> None:
    begun(tmp_path, hand).seconds()
    other = Clock(tmp_path, hand)
    other.begin({}, writes=False)
    other.write()
    assert list(tmp_path.iterdir()) == []
