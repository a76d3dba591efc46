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
    """What every selector has.

    Attributes:
        kind: which selector.
        features: what it looks at: `early`, the tokens that enter the first adapted block of the CLIP's own image tower
            (no second pass is needed); `convolution`, AlexNet's convolutions (as DDAS published it); `embedding`, the
            image embedding of the frozen CLIP (a second pass).
        pool: how `early` tokens become one vector: mean and deviation over the patches (`mean-std`), or all of
            them one after the other (`tokens`).
        weights: for `convolution`: a file with torchvision's AlexNet (`.safetensors` or `.pth`); nothing is
            downloaded. `random` takes random weights, which is for trying out alone.
        normalisation: for `convolution`: what its pictures are normalised by: ImageNet's mean and deviation, or those
            of the CLIP (`clip`, as published).
        size: for `convolution`: side in pixels that pictures are resized to.
        decision: per `sample`, or one for all pictures of a `batch` (as published: predictions then depend on what else
            is in the batch).
        decision_batch: with `decision=batch`: how many pictures of an evaluation set take one route together
            (published: 128); `null`: `evaluation.batch_size`.
        compare: which task is nearest: by bare distance (`raw`, as published), or by distance in units of each task's
            own held-out data (`calibrated`), where distances of different tasks have different scales.
        threshold: what is too far from every task takes the zero-shot route: beyond the `quantile` of the winner's own
            held-out distances (`calibrated`), beyond a number (published: 0.0655), or never (`none`).
        quantile: share of a task's own held-out pictures within its threshold.
        held: share of the training pictures that is held out for that, by hash, where a task has no validation data.
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
                "`random` takes random weights, and the results say so"
            )
        if self.features != "convolution" and self.weights is not None:
            raise ValueError(
                f"weights: features `{self.features}` come from the CLIP itself; leave weights out, or set "
                "features=convolution"
            )
        return self


class AutoencoderSettings(SelectorSettings):
    """Settings of the autoencoders.

    Attributes:
        width: size of the code; `null` = 100, or a fourth of the features where these are fewer than 400.
        standardise: whether features are centred and scaled, by the first pictures it trains on, before their
            sigmoid.
        steps, reference_steps: optimiser steps per task, and for the reference data.
        lr, weight_decay: of Adam; the decay is coupled (L2).
        decay_epochs, decay: the rate is multiplied by `decay` after every so many epochs.
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
    """The autoencoders as published (DDAS, arXiv 2403.11549): everything that differs from our defaults."""

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
        means: one per `class`, or one per `task` (which is taken where a task names no classes).
        covariance: `diagonal`, or one full matrix for all classes of a task (`shared`).
        shrinkage: share of the mean variance in the estimate (a full matrix from few pictures is singular).
    """

    kind: Literal["gaussian"] = "gaussian"
    means: Literal["task", "class"] = "class"
    covariance: Literal["shared", "diagonal"] = "diagonal"
    shrinkage: float = Field(0.1, gt=0, le=1)


class EnergySettings(SelectorSettings):
    """Settings of the energies.

    Attributes:
        count: `mean` over a task's classes, or the `sum`, by which many classes are nearer than few.
        vocabulary: texts that stand for what belongs to no task (the zero-shot route); `null` = the reference texts of
            the scenario if there are any.
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


def selector_settings(given: Any, where: str = "method.selector") -> SelectorSettings | None:
    """Return complete settings from a name, a mapping with the key `kind`, or `None` for no selector.

    Raises:
        ConfigError: if they name no selector, or do not fit.
    """
    if given is None or given == "none":
        return None
    if isinstance(given, SelectorSettings):
        return given
    document = (
        {"kind": given} if isinstance(given, str) else dict(given) if isinstance(given, Mapping) else {}
    )
    kind = document.get("kind")
    if kind == "none":
        return None
    if kind not in SELECTORS:
        raise ConfigError(
            f"{where}: expected the name of a selector, or a mapping with `kind`; found {given!r}."
            f"{did_you_mean(str(kind), [*SELECTORS, 'none'])}"
        )
    return validated(SELECTORS[str(kind)], document, where)
