"""The section on streams of languages: recall both ways, forgetting, and what each vocabulary did to the others."""

from __future__ import annotations

from typing import Any

from matplotlib.colors import LinearSegmentedColormap

from everclip.evaluation.results import Column
from everclip.report.canvas import TEXT, Drawing, blank, finish, plain, style_axes
from everclip.report.formats import NOT_DEFINED, count, number, percent, plain_percent, points
from everclip.report.runs import Run

_HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#8fb8f0"])
_MOST_NUMBERS = 12
"""The most languages whose overlaps are also written into the figure."""


def is_stream(run: Run) -> bool:
    """Whether the tasks of a run are different languages."""
    languages = [task.language for task in run.results.tasks]
    return len(languages) > 1 and None not in languages and len(set(languages)) == len(languages)


def _noted(run: Run) -> dict[str, dict[str, Any]]:
    """Return what the method noted of each language when it was learned."""
    return {n["name"]: n for row in run.results.rows for n in row.notes.get("languages", ())}


def language_rows(run: Run) -> list[dict[str, str]]:
    """Return a line per language, as text; none if the tasks are not languages."""
    if not is_stream(run):
        return []
    noted, columns = _noted(run), {column.task: column for column in run.columns("task")}
    last = run.results.rows[-1].notes.get("languages", ()) if run.results.rows else ()
    changed = {name: share for note in last for name, share in note["changed"].items()}
    lines = []
    for task in run.results.tasks:
        column = columns.get(task.index)
        if column is None:
            continue
        found = noted.get(str(task.language), {})
        lines.append(
            {
                "name": task.name,
                "image_to_text": _recall(run, column, "image_to_text_r1"),
                "text_to_image": _recall(run, column, "text_to_image_r1"),
                "lost": _lost(run, column),
                "new_tokens": count(found["new_tokens"]) if found else "",
                "per_caption": number(found["tokens_per_caption"]) if found else "",
                "cut": percent(found["cut"]) if found else "",
                "changed": percent(changed[task.name]) if changed.get(task.name) is not None else "",
            }
        )
    return lines


def has_vocabularies(run: Run) -> bool:
    """Whether the method noted what the languages added."""
    return bool(_noted(run))


def _recall(run: Run, column: Column, metric: str) -> str:
    protocol, _ = run.cell(column)
    score = run.results.score(run.last, column.name, protocol, metric)
    return NOT_DEFINED if score is None or score.value is None else percent(score.value)


def _lost(run: Run, column: Column) -> str:
    """Return how far a language is below its best earlier score, in points; empty for the last one."""
    now = run.score(run.last, column)
    scores = [run.score(row, column) for row in range(1, run.last)]
    earlier = [score.value for score in scores if score is not None and score.value is not None]
    if now is None or now.value is None or not earlier:
        return ""
    return points(now.value - max(earlier))


def overlap(run: Run) -> Drawing | None:
    """Draw the share of each language's tokens that earlier languages use too; `None` if it was not noted."""
    noted = _noted(run)
    names = [name for name in noted if noted[name]["overlap"] or len(noted) > 1]
    if not is_stream(run) or len(names) < 2:
        return None
    rows, columns = names[1:], names[:-1]
    grid = [[noted[row]["overlap"].get(column, float("nan")) for column in columns] for row in rows]
    figure = blank(2.0 + 0.36 * len(columns), 1.4 + 0.3 * len(rows))
    axes = figure.add_subplot()
    axes.imshow(grid, cmap=_HEAT, vmin=0, vmax=1, aspect="auto")
    for i, values in enumerate(grid):
        for j, value in enumerate(values):
            if value == value and len(names) <= _MOST_NUMBERS:
                axes.text(j, i, plain_percent(value, 0), ha="center", va="center", color=TEXT, fontsize=8)
    style_axes(axes, grid="")
    axes.set_xticks(range(len(columns)), [plain(name, 12) for name in columns])
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), [plain(name, 12) for name in rows])
    axes.set_ylabel("new language")
    axes.spines[:].set_visible(False)
    parts = []
    for name in rows:
        most = max(noted[name]["overlap"].items(), key=lambda item: float(item[1]), default=None)
        parts.append(f"{name} most with {most[0]} ({plain_percent(most[1], 0)} %)" if most else name)
    alt = f"Share of a new language's tokens that an earlier one uses too. {', '.join(parts)}."
    return finish(figure, "token-overlap", alt)
