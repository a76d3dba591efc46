"""A run on shards is killed in the middle of one, and continues to the sample with other workers."""

from __future__ import annotations

import io
import json
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import resume_harness as harness

STEPS = (
    "training.steps=9",
    "training.batch_size=8",
    "training.shuffle_window=16",
    "checkpoint.every_steps=1",
)


@pytest.fixture
def shards(micro_folder: Path, tmp_path: Path) -> Path:
    """The data of the tests as four shards."""
    rows = pq.read_table(micro_folder / "data.parquet").to_pylist()
    (tmp_path / "shards").mkdir()
    for shard in range(4):
        with tarfile.open(tmp_path / "shards" / f"{shard}.tar", "w") as archive:
            for number, row in enumerate(rows[shard::4]):
                image = row.pop("image")
                for ending, data in (("png", image), ("json", json.dumps(row).encode())):
                    member = tarfile.TarInfo(f"{number:03}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return tmp_path / "shards"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 3])
def test_a_killed_run_continues_inside_a_shard_with_other_workers(
    shards: Path, workers: int, case_config: Callable[..., Any], tmp_path: Path
) -> None:
    def config(folder: str, count: int) -> Any:
        source = f"scenario.data.source={shards}/*.tar"
        return case_config(
            "finetune", source, *STEPS, f"training.workers={count}", output=str(tmp_path / folder)
        )

    harness.run(config("whole", 1))
    process = harness.in_child(config("killed", 1), 13, "after renaming N")
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert (
        not (tmp_path / "killed" / "results.json").exists()
        or json.loads((tmp_path / "killed" / "results.json").read_text())["status"] != "finished"
    )
    harness.run(config("killed", workers))
    harness.assert_same_end(tmp_path / "killed", tmp_path / "whole")
