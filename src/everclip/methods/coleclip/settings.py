"""Settings of CoLeCLIP. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from everclip.config import Frozen
from everclip.methods.settings import TrainedSettings
from everclip.models.modules.settings import LoraSettings, Target


class TextLoraSettings(LoraSettings):
    """The LoRA of the text tower that a task grows and discards; the defaults are the published values."""

    tower: Literal["text"] = "text"
    targets: tuple[Target, ...] = Field(("k", "v"), min_length=1)
    rank: int = Field(5, ge=1)
    learned_scale: bool = True


class TemplateSettings(Frozen):
    """Which of a class's templates are used where.

    Attributes:
        training: for the text that is compared with pictures in training: the `first` template, as published, or the
            mean over `all` (as many more texts per step).
        vocabulary: what a class's embedding starts from: the mean over `all`, as published, or the `first`.
    """

    training: Literal["first", "all"] = "first"
    vocabulary: Literal["all", "first"] = "all"


class CoLeClipSettings(TrainedSettings):
    """CoLeCLIP (arXiv 2403.10245); the defaults are the published values.

    Attributes:
        lora: the LoRA of the text tower; what else is trained are the prompts.
        prompts: tokens per task.
        momentum: how far an embedding moves at each step; `null` is the ablation that replaces it once, when the
            task ends, and has no regulariser.
        weight: factor on the regulariser.
        stage_two: share of the steps after which earlier classes become negatives.
        quantile: which of a batch's leads over an earlier task a sample must exceed for that task's classes to count.
        templates: which templates are used where.
    """

    lora: TextLoraSettings = TextLoraSettings()
    prompts: int = Field(1, ge=1)
    momentum: float | None = Field(0.1, gt=0, le=1)
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    stage_two: float = Field(0.5, ge=0, le=1)
    quantile: float = Field(0.7, ge=0, le=1)
    templates: TemplateSettings = TemplateSettings()
