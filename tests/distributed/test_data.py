"""Two processes share the looking and end with the same samples, facts and quarantine as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pair
import torch

from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from micro import picture


def job(folder: str) -> dict[str, Any]:
    """Read a folder, in as many processes as there are."""
    import os

    if "RANK" in os.environ and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    loaded = read(DataSpec(source=folder, quarantine_limit=1.0))
    return {
        "ids": loaded.table.ids,
        "fingerprint": loaded.table.fingerprint,
        "facts": loaded.facts.to_pylist(),
        "quarantine": loaded.quarantine.entries,
    }


def write(folder: Path, count: int) -> None:
    draw = np.random.default_rng(0)
    for i in range(count):
        data = picture((i * 20 % 255, 30, 60), i, draw)
        path = folder / f"class {i % 2}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if i % 4 else data[: 20 * i])


def test_two_processes_hold_the_same_samples_as_one(tmp_path: Path) -> None:
    write(tmp_path / "many", 17)
    write(tmp_path / "one", 2)  # fewer pictures than processes once the broken one is gone
    jobs = [(job, (str(tmp_path / name),)) for name in ("many", "one")]
    for (first, second), (_, arguments) in zip(pair.Pair(*jobs).results(), jobs, strict=True):
        assert first == second == job(*arguments)
