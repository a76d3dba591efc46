"""Metrics of the embedding space.

A function of kind `space` takes `Space`, the embeddings of one side (images or texts) now and at row 0; results call
it `image_NAME` and `text_NAME`. One of kind `spaces` takes `Spaces`, both sides of matching pairs. Either returns a
number, or `None` where it is undefined; what compares with row 0 is undefined at row 0.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from everclip.metrics import metric

if TYPE_CHECKING:
    from everclip.evaluation.representation import Space, Spaces

_spaces = partial(metric, kind="spaces", unit="number", higher_is_better=None)
_space = partial(metric, kind="space", unit="number", higher_is_better=None)


@_spaces(
    "modality_gap",
    label="Modality gap",
    meaning="Distance between the mean image and the mean text.",
    formula="‖mean(X) − mean(Y)‖",
    shown=10,
)
def modality_gap(spaces: Spaces) -> float | None:
    """Liang et al. (arXiv 2203.02053)."""
    from everclip.evaluation import representation

    return representation.modality_gap(spaces.images, spaces.texts)


@_spaces(
    "alignment",
    label="Alignment",
    meaning="Mean squared distance of matching images and texts; 0 is perfect.",
    formula="mean ‖x − y‖²",
    higher_is_better=False,
    shown=20,
)
def alignment(spaces: Spaces) -> float | None:
    """Wang and Isola (arXiv 2005.10242)."""
    from everclip.evaluation import representation

    return representation.alignment(spaces.images, spaces.texts)


@_space(
    "uniformity",
    label="Uniformity",
    meaning="How evenly embeddings fill the sphere; lower is more even.",
    formula="log mean exp(−2‖x_i − x_j‖²)",
    higher_is_better=False,
    shown=30,
)
def uniformity(space: Space) -> float | None:
    """Wang and Isola (arXiv 2005.10242)."""
    from everclip.evaluation import representation

    return representation.uniformity(space.now, sample=space.sample, seed=space.seed)


@_space(
    "effective_rank",
    label="Effective rank",
    meaning="How many directions the embeddings use.",
    formula="exp(entropy of singular values)",
    shown=60,
)
def effective_rank(space: Space) -> float | None:
    """Roy and Vetterli 2007."""
    from everclip.evaluation import representation

    return representation.effective_rank(space.now)


@_space(
    "participation_ratio",
    label="Participation ratio",
    meaning="How many directions carry variance.",
    formula="(Σ λ)² / Σ λ², λ = eigenvalues of the covariance",
)
def participation_ratio(space: Space) -> float | None:
    """Of the centred embeddings."""
    from everclip.evaluation import representation

    return representation.participation_ratio(space.now)


@_space(
    "rotation_deg",
    label="Rotation",
    meaning="Mean angle between the embeddings of an item at row 0 and now.",
    formula="mean arccos(x_old · x_new)",
    unit="degrees",
    shown=40,
)
def rotation_deg(space: Space) -> float | None:
    """Mod-X (arXiv 2211.12065)."""
    from everclip.evaluation import representation

    angles = None if space.before is None else representation.rotation_angles(space.before, space.now)
    return None if angles is None else float(angles.mean())


@_space(
    "self_angle_change_deg",
    label="Self-angle change",
    meaning="Mean change since row 0 of the angle between two items.",
    formula="mean_{i<j} |arccos(x_i · x_j) now − at row 0|",
    unit="degrees",
)
def self_angle_change_deg(space: Space) -> float | None:
    """Mod-X (arXiv 2211.12065)."""
    from everclip.evaluation import representation

    if space.before is None:
        return None
    return representation.mean_self_angle_change(space.before, space.now, space.sample, space.seed)


@_space(
    "cka",
    label="CKA",
    meaning="Similarity to the space of row 0 whatever its rotation; 1 is the same.",
    formula="linear CKA",
    shown=50,
)
def cka(space: Space) -> float | None:
    """Kornblith et al. (arXiv 1905.00414)."""
    from everclip.evaluation import representation

    return None if space.before is None else representation.linear_cka(space.before, space.now)


@_space(
    "cka_unbiased",
    label="CKA, unbiased",
    meaning="As CKA, without its bias where there are few items for the width.",
    formula="CKA with the unbiased HSIC_1",
)
def cka_unbiased(space: Space) -> float | None:
    """Nguyen et al. (arXiv 2010.15327)."""
    from everclip.evaluation import representation

    return None if space.before is None else representation.unbiased_cka(space.before, space.now)


@_space(
    "rsa_pearson",
    label="RSA, Pearson",
    meaning="Correlation of the cosines between items now with those at row 0.",
    formula="Pearson of the upper triangles of the cosine matrices",
)
def rsa_pearson(space: Space) -> float | None:
    """Kriegeskorte et al. 2008."""
    from everclip.evaluation import representation

    if space.before is None:
        return None
    return representation.rsa_pearson(space.before, space.now, space.sample, space.seed)


@_space(
    "rsa_spearman",
    label="RSA, Spearman",
    meaning="As RSA, Pearson, over ranks.",
    formula="Spearman of the upper triangles of the cosine matrices",
)
def rsa_spearman(space: Space) -> float | None:
    """Kriegeskorte et al. 2008."""
    from everclip.evaluation import representation

    if space.before is None:
        return None
    return representation.rsa_spearman(space.before, space.now, space.sample, space.seed)
