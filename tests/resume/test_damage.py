"""A damaged newest checkpoint falls back to the one before; with none left the run says so and touches nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import resume_harness as harness

import everclip
from everclip.errors import CheckpointError
from everclip.training.checkpoint import MANIFEST, STATE, TENSORS


def _truncate(path: Path) -> None:
    data = (path / TENSORS).read_bytes()
    (path / TENSORS).write_bytes(data[: len(data) // 2])


def _flip_a_bit(path: Path) -> None:
    data = bytearray((path / TENSORS).read_bytes())
    data[-5] ^= 1
    (path / TENSORS).write_bytes(bytes(data))


def _flip_a_digit(path: Path) -> None:
    text = (path / STATE).read_text()
    place = text.index('"step": ') + len('"step": ')
    (path / STATE).write_text(text[:place] + str(9 - int(text[place])) + text[place + 1 :])


def _without(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def _written(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (path / name).write_bytes(content)

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "tensors cut in half": _truncate,
    "one bit of a tensor flipped": _flip_a_bit,
    "one digit of the state changed": _flip_a_digit,
    "no manifest": _without(MANIFEST),
    "no tensors": _without(TENSORS),
    "no state": _without(STATE),
    "manifest no JSON": _written(MANIFEST, b"{"),
    "manifest of another shape": _written(MANIFEST, b'{"files": []}'),
    "manifest no text": _written(MANIFEST, b"\xff\xfe\x00"),
    "empty tensors": _written(TENSORS, b""),
}


def _stopped(config: Any) -> list[Path]:
    """Stop a run in its second task; return its checkpoints, oldest first."""
    assert harness.killed_at(config, 5, "after step")
    return harness.Checkpoints(Path(config.output), config.checkpoint).numbered()


PROBLEMS = ("tensors cut in half", "one bit of a tensor flipped", "no manifest", "manifest no JSON")
"""A damage for each problem that a checkpoint can have; `tests/unit/test_checkpoint.py` finds the others."""


@pytest.mark.parametrize(
    "damage", [d if d in PROBLEMS else pytest.param(d, marks=pytest.mark.slow) for d in DAMAGES]
)
def test_the_one_before_is_used_and_an_event_says_so(
    damage: str, case_config: Callable[..., Any], reference: Callable[..., Path]
) -> None:
    config, expected = case_config("replay"), reference("replay")
    older, newer = _stopped(config)
    DAMAGES[damage](newer)
    results = harness.run(config)
    assert [e.kind for e in results.events] == ["damaged checkpoint"]
    assert newer.name in results.events[0].message
    assert older.name in results.events[0].message
    harness.assert_same_end(Path(config.output), expected)


def test_a_damaged_older_checkpoint_does_not_matter(
    case_config: Callable[..., Any], reference: Callable[..., Path]
) -> None:
    config, expected = case_config("finetune"), reference("finetune")
    older, _ = _stopped(config)
    _truncate(older)
    assert harness.run(config).events == []
    harness.assert_same_end(Path(config.output), expected)


def test_a_damaged_checkpoint_does_not_count_among_those_kept(
    case_config: Callable[..., Any], reference: Callable[..., Path]
) -> None:
    config, expected = case_config("finetune"), reference("finetune")
    _, newer = _stopped(config)
    _truncate(newer)
    assert harness.killed_at(config, 2, "after step")
    # The newest is damaged again: the last good one must not have made room for the first damaged one.
    _truncate(harness.Checkpoints(Path(config.output), config.checkpoint).numbered()[-1])
    results = harness.run(config)
    assert {e.kind for e in results.events} == {"damaged checkpoint"}
    harness.assert_same_end(Path(config.output), expected)


def test_with_every_checkpoint_damaged_the_run_refuses_and_lists_each(
    arguments: Callable[..., list[str]], case_config: Callable[..., Any], tmp_path: Path
) -> None:
    config = case_config("finetune")
    paths = _stopped(config)
    _truncate(paths[0])
    _without(MANIFEST)(paths[1])
    before = {p: p.read_bytes() for p in sorted(tmp_path.glob("run/checkpoints/*/*"))}
    assert harness.command(arguments("finetune"), tmp_path / "said") == 5
    said = (tmp_path / "said").read_text()
    assert "every checkpoint is damaged" in said
    assert all(path.name in said for path in paths)
    assert f"{MANIFEST} is missing" in said
    assert "expected" in said
    assert "remove the run folder" in said
    assert {p: p.read_bytes() for p in sorted(tmp_path.glob("run/checkpoints/*/*"))} == before
    with pytest.raises(CheckpointError):
        harness.run(config)


def test_a_removed_checkpoint_folder_starts_the_run_anew(
    case_config: Callable[..., Any], reference: Callable[..., Path]
) -> None:
    config, expected = case_config("finetune"), reference("finetune")
    _stopped(config)
    shutil.rmtree(Path(config.output) / "checkpoints")
    harness.run(config)
    harness.assert_same_end(Path(config.output), expected)


def test_a_damaged_result_is_built_again(micro_config: Callable[..., Any], tmp_path: Path) -> None:
    config = micro_config("single", "method=zero-shot")
    before = everclip.execute(config).without_timing()
    (tmp_path / "run" / "results.json").write_text("{")
    again = everclip.execute(config)
    assert again.without_timing() == before
    assert [event.kind for event in again.events] == ["damaged result"]


def test_lost_features_of_row_0_are_an_event_and_no_end(
    micro_config: Callable[..., Any], tmp_path: Path
) -> None:
    config = micro_config("single")
    assert harness.killed_at(config, 1, "after step")
    (tmp_path / "run" / "rows" / "000.features.safetensors").unlink()
    result = everclip.execute(config)
    assert [event.kind for event in result.events] == ["lost features"]
    assert result.rows[1].representation["image_rotation_deg"] is None
