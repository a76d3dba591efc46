"""A full disk: one clear error with exit code 5, the last good state intact, and the run goes on once there is room."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import resume_harness as harness
from safetensors import SafetensorError

from everclip.errors import CheckpointError


def _full(*args: object, **kwargs: object) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _tensors_do_not_fit(*args: object, **kwargs: object) -> Any:
    # What safetensors raises on a full disk: its own error, not an OSError.
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


PLACES = {
    "renaming": ("everclip.files.os.replace", _full),
    "syncing": ("everclip.files.os.fsync", _full),
    "tensors": ("everclip.training.checkpoint.save_file", _tensors_do_not_fit),
    "state": ("pathlib.Path.write_text", _full),
    "log": ("everclip.training.run_folder.open", _full),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk_is_one_clear_error_and_the_run_continues_later(
    place: str, case_config: Callable[..., Any], reference: Callable[..., Path]
) -> None:
    config, expected = case_config("replay"), reference("replay")
    folder = Path(config.output)
    target, replacement = PLACES[place]
    with pytest.MonkeyPatch.context() as patch:

        def fill(point: str) -> None:
            if point == "after step" and harness.newest(folder).state["place"]["step"] == 3:
                patch.setattr(target, replacement, raising=False)

        with pytest.raises(CheckpointError, match="the disk is full") as error:
            harness.run(config, fill)
    assert error.value.exit_code == 5
    assert "What was saved before is intact" in str(error.value)
    assert harness.newest(folder).state["place"]["step"] >= 3
    assert harness.newest(folder).damaged == ()
    assert harness.run(config).events == []
    harness.assert_same_end(folder, expected)


def test_an_error_of_another_kind_is_not_called_a_full_disk(case_config: Callable[..., Any]) -> None:
    def forbidden(*args: object, **kwargs: object) -> Any:
        raise SafetensorError("Error while serializing: I/O error: Permission denied (os error 13)")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("everclip.training.checkpoint.save_file", forbidden)
        with pytest.raises(CheckpointError, match=r"cannot be written \(Permission denied\)"):
            harness.run(case_config("finetune"))


def test_the_disk_budget_is_kept_and_names_the_setting(case_config: Callable[..., Any]) -> None:
    config = case_config("finetune", "checkpoint.disk_budget_mb=0.5")
    with pytest.raises(CheckpointError, match=r"checkpoint\.disk_budget_mb=0\.5"):
        harness.run(config)
    used = sum(f.stat().st_size for f in Path(config.output).rglob("*") if f.is_file())
    assert used < 0.8e6
    harness.run(case_config("finetune"))  # the budget decides no number: the folder takes another


def _can_mount() -> bool:
    words = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(words, capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_really_full_file_system(
    arguments: Callable[..., list[str]], reference: Callable[..., Path], tmp_path: Path
) -> None:
    if not _can_mount():
        pytest.skip("needs the right to mount a small file system")
    words, expected, folder = arguments("replay"), reference("replay"), tmp_path / "run"
    folder.mkdir()
    command = " ".join(f"'{word}'" for word in [sys.executable, "-m", "everclip.cli.main", *words])
    # The mount lives in a name space of its own: it is gone when the shell ends, also if this test is killed.
    script = f"""
        mount -t tmpfs -o size=600k none {folder}
        {command} 2>{tmp_path}/said; echo $? >{tmp_path}/code
        mount -o remount,size=50m {folder}
        {command} 2>>{tmp_path}/said; echo $? >>{tmp_path}/code
        cp -a {folder} {tmp_path}/after
    """
    subprocess.run(["unshare", "--mount", "sh", "-c", script], check=True, capture_output=True, timeout=300)
    assert (tmp_path / "code").read_text().split() == ["5", "0"]
    assert "the disk is full" in (tmp_path / "said").read_text()
    harness.assert_same_end(tmp_path / "after", expected)
