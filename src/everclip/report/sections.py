"""Prepare plain values for the template of a run's report: tiles, matrix, tables, examples, provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from everclip.evaluation.guessing import guessed
from everclip.evaluation.metrics.cost import seconds
from everclip.evaluation.results import Answer, Column, Example
from everclip.metrics import Metric, find
from everclip.metrics import metrics as registered
from everclip.report import cost, formats
from everclip.report.estimates import (
    Change,
    at_last_row,
    change_since_start,
    column_change,
    metric_of_key,
)
from everclip.report.inline_images import inline_image
from everclip.report.runs import Group, Run
from everclip.report.undefined import unmeasured_rows, why_undefined

GROUPS: tuple[tuple[Group, str], ...] = (
    ("everything", "old and new"),
    ("known", "known before"),
    ("task", "tasks, in the order of learning"),
    ("part", "parts of them"),
    ("retention", "never trained on"),
)
Named = list[tuple[str, Change]]


def tiles(run: Run) -> list[dict[str, str]]:
    """Return the key numbers, each with the reason if it is not defined."""
    keys = ["new", "known", "retention", "average", "forgetting"]
    if not isinstance(run.together, str):
        keys.insert(0, "everything")
    if run.results.online is not None:
        keys = ["a_auc", "a_avg", "a_last", "f_last", "retention"]
    entries = [_tile(run, key) for key in keys]
    total = seconds(run.results.cost)
    if total is not None:
        entries.append(
            {
                "label": "Time",
                "value": formats.seconds(total),
                "range": "",
                "change": "",
                "note": "wall clock of the whole run",
            }
        )
    return entries


def _tile(run: Run, key: str) -> dict[str, str]:
    value, entry = at_last_row(run, key), metric_of_key(key)
    if value is None:
        return {
            "label": entry.heading,
            "value": formats.NOT_DEFINED,
            "range": "",
            "change": "",
            "note": why_undefined(entry.name, run.results),
        }
    points = entry.unit == "points"
    change = None if "matrix" in entry.needs else change_since_start(run, key)
    learned = f" {run.learned_count(run.last)} of {len(run.results.tasks)} learned."
    return {
        "label": f"{entry.heading}, points" if points else entry.heading,
        "value": formats.plain_percent(value.value) if points else formats.percent(value.value),
        "range": formats.span(value.low, value.high, 1),
        "change": verdict(change, " since row 0") if change else "",
        "note": f"{entry.meaning}{learned}" if key == "new" and not run.complete else entry.meaning,
    }


def verdict(change: Change | None, since: str = "") -> str:
    """Return `−9.9 points`, marked if it is not resolved."""
    if change is None:
        return formats.NOT_DEFINED
    if change.nothing:
        return f"no change{since}"
    return f"{formats.points(change.value)} points{since}{'' if change.resolved else ', not resolved'}"


def matrix(run: Run) -> dict[str, Any]:
    """Return the heat map: column groups, column headings, and the cells of each row."""
    groups = [(title, run.columns(group)) for group, title in GROUPS]
    columns = [column for _, members in groups for column in members]
    rows = run.results.rows
    scores = [[run.score(index, column) for column in columns] for index in range(len(rows))]
    top = max([s.value for row in scores for s in row if s is not None and s.value is not None] + [1e-9])
    table = []
    for row, of_row in zip(rows, scores, strict=True):
        cells = []
        for column, score in zip(columns, of_row, strict=True):
            value = score.value if score else None
            cells.append(
                {
                    "value": "" if value is None else formats.plain_percent(value),
                    "range": formats.span(score.low, score.high) if score else "",
                    "heat": 0 if value is None else round(max(value, 0) / top, 3),
                    "learned": row.index > 0 and column.task is not None and row.task == column.task,
                }
            )
        table.append({"label": run.label(row), "cells": cells, "step": row.step, "samples": row.samples})
    return {
        "groups": [(title, len(members)) for title, members in groups if members],
        "rows": table,
        "columns": [_head(run, column) for column in columns],
    }


def _head(run: Run, column: Column) -> dict[str, Any]:
    protocol, name = run.cell(column)
    usual = (protocol, name) == (run.results.matrix.protocol, run.results.matrix.metric)
    notes = [] if usual else [f"{name}, protocol {protocol}"]
    first = run.results.rows[0].scores if run.results.rows else {}
    guesses = guessed(column.kind, first.get(column.name, {}).get(protocol, {}))
    notes += [f"guessing: {formats.plain_percent(guesses[name])}"] if name in guesses else []
    return {
        "name": column.name,
        "samples": column.samples,
        "kind": column.kind,
        "note": ", ".join(notes),
    }


def forgetting_per_task(run: Run) -> Named:
    """Return the last score minus the best earlier score, for every task that was learned before the last one."""
    changes: Named = []
    for column in run.columns("task"):
        if column.task not in run.learned(run.last - 1):
            continue
        scored = [(run.score(row, column), row) for row in range(1, run.last)]
        earlier = [(s.value, row) for s, row in scored if s is not None and s.value is not None]
        best = max(earlier, default=None)
        change = column_change(run, column, run.last, best[1]) if best else None
        if change is not None:
            changes.append((column.name, change))
    return changes


def why_no_forgetting(run: Run) -> str:
    """Say why forgetting per task is not defined."""
    if run.all_at_once:
        return "all tasks are learned at once, so no task follows another"
    if len(run.results.tasks) < 2:
        return "the stream has one task"
    if run.last < 2:
        return "only one task has been learned so far" if run.last == 1 else "no task has been learned yet"
    if not run.columns("task"):
        return "the benchmark has no set that belongs to a task"
    missing = missing_rows(run).removesuffix(".")
    return missing[:1].lower() + missing[1:] or "earlier rows have no cells for the sets of the tasks"


def missing_rows(run: Run) -> str:
    """Say which rows of an extended run lack cells, and why; empty if no row does."""
    rows = unmeasured_rows(run.results)
    if not rows:
        return ""
    names = ", ".join(run.label(run.results.rows[row]) for row in rows)
    what, models = ("row lacks", "its model was") if len(rows) == 1 else ("rows lack", "their models were")
    return (
        f"The following {what} cells for the sets that were added when the run was extended, because {models} not kept "
        f"(checkpoint.keep_rows=true keeps models): {names}. Only the other rows count."
    )


def changes_since_start(run: Run) -> Named:
    """Return the changes of the known and the retention sets since row 0."""
    if run.last < 1:
        return []
    columns = [*run.columns("known"), *run.columns("retention")]
    pairs = [(column.name, column_change(run, column, run.last, 0)) for column in columns]
    return [(name, change) for name, change in pairs if change is not None]


def change_rows(entries: Named) -> list[dict[str, str]]:
    """Return differences as table rows."""
    return [
        {
            "name": name,
            "change": "0.0" if change.nothing else formats.points(change.value),
            "range": formats.span(change.low, change.high, 1),
            "verdict": "no change" if change.nothing else "resolved" if change.resolved else "not resolved",
            "how": change.how,
        }
        for name, change in entries
    ]


def metrics(run: Run) -> list[dict[str, str]]:
    """Return the derived metrics, registered names first, each with its definition or why it is not defined."""
    values = run.results.metrics
    known = registered("stream")
    rows = []
    for name in [
        *(name for name in known if name in values),
        *(name for name in values if name not in known),
    ]:
        entry, value = known.get(name), values[name]
        rows.append(
            {
                "name": name,
                "label": entry.label if entry else name,
                "value": _metric_value(entry, value),
                "text": entry.meaning if entry else "No metric of this name is registered.",
                "formula": entry.formula if entry else "",
                "better": entry.direction if entry else "",
                "why": "" if value is not None else why_undefined(name, run.results),
            }
        )
    return rows


def _metric_value(entry: Metric | None, value: float | None) -> str:
    if value is None:
        return formats.NOT_DEFINED
    if entry is not None and entry.unit == "percent":
        return formats.percent(value)
    if entry is not None and entry.unit == "points":
        # A positive loss has no plus sign: it would read as a gain.
        signed = formats.points if entry.higher_is_better else formats.plain_percent
        return f"{signed(value)} points"
    return formats.number(value, 3)


def all_scores(run: Run) -> list[dict[str, str]]:
    """Return every set under every protocol and metric: row 0, last row, and the difference."""
    if run.last < 0:
        return []
    first, last = run.results.rows[0].scores, run.results.rows[run.last].scores
    rows = []
    for column in run.results.columns:
        for protocol, scores in last.get(column.name, {}).items():
            for name, score in scores.items():
                before = first.get(column.name, {}).get(protocol, {}).get(name)
                rows.append(
                    _score_row(column.name, protocol, name, before.value if before else None, score.value)
                    | {
                        "range": formats.span(score.low, score.high, 1) if _is_share(name) else "",
                        "n": f"{score.n:,}" if score.n else "",
                    }
                )
    return rows


def _is_share(name: str) -> bool:
    """Whether a metric of a set is a share, unlike a median rank."""
    entry = find(name)
    return entry is None or entry.unit == "percent"


def _score_row(
    column: str, protocol: str, name: str, before: float | None, now: float | None
) -> dict[str, str]:
    change = None if before is None or now is None else now - before
    if _is_share(name):
        shown = [formats.percent(before), formats.percent(now), formats.points(change)]
    else:
        shown = [formats.number(value) for value in (before, now, change)]
    return {
        "column": column,
        "protocol": protocol,
        "metric": name,
        "before": shown[0],
        "last": shown[1],
        "change": shown[2],
    }


def examples(run: Run) -> list[dict[str, Any]]:
    """Return the examples by evaluation set: image, right answer, and the model's answer at every row."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for example in run.results.examples:
        grouped.setdefault(example.column, []).append(_example(run, example))
    order = [column.name for group, _ in GROUPS for column in run.columns(group)]
    names = [name for name in order if name in grouped] + [name for name in grouped if name not in order]
    return [{"column": name, "examples": grouped[name]} for name in names]


def _example(run: Run, example: Example) -> dict[str, Any]:
    labels = {row.index: run.label(row) for row in run.results.rows}
    answers = [_answer(answer, labels.get(answer.row, f"row {answer.row}")) for answer in example.answers]
    return {
        "id": example.id,
        "truth": example.truth,
        "image": inline_image(run.folder, example.picture),
        "answers": answers,
    }


def _answer(answer: Answer, label: str) -> dict[str, Any]:
    best = answer.answers[0] if answer.answers else None
    return {
        "label": label,
        "best": best[0] if best else "nothing",
        "correct": answer.correct,
        "cosine": formats.number(best[1], 2) if best else "",
        "others": [name for name, _ in answer.answers[1:]],
    }


def guard_lines(run: Run) -> list[str]:
    """Say what the retention guard measured and did, task by task; empty if the run had no guard."""
    lines = []
    for row in run.results.rows:
        note = row.notes.get("guard")
        if note is None:
            continue
        sets = ", ".join(
            f"{name} {formats.percent(s['before'])} to {formats.percent(s['now'])}"
            for name, s in note["sets"].items()
        )
        actions = "; ".join(
            f"{a['when']} {a['set']} had fallen by {formats.number(a['points'], 1)} points, so "
            f"the model went back to {formats.percent(a['share'], 0)} of the way"
            for a in note["acted"]
        )
        ended = "; training ended there" if note["stopped"] else ""
        limit = formats.number(note["max_drop"], 1)
        over = " on average" if note.get("over") == "mean" else ""
        lines.append(
            f"{run.label(row)}: {sets} on validation images (allowed drop{over}: {limit} points). "
            f"{actions or 'No action was needed'}{ended}."
        )
    return lines


def ambiguous_note(run: Run) -> str:
    """Count the items of the last row that are too close to call; a sound model has few."""
    counts = {name: n for row in run.results.rows[-1:] for name, n in row.ambiguous.items() if n}
    if not counts:
        return ""
    listed = ", ".join(f"{name}: {n}" for name, n in counts.items())
    return (
        "Items too close to call at the last row (their two best scores differ by less than 1e-5, so another machine "
        f"may answer differently): {listed}."
    )


def provenance(run: Run) -> list[tuple[str, str]]:
    """Return the provenance of the numbers, flattened to readable lines."""
    results = run.results
    tree: dict[str, Any] = {
        "benchmark": results.benchmark,
        "method": {key: value for key, value in results.method.items() if key != "cost"},
        "backbone": results.backbone,
        "seed": results.seed,
        "protocols": {str(p.get("name", i)): p for i, p in enumerate(results.protocols)},
        **results.provenance,
    }
    return _lines(tree)


def _lines(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            lines += _lines(value, f"{name}.")
        else:
            lines.append((name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return lines


def costs(run: Run) -> list[tuple[str, str]]:
    """Return the costs of the method and of the run, except seconds."""
    of_method = run.results.method.get("cost")
    return cost.facts(of_method if isinstance(of_method, Mapping) else {}) + cost.facts(run.results.cost)


def how_measured(run: Run) -> str:
    """Return the line that says what the cells of the matrix are."""
    headline = run.results.matrix
    level = formats.percent(run.confidence, 0)
    own = "; sets that are never trained on, among their own answers" if run.columns("retention") else ""
    return f"{headline.metric}, protocol {headline.protocol}, in percent; below it the {level} interval{own}"
