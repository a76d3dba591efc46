"""Settings of MoE-Adapters. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from everclip.methods.selectors.settings import SelectorSettings, selector_settings
from everclip.methods.settings import MethodSettings
from everclip.models.modules.settings import ExpertsSettings


class MoeSettings(MethodSettings):
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
        trainable: what trains besides the experts; published: nothing.
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
        return self

    @property
    def selecting(self) -> SelectorSettings | None:
        """The selector's complete settings; `None` for none."""
        return selector_settings(self.selector)
