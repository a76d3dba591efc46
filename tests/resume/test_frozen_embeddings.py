"""Embeddings of a frozen tower that do not fit the memory: a run killed at any instant ends with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import resume_harness as harness

from everclip.training import frozen


@pytest.fixture(autouse=True)
def _in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "MEMORY", 0)
    monkeypatch.setattr(frozen, "BLOCK", 7)


def test_killed_while_files_are_written_and_read(
    case_config: Callable[..., Any], reference: Callable[..., Path]
) -> None:
    expected = reference("frozen-image")
    points = [harness.kind_of(p) for p in harness.crash_points(case_config("frozen-image", output="points"))]
    files = list(dict.fromkeys(p for p in points if "frozen-" in p))
    assert (
        len(files) == 6
    )  # the first task's table, then the second's and the buffer's; before and after renaming
    config = case_config("frozen-image")
    for number, place in enumerate(files):
        assert harness.killed_at(config, 1, place), place
        if number in (1, 5):
            assert harness.killed_at(config, 2, "after step")
    harness.run(config)
    harness.assert_same_end(Path(config.output), expected)
    assert list((Path(config.output) / "frozen").iterdir()) == []
