"""SYNTHETIC run folders for tests of reports: invented scores that behave like those of a real stream.

No number here was measured. Each item has a fixed difficulty, shared by all methods, so that runs are paired as
real ones are.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from everclip.evaluation.results import Answer, Column, Event, Example, Matrix, Results, Row, Score, TaskInfo
from everclip.evaluation.statistics import bootstrap_mean, wilson
from matrices import summary

TASKS = ("2016", "2017", "2018", "2019", "2020-22")
ITEMS = {"known": 600, "2016": 72, "2017": 69, "2018": 62, "2019": 75, "2020-22": 110, "subgroups": 600}
# method -> (gain on the task just learned, loss per later task, loss of known and retention per task)
BEHAVIOUR = {
    "zero-shot": (0.0, 0.0, 0.0),
    "finetune": (0.42, 0.06, 0.035),
    "replay": (0.40, 0.025, 0.012),
    "wise-ft": (0.30, 0.015, 0.008),
    "joint": (0.45, 0.0, -0.01),
}
Directions = ("text_to_image", "image_to_text")


def column(name: str, index: int | None) -> Column:
    """One evaluation set of the synthetic stream."""
    if name == "subgroups":
        return Column(
            name=name, kind="classification", group="retention", task=None, samples=ITEMS[name], classes=90
        )
    group: Literal["task", "known"] = "known" if index is None else "task"
    return Column(name=name, kind="retrieval", group=group, task=index, samples=ITEMS[name])


def columns() -> list[Column]:
    """All sets, the known one first."""
    return [column("known", None), *(column(t, i) for i, t in enumerate(TASKS)), column("subgroups", None)]


def level(method: str, col: Column, learned: int, joint: bool) -> float:
    """The share of right answers a synthetic method reaches on a set after so many tasks."""
    gain, fade, loss = BEHAVIOUR[method]
    if col.group == "known":
        return 0.41 - loss * learned
    if col.group == "retention":
        return 0.24 - 0.6 * loss * learned
    start = 0.05 + 0.01 * (col.task or 0)
    if joint:
        return start + gain * (learned > 0)
    age = learned - 1 - (col.task or 0)
    return start + 0.01 * learned * (gain > 0) if age < 0 else start + gain - fade * age


def outcomes(name: str, share: float, salt: str, n: int) -> NDArray[np.float32]:
    """`(N,)` hits: an item is right if its difficulty, shared by all runs, lies under the share; a few flip."""
    difficulty = np.random.default_rng(zlib.crc32(name.encode())).random(n)
    wobble = np.random.default_rng(zlib.crc32(f"{name}{salt}".encode())).normal(0, 0.04 * (salt != ""), n)
    return (difficulty + wobble < share).astype(np.float32)


def measured(values: NDArray[np.float32], binary: bool = True) -> Score:
    """A score with its interval from outcomes."""
    n = len(values)
    found = wilson(int(values.sum()), n) if binary else bootstrap_mean(values, 0, draws=500)
    return Score(value=float(values.astype(np.float64).mean()), low=found.low, high=found.high, n=n)


def row_scores(method: str, seed: int, learned: int, joint: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores and outcomes per item of one row."""
    scores: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    salt = "" if learned == 0 or method == "zero-shot" else f"{method}{seed}{learned}"
    for col in columns():
        scores[col.name] = {}
        for protocol, ease in (("own", 0.12), ("all", 0.0)):
            share = level(method, col, learned, joint) + ease
            cell: dict[str, Score] = {}
            names = ("accuracy",) if col.kind == "classification" else tuple(f"{d}_r1" for d in Directions)
            for metric in names:
                hits = outcomes(f"{col.name}/{metric}", share, salt, col.samples)
                tensors[f"{col.name}/{protocol}/{metric}"] = hits
                cell[metric] = measured(hits)
            if col.kind == "retrieval":
                both = sum(tensors[f"{col.name}/{protocol}/{d}_r1"] for d in Directions) / np.float32(2)
                tensors[f"{col.name}/{protocol}/mean_r1"] = both
                cell["mean_r1"] = measured(both, binary=False)
                cell["text_to_image_median_rank"] = Score(value=float(round(6 / share)), n=col.samples)
            else:
                cell["ece"] = Score(value=0.07, n=col.samples)
            scores[col.name][protocol] = cell
    return scores, tensors


def representation(learned: int, method: str) -> dict[str, float | None]:
    """Invented measurements of the space."""
    moved = 0.0 if method == "zero-shot" else float(learned)
    apart = None if learned == 0 else 2.5 * moved**0.8
    values: dict[str, float | None] = {"modality_gap": 0.62 - 0.02 * moved, "alignment": 0.9 - 0.03 * moved}
    values |= {"pair_angle_change_deg": apart, "procrustes_deviation": None if apart is None else 0.3 * apart}
    for side, factor in (("image", 1.0), ("text", 0.6)):
        values |= {
            f"{side}_uniformity": -2.1 + 0.05 * moved * factor,
            f"{side}_effective_rank": 88 - 3 * moved * factor,
            f"{side}_rotation_deg": None if learned == 0 else 9 * moved**0.7 * factor,
            f"{side}_rotation_since_last_deg": _mean_angle(rotations(learned, method), f"{side}s"),
            f"{side}_cka": None if learned == 0 else 1 - 0.03 * moved * factor,
        }
    return values


def rotations(learned: int, method: str) -> dict[str, list[int]]:
    """Invented angles since the row before, in bins of 5 degrees."""
    if learned == 0:
        return {}
    moved = 0 if method == "zero-shot" else 2 + learned
    counts = [round(100 * math.exp(-((i - moved) ** 2) / (1 + moved))) for i in range(36)]
    return {"images": counts, "texts": [*counts[1:], 0]}


def _mean_angle(counts: dict[str, list[int]], side: str) -> float | None:
    found = counts.get(side)
    return sum((5 * i + 2.5) * n for i, n in enumerate(found)) / sum(found) if found else None


def results(
    method: str = "finetune",
    seed: int = 0,
    rows: int | None = None,
    benchmark: str = "emoji-time@1",
    status: Literal["running", "finished", "stopped"] = "finished",
) -> tuple[Results, list[dict[str, Any]]]:
    """A synthetic result and the outcomes per item of its rows."""
    joint = method == "joint"
    total = 1 + (1 if joint else len(TASKS)) if rows is None else rows
    table: list[Row] = []
    items: list[dict[str, Any]] = []
    for index in range(total):
        learned = len(TASKS) if joint and index else index
        scores, tensors = row_scores(method, seed, learned, joint)
        task = None if joint or index == 0 else index - 1
        label = "before training" if index == 0 else "after all" if joint else f"after {TASKS[index - 1]}"
        table.append(
            Row(
                index=index,
                task=task,
                label=label,
                step=200 * learned,
                samples=12_800 * learned,
                scores=scores,
                representation=representation(learned, method),
                rotations=rotations(learned, method),
            )
        )
        items.append(tensors)
    found = Results(
        status=status,
        benchmark=benchmark,
        title="New emoji, year by year",
        summary="SYNTHETIC: the numbers of this page were invented to test it.",
        method={"name": method, "settings": {}},
        backbone={"name": "builtin:tiny", "image": "ab12", "text": "cd34"},
        seed=seed,
        protocols=[{"name": "own", "space": "own"}, {"name": "all", "space": "all"}],
        headline={"protocol": "all", "metric": "mean_r1"},
        tasks=[TaskInfo(index=i, name=t, samples=2 * ITEMS[t]) for i, t in enumerate(TASKS)],
        columns=columns(),
        rows=table,
        matrix=headline_matrix(table),
        metrics=derived(table),
        examples=examples(total),
        events=[Event(kind="fallback", message="bf16 is not supported here: fp32 is used.")],
        cost={
            "seconds": {"train": 48.2 + seed, "evaluate": 11.4, "checkpoint": 0.8, "total": 62.0 + seed},
            "parameters": {"trainable": 4_210_176, "stored": 4_210_176},
            "buffer_bytes": 3_200_000,
            "energy_wh": 1.4,
        },
        provenance={"everclip": "0.1.0", "python": "3.11", "threads": 2, "data": {"emoji": "sha256:1234"}},
    )
    return found, items


def cell(row: Row, col: Column) -> float | None:
    """The headline score of a set."""
    return row.scores[col.name]["all"]["accuracy" if col.kind == "classification" else "mean_r1"].value


def headline_matrix(rows: list[Row]) -> Matrix:
    """The matrix as a run would write it."""
    return Matrix(
        protocol="all",
        metric="mean_r1",
        rows=[row.label for row in rows],
        columns=[col.name for col in columns()],
        values=[[cell(row, col) for col in columns()] for row in rows],
    )


def derived(rows: list[Row]) -> dict[str, float | None]:
    """Flat metrics as a run would write them."""
    groups = {group: [c for c in columns() if c.group == group] for group in ("known", "task", "retention")}
    table = [[cell(row, c) for c in groups["task"]] for row in rows]
    suite = [[cell(row, c) for c in groups["retention"]] for row in rows]
    after = suite[-1] if len(rows) > 1 else None
    found = summary(table[1:], table[0], suite[0], after)
    for name in ("known", "retention"):
        first, last = cell(rows[0], groups[name][0]), cell(rows[-1], groups[name][0])  # type: ignore[index]
        moved = len(rows) > 1 and first is not None and last is not None
        found |= {
            f"{name}_before": first,
            f"{name}_last": last if moved else None,
            f"{name}_change": last - first if moved else None,
        }
    return found | {"new_before": float(np.mean(table[0])), "new_last": float(np.mean(table[-1]))}


def examples(rows: int) -> list[Example]:
    """Examples whose pictures `write_run` paints."""
    found = []
    for number, (name, truth) in enumerate(
        [("2018", "softball"), ("2019", "waffle"), ("known", "red heart")]
    ):
        wrong = ("baseball", "chess pawn", "heart suit")[number]
        answers = [
            Answer(
                row=r, answers=[(truth if r > number else wrong, 0.31), ("kite", 0.22)], correct=r > number
            )
            for r in range(rows)
        ]
        found.append(
            Example(
                column=name,
                id=f"noto/{number}",
                picture=f"examples/{number}.png",
                truth=truth,
                answers=answers,
            )
        )
    return found


def paint(folder: Path) -> None:
    """Paint the pictures of the examples."""
    from PIL import Image, ImageDraw

    (folder / "examples").mkdir(parents=True, exist_ok=True)
    for number, colour in enumerate(("#e8c340", "#b5763a", "#d0342c")):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((6, 6, 58, 58), fill=colour, outline="#333333", width=2)
        image.save(folder / "examples" / f"{number}.png")


def save_items(folder: Path, items: list[dict[str, Any]]) -> None:
    """Write the outcomes per item as a run does."""
    from safetensors.numpy import save_file

    (folder / "rows").mkdir(parents=True, exist_ok=True)
    for index, tensors in enumerate(items):
        save_file(tensors, folder / "rows" / f"{index:03d}.safetensors")


def write_run(
    folder: Path,
    method: str = "finetune",
    seed: int = 0,
    paired: bool = True,
    name: str | None = None,
    **changes: Any,
) -> Path:
    """Write a synthetic run folder; `changes` go to `results` or replace fields of it, `name` renames the method."""
    own = {key: changes.pop(key) for key in ("rows", "benchmark", "status") if key in changes}
    found, items = results(method, seed, **own)
    folder.mkdir(parents=True, exist_ok=True)
    if name is not None:
        changes["method"] = {"name": name}
    found.model_copy(update=changes).write(folder)
    config = {
        "benchmark": found.benchmark,
        "method": {"name": name or method, "settings": {}},
        "seed": seed,
        "training": {"epochs": 10, "lr": 3e-4},
        "evaluation": {"confidence": 0.95},
        "output": folder.name,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    paint(folder)
    if paired:
        save_items(folder, items)
    return folder
