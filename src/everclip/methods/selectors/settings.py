"""Settings of selectors. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from everclip.config import Frozen, validated
from everclip.errors import ConfigError, did_you_mean

Features = Literal["early", "convolution", "embedding"]


class SelectorSettings(Frozen):
    """The settings that every selector has.

    Attributes:
        kind: the name of the selector.
        features: its input: `early`, the tokens that enter the first adapted block of the CLIP's own image tower (no
            second pass); `convolution`, AlexNet's convolutions (as in the publication of DDAS); `embedding`, the image
            embedding of the frozen CLIP (a second pass).
        pool: how to combine `early` tokens into one vector: mean and deviation over the patches (`mean-std`), or all
            tokens, concatenated (`tokens`).
        weights: for `convolution`: a file with torchvision's AlexNet (`.safetensors` or `.pth`); nothing is
            downloaded. `random` uses random weights, only for trying out.
        normalisation: for `convolution`: the normalisation of images: ImageNet's mean and deviation, or those of the
            CLIP (`clip`, as published).
        size: for `convolution`: side in pixels to which images are resized.
        decision: per `sample`, or one for all images of a `batch` (as published: predictions then depend on the rest of
            the batch).
        decision_batch: with `decision=batch`: the number of images of an evaluation set that take one route together
            (published: 128); `null`: `evaluation.batch_size`.
        compare: how to find the nearest task: by distance (`raw`, as published), or by distance relative to each task's
            own held-out data (`calibrated`), because distances of different tasks may have different scales.
        threshold: the distance beyond which an image takes the zero-shot route: the `quantile` of the nearest task's
            own held-out distances (`calibrated`), a number (published: 0.0655), or no threshold (`none`).
        quantile: share of a task's own held-out images within its threshold.
        held: share of the training images that is held out for calibration, by hash, if a task has no validation data.
    """

    kind: str
    features: Features = "early"
    pool: Literal["mean-std", "tokens"] = "mean-std"
    weights: Path | Literal["random"] | None = None
    normalisation: Literal["imagenet", "clip"] = "imagenet"
    size: int = Field(224, ge=63)
    decision: Literal["sample", "batch"] = "sample"
    decision_batch: int | None = Field(None, ge=1)
    compare: Literal["raw", "calibrated"] = "raw"
    threshold: Literal["calibrated", "none"] | Annotated[float, Field(allow_inf_nan=False)] = "calibrated"
    quantile: float = Field(0.99, gt=0, le=1)
    held: float = Field(0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _weights_are_named(self) -> SelectorSettings:
        if self.features == "convolution" and self.weights is None:
            raise ValueError(
                "features `convolution` need `weights`: the path of a file with torchvision's AlexNet "
                "(alexnet-owt-7be5be79.pth, or the same as .safetensors), which everclip does not download; "
                "`random` uses random weights, and the results say so"
            )
        if self.features != "convolution" and self.weights is not None:
            raise ValueError(
                f"weights: features `{self.features}` come from the CLIP itself; leave out `weights`, or set "
                "features=convolution"
            )
        return self


class AutoencoderSettings(SelectorSettings):
    """Settings of the autoencoders.

    Attributes:
        width: size of the code; `null` = 100, or a fourth of the features if these are fewer than 400.
        standardise: whether to centre and scale features before their sigmoid, by the images of the first training.
        steps, reference_steps: optimiser steps per task, and for the reference data.
        lr, weight_decay: of Adam; the decay is coupled (L2).
        decay_epochs, decay: the learning rate is multiplied by `decay` every `decay_epochs` epochs.
    """

    kind: Literal["autoencoder"] = "autoencoder"
    width: int | None = Field(None, ge=1)
    standardise: bool = True
    steps: int = Field(300, ge=1)
    reference_steps: int = Field(1000, ge=1)
    lr: float = Field(0.01, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False)
    decay_epochs: int = Field(10, ge=1)
    decay: float = Field(0.1, gt=0, le=1)


class DdasSettings(AutoencoderSettings):
    """The autoencoders as published (DDAS, arXiv 2403.11549), where this differs from the defaults."""

    kind: Literal["ddas"] = "ddas"  # type: ignore[assignment]  # another kind
    features: Features = "convolution"
    normalisation: Literal["imagenet", "clip"] = "clip"
    decision: Literal["sample", "batch"] = "batch"
    decision_batch: int | None = Field(128, ge=1)
    threshold: Literal["calibrated", "none"] | Annotated[float, Field(allow_inf_nan=False)] = 0.0655
    width: int | None = Field(100, ge=1)
    standardise: bool = False


class GaussianSettings(SelectorSettings):
    """Settings of the Gaussians.

    Attributes:
        means: one per `class`, or one per `task` (also used if a task names no classes).
        covariance: `diagonal`, or one full matrix for all classes of a task (`shared`).
        shrinkage: share of the mean variance in the estimate (a full matrix from few images is singular).
    """

    kind: Literal["gaussian"] = "gaussian"
    means: Literal["task", "class"] = "class"
    covariance: Literal["shared", "diagonal"] = "diagonal"
    shrinkage: float = Field(0.1, gt=0, le=1)


class EnergySettings(SelectorSettings):
    """Settings of the energies.

    Attributes:
        count: `mean` over a task's classes, or the `sum`, which brings tasks with many classes nearer.
        vocabulary: texts that represent images of no task (the zero-shot route); `null` = the reference texts of the
            scenario if there are any.
    """

    kind: Literal["energy"] = "energy"
    features: Literal["embedding"] = "embedding"
    compare: Literal["raw"] = "raw"
    count: Literal["mean", "sum"] = "mean"
    vocabulary: tuple[str, ...] | None = None


SELECTORS: dict[str, type[SelectorSettings]] = {
    "autoencoder": AutoencoderSettings,
    "ddas": DdasSettings,
    "gaussian": GaussianSettings,
    "energy": EnergySettings,
}
"""kind -> its settings; `build.KINDS` holds the classes."""


def selector_settings(value: Any, where: str = "method.selector") -> SelectorSettings | None:
    """Return complete settings from a name, a mapping with the key `kind`, or `None` for no selector.

    Raises:
        ConfigError: if the selector is unknown, or its settings do not fit.
    """
    if value is None or value == "none":
        return None
    if isinstance(value, SelectorSettings):
        return value
    document = (
        {"kind": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
    )
    kind = document.get("kind")
    if kind == "none":
        return None
    if kind not in SELECTORS:
        raise ConfigError(
            f"{where}: expected the name of a selector, or a mapping with `kind`; found {value!r}."
            f"{did_you_mean(str(kind), [*SELECTORS, 'none'])}"
        )
    return validated(SELECTORS[str(kind)], document, where)
