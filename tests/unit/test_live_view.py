"""The live view of a stream that is seen once: a table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from everclip.run import execute
from everclip.running.live_view import StreamView, bars
from everclip.running.prepare import prepare
from everclip.training.progress import Progress

SETTINGS = ("method=sit", "training.steps_per_batch=2", "scenario.online.every=16")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(text: str) -> list[str]:
    """Return the lines of a terminal after `text`, with the control sequences that rich and we write."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[\??\d*(?:;\d+)*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif (up := re.fullmatch(r"\x1b\[(\d+)A", part)) is not None:
            row -= int(up[1])
        elif part == "\r" or part.startswith("\x1b"):
            continue
        else:
            lines[row] += part
    return [line.rstrip() for line in lines]


def test_a_terminal_shows_a_table_while_a_stream_is_learned(micro_config: Callable[..., Any]) -> None:
    config, out, seen = micro_config("online", *SETTINGS), Terminal(), []
    progress = Progress(stream=out, every=0.0)
    progress._every = 0.0  # every change, not five a second
    table = progress.table
    progress.table = lambda facts: (seen.append(dict(facts)), table(facts))[1]  # type: ignore[method-assign,assignment]
    results = execute(config, progress=progress)
    total = results.online.samples  # type: ignore[union-attr]
    lines = screen(out.getvalue())
    names = ("samples seen", "classes seen", "speed", "test", "names")
    assert any("time left" in facts for facts in seen)
    assert "time left" not in seen[-1]  # the stream has ended
    for name in names:
        (line,) = [line for line in lines if line.startswith(f"{name}  ")]  # once: it changed in place
        assert line
    assert f"{total:,} of {total:,}" in "\n".join(lines)
    curve = [row.scores["test"]["seen"]["accuracy"].value for row in results.rows[1:]]
    assert seen[-1]["test"] == f"{100 * curve[-1]:.1f} %  {bars(curve)}"
    # The batches of the stream, and the classes in them, counted here from its samples.
    (task,) = prepare(config).tasks
    keys = task.train.column("class_key")
    shown = [(f["samples seen"], f["classes seen"]) for f in seen if "samples seen" in f]
    wanted = {min(8 * (i + 1), total) for i in range(-(-total // 8))}
    assert {s for s, _ in shown} == {f"{n:,} of {total:,}" for n in wanted}
    for n in wanted:
        count = len(set(keys[:n]))
        assert {c for s, c in shown if s == f"{n:,} of {total:,}"} == {f"{count} of {len(set(keys))}"}
    rows = [line for line in lines if re.match(r"[\d,]+ samples.*: test", line)]
    assert len(rows) == len(results.rows) - 1  # they scrolled above the table
    assert out.getvalue().endswith("\x1b[?25h")  # the cursor is visible again


def test_elsewhere_it_is_a_line_per_row(micro_config: Callable[..., Any]) -> None:
    out = io.StringIO()
    results = execute(micro_config("online", *SETTINGS), progress=Progress(stream=out))
    assert "\x1b" not in out.getvalue()
    assert "samples seen" not in out.getvalue()
    rows = [line for line in out.getvalue().splitlines() if re.match(r"[\d,]+ samples.*: test", line)]
    assert len(rows) == len(results.rows) - 1


def test_other_streams_and_quiet_processes_have_no_table(micro_config: Callable[..., Any]) -> None:
    out = Terminal()
    view = StreamView(None, Progress(stream=out), {})
    view.step(SimpleNamespace(), 0, None, SimpleNamespace())  # type: ignore[arg-type]
    Progress(quiet=True, stream=out).table({"samples seen": "8"})
    assert out.getvalue() == ""


@pytest.mark.parametrize(("values", "shown"), [([], ""), ([None, 0.0, 0.5, 1.0], "▁▅█"), ([0.0], "▁")])
def test_bars_are_from_zero_to_the_best(values: list[float | None], shown: str) -> None:
    assert bars(values) == shown


def test_a_name_in_brackets_is_no_style() -> None:
    out = Terminal()
    progress = Progress(stream=out)
    progress.table({"[red]": "1 %"})
    progress.say("[bold]note")
    progress.close()
    assert "[red]" in out.getvalue()
    assert "[bold]note" in out.getvalue()
