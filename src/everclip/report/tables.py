"""Print a comparison in the terminal."""

from __future__ import annotations

import io

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from everclip.report.comparison import Comparison, Difference, Method, describe, heading, is_share
from everclip.report.formats import NOT_DEFINED, listed, number, points, span

NOTHING = "\u2013"


def comparison_table(comparison: Comparison) -> Table:
    """Return the main table: one line per method, percent with intervals.

    Names are added as plain text, so that markup in a user's name is shown and not interpreted.
    """
    title = f"{comparison.benchmark}: {comparison.metric}, protocol {comparison.protocol}, in percent"
    table = _table(title)
    keys = [*comparison.shown, "seconds"]
    for key in keys:
        table.add_column(heading(key), justify="right", overflow="fold")
    for method in (*comparison.before, *comparison.methods):
        seeds = f" ({len(method.members)} seeds)" if len(method.members) > 1 else ""
        table.add_row(Text(method.label + seeds), *(_cell(cell_text(method, key)) for key in keys))
    return table


def _table(title: str) -> Table:
    table = Table(title=Text(title, style="bold"), box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("method", overflow="fold")
    return table


def _cell(text: str) -> Text:
    """Put the interval below its number, so that the table fits into 80 characters."""
    value, bracket, rest = text.partition(" (")
    return Text(f"{value}\n{rest.replace(')', '')}" if bracket else value)


def cell_text(method: Method, key: str) -> str:
    """Return a cell of the main table; a dash for a value that does not exist before training."""
    value = method.seconds if key == "seconds" else method.values[key]
    return NOTHING if value is None and not method.members else describe(value, key)


def difference_table(comparison: Comparison) -> Table | None:
    """Return the table of differences against the baseline in points; `None` if there is only one method."""
    if not comparison.differences:
        return None
    table = _table(f"Against {comparison.baseline}, in points (n.r. = not resolved)")
    for key in comparison.shown:
        table.add_column(heading(key), justify="right", overflow="fold")
    for method in comparison.methods:
        by_key = {d.quantity: d for d in comparison.differences if d.method == method.label}
        if by_key:
            table.add_row(
                Text(method.label), *(_cell(describe_difference(by_key[key])) for key in comparison.shown)
            )
    return table


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
    """Return the whole comparison as plain text, for logs and files."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None)
    for line in comparison.leaders:
        console.print(Text(line))
    console.print(comparison_table(comparison))
    differences = difference_table(comparison)
    if differences is not None:
        console.print(differences)
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
