"""Tables beside the main one of a comparison, for what only some streams measure: search by name, scores over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from everclip.report.comparison import Value
from everclip.report.dynamic import AVERAGES, NOTE, averages, groups_in_time, kind_of
from everclip.report.estimates import Estimate
from everclip.report.formats import NOT_DEFINED, plain_percent, span
from everclip.report.runs import Run
from everclip.report.search import search
from everclip.report.seed_groups import SeedGroup, group_value, seed_groups


@dataclass(frozen=True)
class Cell:
    """A number, and its interval or spread."""

    value: str
    range: str

    def __str__(self) -> str:
        return f"{self.value} ({self.range})" if self.range else self.value


@dataclass(frozen=True)
class SideTable:
    """A table of a comparison.

    Attributes:
        key: names it in links.
        title, unit: what it shows.
        note: how to read it.
        heads: of the columns; the first is that of the labels.
        rows: label and cells of each.
    """

    key: str
    title: str
    unit: str
    note: str
    heads: tuple[str, ...]
    rows: list[tuple[str, list[Cell]]]

    def text(self) -> str:
        """Return the table as plain text."""
        lines = [self.heads, *((label, *map(str, cells)) for label, cells in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.heads))]
        table = [
            "  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        return "\n".join([f"{self.title}, {self.unit}:", *(f"  {line}" for line in table)])


def side_tables(runs: Sequence[Run]) -> list[SideTable]:
    """Return the tables that all runs have measured."""
    return [table for table in (search_table(runs), time_table(runs)) if table is not None]


def search_table(runs: Sequence[Run]) -> SideTable | None:
    """Return search from a name to its image; `None` if not all runs measured it beside classes."""
    found = search(runs)
    if not found:
        return None
    return SideTable(
        key="search",
        title="Search from a name to its image, among all images",
        unit="in percent (Recall@1, with 95 % intervals)",
        note=(
            "Recall@1 in percent at the last row, with 95 % intervals. The main table says how often an image gets its "
            "own name; here a name looks for its image."
        ),
        heads=("method", "new names", "known names"),
        rows=[(each.label, [_cell(each.new), _cell(each.known)]) for each in found],
    )


def time_table(runs: Sequence[Run]) -> SideTable | None:
    """Return TiC-CLIP's averages; `None` if a run's stream is none in time, or not whole yet."""
    groups = [groups_in_time(run) for run in runs]
    kinds = [[kind_of(run, group) for group in of] for run, of in zip(runs, groups, strict=True)]
    if not runs or not kinds[0] or any(kind != kinds[0] for kind in kinds):
        return None
    rows = []
    for number, kind in enumerate(kinds[0]):
        for seeds in seed_groups(runs)[0]:
            label = seeds.label if len(kinds[0]) == 1 else f"{seeds.label}: {kind}"
            rows.append((label, _averages(seeds, number)))
    defined = any(cell.value != NOT_DEFINED for _, cells in rows for cell in cells)
    several = any(len(seeds.runs) > 1 for seeds in seed_groups(runs)[0])
    return (
        None
        if not defined
        else SideTable(
            key="over-time",
            title="Scores over time",
            unit="in percent (± standard deviation over seeds)" if several else "in percent (95 % intervals)",
            note=NOTE,
            heads=("method", *AVERAGES.values()),
            rows=rows,
        )
    )


def _averages(seeds: SeedGroup, number: int) -> list[Cell]:
    """Return the averages of one group of dated sets, over seeds."""
    of = {run: averages(run, groups_in_time(run)[number]) for run in seeds.runs}
    return [
        _spread(group_value(seeds, lambda run, place=place: of[run][place]))  # type: ignore[misc]
        for place in range(len(AVERAGES))
    ]


def _spread(value: Value | None) -> Cell:
    if value is None:
        return Cell(NOT_DEFINED, "")
    if value.deviation is None:
        return _cell(value)
    return Cell(plain_percent(value.value), f"± {plain_percent(value.deviation)}")


def _cell(value: Estimate) -> Cell:
    return Cell(plain_percent(value.value), span(value.low, value.high, digits=1))
