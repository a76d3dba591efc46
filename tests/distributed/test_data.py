"""Two processes share the looking and end with the same samples, facts and quarantine as one."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pair
import torch

from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.errors import DataError
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


def other_data(first: str, second: str, index: bool) -> str:
    """Read a folder on the first process and another on the second; return the error."""
    import os

    from everclip.data.reading import index as index_module

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    own = Path(first if os.environ["RANK"] == "0" else second)
    index_module.LEAST_BYTES = 0 if index else 2**60
    os.environ["EVERCLIP_CACHE"] = str(own.parent / f"cache-{own.name}")
    try:
        read(DataSpec(source=str(own), quarantine_limit=1.0))
    except DataError as error:
        return str(error)
    return "no error"


def test_processes_with_other_data_stop_with_the_same_words(tmp_path: Path) -> None:
    """Machines whose copies differ: one lacks rows, or has as many rows with other captions."""
    pictures = [picture((i * 20, 30, 60), i, np.random.default_rng(i)) for i in range(8)]
    for name, count, caption in (("a", 8, "thing"), ("b", 5, "thing"), ("c", 8, "other")):
        (tmp_path / name).mkdir()
        with tarfile.open(tmp_path / name / "0.tar", "w") as archive:
            for i in range(count):
                for ending, data in (("png", pictures[i]), ("txt", f"{caption} {i}".encode())):
                    member = tarfile.TarInfo(f"{i}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    names = [(other, index) for index in (False, True) for other in ("b", "c")]
    a = str(tmp_path / "a")
    jobs = [(other_data, (a, str(tmp_path / other), index)) for other, index in names]
    for (first, second), (other, _) in zip(pair.Pair(*jobs).results(), names, strict=True):
        assert first.split(": ", 1)[1] == second.split(": ", 1)[1]
        assert "the processes of this run found different data: process 0 " in first
        assert ("8 rows, 8 images, process 1 5 rows, 5 images" in first) == (other == "b"), first
