"""A run killed inside a stream that is seen once ends bit-identical: no sample is seen twice or left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import resume_harness as harness

SETTINGS = (
    "checkpoint.every_steps=1",
    "evaluation.examples=1",
    "scenario.online.every=24",
    "scenario.online.parts=2",
)
KILLS = [
    ("after step", 1),
    ("before renaming N", 3),
    ("after renaming N", 4),
    ("before renaming N.safetensors", 2),  # the first row inside the stream
    ("after renaming N.safetensors", 2),
    ("in evaluation", 4),
    ("before renaming results.json", 2),
    ("after step", 9),
]
"""(kind of crash point, its how-manieth), one after the other."""
METHODS = {
    "sit": ("method=sit",),
    "sit-memory": ("method=sit", "method.replay={kind: balanced, size: 7}"),
    "zero-shot": ("method=zero-shot",),
}


@pytest.mark.parametrize(
    "name", ["sit-memory", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sit", "zero-shot"))]
)
def test_killed_again_and_again(micro_config: Callable[..., Any], tmp_path: Path, name: str) -> None:
    settings = (*SETTINGS, *METHODS[name])
    whole = micro_config("online", *settings, output="whole")
    harness.run(whole)
    config = micro_config("online", *settings, output="killed")
    killed = [harness.killed_at(config, number, kind) for kind, number in KILLS]
    assert any(killed)
    harness.run(config)
    harness.assert_same_end(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_a_process_that_is_really_killed(micro_config: Callable[..., Any], tmp_path: Path) -> None:
    settings = (*SETTINGS, "method=sit")
    harness.run(micro_config("online", *settings, output="whole"))
    config = micro_config("online", *settings, output="killed")
    for number in (2, 3, 5):
        process = harness.in_child(config, number, "after step")
        process.join(120)
        assert process.exitcode == -9
    harness.run(config)
    harness.assert_same_end(tmp_path / "killed", tmp_path / "whole")
