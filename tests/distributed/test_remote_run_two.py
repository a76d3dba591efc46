"""Two machines without a common disk: each works in a copy of its own, and the first publishes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pair
import pytest

from everclip import execute
from everclip.config import RunConfig
from everclip.errors import Interrupted
from everclip.evaluation.results import Results
from everclip.training.progress import Progress

SETTINGS = ("method=replay", "method.replay.size=7", "training.steps=6", "evaluation.examples=0")


def on_own_machine(config: RunConfig, caches: str, stop_after: int | None = None) -> str:
    """Run with this process as the only one of its machine; return how it ended."""
    from everclip import run as module

    os.environ |= {"LOCAL_RANK": "0", "EVERCLIP_CACHE": f"{caches}-{os.environ['RANK']}"}
    left = stop_after

    def act(point: str) -> None:
        nonlocal left
        if left is not None and point == "after step":
            left -= 1
            if left == 0 and os.environ["RANK"] == "0":
                os.kill(os.getpid(), signal.SIGTERM)

    module.crash_point = act
    try:
        return execute(config, progress=Progress(quiet=True)).status
    except Interrupted:
        return "stopped"


@pytest.mark.slow
def test_two_machines_go_on_from_what_the_first_published(
    micro_config: Callable[..., Any], tmp_path: Path
) -> None:
    here = micro_config("time", *SETTINGS, output="here")
    pair.Pair((pair.whole_run, (here,))).results()
    far = here.model_copy(update={"output": f"file://{tmp_path / 'far'}"})
    caches = str(tmp_path / "machine")
    # Agreeing on a stop takes 8 steps, so it comes in the second task.
    assert pair.Pair((on_own_machine, (far, caches, 7))).results() == [("stopped", "stopped")]
    assert Results.read(tmp_path / "far").status == "stopped"
    copies = [list(Path(f"{caches}-{rank}").rglob("checkpoints/*/manifest.json")) for rank in (0, 1)]
    assert (bool(copies[0]), bool(copies[1])) == (True, False), "the second machine only reads, at the start"
    assert pair.Pair((on_own_machine, (far, caches))).results() == [("finished", "finished")]
    assert list(Path(f"{caches}-1").rglob("checkpoints/*/manifest.json")), (
        "it has fetched what it went on from"
    )
    ours, theirs = (_ended(folder) for folder in (tmp_path / "far", here.folder))
    assert ours.keys() == theirs.keys()
    assert [name for name, content in theirs.items() if ours[name] != content] == []


def _ended(folder: Path) -> dict[str, bytes]:
    """Return what must be equal, of all checkpoints the newest: a stop leaves one more."""
    newest = max(folder.glob("checkpoints/*"))
    files = {k: v for k, v in pair.folder_bytes(folder).items() if not k.startswith("checkpoints/")}
    return {**files, "newest": (newest / "tensors.safetensors").read_bytes()}
