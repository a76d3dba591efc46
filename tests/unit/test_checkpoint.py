"""Checkpoints: round trip, retention, budget, fallback, and what a killed process leaves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from everclip.config import CheckpointConfig
from everclip.errors import CheckpointError
from everclip.files import folder_atomic, write_bytes_atomic
from everclip.training.checkpoint import MANIFEST, STATE, TENSORS, Checkpoints

WEIGHTS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
    "step": torch.tensor(7),
    "empty": torch.zeros(0, 4),
}


def checkpoints(folder: Path, **settings: Any) -> Checkpoints:
    return Checkpoints(folder, CheckpointConfig(**settings))


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = {"place": {"step": 3, "names": ["ä", None]}, "x": 0.1}
    path = checkpoints(tmp_path).save(WEIGHTS, state)
    found = checkpoints(tmp_path).latest()
    assert found is not None
    assert (found.path, found.state, found.damaged) == (path, state, ())
    assert found.tensors.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def test_tensors_that_share_memory_are_all_stored(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    checkpoints(tmp_path).save({"one": base, "two": base, "view": base[2:4], "turned": base.view(2, 3).T}, {})
    found = checkpoints(tmp_path).latest()
    assert found is not None
    assert torch.equal(found.tensors["turned"], base.view(2, 3).T)
    assert torch.equal(found.tensors["view"], base[2:4])


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert checkpoints(tmp_path).latest() is None


def test_nothing_stored_is_a_pickle(tmp_path: Path) -> None:
    path = checkpoints(tmp_path).save(WEIGHTS, {})
    assert {p.name for p in path.iterdir()} == {TENSORS, STATE, MANIFEST}
    json.loads((path / STATE).read_text())
    header = int.from_bytes((path / TENSORS).read_bytes()[:8], "little")
    json.loads((path / TENSORS).read_bytes()[8 : 8 + header])


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept_and_numbers_go_on(tmp_path: Path, keep: int) -> None:
    for number in range(5):
        checkpoints(tmp_path, keep=keep).save(WEIGHTS, {"number": number})
    assert [p.name for p in checkpoints(tmp_path).numbered()] == [f"{n:08d}" for n in range(6 - keep, 6)]
    found = checkpoints(tmp_path).latest()
    assert found is not None
    assert found.state["number"] == 4


def test_the_disk_budget_refuses_and_leaves_the_last_good_one(tmp_path: Path) -> None:
    big = {"a": torch.zeros(100_000)}  # 0.4 MB
    checkpoints(tmp_path, disk_budget_mb=0.6).save(big, {"number": 1})
    with pytest.raises(
        CheckpointError, match=r"another checkpoint of 0\.4 MB beside 0\.4 MB exceeds .*=0\.6"
    ):
        checkpoints(tmp_path, disk_budget_mb=0.6).save(big, {"number": 2})
    found = checkpoints(tmp_path).latest()
    assert found is not None
    assert found.state["number"] == 1


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".00000007.123.tmp"
    left.mkdir(parents=True)
    (left / TENSORS).write_bytes(b"half")
    assert checkpoints(tmp_path).latest() is None
    checkpoints(tmp_path).save(WEIGHTS, {})
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000001"]


def test_a_state_that_is_no_json_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        checkpoints(tmp_path).save(WEIGHTS, {"loss": float("nan")})
    assert list((tmp_path / "checkpoints").iterdir()) == []


# -- damage ---------------------------------------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (lambda p: flip_a_bit(p / TENSORS), "does not match its checksum"),
    "cut": (lambda p: (p / TENSORS).write_bytes(b"x"), "has 1 bytes, expected"),
    "state gone": (lambda p: (p / STATE).unlink(), f"{STATE} is missing"),
    "state changed": (lambda p: flip_a_bit(p / STATE), f"{STATE} does not match"),
    "manifest gone": (lambda p: (p / MANIFEST).unlink(), f"{MANIFEST} is missing"),
    "manifest cut": (lambda p: (p / MANIFEST).write_text("{"), f"{MANIFEST} cannot be read"),
    "manifest of nothing": (lambda p: (p / MANIFEST).write_text("[]"), f"{MANIFEST} cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_falls_back_and_says_so(tmp_path: Path, damage: str) -> None:
    for number in (1, 2):
        path = checkpoints(tmp_path).save(WEIGHTS, {"number": number})
    act, said = DAMAGES[damage]
    act(path)
    found = checkpoints(tmp_path).latest()
    assert found is not None
    assert found.state["number"] == 1
    assert len(found.damaged) == 1
    assert said in found.damaged[0]


def test_if_all_are_damaged_every_reason_is_listed(tmp_path: Path) -> None:
    for number in (1, 2):
        flip_a_bit(checkpoints(tmp_path).save(WEIGHTS, {"number": number}) / TENSORS)
    with pytest.raises(CheckpointError, match=r"(?s)every checkpoint is damaged.*00000002: .*00000001: "):
        checkpoints(tmp_path).latest()


# -- files ----------------------------------------------------------------------------------------------------


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_bytes_atomic(path, b"old")

    def crash(name: str) -> None:
        if name.startswith("before renaming"):
            raise KeyboardInterrupt

    monkeypatch.setattr("everclip.files.crash_point", crash)
    with pytest.raises(KeyboardInterrupt):
        write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("everclip.files.os.fsync", full)
    with pytest.raises(CheckpointError, match="the disk is full"):
        write_bytes_atomic(tmp_path / "file", b"new")
    with (
        pytest.raises(CheckpointError, match="the disk is full"),
        folder_atomic(tmp_path / "folder") as aside,
    ):
        (aside / "x").write_text("x")
    assert list(tmp_path.iterdir()) == []
