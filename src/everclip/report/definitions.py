"""What every number in a report means, in one line each, so that nobody has to guess.

`R[i, j]` is the score after task `i` on task `j`, both from 1; `R0` is row 0; `T` is the number of tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from everclip.evaluation.results import Results
from everclip.evaluation.together import Together, together

Unit = Literal["percent", "points", "ratio", "number", "degrees"]
Need = Literal["matrix", "two tasks", "known", "retention", "rows", "tasks", "together"]


@dataclass(frozen=True)
class Definition:
    """One metric: how it is called, what it says, and its formula under the name the field uses."""

    label: str
    text: str
    formula: str
    unit: Unit = "percent"
    better: Literal["higher", "lower", ""] = "higher"
    needs: tuple[Need, ...] = ()


_SQUARE: tuple[Need, ...] = ("matrix",)
_PAIRS: tuple[Need, ...] = ("matrix", "two tasks")

METRICS: dict[str, Definition] = {
    "last": Definition(
        "Last", "Mean over the tasks at the end.", "MTIL Last: mean_j R[T,j]", needs=("rows",)
    ),
    "average": Definition(
        "Average",
        "Mean of all cells, tasks not learned yet included.",
        "MTIL Average: mean_ij R[i,j]",
        needs=_SQUARE,
    ),
    "transfer": Definition(
        "Transfer",
        "Score on tasks before they are learned (a score, not a difference).",
        "MTIL Transfer: mean_{j>1} mean_{i<j} R[i,j]",
        needs=_PAIRS,
    ),
    "average_seen": Definition(
        "Average seen",
        "Mean over time of the mean over the tasks learned so far.",
        "average incremental accuracy: mean_i mean_{j<=i} R[i,j]",
        needs=_SQUARE,
    ),
    "seen_average": Definition(
        "Seen average",
        "Each task's mean since it was learned, then over tasks.",
        "SeenAverage of CoLeCLIP's tool: mean_j mean_{i>=j} R[i,j]",
        needs=_SQUARE,
    ),
    "stage_last": Definition(
        "Last, by pictures",
        "Over all test pictures of what was learned, at the end.",
        "CIL Last: sum_j n_j R[T,j] / sum_j n_j",
        needs=("rows",),
    ),
    "stage_average": Definition(
        "Avg, by pictures",
        "Mean over time of the score over all test pictures of what was learned by then.",
        "CIL Avg: mean_i sum_{j<=i} n_j R[i,j] / sum_{j<=i} n_j",
        needs=("rows",),
    ),
    "aa": Definition(
        "AA", "Mean over the tasks learned, at the end.", "CLL AA: mean_{j<=T} R[T,j]", needs=_SQUARE
    ),
    "forgetting": Definition(
        "Forgetting",
        "How far earlier tasks lie under their best earlier score, at the end.",
        "Chaudhry F: mean_{j<T} (max_{i<T} R[i,j] − R[T,j])",
        "points",
        "lower",
        _PAIRS,
    ),
    "forgetting_since_learned": Definition(
        "Forgetting since learned",
        "As forgetting, but the best is sought only since the task was learned.",
        "mean_{j<T} (max_{j<=i<T} R[i,j] − R[T,j])",
        "points",
        "lower",
        _PAIRS,
    ),
    "backward_transfer": Definition(
        "Backward transfer",
        "How tasks moved after they were learned; negative is forgetting.",
        "GEM BWT: mean_{j<T} (R[T,j] − R[j,j])",
        "points",
        needs=_PAIRS,
    ),
    "forward_transfer": Definition(
        "Forward transfer",
        "How tasks moved before they were learned, against row 0.",
        "GEM FWT: mean_{j>1} (R[j−1,j] − R0[j])",
        "points",
        needs=_PAIRS,
    ),
    "learning_accuracy": Definition(
        "Learning accuracy",
        "Score of each task directly after it was learned.",
        "mean_j R[j,j]",
        needs=_SQUARE,
    ),
    "zero_shot_degradation": Definition(
        "Zero-shot degradation",
        "How far a task lies under its best zero-shot score just before it is learned.",
        "ZSD: mean_{j>1} (max(R0[j], R[1..j−1,j]) − R[j−1,j])",
        "points",
        "lower",
        _PAIRS,
    ),
    "zero_shot_drop_mean": Definition(
        "Mean zero-shot drop",
        "Forward transfer with the opposite sign.",
        "mean_{j>1} (R0[j] − R[j−1,j])",
        "points",
        "lower",
        _PAIRS,
    ),
    "tic_in_domain": Definition(
        "TiC in-domain", "The diagonal: each task when learned.", "TiC ID: mean_j R[j,j]", needs=_SQUARE
    ),
    "tic_backward": Definition(
        "TiC backward",
        "Score on tasks learned earlier (a score, not a difference).",
        "TiC BT: mean_{i>j} R[i,j]",
        needs=_PAIRS,
    ),
    "tic_forward": Definition(
        "TiC forward",
        "Score on tasks not learned yet (a score, not a difference).",
        "TiC FT: mean_{i<j} R[i,j]",
        needs=_PAIRS,
    ),
    "backward_transfer_libcontinual": Definition(
        "BWT as in LibContinual",
        "Leaves out pairs yet divides by all; only to explain published numbers.",
        "Σ_{i>=3} Σ_{j<=i−2} (R[i,j] − R[j,j]) / (T(T−1)/2)",
        "points",
        needs=_PAIRS,
    ),
    "suite_degradation": Definition(
        "Suite degradation",
        "Loss of mean score over the retention suite.",
        "Z0 − Z_T",
        "points",
        "lower",
        ("rows", "retention"),
    ),
    "suite_relative": Definition(
        "Suite, relative",
        "What is left of the mean score of the retention suite; 1 is everything.",
        "Z_T / Z0",
        "ratio",
        needs=("rows", "retention"),
    ),
    "worst_set_drop": Definition(
        "Worst set drop",
        "Drop of the retention set that lost most.",
        "max_k (Z0[k] − Z_T[k])",
        "points",
        "lower",
        ("rows", "retention"),
    ),
    "known_before": Definition("Known, before", "What was known before, at row 0.", "K0", needs=("known",)),
    "known_last": Definition("Known, last", "What was known before, at the end.", "K_T", needs=("known",)),
    "known_change": Definition(
        "Known, change",
        "Last minus before; negative is forgetting.",
        "K_T − K0",
        "points",
        needs=("known", "rows"),
    ),
    "retention_before": Definition(
        "Retention, before", "Mean over the retention suite at row 0.", "Z0", needs=("retention",)
    ),
    "retention_last": Definition(
        "Retention, last", "Mean over the retention suite at the end.", "Z_T", needs=("retention",)
    ),
    "retention_change": Definition(
        "Retention, change",
        "Last minus before; negative is zero-shot ability lost.",
        "Z_T − Z0",
        "points",
        needs=("retention", "rows"),
    ),
    "worst_retention_drop": Definition(
        "Worst retention drop",
        "Drop of the retention set that lost most.",
        "max_k (Z0[k] − Z_T[k])",
        "points",
        "lower",
        ("retention", "rows"),
    ),
    "everything_before": Definition(
        "Everything, before",
        "Old and new test pictures together, among the answers of all sets, at row 0.",
        "sum_j n_j R0[j] / sum_j n_j",
        needs=("together",),
    ),
    "everything_last": Definition(
        "Everything, last",
        "Old and new test pictures together, among the answers of all sets, at the end.",
        "sum_j n_j R[T,j] / sum_j n_j",
        needs=("together",),
    ),
    "everything_change": Definition(
        "Everything, change",
        "Last minus before: whether the update was worth it.",
        "everything_last − everything_before",
        "points",
        needs=("together", "rows"),
    ),
    **{
        f"everything_{part}_{when}": Definition(
            f"{part.capitalize()} among all, {when}",
            f"The part of it that is {part}.",
            f"as everything_{when}, over the {part} sets",
            "points" if when == "change" else "percent",
            needs=("together", "known") if part == "old" else ("together",),
        )
        for part in ("old", "new")
        for when in ("before", "last", "change")
    },
    "new_before": Definition(
        "New, before",
        "Mean over the tasks at row 0: what the base could do already.",
        "mean_j R0[j]",
        needs=("tasks",),
    ),
    "new_last": Definition(
        "New, last", "Mean over the tasks at the last row.", "mean_j R[T,j]", needs=("tasks",)
    ),
    "new_change": Definition(
        "New, change",
        "Last minus before: what was learned.",
        "mean_j (R[T,j] − R0[j])",
        "points",
        needs=("tasks", "rows"),
    ),
}

UNKNOWN = Definition("", "No definition is on record for this name.", "", "number", "")

REPRESENTATION: dict[str, Definition] = {
    "modality_gap": Definition(
        "Modality gap",
        "Distance between the mean picture and the mean text.",
        "‖mean(X) − mean(Y)‖",
        "number",
        "",
    ),
    "alignment": Definition(
        "Alignment",
        "Mean squared distance of matching pictures and texts; 0 is perfect.",
        "mean ‖x − y‖²",
        "number",
        "lower",
    ),
    "uniformity": Definition(
        "Uniformity",
        "How evenly embeddings fill the sphere; lower is more even.",
        "log mean exp(−2‖x_i − x_j‖²)",
        "number",
        "lower",
    ),
    "rotation_deg": Definition(
        "Rotation",
        "Mean angle between the embeddings of an item at row 0 and now.",
        "mean arccos(x_old · x_new)",
        "degrees",
        "",
    ),
    "cka": Definition(
        "CKA",
        "Similarity to the space of row 0 whatever its rotation; 1 is the same.",
        "linear CKA",
        "number",
        "",
    ),
    "effective_rank": Definition(
        "Effective rank",
        "How many directions the embeddings use.",
        "exp(entropy of singular values)",
        "number",
        "",
    ),
}


def define(name: str) -> Definition:
    """Return the definition of a metric of a result; a name from elsewhere gets an honest empty one."""
    return METRICS.get(name, UNKNOWN)


def why_undefined(name: str, results: Results) -> str:
    """Say why a metric of this result is null."""
    definition = METRICS.get(name)
    tasks, rows = len(results.tasks), len(results.rows) - 1
    columns = {column.group for column in results.columns}
    for need in definition.needs if definition else ():
        if need in ("known", "retention") and need not in columns:
            return f"the benchmark has no {need} set"
        if need == "together" and isinstance(why := together_of(results), str):
            return why
        if need == "tasks" and "task" not in columns:
            return "the benchmark has no set that belongs to a task"
        if need == "rows" and rows < 1:
            return "no task has been learned yet"
        if need == "two tasks" and tasks < 2:
            return "needs at least two tasks"
        if need == "matrix" and rows != tasks:
            at_once = any(row.task is None for row in results.rows[1:])
            learned = "one row for all tasks at once" if at_once else f"{max(rows, 0)} of {tasks}"
            return f"needs one row per task; this run has {learned}"
    if name.startswith("everything") and isinstance(how := together_of(results), Together) and how.grows:
        return "the answers on offer become more with every task, so row 0 is of another kind"
    return _missing_cells(results)


def together_of(results: Results) -> Together | str:
    """Return how old and new are scored together in a result, or why they are not."""
    return together(results.columns, results.protocols, results.headline)


def _missing_cells(results: Results) -> str:
    """Say that a cell is missing, and of an extended run which rows were measured before later sets came."""
    rows = unmeasured_rows(results)
    if not rows:
        return "a cell that its formula names is not scored"
    shown = ", ".join(results.rows[row].label for row in rows)
    return (
        f"the run was extended, and the rows {shown} were not measured on what was added later: their models were "
        "not kept (checkpoint.keep_rows=true)"
    )


def unmeasured_rows(results: Results) -> list[int]:
    """Return the rows of an extended run that were measured before other sets were added, and not again since."""
    if not any(event.kind == "extended" for event in results.events):
        return []
    names = {column.name for column in results.columns}
    return [place for place, row in enumerate(results.rows) if not names <= row.scores.keys()]
