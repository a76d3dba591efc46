"""Settings of CoLeCLIP. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from everclip.config import Frozen
from everclip.methods.settings import TrainedSettings
from everclip.models.modules.settings import LoraSettings, Target


class TextLoraSettings(LoraSettings):
    """The LoRA that a task grows in the text tower and discards; the defaults are the published values."""

    tower: Literal["text"] = "text"
    targets: tuple[Target, ...] = Field(("k", "v"), min_length=1)
    rank: int = Field(5, ge=1)
    learned_scale: bool = True


class TemplateSettings(Frozen):
    """The use of a class's templates.

    Attributes:
        training: the text of a class in training: its `first` template, as published, or the mean over `all` (more
            texts per step).
        vocabulary: the initial embedding of a class: the mean over `all`, as published, or the `first`.
    """

    training: Literal["first", "all"] = "first"
    vocabulary: Literal["all", "first"] = "all"


class CoLeClipSettings(TrainedSettings):
    """CoLeCLIP (arXiv 2403.10245); the defaults are the published values.

    Attributes:
        lora: the LoRA of the text tower; besides it, only the prompts train.
        prompts: tokens per task.
        momentum: how far an embedding moves at each step; `null` is the ablation that replaces it once, at the end of
            the task, and has no regulariser.
        weight: factor on the regulariser.
        stage_two: share of the steps after which earlier classes become negatives.
        quantile: the quantile of a batch's leads over an earlier task that a sample must exceed for the classes of
            this task to count.
        templates: the use of a class's templates.
    """

    lora: TextLoraSettings = TextLoraSettings()
    prompts: int = Field(1, ge=1)
    momentum: float | None = Field(0.1, gt=0, le=1)
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    stage_two: float = Field(0.5, ge=0, le=1)
    quantile: float = Field(0.7, ge=0, le=1)
    templates: TemplateSettings = TemplateSettings()
