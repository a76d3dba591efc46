"""Metrics of the embedding space: gap, alignment, uniformity, rotation, similarity of two spaces, effective dimension.

All functions take `(N, D)` features of any norm, normalise the rows and compute in float64. Two feature sets that are
compared hold the same items in the same rows. A degenerate input (too few rows, identical rows, a zero row) gives
`None` and a warning, never NaN. A feature that is not finite raises `ValueError`.

Metrics over pairs of items (uniformity, RSA, self-angle) process blocks of rows, or only a seeded subsample of
`sample` rows.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from everclip.metrics import metrics

Pairs = tuple[Tensor, Tensor]
"""Images and texts `(N, D)`; row i of both is a matching pair."""

_BLOCK = 1024  # rows of a cosine matrix held at once
_CONSTANT = 1e-28  # cosines of smaller variance are equal up to rounding in float64
_FLAT = 1e-20  # unit rows with a smaller mean squared distance from their centre are equal up to rounding


@dataclass(frozen=True)
class Space:
    """The embeddings `(N, D)` of images or texts now, and of the same items at row 0 if they are known.

    `sample` and `seed` choose the rows of metrics over pairs of items: see `probe_rows`. `last` are the embeddings of
    these rows at the row before, if they are known.
    """

    now: Tensor
    before: Tensor | None
    sample: int | None
    seed: int
    last: Tensor | None = None

    def probes(self, features: Tensor) -> Tensor:
        """Return the rows of metrics over pairs of items."""
        return _probe(features, self.sample, self.seed)

    @property
    def since_last(self) -> tuple[Tensor, Tensor] | None:
        """The embeddings of these rows at the row before, and now."""
        return None if self.last is None else (self.last, self.probes(self.now))


@dataclass(frozen=True)
class Spaces:
    """The spaces of images and texts; row i of both is a matching pair."""

    image: Space
    text: Space

    @property
    def images(self) -> Tensor:
        """The embeddings of the images `(N, D)` now."""
        return self.image.now

    @property
    def texts(self) -> Tensor:
        """The embeddings of the texts `(N, D)` now."""
        return self.text.now

    @property
    def since_start(self) -> tuple[Pairs, Pairs] | None:
        """The rows of metrics over pairs of items, images and texts, at row 0 and now; `None` if not known."""
        old = [space.before for space in (self.image, self.text)]
        if old[0] is None or old[1] is None:
            return None
        probes = self.image.probes
        return (probes(old[0]), probes(old[1])), (probes(self.images), probes(self.texts))

    @property
    def since_last(self) -> tuple[Pairs, Pairs] | None:
        """The same at the row before and now."""
        image, text = self.image.since_last, self.text.since_last
        return None if image is None or text is None else ((image[0], text[0]), (image[1], text[1]))


def modality_gap(images: Tensor, texts: Tensor) -> float | None:
    """Return `|| mean(X) - mean(Y) ||_2` of `(N, D)` and `(M, D)` features (Liang et al., arXiv 2203.02053)."""
    pair = unit_rows("modality_gap", images, texts)
    return None if pair is None else float((pair[0].mean(dim=0) - pair[1].mean(dim=0)).norm())


def alignment(images: Tensor, texts: Tensor, alpha: float = 2.0) -> float | None:
    """Return `mean_i || x_i - y_i ||_2^alpha` of matching rows (Wang and Isola, arXiv 2005.10242); 0 is perfect."""
    check_pairs(images, texts)
    pair = unit_rows("alignment", images, texts)
    return None if pair is None else float((pair[0] - pair[1]).norm(dim=1).pow(alpha).mean())


def uniformity(features: Tensor, t: float = 2.0, sample: int | None = None, seed: int = 0) -> float | None:
    """Return `log mean_{i<j} exp(-t || x_i - x_j ||^2)` (Wang and Isola, arXiv 2005.10242); identical rows give 0.

    Args:
        features: `(N, D)`, at least two rows.
        t: scale.
        sample: the most rows to use, chosen by `probe_rows`; `None` uses all, in blocks.
        seed: of the subsample.
    """
    units = unit_rows("uniformity", _probe(features, sample, seed), least=2)
    if units is None:
        return None
    x, pairs = units[0], len(units[0]) * (len(units[0]) - 1) // 2
    total = sum(float(torch.exp(-t * (2 - 2 * part).clamp(min=0)).sum()) for (part,) in _cosine_pairs(x))
    if total == 0:
        undefined("uniformity", f"exp underflows at t = {t}")
        return None
    return math.log(total / pairs)


def rotation_angles(before: Tensor, after: Tensor) -> Tensor | None:
    """Return the angle `(N,)` in degrees between old and new embedding of each item (Mod-X, arXiv 2305.07437)."""
    check_pairs(before, after, width=True)
    pair = unit_rows("rotation_angles", before, after)
    if pair is None:
        return None
    x, y = pair
    # Equals arccos(x.y), but is exact for small angles and needs no clamp: an unchanged row gives 0.
    return torch.rad2deg(2 * torch.atan2((x - y).norm(dim=1), (x + y).norm(dim=1)))


def self_angle_change(before: Tensor, after: Tensor) -> Tensor | None:
    """Return `| arccos(x_i.x_j) after - before |`, `(N, N)` in degrees (Mod-X, arXiv 2305.07437). Needs N^2 memory."""
    check_pairs(before, after)
    pair = unit_rows("self_angle_change", before, after)
    if pair is None:
        return None
    angles = [torch.rad2deg(torch.arccos((x @ x.T).clamp(-1, 1))) for x in pair]
    change: Tensor = (angles[1] - angles[0]).abs()
    return change.fill_diagonal_(0.0)  # the angle of an item to itself changes by rounding only


def mean_self_angle_change(
    before: Tensor, after: Tensor, sample: int | None = None, seed: int = 0
) -> float | None:
    """Return the mean of `self_angle_change` over pairs `i < j`, in degrees, computed block by block."""
    check_pairs(before, after)
    probes = _probe(before, sample, seed), _probe(after, sample, seed)
    pair = unit_rows("mean_self_angle_change", *probes, least=2)
    if pair is None:
        return None
    total, count = 0.0, 0
    for old, new in _cosine_pairs(*pair):
        total += float((new.clamp(-1, 1).arccos() - old.clamp(-1, 1).arccos()).abs().sum())
        count += len(old)
    return math.degrees(total / count)


def linear_cka(x: Tensor, y: Tensor) -> float | None:
    """Return `|| Yc^T Xc ||_F^2 / ( || Xc^T Xc ||_F || Yc^T Yc ||_F )` of centred columns (arXiv 1905.00414).

    Widths may differ. Biased upwards unless N is much larger than D (random features with N = D give about 0.5):
    use `unbiased_cka` then.
    """
    check_pairs(x, y)
    pair = unit_rows("linear_cka", x, y, least=2)
    if pair is None:
        return None
    a, b = (rows - rows.mean(dim=0) for rows in pair)
    if _flat(a) or _flat(b):
        undefined("linear_cka", "all rows are the same")
        return None
    return float((b.T @ a).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()))


def unbiased_cka(x: Tensor, y: Tensor) -> float | None:
    """Return CKA with the unbiased `HSIC_1` on uncentred Gram matrices (Nguyen et al., arXiv 2010.15327).

    `HSIC_1(K, L) = [ tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2/(n-2) 1'KL1 ] / ( n(n-3) )`, where K and L have a zero
    diagonal. Computed from `D x D` products, without an `N x N` matrix. Needs 4 rows.
    """
    check_pairs(x, y)
    pair = unit_rows("unbiased_cka", x, y, least=4)
    if pair is None:
        return None
    if any(_flat(rows - rows.mean(dim=0)) for rows in pair):
        undefined("unbiased_cka", "all rows are the same")
        return None
    cross, own_x, own_y = (_hsic(a, b) for a, b in (pair, (pair[0], pair[0]), (pair[1], pair[1])))
    if own_x <= 0 or own_y <= 0:
        undefined("unbiased_cka", "a space has no unbiased variance")
        return None
    return cross / math.sqrt(own_x * own_y)


def rsa_pearson(x: Tensor, y: Tensor, sample: int | None = None, seed: int = 0) -> float | None:
    """Return Pearson's correlation of the upper triangles of the two cosine matrices (Kriegeskorte et al. 2008).

    Args:
        x: `(N, D)`, at least three rows.
        y: `(N, D')`, the same items.
        sample: the most rows to use, chosen by `probe_rows`; `None` uses all and holds `N^2 / 2` numbers in memory.
        seed: of the subsample.
    """
    triangles = _triangles("rsa_pearson", x, y, sample, seed)
    return None if triangles is None else _correlation("rsa_pearson", *triangles)


def rsa_spearman(x: Tensor, y: Tensor, sample: int | None = None, seed: int = 0) -> float | None:
    """Return Spearman's rank correlation of the two triangles; ties share their mean rank (see `rsa_pearson`)."""
    triangles = _triangles("rsa_spearman", x, y, sample, seed)
    if triangles is None:
        return None
    return _correlation("rsa_spearman", mean_ranks(triangles[0]), mean_ranks(triangles[1]))


def effective_rank(features: Tensor) -> float | None:
    """Return `exp(entropy(s / sum s))`, s = singular values of the centred matrix (Roy and Vetterli 2007)."""
    centred = _centred("effective_rank", features)
    if centred is None:
        return None
    values = torch.linalg.svdvals(centred)
    return float(torch.special.entr(values / values.sum()).sum().exp())


def participation_ratio(features: Tensor) -> float | None:
    """Return `(sum l)^2 / sum l^2`, where l are the eigenvalues of the covariance."""
    centred = _centred("participation_ratio", features)
    if centred is None:
        return None
    # Both sums are norms, so no decomposition is needed.
    return float(centred.square().sum().square() / (centred.T @ centred).square().sum())


def probe_rows(n: int, sample: int | None, seed: int) -> Tensor:
    """Return the indices of the rows that a pairwise metric uses, ascending: all, or `sample` random ones."""
    if sample is None or n <= sample:
        return torch.arange(n)
    generator = np.random.Generator(np.random.Philox(seed))
    return torch.from_numpy(np.sort(generator.choice(n, size=sample, replace=False)))


def measure(
    images: Tensor,
    texts: Tensor,
    before: Pairs | None = None,
    last: Pairs | None = None,
    *,
    sample: int | None = 2000,
    seed: int = 0,
) -> dict[str, float | None]:
    """Return all metrics that a row of the result records; all names are always present.

    Args:
        images: `(N, D)` features.
        texts: `(N, D)` features; row i of images and texts is a matching pair.
        before: images and texts of row 0, the same items in the same order. Without it, comparisons are `None`.
        last: images and texts of the row before, only those of `probe_rows`. Without it, comparisons are `None`.
        sample: the most rows that pairwise metrics use; recorded as `pairwise_rows`.
        seed: the seed of that subsample.

    Returns:
        Every registered metric of both spaces; those of one space with the prefix `image_` or `text_`; and `rows` and
        `pairwise_rows`.

    Raises:
        ValueError: if rows do not match, or a feature is not finite.
    """
    values: dict[str, float | None] = {
        "rows": float(len(images)),
        "pairwise_rows": float(len(probe_rows(len(images), sample, seed))),
    }
    image, text = (
        Space(now, old, sample, seed, recent)
        for now, old, recent in zip(
            (images, texts), before or (None, None), last or (None, None), strict=True
        )
    )
    spaces = Spaces(image, text)
    values |= {name: entry.function(spaces) for name, entry in metrics("spaces").items()}
    for side, space in (("image", image), ("text", text)):
        values |= {f"{side}_{name}": entry.function(space) for name, entry in metrics("space").items()}
    return values


def undefined(metric: str, reason: str) -> None:
    """Warn that a metric is undefined, and why."""
    warnings.warn(f"{metric} is undefined: {reason}", RuntimeWarning, stacklevel=3)


def unit_rows(metric: str, *features: Tensor, least: int = 1) -> tuple[Tensor, ...] | None:
    """Return unit rows in float64; `None` with a warning for a degenerate input."""
    units: list[Tensor] = []
    for rows in features:
        if rows.ndim != 2:
            raise ValueError(f"{metric} needs (N, D) features, got {tuple(rows.shape)}")
        bad = ~rows.isfinite().all(dim=1)
        if bool(bad.any()):
            raise ValueError(f"{metric}: row {int(bad.int().argmax())} has a feature that is not finite")
        if len(rows) < least:
            undefined(metric, f"{len(rows)} rows, at least {least} are needed")
            return None
        # MPS has no float64.
        where = torch.device("cpu") if rows.device.type == "mps" else rows.device
        exact = rows.detach().to(where).double()
        norms = exact.norm(dim=1, keepdim=True)
        if bool((norms == 0).any()):
            undefined(metric, f"row {int((norms == 0).int().argmax())} is zero")
            return None
        units.append(exact / norms)
    return tuple(units)


def check_pairs(x: Tensor, y: Tensor, width: bool = False) -> None:
    """Raise `ValueError` unless the features have as many rows and, if asked, the same width."""
    if len(x) != len(y) or (width and x.shape != y.shape):
        raise ValueError(f"rows must match: {tuple(x.shape)} and {tuple(y.shape)}")


def _probe(features: Tensor, sample: int | None, seed: int) -> Tensor:
    return features[probe_rows(len(features), sample, seed).to(features.device)]


def _cosine_pairs(*spaces: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the cosines of all pairs `i < j` of each space, flat, block by block."""
    n = len(spaces[0])
    column = torch.arange(n, device=spaces[0].device)
    for start in range(0, n, _BLOCK):
        upper = column[start:] > column[start : start + _BLOCK, None]
        yield tuple((x[start : start + _BLOCK] @ x[start:].T)[upper] for x in spaces)


def _flat(centred: Tensor) -> bool:
    return float(centred.square().sum()) <= _FLAT * len(centred)


def _centred(metric: str, features: Tensor) -> Tensor | None:
    units = unit_rows(metric, features, least=2)
    if units is None:
        return None
    centred = units[0] - units[0].mean(dim=0)
    if _flat(centred):
        undefined(metric, "all rows are the same")
        return None
    return centred


def _hsic(x: Tensor, y: Tensor) -> float:
    n = len(x)
    diagonal_x, diagonal_y = x.square().sum(dim=1), y.square().sum(dim=1)
    trace = (x.T @ y).square().sum() - diagonal_x @ diagonal_y
    sums_x, sums_y = x @ x.sum(dim=0) - diagonal_x, y @ y.sum(dim=0) - diagonal_y
    total = trace + sums_x.sum() * sums_y.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (sums_x @ sums_y)
    return float(total) / (n * (n - 3))


def _triangles(
    metric: str, x: Tensor, y: Tensor, sample: int | None, seed: int
) -> tuple[Tensor, Tensor] | None:
    check_pairs(x, y)
    pair = unit_rows(metric, _probe(x, sample, seed), _probe(y, sample, seed), least=3)
    if pair is None:
        return None
    parts = list(_cosine_pairs(*pair))
    return torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts])


def _correlation(metric: str, a: Tensor, b: Tensor) -> float | None:
    a, b = a - a.mean(), b - b.mean()
    # Check each one: the product of a constant and a large variance would pass, and correlate rounding errors.
    if min(float(a.square().mean()), float(b.square().mean())) <= _CONSTANT:
        undefined(metric, "all cosines are the same")
        return None
    return float(a @ b / (a.norm() * b.norm()))


def mean_ranks(values: Tensor) -> Tensor:
    """Return the ranks of `(N,)` values, starting at 1; equal values share the mean of their ranks."""
    # Rounded, because equal pairs of rows may differ in the last bit of a matrix product. On the CPU, because sums over
    # indices have no fixed order on a GPU.
    values = values.cpu().round(decimals=12)
    _, index, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = counts.cumsum(0).double() - (counts - 1) / 2
    return ranks[index]
