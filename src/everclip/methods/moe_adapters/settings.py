"""Settings of MoE-Adapters. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from everclip.methods.selectors.settings import SelectorSettings, selector_settings
from everclip.methods.settings import SlotSettings
from everclip.models.modules.settings import ExpertsSettings

BEFORE_BLOCKS = ("image", "image-embeddings", "image-layernorm", "image-bias")
"""Parts of an image tower that include parameters before its first block."""


class MoeSettings(SlotSettings):
    """MoE-Adapters (arXiv 2403.11549).

    Attributes:
        experts: the experts beside each MLP: their number, the number per sample, and their shape.
        routers: one router per task, or `one` for all of them (class-incremental: nothing to select).
        freeze: the number of experts to freeze after a task, per block and tower: those that it used most.
        grow: whether to add experts if fewer than `experts.active` still learn; published: never.
        balance: weight of the loss that balances importance and load of the experts; published: 0 (computed with 0.01,
            but not added).
        selector: decides which task an image belongs to if the protocol does not say: the name of a selector or its
            settings; `none` uses the model without experts.
        trainable: the parts that train besides the experts; published: none. Parts that change the features of the
            selector must not train, because its thresholds only hold for the features that it was fitted on.
    """

    trainable: tuple[str | dict[str, Any], ...] = ()
    experts: ExpertsSettings = ExpertsSettings()
    routers: Literal["per-task", "one"] = "per-task"
    freeze: int = Field(2, ge=0)
    grow: bool = True
    balance: float = Field(0.0, ge=0, allow_inf_nan=False)
    selector: dict[str, Any] | None = None

    @field_validator("selector", mode="before")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        if isinstance(value, str | Mapping):
            chosen = selector_settings(value)
            return None if chosen is None else chosen.model_dump(mode="json")
        return value

    @model_validator(mode="after")
    def _fits(self) -> MoeSettings:
        if self.routers == "one" and self.selector is not None:
            raise ValueError(
                "selector: with one router for all tasks there is nothing to select; leave it out"
            )
        if self.freeze > self.experts.count:
            raise ValueError(f"freeze: {self.freeze} of {self.experts.count} experts cannot be frozen")
        for part in self._move_features():
            raise ValueError(moves_features(part, self.selector["features"] if self.selector else ""))
        return self

    def _move_features(self) -> list[str]:
        """Return the trainable parts that change the selector's features in any model.

        For `early` features, the method checks the remaining parts, which depend on the model's number of blocks.
        """
        features = None if self.selector is None else self.selector["features"]
        grown = [name for name, settings in self.modules if "image" in settings.towers]
        if features == "embedding":
            return [part for part in self.parts if part.startswith("image") or part in grown]
        if features == "early":
            prompted = ["prompt"] if "prompt" in grown and "image" in self.experts.towers else []
            return [*(part for part in self.parts if part in BEFORE_BLOCKS), *prompted]
        return []

    @property
    def selecting(self) -> SelectorSettings | None:
        """The selector's complete settings; `None` for none."""
        return selector_settings(self.selector)


def moves_features(part: str, features: str) -> str:
    """Return the error for a trained part that changes the features of a selector."""
    return (
        f"trainable: `{part}` changes the `{features}` features after the selector was fitted on them; leave it out, "
        "train later blocks or the text tower instead, or set method.selector.features=convolution or "
        "method.selector=none"
    )
