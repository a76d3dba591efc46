"""Metrics of the embedding space.

A function of kind `space` takes `Space`, the embeddings of images or texts now, at row 0 and at the row before; results
name its values `image_NAME` and `text_NAME`. A function of kind `spaces` takes `Spaces`, those of matching images and
texts. Both return a number, or `None` if it is undefined. Comparisons with another row are undefined at row 0.
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
    meaning="Distance between the mean image embedding and the mean text embedding.",
    formula="‖mean(X) − mean(Y)‖",
    shown=10,
)
def modality_gap(spaces: Spaces) -> float | None:
    """Return the gap of Liang et al. (arXiv 2203.02053)."""
    from everclip.evaluation import representation

    return representation.modality_gap(spaces.images, spaces.texts)


@_spaces(
    "alignment",
    label="Alignment",
    meaning="Mean squared distance between matching images and texts; 0 is perfect.",
    formula="mean ‖x − y‖²",
    higher_is_better=False,
    shown=20,
)
def alignment(spaces: Spaces) -> float | None:
    """Return the alignment of Wang and Isola (arXiv 2005.10242)."""
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
    """Return the uniformity of Wang and Isola (arXiv 2005.10242)."""
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
    """Return the effective rank of Roy and Vetterli 2007."""
    from everclip.evaluation import representation

    return representation.effective_rank(space.now)


@_space(
    "participation_ratio",
    label="Participation ratio",
    meaning="How many directions carry variance.",
    formula="(Σ λ)² / Σ λ², λ = eigenvalues of the covariance",
)
def participation_ratio(space: Space) -> float | None:
    """Return the participation ratio of the centred embeddings."""
    from everclip.evaluation import representation

    return representation.participation_ratio(space.now)


@_space(
    "rotation_deg",
    label="Rotation",
    meaning="Mean angle between an item's embeddings at row 0 and now.",
    formula="mean arccos(x_old · x_new)",
    unit="degrees",
    shown=40,
)
def rotation_deg(space: Space) -> float | None:
    """Return the rotation of Mod-X (arXiv 2305.07437)."""
    from everclip.evaluation import representation

    angles = None if space.before is None else representation.rotation_angles(space.before, space.now)
    return None if angles is None else float(angles.mean())


@_space(
    "self_angle_change_deg",
    label="Self-angle change",
    meaning="Mean change of the angle between two items since row 0.",
    formula="mean_{i<j} |arccos(x_i · x_j) now − at row 0|",
    unit="degrees",
)
def self_angle_change_deg(space: Space) -> float | None:
    """Return the self-angle change of Mod-X (arXiv 2305.07437)."""
    from everclip.evaluation import representation

    if space.before is None:
        return None
    return representation.mean_self_angle_change(space.before, space.now, space.sample, space.seed)


@_space(
    "rotation_since_last_deg",
    label="Rotation since the last row",
    meaning="Mean angle between an item's embeddings at the row before and now.",
    formula="mean arccos(x_last · x_new)",
    unit="degrees",
)
def rotation_since_last_deg(space: Space) -> float | None:
    """Return the rotation of Mod-X (arXiv 2305.07437) from one row to the next."""
    from everclip.evaluation import representation

    pair = space.since_last
    angles = None if pair is None else representation.rotation_angles(*pair)
    return None if angles is None else float(angles.mean())


@_space(
    "self_angle_change_since_last_deg",
    label="Self-angle change since the last row",
    meaning="Mean change of the angle between two items since the row before.",
    formula="mean_{i<j} |arccos(x_i · x_j) now − at the row before|",
    unit="degrees",
)
def self_angle_change_since_last_deg(space: Space) -> float | None:
    """Return the self-angle change of Mod-X (arXiv 2305.07437) from one row to the next."""
    from everclip.evaluation import representation

    pair = space.since_last
    return None if pair is None else representation.mean_self_angle_change(*pair)


@_spaces(
    "pair_angle_change_deg",
    label="Pair-angle change",
    meaning="Mean change of the angle between an image and its text since row 0; 0 if both spaces turn together.",
    formula="mean_i |arccos(x_i · y_i) now − at row 0|",
    unit="degrees",
    higher_is_better=False,
    shown=42,
)
def pair_angle_change_deg(spaces: Spaces) -> float | None:
    """Return the inter-modal deviation of Mod-X (arXiv 2305.07437), as the change of pair angles."""
    from everclip.evaluation import disorder

    pairs = spaces.since_start
    return None if pairs is None else disorder.pair_angle_change(*pairs)


@_spaces(
    "pair_angle_change_since_last_deg",
    label="Pair-angle change since the last row",
    meaning="Mean change of the angle between an image and its text since the row before.",
    formula="mean_i |arccos(x_i · y_i) now − at the row before|",
    unit="degrees",
    higher_is_better=False,
)
def pair_angle_change_since_last_deg(spaces: Spaces) -> float | None:
    """Return the inter-modal deviation of Mod-X (arXiv 2305.07437) from one row to the next."""
    from everclip.evaluation import disorder

    pairs = spaces.since_last
    return None if pairs is None else disorder.pair_angle_change(*pairs)


@_spaces(
    "procrustes_deviation",
    label="Deviation of rotations",
    meaning="Difference between the best rotations of images and of texts since row 0; 0 if both spaces turn together.",
    formula="‖P(R_x − R_y)‖_F, R = argmin ‖Z_old R − Z_new‖_F over orthogonal R, P = directions that both span",
    higher_is_better=False,
    shown=44,
)
def procrustes_deviation(spaces: Spaces) -> float | None:
    """Return the inter-modal deviation of Mod-X (arXiv 2305.07437), as the difference of two rotations."""
    from everclip.evaluation import disorder

    pairs = spaces.since_start
    return None if pairs is None else disorder.procrustes_deviation(*pairs)


@_spaces(
    "procrustes_deviation_since_last",
    label="Deviation of rotations since the last row",
    meaning="Difference between the best rotations of images and of texts since the row before.",
    formula="‖P(R_x − R_y)‖_F, R = argmin ‖Z_last R − Z_new‖_F over orthogonal R, P = directions that both span",
    higher_is_better=False,
)
def procrustes_deviation_since_last(spaces: Spaces) -> float | None:
    """Return the inter-modal deviation of Mod-X (arXiv 2305.07437) from one row to the next."""
    from everclip.evaluation import disorder

    pairs = spaces.since_last
    return None if pairs is None else disorder.procrustes_deviation(*pairs)


@_space(
    "cka",
    label="CKA",
    meaning="Similarity to the space of row 0, ignoring rotation; 1 means the same.",
    formula="linear CKA",
    shown=50,
)
def cka(space: Space) -> float | None:
    """Return the linear CKA of Kornblith et al. (arXiv 1905.00414)."""
    from everclip.evaluation import representation

    return None if space.before is None else representation.linear_cka(space.before, space.now)


@_space(
    "cka_unbiased",
    label="CKA, unbiased",
    meaning="Like CKA, without its bias if there are few items for the width.",
    formula="CKA with the unbiased HSIC_1",
)
def cka_unbiased(space: Space) -> float | None:
    """Return the unbiased CKA of Nguyen et al. (arXiv 2010.15327)."""
    from everclip.evaluation import representation

    return None if space.before is None else representation.unbiased_cka(space.before, space.now)


@_space(
    "rsa_pearson",
    label="RSA, Pearson",
    meaning="Correlation between the cosines of item pairs now and at row 0.",
    formula="Pearson of the upper triangles of the cosine matrices",
)
def rsa_pearson(space: Space) -> float | None:
    """Return the RSA of Kriegeskorte et al. 2008 with Pearson's correlation."""
    from everclip.evaluation import representation

    if space.before is None:
        return None
    return representation.rsa_pearson(space.before, space.now, space.sample, space.seed)


@_space(
    "rsa_spearman",
    label="RSA, Spearman",
    meaning="Like RSA, Pearson, with rank correlation.",
    formula="Spearman of the upper triangles of the cosine matrices",
)
def rsa_spearman(space: Space) -> float | None:
    """Return the RSA of Kriegeskorte et al. 2008 with Spearman's correlation."""
    from everclip.evaluation import representation

    if space.before is None:
        return None
    return representation.rsa_spearman(space.before, space.now, space.sample, space.seed)
