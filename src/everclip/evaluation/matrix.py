"""Everything that is derived from the score matrix: pure functions, no torch, no files.

`scores[i][j]` is the score of the model after task `i` on task `j` (0-based, rows are time) and `before[j]`
that of the pre-trained model (row 0 of a run). `None` means "no such cell". Any unit works; the result has
the same one.

Three rules hold for every function:

* Undefined is `None`, never NaN and never 0. An exact 0 is a score like any other.
* A metric is `None` as soon as one cell that its formula names is missing: a mean over fewer cells is another
  metric. Cells that the formula does not name may be missing.
* A metric that pairs row `i` with task `i` needs the square matrix. A run that stopped early or has one row
  for all tasks (`joint`) has `last`, and `aa` / `forgetting` at an explicit `row`, but nothing else.

Every function raises `ValueError` for ragged rows, a `before` of another length, and for NaN or infinity
anywhere in its input (the message names the cell).

Sources: Lopez-Paz and Ranzato, GEM (arXiv 1706.08840); Chaudhry et al. (arXiv 1801.10112); Zheng et al., ZSCL
(arXiv 2303.06628) for Transfer / Average / Last; Garg et al., TiC-CLIP (arXiv 2310.16226); Yang et al.,
CLL-CLIP (arXiv 2401.17186); Koh et al., i-Blurry (arXiv 2110.10031) for the any-time accuracy.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

Row = Sequence[float | None]
Scores = Sequence[Row]


def last(scores: Scores) -> float | None:
    """Mean of the last row over all columns: `mean_j R[T-1, j]` (MTIL "Last"). Any shape."""
    _check(scores)
    return _mean(scores[-1]) if scores else None


def average(scores: Scores) -> float | None:
    """Mean of all `T x T` cells, unseen tasks included (MTIL "Average")."""
    tasks = _tasks(scores)
    return _mean(scores[i][j] for i in range(tasks) for j in range(tasks))


def transfer(scores: Scores) -> float | None:
    """`mean_{j>=1} mean_{i<j} R[i, j]` (MTIL "Transfer"): accuracy on tasks not learned yet.

    An absolute accuracy, not a difference; task 0 has none. A cell of exactly 0 counts.
    """
    return _mean(_mean(scores[i][j] for i in range(j)) for j in range(1, _tasks(scores)))


def average_seen(scores: Scores) -> float | None:
    """`mean_i mean_{j<=i} R[i, j]`: task-weighted average incremental accuracy over the tasks seen so far."""
    return _mean(_mean(scores[i][: i + 1]) for i in range(_tasks(scores)))


def seen_average(scores: Scores) -> float | None:
    """`mean_j mean_{i>=j} R[i, j]`: each task since it was learned, then over tasks (CoLeCLIP's tool "SeenAverage").

    `average_seen` weighs rows alike, this one tasks.
    """
    tasks = _tasks(scores)
    return _mean(_mean(scores[i][j] for i in range(j, tasks)) for j in range(tasks))


def aa(scores: Scores, row: int | None = None) -> float | None:
    """`AA_i = mean_{j<=i} R[i, j]` (CLL-CLIP).

    Args:
        scores: the matrix.
        row: `i`. `None` is the last row of a complete (square) matrix; an explicit row needs no square.
    """
    i = _row(scores, row)
    return None if i is None else _mean(scores[i][: i + 1])


def forgetting(scores: Scores, row: int | None = None) -> float | None:
    """`mean_{j<i} ( max_{k<i} R[k, j] - R[i, j] )` at the last row (Chaudhry et al., eq. 3).

    The maximum runs over all earlier rows, also those before task `j` was learned: a zero-shot score that was
    better than any later one counts as something to lose. Where unseen tasks are not scored, use
    `forgetting_since_learned`.

    Args:
        scores: the matrix.
        row: `i`. `None` is the last row of a complete (square) matrix; an explicit row needs no square.
    """
    return _forgetting(scores, row, since_learned=False)


def forgetting_since_learned(scores: Scores, row: int | None = None) -> float | None:
    """`mean_{j<i} ( max_{j<=k<i} R[k, j] - R[i, j] )`: as `forgetting`, but only since task `j` was learned.

    Equals the forgetting of CLL-CLIP, whose tables hold zeros above the diagonal, without reading those
    zeros.

    Args:
        scores: the matrix.
        row: `i`. `None` is the last row of a complete (square) matrix; an explicit row needs no square.
    """
    return _forgetting(scores, row, since_learned=True)


def backward_transfer(scores: Scores) -> float | None:
    """`mean_{j<T-1} ( R[T-1, j] - R[j, j] )` (GEM BWT). Negative means forgetting."""
    tasks = _tasks(scores)
    return _mean(_minus(scores[tasks - 1][j], scores[j][j]) for j in range(tasks - 1))


def forward_transfer(scores: Scores, before: Row | None) -> float | None:
    """`mean_{j>=1} ( R[j-1, j] - R0[j] )` (GEM FWT); GEM has random weights for the pre-trained model."""
    tasks = _tasks(scores, before)
    if before is None:
        return None
    return _mean(_minus(scores[j - 1][j], before[j]) for j in range(1, tasks))


def learning_accuracy(scores: Scores) -> float | None:
    """`mean_j R[j, j]`: the score of each task directly after it was learned."""
    return _mean(scores[j][j] for j in range(_tasks(scores)))


def zero_shot_degradation(scores: Scores, before: Row | None) -> float | None:
    """`mean_{j>=1} ( max(R0[j], R[0..j-1, j]) - R[j-1, j] )` >= 0 (ZSD, survey of VLM continual learning).

    How far the score of a task lies under its best zero-shot score at the moment before it is learned.
    """
    tasks = _tasks(scores, before)
    if before is None:
        return None
    columns = ([before[j], *(scores[i][j] for i in range(j))] for j in range(1, tasks))
    return _mean(_minus(_max(column), column[-1]) for column in columns)


def zero_shot_drop_mean(scores: Scores, before: Row | None) -> float | None:
    """`mean_{j>=1} ( R0[j] - R[j-1, j] )`: the negated `forward_transfer`."""
    value = forward_transfer(scores, before)
    return None if value is None else 0.0 - value


def tic_in_domain(scores: Scores) -> float | None:
    """`mean_j R[j, j]` (TiC-CLIP "ID"): the diagonal, the same number as `learning_accuracy`."""
    return learning_accuracy(scores)


def tic_backward(scores: Scores) -> float | None:
    """Mean of the cells with `i > j` (TiC-CLIP backward transfer): an absolute score, not GEM's BWT."""
    return _mean(scores[i][j] for i in range(_tasks(scores)) for j in range(i))


def tic_forward(scores: Scores) -> float | None:
    """Mean of the cells with `i < j` (TiC-CLIP forward transfer): an absolute score, not GEM's FWT."""
    return _mean(scores[i][j] for j in range(_tasks(scores)) for i in range(j))


def backward_transfer_libcontinual(scores: Scores) -> float | None:
    """`sum_{i>=2} sum_{j<=i-2} ( R[i, j] - R[j, j] ) / ( T (T-1) / 2 )`, as printed by LibContinual.

    Do not use. It leaves out the pairs `j = i - 1` and yet divides by the number of all pairs; it is here
    because it explains published numbers. `None` below three tasks, where no pair enters the sum.
    """
    tasks = _tasks(scores)
    pairs = [_minus(scores[i][j], scores[j][j]) for i in range(2, tasks) for j in range(i - 1)]
    mean = _mean(pairs)
    return None if mean is None else mean * len(pairs) / (tasks * (tasks - 1) / 2)


def suite_degradation(before: Row | None, after: Row | None) -> float | None:
    """`Z_0 - Z_t`: the loss of mean score over a suite that is never trained on.

    Args:
        before: scores of the pre-trained model on each set of the suite.
        after: scores of the updated model on the same sets.
    """
    return _minus(*_suite_means(before, after))


def suite_relative(before: Row | None, after: Row | None) -> float | None:
    """`Z_t / Z_0`: what is left of the mean score of the suite (1 = everything). `None` where `Z_0` is 0."""
    start, now = _suite_means(before, after)
    return None if start is None or now is None or start == 0 else now / start


def worst_set_drop(before: Row | None, after: Row | None) -> float | None:
    """`max_k ( Z_0^k - Z_t^k )`: the drop of the set that lost most. Negative if every set gained."""
    _suite_means(before, after)
    if before is None or after is None:
        return None
    return _max([_minus(start, now) for start, now in zip(before, after, strict=True)])


def average_incremental(stage_scores: Row) -> float | None:
    """`mean_i A_i` over one score per stage (CIL "Avg", online `A_avg`), all seen classes in each."""
    _check([stage_scores])
    return _mean(stage_scores)


def stage_scores(
    scores: Scores, seen: Sequence[Collection[int]], samples: Sequence[int]
) -> list[float | None]:
    """Return the score over all samples of the columns seen at each row: `sum_j n_j R[i, j] / sum_j n_j`.

    With accuracy and a column per group of classes this is the accuracy of class-incremental tables: every picture
    counts once, so that a larger group weighs more.

    Args:
        scores: rows x columns.
        seen: per row, the columns whose classes were learned.
        samples: per column, how many samples it has.
    """
    _check(scores)
    found: list[float | None] = []
    for row, columns in zip(scores, seen, strict=True):
        parts = [(row[j], samples[j]) for j in columns]
        total = sum(n for _, n in parts)
        mean = (
            _mean(None if value is None else value * n / total * len(parts) for value, n in parts)
            if total
            else None
        )
        found.append(mean)
    return found


def anytime_area(samples: Sequence[float], scores: Row) -> float | None:
    """Area under the any-time curve by trapezoids, divided by its width, for arbitrary spacing.

    `1 / (x_n - x_0) * sum_k (x_{k+1} - x_k) (a_k + a_{k+1}) / 2`. With equal spacing i-Blurry's `A_AUC` is
    the plain mean (`average_incremental`), which weighs both ends in full; the two differ for short curves.

    Args:
        samples: number of samples seen at each measurement, strictly increasing.
        scores: score at each measurement.

    Raises:
        ValueError: lengths differ, or `samples` does not increase.
    """
    _check([samples, scores])
    if any(b <= a for a, b in pairwise(samples)):
        raise ValueError("samples must increase strictly")
    if len(samples) < 2:
        return None
    parts: list[float] = []
    for k in range(len(samples) - 1):
        left, right = scores[k], scores[k + 1]
        if left is None or right is None:
            return None
        parts.append((samples[k + 1] - samples[k]) * (left + right) / 2)
    return math.fsum(parts) / (samples[-1] - samples[0])


def class_forgetting(class_scores: Scores) -> float | None:
    """Online `F_last`: mean over classes of `max_{t<T-1} acc_t(c) - acc_{T-1}(c)`.

    Only classes that were right at least once before the last row count, as in the trainers of i-Blurry and
    LifeLong-CLIP; `None` before a class was met reads as "not yet". `None` if no class counts.

    Args:
        class_scores: rows x classes, row = after task.
    """
    _check(class_scores)
    drops: list[float | None] = []
    for column in zip(*class_scores, strict=True):
        best = max((value for value in column[:-1] if value is not None), default=0.0)
        if best > 0:
            drops.append(_minus(best, column[-1]))
    return _mean(drops)


def summary(
    scores: Scores, before: Row | None, suite_before: Row | None = None, suite_after: Row | None = None
) -> dict[str, float | None]:
    """All metrics under stable flat names; a name is always there, its value is `None` where undefined.

    Args:
        scores: rows x task columns.
        before: row 0 on the task columns, or `None`.
        suite_before: row 0 on the retention suite, or `None`.
        suite_after: the last row on the retention suite, or `None`.
    """
    return {
        "last": last(scores),
        "average": average(scores),
        "transfer": transfer(scores),
        "average_seen": average_seen(scores),
        "seen_average": seen_average(scores),
        "aa": aa(scores),
        "forgetting": forgetting(scores),
        "forgetting_since_learned": forgetting_since_learned(scores),
        "backward_transfer": backward_transfer(scores),
        "forward_transfer": forward_transfer(scores, before),
        "learning_accuracy": learning_accuracy(scores),
        "zero_shot_degradation": zero_shot_degradation(scores, before),
        "zero_shot_drop_mean": zero_shot_drop_mean(scores, before),
        "tic_in_domain": tic_in_domain(scores),
        "tic_backward": tic_backward(scores),
        "tic_forward": tic_forward(scores),
        "backward_transfer_libcontinual": backward_transfer_libcontinual(scores),
        "suite_degradation": suite_degradation(suite_before, suite_after),
        "suite_relative": suite_relative(suite_before, suite_after),
        "worst_set_drop": worst_set_drop(suite_before, suite_after),
    }


def _forgetting(scores: Scores, row: int | None, since_learned: bool) -> float | None:
    i = _row(scores, row)
    if i is None:
        return None
    best = (_max([scores[k][j] for k in range(j if since_learned else 0, i)]) for j in range(i))
    return _mean(_minus(value, scores[i][j]) for j, value in enumerate(best))


def _check(scores: Scores) -> None:
    for i, row in enumerate(scores):
        if len(row) != len(scores[0]):
            raise ValueError(f"row {i} has {len(row)} columns, row 0 has {len(scores[0])}")
        for j, value in enumerate(row):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"score at row {i}, column {j} is {value}")


def _tasks(scores: Scores, before: Row | None = None) -> int:
    """`T` of a square matrix; 0, for which every mean is empty and so undefined, of any other."""
    _check(scores)
    columns = len(scores[0]) if scores else 0
    if before is not None:
        if scores and len(before) != columns:
            raise ValueError(f"before has {len(before)} columns, the matrix has {columns}")
        for j, value in enumerate(before):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"score before training, column {j}, is {value}")
    return columns if len(scores) == columns else 0


def _row(scores: Scores, row: int | None) -> int | None:
    if row is None:
        tasks = _tasks(scores)
        return tasks - 1 if tasks else None
    _check(scores)
    if not 0 <= row < len(scores):
        raise ValueError(f"row {row} of a matrix with {len(scores)} rows")
    return row if row < len(scores[0]) else None


def _suite_means(before: Row | None, after: Row | None) -> tuple[float | None, float | None]:
    _check([row for row in (before, after) if row is not None])
    return (None if before is None else _mean(before)), (None if after is None else _mean(after))


def _mean(values: Iterable[float | None]) -> float | None:
    known: list[float] = []
    for value in values:
        if value is None:
            return None
        known.append(value)
    # fsum is exact up to one rounding, so the order of the tasks cannot change a mean.
    return math.fsum(known) / len(known) if known else None


def _max(values: Iterable[float | None]) -> float | None:
    known: list[float] = []
    for value in values:
        if value is None:
            return None
        known.append(value)
    return max(known, default=None)


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
