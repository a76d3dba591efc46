"""Which remarks on the inputs of a run are printed, and which are only recorded."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from everclip.run import Run
from everclip.running import remarks
from everclip.training.progress import Progress


@pytest.mark.parametrize("source", ["builtin:emoji", "mine.csv"])
def test_remarks_on_data_of_the_package_are_recorded_and_not_printed(
    micro_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """A user can mend their own data; before our own data they can do nothing."""
    monkeypatch.setattr(remarks, "class_name_notes", lambda sets: ["two names are codes"])
    stream = io.StringIO()
    run = Run.of(micro_config("time", "method=zero-shot"), Progress(stream=stream))
    run.scenario = replace(
        run.scenario, data_fingerprints={source: "0", "builtin:emoji (reference.images)": "1"}
    )
    run.remarks = [("data", "three rows are left out"), ("training", "a batch is small")]
    events = {(event.kind, event.message) for event in run.execute().events}
    assert events >= {("data", "three rows are left out"), ("training", "a batch is small")}
    said = stream.getvalue()
    assert "a batch is small" in said
    for words in ("three rows are left out", "two names are codes"):
        assert (words in said) == (source == "mine.csv")
