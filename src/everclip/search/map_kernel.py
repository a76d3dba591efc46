"""A Gaussian kernel on the sample, for what an affine map leaves over: kernel ridge regression of the residual."""

from __future__ import annotations

import torch

from everclip.search.map_linear import Linear, mean_cosine

MOST = 2048
"""The most centres; a sample of more pairs gives a part of itself. A vector costs so many cosines."""

SHARPNESS = (0.5, 2.0)
"""Sharpness of the kernel, as multiples of one over the mean squared distance of two vectors."""

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)


def fit_kernel(
    x: torch.Tensor, y: torch.Tensor, part: Linear, whole: Linear, fit: torch.Tensor, held: torch.Tensor
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Fit `sum_i exp( -s |x - c_i|^2 ) B_i` to the residual of an affine map; the sample's vectors are the centres c.

    `B = ( K + p I )^-1 ( Y - X W - b )`. Sharpness s and penalty p are those that serve the held-out part best.

    Args:
        x, y: unit vectors `(N, D)` and `(N, E)`, float64.
        part, whole: the affine maps of the pairs `fit` and of all pairs.
        fit, held: rows.

    Returns:
        `centres` `(M, D)`, `coefficients` `(M, E)` and `sharpness` `(1,)`, float32; and what was chosen.
    """
    mean = x.mean(dim=0)
    spread = float(2 - 2 * mean @ mean)  # the mean of |x - x'|^2
    rows = fit[:MOST]
    best = (float("-inf"), 0.0, 0.0)
    for times in SHARPNESS:
        sharpness = times / max(spread, 1e-6)
        solved = _Solved(x[rows], y[rows] - part.of(x[rows]), sharpness)
        for penalty in PENALTIES:
            found = part.of(x[held]) + kernel(x[held], x[rows], sharpness) @ solved.coefficients(penalty)
            best = max(best, (float(mean_cosine(found, y[held])), sharpness, penalty))
    _, sharpness, penalty = best
    every = torch.cat([fit, held])[:MOST].sort().values
    coefficients = _Solved(x[every], y[every] - whole.of(x[every]), sharpness).coefficients(penalty)
    tensors = {
        "centres": x[every].float(),
        "coefficients": coefficients.float(),
        "sharpness": torch.tensor([sharpness], dtype=torch.float32),
    }
    return tensors, {"sharpness": sharpness, "kernel_penalty": penalty}


def kernel(x: torch.Tensor, centres: torch.Tensor, sharpness: float) -> torch.Tensor:
    """Return `exp( -s |x - c|^2 )` of unit vectors `(N, D)` and centres `(M, D)`, as `(N, M)`."""
    return (2 * sharpness * (x @ centres.T - 1)).exp()


class _Solved:
    """The kernel matrix of the centres, decomposed once for all penalties."""

    def __init__(self, x: torch.Tensor, residual: torch.Tensor, sharpness: float) -> None:
        self._values, self._vectors = torch.linalg.eigh(kernel(x, x, sharpness))
        self._right = self._vectors.T @ residual

    def coefficients(self, penalty: float) -> torch.Tensor:
        found: torch.Tensor = self._vectors @ (self._right / (self._values.clamp(min=0) + penalty)[:, None])
        return found
