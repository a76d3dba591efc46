"""Settings of MoE-Adapters. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from everclip.methods.selectors.settings import SelectorSettings, selector_settings
from everclip.methods.settings import SlotSettings
from everclip.models.modules.settings import ExpertsSettings

BEFORE_BLOCKS = ("image", "image-embeddings", "image-layernorm", "image-bias")
"""Parts of an image tower, some of which lie before its first block."""


class MoeSettings(SlotSettings):
    """MoE-Adapters (arXiv 2403.11549).

    Attributes:
        experts: how many there are beside each MLP, how many a sample takes, and what they are.
        routers: one router per task, or `one` for all of them (class-incremental: nothing has to be selected).
        freeze: how many of the experts that a task took most often are frozen after it, per block and tower.
        grow: whether experts are added where fewer than `experts.active` still learn; published: never.
        balance: weight of the terms that even out importance and load of the experts; published: 0 (computed with
            0.01, and not added).
        selector: which task a picture belongs to, where nobody tells it: the name of a selector or its settings;
            `none` takes the model without experts.
        trainable: what trains besides the experts; published: nothing. Nothing may train that moves what a selector
            looks at: its thresholds are those of the features that it was fitted on.
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
        """Return the trainable parts that move the selector's features in any model.

        Of `early` features those parts are left that depend on the model's number of blocks; the method looks at them.
        """
        looks_at = None if self.selector is None else self.selector["features"]
        grown = [name for name, given in self.modules if "image" in given.towers]
        if looks_at == "embedding":
            return [part for part in self.parts if part.startswith("image") or part in grown]
        if looks_at == "early":
            prompted = ["prompt"] if "prompt" in grown and "image" in self.experts.towers else []
            return [*(part for part in self.parts if part in BEFORE_BLOCKS), *prompted]
        return []

    @property
    def selecting(self) -> SelectorSettings | None:
        """The selector's complete settings; `None` for none."""
        return selector_settings(self.selector)


def moves_features(part: str, features: str) -> str:
    """Say that a trained part moves what a selector looks at, and what to do."""
    return (
        f"trainable: `{part}` moves the `{features}` features after the selector learned to tell tasks apart by them; "
        "leave it out, train parts that lie behind them or the text tower, or set method.selector.features=convolution "
        "or method.selector=none"
    )
