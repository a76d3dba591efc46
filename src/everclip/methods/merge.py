"""The slot `merge`: interpolate and average weights. Applies to floating-point tensors; others are copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from everclip.distributed import from_first
from everclip.models.parameters import parameters_of

Weights = dict[str, torch.Tensor]


def changing(module: nn.Module, trainable: Sequence[str]) -> Weights:
    """Return the tensors that learning changes, not copied: trainable parameters and the backbone's statistics."""
    chosen = {name: p.data for name, p in parameters_of(module, trainable).items()}
    parameters = {name for name, _ in module.named_parameters()}
    state = module.state_dict()
    statistics = (n for n in state if n.startswith("backbone.") and n not in parameters)
    return chosen | {n: state[n] for n in statistics if state[n].is_floating_point()}


def interpolate(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], alpha: float
) -> Weights:
    """Return `(1 - alpha) * before + alpha * after`, tensor by tensor (WiSE-FT, arXiv 2109.01903, equation 1).

    Alpha 0 gives `before` and alpha 1 gives `after`, bit for bit. Integer tensors come from `after`. The logit scale is
    interpolated as stored, in log space.

    Raises:
        ValueError: if names or shapes differ.
    """
    if before.keys() != after.keys():
        raise ValueError(f"weights to merge have different names: {sorted(before.keys() ^ after.keys())[:5]}")
    merged = {}
    for name, new in after.items():
        old = before[name]
        if old.shape != new.shape:
            raise ValueError(
                f"{name}: weights to merge have shapes {tuple(old.shape)} and {tuple(new.shape)}"
            )
        if not new.is_floating_point() or alpha == 1:
            merged[name] = new.clone()
        elif alpha == 0:
            merged[name] = old.clone()
        else:
            merged[name] = (1 - alpha) * old + alpha * new
    return merged


class RunningMean:
    """The mean of a first model and all snapshots (weight ensemble of ZSCL, arXiv 2303.06628, section 3.3).

    Args:
        start: the first model of the mean.
        count: the number of snapshots already in it.
    """

    def __init__(self, start: Mapping[str, torch.Tensor], count: int = 0) -> None:
        self.mean = {k: v.detach().clone() for k, v in start.items() if v.is_floating_point()}
        self.count = count

    def add(
        self,
        snapshot: Mapping[str, torch.Tensor],
        fixed: Mapping[str, torch.Tensor] | None = None,
        share: float = 1.0,
    ) -> None:
        """Add one model to the mean: n += 1; mean = (n * mean + snapshot) / (n + 1).

        Args:
            snapshot: the model.
            fixed: with `share` below 1, the mean then becomes `share * mean + (1 - share) * fixed`.
            share: the weight of the mean.
        """
        self.count += 1
        for name, mean in self.mean.items():
            mean.mul_(self.count).add_(snapshot[name].detach()).div_(self.count + 1)
            if fixed is not None and share < 1:
                mean.mul_(share).add_(fixed[name], alpha=1 - share)


def every(amount: int | float, steps: int) -> int:
    """Return the steps between two snapshots; an `amount` below 1 is a share of all steps."""
    return max(1, round(amount * steps) if amount < 1 else int(amount))


def sweep(
    grid: tuple[float, ...], apply: Callable[[float], None], validate: Callable[[], Mapping[str, float]]
) -> tuple[float, dict[str, dict[str, float]]]:
    """Choose alpha on validation data by the best mean over all validation sets; the smaller alpha in a tie.

    Args:
        grid: candidates.
        apply: loads the weights of one candidate.
        validate: scores the current model.

    Returns:
        The choice, and every candidate's scores (recorded in the result).
    """
    table: dict[str, dict[str, float]] = {}
    best, best_score = grid[0], float("-inf")
    for alpha in grid:
        apply(alpha)
        scores = dict(validate())
        table[str(alpha)] = scores
        mean = sum(scores.values()) / max(1, len(scores))
        if mean > best_score + 1e-12:
            best, best_score = alpha, mean
    best = from_first(best)  # scores may differ by rounding between processes; the choice must not
    apply(best)
    return best, table
