"""Settings of the method `rail`. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from everclip.methods.settings import MethodSettings

PUBLISHED_WIDTH = 15_000
"""Width of the random expansion in the paper; the published ridge is for this width."""

WIDTHS = (256, 8192)
"""Bounds of the width that `auto` chooses."""

RIDGE = {"relu": 0.1, "none": 0.1, "fourier": 0.001}
"""The default ridge of each expansion; `fourier` approximates the kernel and has the ridge of the dual form."""


class RailSettings(MethodSettings):
    """Settings of the regression, and of its fusion with zero-shot.

    Attributes:
        form: `primal` sums over expanded features, `dual` stores every feature and solves a kernel (as published, for
            few shots only).
        update: of the primal form: `sums` (additive, solved at the end of a pass), or `recursive` (as published: the
            inverse is updated with every batch). The results are equal up to rounding.
        expansion: of the primal form: `relu` (a fixed random layer), `fourier` (random Fourier features, which
            approximate the kernel of the dual form in bounded memory; not published), or `none` (the features
            themselves).
        dimension: width of the expansion; `auto` is a power of two in 256...8192, at least twice the number of samples
            of the first task.
        ridge: the penalty on the weights; `null` = 0.1 (`relu`, `none`) or 0.001 (`fourier`, dual). With `relu` it
            refers to the published width of 15,000 and is multiplied by width / 15,000, which gives the same
            regression at every width.
        gamma: of the Gaussian kernel `exp(-gamma |a - b|^2)`.
        fusion: share of the regression if zero-shot chooses a learned class (the paper's beta); 0 is zero-shot.
        augmented: whether images are augmented by `training.augment` (published) and encoded at every pass; else each
            image is encoded once, without augmentation.
        passes: the number of passes over a task; more than one only if augmented. Repeated features would only divide
            the ridge by the number of passes, and the dual form would store each of them repeatedly.
        limit: largest number of features in the dual form; the solution takes 8 bytes times its square.
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
                f"passes: {self.passes} passes over the same features add no information and only weaken the ridge; "
                "set augmented=true, or leave it at 1"
            )
        if isinstance(self.dimension, int) and self.dimension < 1:
            raise ValueError(f"dimension: expected `auto` or at least 1, found {self.dimension}")
        return self

    def width(self, samples: int, inputs: int) -> int:
        """Return the width of the expansion.

        Args:
            samples: number of samples of the first task.
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
        ridge = RIDGE[self.expansion] if self.ridge is None else self.ridge
        return ridge * width / PUBLISHED_WIDTH if self.expansion == "relu" else ridge
