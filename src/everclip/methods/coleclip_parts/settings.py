"""Settings of CoLeCLIP. No torch here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from everclip.config import Frozen
from everclip.methods.settings import MergeSettings, MethodSettings, ReplaySettings

TEXT = {"lora": {"tower": "text", "targets": ["k", "v"], "rank": 5, "learned_scale": True}}
"""What trains on the text side while a task lasts, as published."""


class TemplateSettings(Frozen):
    """Which of a class's templates are used where.

    Attributes:
        training: for the text that is compared with pictures in training: the `first` template, as published, or the
            mean over `all` (as many more texts per step).
        vocabulary: what a class's embedding starts from: the mean over `all`, as published, or the `first`.
    """

    training: Literal["first", "all"] = "first"
    vocabulary: Literal["all", "first"] = "all"


class CoLeClipSettings(MethodSettings):
    """CoLeCLIP (arXiv 2403.10245); the defaults are the published values.

    Attributes:
        trainable: the LoRA of the text tower that a task grows and discards; what else is trained are the prompts.
        prompts: tokens per task.
        momentum: how far an embedding moves at each step; `null` is the ablation that replaces it once, when the
            task ends, and has no regulariser.
        weight: factor on the regulariser.
        stage_two: share of the steps after which earlier classes become negatives.
        quantile: which of a batch's leads over an earlier task a sample must exceed for that task's classes to count.
        templates: which templates are used where.
    """

    loss: Literal["auto", "labels"] = "labels"
    trainable: tuple[str | dict[str, Any], ...] = (TEXT,)
    prompts: int = Field(1, ge=1)
    momentum: float | None = Field(0.1, gt=0, le=1)
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    stage_two: float = Field(0.5, ge=0, le=1)
    quantile: float = Field(0.7, ge=0, le=1)
    templates: TemplateSettings = TemplateSettings()

    @model_validator(mode="after")
    def _fits(self) -> CoLeClipSettings:
        modules = [(name, given.towers) for name, given in self.modules]
        if len(self.parts) != 1 or modules != [("lora", ("text",))]:
            raise ValueError(
                "trainable: CoLeCLIP freezes the model and grows one LoRA in the text tower for a task, such as "
                "[{lora: {tower: text, targets: [k, v], rank: 5}}]"
            )
        slots = {
            "replay": self.replay != ReplaySettings(),
            "merge": self.merge != MergeSettings(),
            "penalties": bool(self.penalties),
            "label_smoothing": self.label_smoothing > 0,
            "contrast": self.contrast != "softmax",
        }
        for slot, given in slots.items():
            if given:
                raise ValueError(
                    f"{slot}: CoLeCLIP has no use for it (no samples are kept, no weights of the model change, its "
                    "losses are its own); leave it out, or take finetune, zscl or replay"
                )
        return self
