"""The section on methods that route images: the share of each route and of each expert, per evaluation set."""

from __future__ import annotations

from typing import Any

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator

from everclip.evaluation.results import Column, Experts, Row
from everclip.report.canvas import TEXT, Drawing, blank, finish, plain, style_axes
from everclip.report.formats import percent, plain_percent
from everclip.report.runs import Run

_HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#8fb8f0"])


def _columns(run: Run) -> list[Column]:
    return [*run.columns("known"), *run.columns("task"), *run.columns("retention")]


def _last(run: Run) -> Row | None:
    return run.results.rows[-1] if run.results.rows else None


def shares(run: Run) -> tuple[list[str], dict[str, list[float]]]:
    """Return the names of the routes at the last row, and for each set the share of its images per route."""
    row = _last(run)
    by_set = {} if row is None else row.routes
    names = list(dict.fromkeys(name for counts in by_set.values() for name in counts))
    shares_of = {}
    for column in _columns(run):
        counts = by_set.get(column.name, {})
        total = sum(counts.values())
        if total:
            shares_of[column.name] = [counts.get(name, 0) / total for name in names]
    return names, shares_of


def routes(run: Run) -> Drawing | None:
    """Draw the share of each route per set at the last row; `None` if the method does not route images."""
    names, shares_of = shares(run)
    if not shares_of:
        return None
    figure = blank(2.2 + 0.62 * len(names), 1.5 + 0.36 * len(shares_of))
    axes = figure.add_subplot()
    axes.imshow(list(shares_of.values()), cmap=_HEAT, vmin=0, vmax=1, aspect="auto")
    for i, values in enumerate(shares_of.values()):
        for j, value in enumerate(values):
            if value:
                axes.text(j, i, plain_percent(value, 0), ha="center", va="center", color=TEXT, fontsize=9)
    style_axes(axes, grid="")
    axes.set_xticks(range(len(names)), [plain(name, 16) for name in names], rotation=30, ha="left")
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(shares_of)), [plain(name, 22) for name in shares_of])
    axes.set_ylabel("evaluation set")
    axes.spines[:].set_visible(False)
    alt = "; ".join(f"{name}: {_alt(names, values)}" for name, values in shares_of.items())
    return finish(figure, "routes", f"Share of each route per evaluation set, in percent. {alt}.")


def _alt(names: list[str], values: list[float]) -> str:
    pairs = sorted(zip(values, names, strict=True), key=lambda pair: -pair[0])
    return ", ".join(f"{name} {plain_percent(value, 0)}" for value, name in pairs if value)


def route_rows(run: Run) -> list[dict[str, str]]:
    """Return for each set the share of its images on the right route, and the most frequent wrong route.

    The right route is the task's own route once it was learned; before, and for sets without a task, it is the
    zero-shot route. Return no rows if tasks were learned and none has its own route.
    """
    names, shares_of = shares(run)
    routes_of = _task_routes(run, names)
    if not shares_of or (run.learned(run.last) and not routes_of):
        return []
    lines = []
    for column in _columns(run):
        if column.name not in shares_of:
            continue
        by_name = dict(zip(names, shares_of[column.name], strict=True))
        right = names[0] if column.task is None else routes_of.get(column.task, names[0])
        others = {name: share for name, share in by_name.items() if name != right and share}
        most = max(others, key=lambda name: others[name], default=None)
        lines.append(
            {
                "name": column.name,
                "right": right,
                "share": percent(by_name[right]),
                "others": "" if most is None else f"{most} {percent(others[most])}",
            }
        )
    return lines


def _task_routes(run: Run, names: list[str]) -> dict[int, str]:
    """Return the route of each learned task that has one, by the task's index."""
    tasks = {task.index: task.name for task in run.results.tasks}
    order = dict.fromkeys(row.task for row in run.results.rows[1:] if row.task is not None)
    routes_of: dict[int, str] = {}
    for number, task in enumerate(order, 1):
        # Equal names of routes carry the number of the task.
        matching = [name for name in (f"{tasks[task]} (task {number})", tasks[task]) if name in names[1:]]
        if matching:
            routes_of[task] = matching[0]
    return routes_of


def experts(run: Run) -> tuple[list[tuple[str, Drawing]], Drawing | None]:
    """Draw which experts each block chose: one small panel per set, and one figure of all panels for the folder."""
    row = _last(run)
    by_set = {} if row is None else row.experts
    shown = [(column.name, by_set[column.name]) for column in _columns(run) if _used(by_set.get(column.name))]
    if not shown:
        return [], None
    widest = max(len(counts) for _, one in shown for counts in one.counts)
    # One scale for all panels. Its top is the largest share, which is far below 1 if a block uses many experts.
    top = max(share for _, one in shown for counts in one.counts for share in _shares(counts, widest))
    panels = []
    for index, (name, one) in enumerate(shown):
        figure = blank(2.9, 2.1)
        _heat(figure.add_subplot(), name, one, widest, top)
        panels.append((name, finish(figure, f"experts-{index}", _experts_alt(name, one), png=False)))
    across = min(4, len(shown))
    down = -(-len(shown) // across)
    figure = blank(2.7 * across, 2.0 * down)
    for index, (name, one) in enumerate(shown):
        _heat(figure.add_subplot(down, across, index + 1), name, one, widest, top)
    return panels, finish(figure, "experts", "Share of each expert per block, one panel per evaluation set.")


def _used(one: Experts | None) -> bool:
    return one is not None and any(sum(counts) for counts in one.counts)


def _heat(axes: Any, name: str, one: Experts, widest: int, top: float) -> None:
    grid = [_shares(counts, widest) for counts in one.counts]
    axes.imshow(grid, cmap=_HEAT, vmin=0, vmax=top, aspect="auto", interpolation="nearest")
    style_axes(axes, grid="")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    every = max(1, -(-len(one.places) // 6))
    axes.set_yticks(range(0, len(one.places), every), [plain(p, 16) for p in one.places[::every]])
    axes.set_xlabel("expert", fontsize=8.5)
    axes.set_title(plain(name), fontsize=10.5, loc="left", color=TEXT)


def _shares(counts: list[int], widest: int) -> list[float]:
    total = sum(counts) or 1
    return [count / total for count in counts] + [0.0] * (widest - len(counts))


def _experts_alt(name: str, one: Experts) -> str:
    best = [counts.index(max(counts)) for counts in one.counts if sum(counts)]
    places = [place for place, c in zip(one.places, one.counts, strict=True) if sum(c)]
    listed = ", ".join(f"{place} {expert}" for place, expert in zip(places, best, strict=True))
    return f"{name}: the expert chosen most often in each block: {listed}."
