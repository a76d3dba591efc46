"""Embeddings of a frozen tower that do not fit the memory: a run killed at any instant ends with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import resume_harness as harness

from everclip.features.service import FeatureService


@pytest.fixture(autouse=True)
def _in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everclip.learner.core.FeatureService", partial(FeatureService, memory=0))
    monkeypatch.setattr("everclip.training.columns.BLOCK", 7)
    monkeypatch.setattr("everclip.features.service.BLOCK", 7)


def test_killed_while_files_are_written_and_read(case_config: Callable[..., Any]) -> None:
    whole = case_config("frozen-image", output="whole")  # in small pieces, too
    harness.run(whole)
    points = [harness.kind_of(p) for p in harness.crash_points(case_config("frozen-image", output="points"))]
    files = list(dict.fromkeys(p for p in points if "features-" in p))
    # Before and after renaming: pictures of the rows, of both tasks and of the buffer; texts of three rows.
    assert len(files) == 2 * (4 + 3)
    pictures = [place for place in files if place.startswith("after") and "-image-" in place]
    config = case_config("frozen-image")
    for place in files:
        assert harness.killed_at(config, 1, place), place
        if place in (pictures[1], pictures[3]):  # all of a task's are there
            assert harness.killed_at(config, 2, "after step")
    harness.run(config)
    harness.assert_same_end(Path(config.output), Path(whole.output))
    assert list((Path(config.output) / "features").iterdir()) == []
