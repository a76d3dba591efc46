"""Which remarks on the inputs of a run are printed, and which are only recorded."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import report_fixtures as synthetic

from everclip.evaluation.results import Event
from everclip.report import write_report
from everclip.report.events import events
from everclip.report.runs import Run as Folder
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
    found = {(event.kind, event.message) for event in run.execute().events}
    assert found >= {("data", "three rows are left out"), ("training", "a batch is small")}
    said = stream.getvalue()
    assert "a batch is small" in said
    for words in ("three rows are left out", "two names are codes"):
        assert (words in said) == (source == "mine.csv")


REMARKS = [
    Event(kind="data", message="256 of 9,000 rows are left out"),
    Event(kind="fallback", message="fp32"),
]
OURS = ("builtin:emoji", "builtin:emoji (reference.images)")


def reported(folder: Path, sources: tuple[str, ...]) -> Path:
    found, _ = synthetic.results("finetune")
    synthetic.write_run(folder)
    provenance = found.provenance | {"data": dict.fromkeys(sources, "0")}
    found.model_copy(update={"events": REMARKS, "provenance": provenance}).write(folder)
    return folder


@pytest.mark.parametrize("sources", [OURS, ("builtin:emoji", "mine.csv"), ()])
def test_a_report_knows_which_events_a_reader_can_do_nothing_about(
    tmp_path: Path, sources: tuple[str, ...]
) -> None:
    found = events(Folder(reported(tmp_path, sources)))
    assert [event["message"] for event in found] == [event.message for event in REMARKS]
    assert [event["recorded_only"] for event in found] == [sources == OURS, False]


def test_the_notice_of_a_report_does_not_count_remarks_on_data_of_the_package(tmp_path: Path) -> None:
    write_report(reported(tmp_path, OURS))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    notice = html[html.index('role="note"') :].partition("</div>")[0]
    assert "<strong>1 event</strong>" in notice
    assert "data" not in notice.partition("details")[2]
    assert (
        "<div><p><strong>data</strong>: 256 of 9,000 rows are left out</p></div>" in html
    )  # listed, not yellow
    assert '<div class="notice"><p><strong>fallback</strong>: fp32</p></div>' in html


def test_a_run_says_once_that_texts_of_full_length_may_take_known_images(
    micro_config: Callable[..., Any],
) -> None:
    """Few images give no spare direction; only the notes of a row said so, which nobody reads."""
    stream = io.StringIO()
    config = micro_config("classes", "method=text-ridge", "scenario.per_task=3")
    results = Run.of(config, Progress(stream=stream)).execute()
    assert len(results.tasks) > 1
    (message,) = [event.message for event in results.events if event.kind == "text-ridge"]
    assert message.startswith("method.level has no effect, so learned texts may also take images")
    assert "as `base`" in message
    assert stream.getvalue().count("note: text-ridge: method.level has no effect") == 1


def test_a_remark_of_a_method_is_made_once_and_figures_are_none() -> None:
    notes = {"rail": {"width": 3}, "text-ridge": {"length": 1.0, "note": "full length"}, "merge": None}
    said = remarks.learned_remarks(notes, [])
    assert said == [("text-ridge", "full length")]
    assert remarks.learned_remarks(notes, [{"kind": "text-ridge", "message": "full length"}]) == []


def test_a_finished_run_is_not_said_to_continue(micro_config: Callable[..., Any]) -> None:
    config = micro_config("time", "method=zero-shot")
    Run.of(config, Progress(quiet=True)).execute()
    stream = io.StringIO()
    Run.of(config, Progress(stream=stream)).execute()
    assert f"{config.output} is finished" in stream.getvalue()
    assert "continuing" not in stream.getvalue()
