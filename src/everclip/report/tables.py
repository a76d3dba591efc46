"""Print a comparison in the terminal."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table
from rich.text import Text

from everclip.report.comparison import Comparison, Difference, Method, describe, heading, is_share
from everclip.report.fitting import Grid, fitting
from everclip.report.formats import NOT_DEFINED, listed, number, points, span

NOTHING = "\u2013"


def comparison_table(comparison: Comparison) -> Table:
    """Return the main table: one line per method, percent with intervals.

    Names are added as plain text, so that markup in a user's name is shown and not interpreted.
    """
    return _main_grid(comparison).table()


def _main_grid(comparison: Comparison) -> Grid:
    keys = [*comparison.shown, "seconds"]
    methods = [*comparison.before, *comparison.methods]
    seeds = [f" ({len(m.members)} seeds)" if len(m.members) > 1 else "" for m in methods]
    return Grid(
        f"{comparison.benchmark}: {comparison.metric}, protocol {comparison.protocol}, in percent",
        tuple(method.label + count for method, count in zip(methods, seeds, strict=True)),
        tuple(heading(key) for key in keys),
        tuple(tuple(_two_lines(cell_text(method, key)) for key in keys) for method in methods),
    )


def _two_lines(text: str) -> str:
    """Put the interval below its number and what follows it, so that the table becomes narrower."""
    value, bracket, rest = text.partition(" (")
    interval, _, note = rest.partition(")")
    return f"{value}{note}\n{interval}" if bracket else value


def cell_text(method: Method, key: str) -> str:
    """Return a cell of the main table; a dash for a value that does not exist before training."""
    value = method.seconds if key == "seconds" else method.values[key]
    return NOTHING if value is None and not method.members else describe(value, key)


def difference_table(comparison: Comparison) -> Table | None:
    """Return the table of differences against the baseline in points; `None` if there is only one method."""
    grid = _difference_grid(comparison)
    return None if grid is None else grid.table()


def _difference_grid(comparison: Comparison) -> Grid | None:
    found = {(d.method, d.quantity): d for d in comparison.differences}
    others = [m.label for m in comparison.methods if any(method == m.label for method, _ in found)]
    if not others:
        return None
    return Grid(
        f"Against {comparison.baseline}, in points (n.r. = not resolved)",
        tuple(others),
        tuple(heading(key) for key in comparison.shown),
        tuple(
            tuple(_two_lines(describe_difference(found[label, key])) for key in comparison.shown)
            for label in others
        ),
    )


def describe_difference(difference: Difference) -> str:
    """Return `+12.0 (9.8–14.1)`, with `n.r.` if the difference is not resolved."""
    change = difference.change
    if change is None:
        return NOT_DEFINED
    if change.nothing:
        return "0.0 (same answers)"
    if not is_share(difference.quantity):
        shown = number(change.value, 3)
        return shown if change.resolved else f"{shown} n.r."
    interval = span(change.low, change.high, 1)
    shown = f"{points(change.value)} ({interval})" if interval else points(change.value)
    return shown if change.resolved else f"{shown} n.r."


def comparison_text(comparison: Comparison, width: int = 120) -> str:
    """Return the whole comparison as plain text; tables that are wider than `width` characters are turned or cut."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None)
    for line in comparison.leaders:
        console.print(Text(line))
    for grid in filter(None, [_main_grid(comparison), _difference_grid(comparison)]):
        for table in fitting(grid, console):
            console.print(table)
    for note in (*comparison.notes, *interval_notes(comparison), *filter(None, [comparison.left_out])):
        console.print(Text(note))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def interval_notes(comparison: Comparison) -> list[str]:
    """Say how the intervals were computed, and why a difference is missing."""
    hows = [d.change.how for d in comparison.differences if d.change is not None]
    lines = [f"Intervals of differences: {'; '.join(dict.fromkeys(hows))}."] if hows else []
    missing: dict[str, list[str]] = {}
    for d in comparison.differences:
        if d.why_not and heading(d.quantity) not in missing.setdefault(d.why_not, []):
            missing[d.why_not].append(heading(d.quantity))
    return lines + [f"{listed(names)} not defined: {why}." for why, names in missing.items()]
