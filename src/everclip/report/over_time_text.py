"""What a comparison over time says, in sentences and as a table for a terminal."""

from __future__ import annotations

from everclip.report import formats
from everclip.report.estimates import Change, Estimate
from everclip.report.fitting import Grid, fitting
from everclip.report.over_time import OverTime
from everclip.report.paired import Pair


def hides(found: OverTime) -> str:
    """Say what the static suite hides, in one sentence."""
    newest, now = found.dated[-1].name, found.dated[-1].change
    if found.static is None:
        return f"On {newest}, {_told(found, now)}; there is no static suite to compare with."
    static = found.static.change
    if static.nothing and now.nothing:
        return f"Both models give the same answers on the static suite and on {newest}."
    if not static.resolved and not now.resolved:
        return (
            f"Neither the static suite ({_open(found, static)}) nor {newest} ({_open(found, now)}) tells the models "
            "apart."
        )
    if not static.resolved:
        return (
            f"The static suite does not tell the models apart ({_open(found, static)}), but on {newest} "
            f"{_told(found, now)}."
        )
    if not now.resolved:
        return (
            f"On the static suite {_told(found, static)}, but {newest} does not tell the models apart "
            f"({_open(found, now)})."
        )
    if (static.value > 0) != (now.value > 0):
        on_static, on_newest = _told(found, static), _told(found, now)
        return f"The two tests disagree: on the static suite {on_static}, but on {newest} {on_newest}."
    return f"Both tests say that {_winner(found, now)} is better: {_by_how_much(found, static, now)}."


def _by_how_much(found: OverTime, static: Change, now: Change) -> str:
    newest, beyond = found.dated[-1].name, found.beyond_static
    shown = f"by {_points(static)} on the static suite and by {_points(now)} on {newest}"
    if beyond is None or not beyond.resolved:
        return f"{shown} (the difference of the two is not resolved)"
    less = abs(now.value) > abs(static.value)
    return f"{shown}, so the static suite {'hides' if less else 'adds'} {_points(beyond)}"


def trend(found: OverTime) -> str:
    """Say how both models change from the oldest to the newest set; empty with one set."""
    if found.trend is None:
        return ""
    of = found.trend
    between = _open(found, of.change) if not of.change.resolved else f"{_points(of.change)}, resolved"
    return (
        f"From {found.dated[0].name} to {found.dated[-1].name}, {found.models[0]} {_moves(of.first)} and "
        f"{found.models[1]} {_moves(of.second)}; the difference of the two is "
        + ("0." if of.change.nothing else f"{between}.")
    )


CAUTION = (
    "Sets of different times hold different items, so a later set may also be harder. The difference between the "
    "models does not depend on that: both answer the same items."
)


def _moves(value: Estimate) -> str:
    word = "falls" if value.value < 0 else "rises"
    low, high = value.low, value.high
    if low is not None and high is not None and low <= 0 <= high:
        return f"changes by {formats.points(value.value)} points ({_span(value)}, not resolved)"
    size = Estimate(value=abs(value.value), low=low, high=high)
    if value.value < 0 and low is not None and high is not None:
        size = Estimate(value=-value.value, low=-high, high=-low)
    return f"{word} by {formats.plain_percent(size.value)} points ({_span(size)})"


def _winner(found: OverTime, change: Change) -> str:
    return found.models[1] if change.value > 0 else found.models[0]


def _told(found: OverTime, change: Change) -> str:
    """Return `B is 8.2 points better (5.1–11.3)`."""
    if change.nothing:
        return "both models give the same answers"
    if not change.resolved:
        return f"the models are not told apart ({_open(found, change)})"
    return f"{_winner(found, change)} is {_points(change)} better"


def _points(change: Estimate) -> str:
    """Return the size of a difference, whoever is better: `8.2 points (5.1–11.3)`."""
    low, high = change.low, change.high
    if change.value < 0 and low is not None and high is not None:
        low, high = -high, -low
    return f"{formats.plain_percent(abs(change.value))} points ({formats.span(low, high, 1)})"


def _open(found: OverTime, change: Change) -> str:
    if change.nothing:
        return "equal answers"
    return (
        f"{found.models[1]} {formats.MINUS} {found.models[0]}: {formats.points(change.value)} points, "
        f"{_span(change)}, not resolved"
    )


def _span(value: Estimate) -> str:
    return formats.span(value.low, value.high, 1)


def rows_of(found: OverTime) -> list[tuple[str, str, str, Pair]]:
    """Return the rows of the table: what, metric, number of items, and the scores of both models."""
    static = [] if found.static is None else [("static suite", _suite(found), "", found.static)]
    sets = found.static_sets if len(found.static_sets) > 1 else []
    shown = [(s.name, s.metric, f"{s.items:,}", s) for s in (*sets, *found.dated)]
    last = [] if found.trend is None else [("newest minus oldest", "points", "", found.trend)]
    return [*static, *shown, *last]


def _suite(found: OverTime) -> str:
    names = formats.listed([s.name for s in found.static_sets])
    metrics = ", ".join(dict.fromkeys(s.metric for s in found.static_sets))
    return f"{metrics} of {names}" if len(found.static_sets) < 4 else f"mean of {len(found.static_sets)} sets"


def cells_of(row: Pair, signed: bool) -> tuple[tuple[str, str], tuple[str, str], tuple[str, str], str]:
    """Return value and interval of both models and of their difference, and the verdict."""
    number = formats.points if signed else formats.plain_percent
    first, second = ((number(v.value), _span(v)) for v in (row.first, row.second))
    change = ("0.0" if row.change.nothing else formats.points(row.change.value), _span(row.change))
    verdict = "no change" if row.change.nothing else "resolved" if row.change.resolved else "not resolved"
    return first, second, change, verdict


def over_time_text(found: OverTime, width: int) -> str:
    """Return the comparison as text that fits into `width` characters."""
    from io import StringIO

    from rich.console import Console

    rows = rows_of(found)
    cells = [cells_of(pair, name == "newest minus oldest") for name, _, _, pair in rows]
    grid = Grid(
        f"{found.models[1]} against {found.models[0]} on {found.benchmark}, percent",
        tuple(name for name, *_ in rows),
        (found.models[0], found.models[1], "difference, points", ""),
        tuple(
            (_lines(first), _lines(second), _lines(change), verdict)
            for first, second, change, verdict in cells
        ),
        corner="test",
    )
    out = StringIO()
    console = Console(file=out, width=width)
    for table in fitting(grid, console):
        console.print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    said = [hides(found), trend(found), CAUTION, *(f"note: {note}" for note in found.notes)]
    return "\n".join([*lines, *(line for line in said if line)])


def _lines(cell: tuple[str, str]) -> str:
    return f"{cell[0]}\n{cell[1]}" if cell[1] else cell[0]
