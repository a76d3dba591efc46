"""Settings of the four slots that every trained method shares. No torch here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from everclip.config import Frozen
from everclip.errors import did_you_mean

PARTS = (
    "image",
    "text",
    "image-projection",
    "text-projection",
    "image-layernorm",
    "text-layernorm",
    "logit-scale",
)
"""What `trainable` may name."""


class ReplaySettings(Frozen):
    """What is kept of the past and how much of each batch it fills.

    Attributes:
        kind: `reservoir` keeps a uniform sample of all that was seen, `balanced` equally many per class (per task
            where samples have no class), `all` everything, `none` nothing.
        size: how many samples are kept at the most (not for `all`).
        share: share of each batch that comes from the buffer; `null` = in proportion to the sizes.
        base: whether the backbone's own training data are offered to the buffer too, before the first task.
    """

    kind: Literal["none", "reservoir", "balanced", "all"] = "none"
    size: int = Field(500, ge=1)
    share: float | None = Field(0.5, gt=0, lt=1)
    base: bool = False


class MergeSettings(Frozen):
    """What becomes of the weights when a task ends.

    Attributes:
        kind: `wise-ft` interpolates between a reference and the trained weights (arXiv 2109.01903), `running-mean`
            takes the mean of the start and of snapshots every `every` steps (ZSCL's weight ensemble).
        alpha: weight of the trained model in [0, 1], or `sweep` to choose it from `grid` on validation data.
        grid: candidates of the sweep.
        reference: the other end: the model at the `task-start` or the `initial` one.
        every: steps between snapshots of the running mean.
        start: share of the task's steps after which snapshots begin (0 includes the start model).
    """

    kind: Literal["none", "wise-ft", "running-mean"] = "none"
    alpha: float | Literal["sweep"] = 0.5
    grid: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    reference: Literal["task-start", "initial"] = "task-start"
    every: int = Field(10, ge=1)
    start: float = Field(0.0, ge=0, lt=1)

    @field_validator("grid")
    @classmethod
    def _grid_in_range(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(not 0 <= alpha <= 1 for alpha in value):
            raise ValueError("the grid of a sweep holds at least one alpha, each in [0, 1]")
        return value

    @field_validator("alpha")
    @classmethod
    def _alpha_in_range(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0 <= value <= 1:
            raise ValueError("alpha is a share of the trained model: a number in [0, 1], or `sweep`")
        return value


class MethodSettings(Frozen):
    """The slots, and the loss that a method trains.

    Attributes:
        loss: `labels` (cross entropy against class texts), `captions` (contrastive), or `auto`: labels where a task
            names its classes.
        label_smoothing: for the loss `labels`.
        trainable: parts of the backbone that train.
        penalties: name of a loss -> its settings (`weight` and others).
    """

    loss: Literal["auto", "labels", "captions"] = "auto"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    trainable: tuple[str, ...] = ("image", "text", "logit-scale")
    replay: ReplaySettings = ReplaySettings()
    penalties: dict[str, dict[str, Any]] = Field(default_factory=dict)
    merge: MergeSettings = MergeSettings()

    @field_validator("trainable")
    @classmethod
    def _known_parts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for part in value:
            if part not in PARTS:
                raise ValueError(f"{part!r} is no part of a backbone.{did_you_mean(part, PARTS)}")
        return value
