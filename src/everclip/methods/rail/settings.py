"""Settings of the method `rail`. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from everclip.methods.settings import MethodSettings

PUBLISHED_WIDTH = 15_000
"""Width of the random expansion in the paper; the ridge is given for it."""

WIDTHS = (256, 8192)
"""Bounds of the width that `auto` chooses."""

RIDGE = {"relu": 0.1, "none": 0.1, "fourier": 0.001}
"""The ridge of each expansion, where none is given; `fourier` stands for the kernel and takes the dual's."""


class RailSettings(MethodSettings):
    """How features are regressed on classes, and how the outcome is fused with zero-shot.

    Attributes:
        form: `primal` keeps sums over expanded features, `dual` keeps every feature and solves a kernel (as published,
            for few shots only).
        update: of the primal: `sums` (additive, solved at the end of a pass), or `recursive` (as published: the
            inverse is updated with every batch). The result is the same to rounding.
        expansion: of the primal: `relu` (a fixed random layer), `fourier` (random Fourier features, which approximate
            the dual's kernel in bounded memory; ours, not published), or `none` (the features themselves).
        dimension: width of the expansion; `auto` takes at least twice the samples of the first task: a power of two
            in 256...8192.
        ridge: the penalty on the weights; `null` = 0.1 (`relu`, `none`) or 0.001 (`fourier`, dual). With `relu` it is
            meant for the published width of 15,000 and scaled by width / 15,000: the same regression at every width.
        gamma: of the Gaussian kernel `exp(-gamma |a - b|^2)`.
        fusion: share of the regression where zero-shot picks a class that was learned (the paper's beta); 0 is
            zero-shot.
        augmented: whether pictures are augmented as `training.augment` says (published), so that each is encoded at
            every pass; else each is encoded once, as it is evaluated.
        passes: how often a task is gone through; more than one only when augmented. The same features again would
            divide the ridge by the number of passes, and the dual would keep each of them as often.
        limit: most features that the dual may keep; its solution takes 8 bytes times the square of that.
    """

    form: Literal["primal", "dual"] = "primal"
    update: Literal["sums", "recursive"] = "sums"
    expansion: Literal["relu", "fourier", "none"] = "relu"
    dimension: int | Literal["auto"] = "auto"
    ridge: float | None = Field(None, gt=0, allow_inf_nan=False)
    gamma: float = Field(0.1, gt=0, allow_inf_nan=False)
    fusion: float = Field(0.8, ge=0, le=1)
    augmented: bool = False
    passes: int = Field(1, ge=1)
    limit: int = Field(20_000, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> RailSettings:
        if self.passes > 1 and not self.augmented:
            raise ValueError(
                f"passes: {self.passes} passes over the same features say nothing new, they only weaken the ridge; set "
                "augmented=true, or leave it at 1"
            )
        if isinstance(self.dimension, int) and self.dimension < 1:
            raise ValueError(f"dimension: expected `auto` or at least 1, found {self.dimension}")
        return self

    def width(self, samples: int, inputs: int) -> int:
        """Return the width of the expansion.

        Args:
            samples: of the first task.
            inputs: width of the features.
        """
        if self.expansion == "none":
            return inputs
        if self.dimension != "auto":
            return self.dimension
        low, high = WIDTHS
        return min(high, max(low, 1 << (2 * samples - 1).bit_length()))

    def penalty(self, width: int) -> float:
        """Return the ridge that is added to the diagonal for an expansion of `width`."""
        if self.form == "dual":
            return RIDGE["fourier"] if self.ridge is None else self.ridge
        given = RIDGE[self.expansion] if self.ridge is None else self.ridge
        return given * width / PUBLISHED_WIDTH if self.expansion == "relu" else given
