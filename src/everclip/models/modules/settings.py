"""Settings of the modules that can be grown inside a CLIP. No torch here."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from everclip.config import Frozen, validated
from everclip.errors import ConfigError, did_you_mean

Side = Literal["image", "text", "both"]
Target = Literal["q", "k", "v", "out", "mlp", "c_fc", "c_proj"]

_RANGE = re.compile(r"(?P<from>\d+)(-(?P<to>\d+))?|(?P<end>first|last)(?P<count>\d+)|all")


def check_range(text: str) -> str:
    """Return `text` if it is a range of blocks: `3`, `8-11`, `first3`, `last2` or `all`.

    Raises:
        ValueError: if it is not.
    """
    match = _RANGE.fullmatch(text)
    if match is None or (match["to"] is not None and int(match["to"]) < int(match["from"])):
        raise ValueError(f"{text!r} is not a range of blocks; write 3, 8-11, first3, last2 or all")
    if match["count"] is not None and int(match["count"]) == 0:
        raise ValueError(f"{text!r} names no block; write {match['end']}1 for one")
    return text


def blocks_in(text: str, count: int, where: str) -> range:
    """Return the 0-based blocks that a range names in a tower of `count` blocks.

    Args:
        text: `3`, `8-11` (both ends included), `first3`, `last2` or `all`.
        count: the number of blocks.
        where: the key of the range, for errors.

    Raises:
        ConfigError: if the tower does not have all of them.
    """
    match = _RANGE.fullmatch(check_range(text))
    assert match is not None
    if text == "all":
        return range(count)
    if match["end"] is not None:
        size = int(match["count"])
        chosen = range(size) if match["end"] == "first" else range(count - size, count)
    else:
        first = int(match["from"])
        chosen = range(first, int(match["to"] or first) + 1)
    if chosen.start < 0 or chosen.stop > count:
        raise ConfigError(
            f"{where}: {text!r} names blocks that do not exist; the tower has the blocks 0-{count - 1}."
        )
    return chosen


class ModuleSettings(Frozen):
    """The settings that every grown module has.

    Attributes:
        tower: the tower to grow in, or both.
        blocks: which transformer blocks: `3`, `8-11` (both ends included), `first3`, `last2` or `all`.
    """

    tower: Side = "both"
    blocks: str = "all"

    @field_validator("blocks", mode="before")
    @classmethod
    def _range(cls, value: Any) -> Any:
        return check_range(str(value)) if isinstance(value, str | int) else value

    @property
    def towers(self) -> tuple[Literal["image", "text"], ...]:
        """The towers to grow in."""
        return ("image", "text") if self.tower == "both" else (self.tower,)


class LoraSettings(ModuleSettings):
    """Low-rank updates of weights (LoRA, arXiv 2106.09685).

    Attributes:
        targets: attention's `q`, `k`, `v`, `out`, and the MLP's `c_fc`, `c_proj` (`mlp` is both).
        rank: rank of each update.
        alpha: the update is multiplied by `alpha / rank`; `null` = `rank`, a factor of one.
        rank_stabilised: divide by the square root of the rank instead (rsLoRA, arXiv 2312.03732).
        learned_scale: whether this factor trains too, one per update (as in CoLeCLIP, arXiv 2403.10245).
        shared: whether `q`, `k` and `v` share their first factor, as where one update covers attention's fused
            projection (SIT, arXiv 2405.15155).
    """

    targets: tuple[Target, ...] = Field(("q", "v"), min_length=1)
    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0, allow_inf_nan=False)
    rank_stabilised: bool = False
    learned_scale: bool = False
    shared: bool = False

    @property
    def scaling(self) -> float:
        """The factor on each update."""
        alpha = float(self.rank) if self.alpha is None else self.alpha
        return float(alpha / (self.rank**0.5 if self.rank_stabilised else self.rank))


class AdapterSettings(ModuleSettings):
    """Bottleneck adapters.

    Attributes:
        form: `serial` after a sublayer, before its residual sum (Houlsby et al. 2019, arXiv 1902.00751), or
            `parallel` beside the MLP, on its normalised input (AdaptFormer, arXiv 2205.13535).
        places: the places of serial adapters: after `attention`, after the `mlp`, or both.
        width: width of the bottleneck.
        activation: between the two projections.
        scale: factor on the adapter's output; `null` = 1 for serial and 0.1 for parallel, as published.
        shared: whether one adapter serves both places of a block (SIT, arXiv 2405.15155).
        dropout: of the hidden units, in training.
    """

    form: Literal["serial", "parallel"] = "serial"
    places: tuple[Literal["attention", "mlp"], ...] = Field(("attention", "mlp"), min_length=1)
    width: int = Field(64, ge=1)
    activation: Literal["gelu", "relu", "quick-gelu"] = "gelu"
    scale: float | None = Field(None, gt=0, allow_inf_nan=False)
    shared: bool = False
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _can_share(self) -> AdapterSettings:
        if self.shared and (self.form != "serial" or set(self.places) != {"attention", "mlp"}):
            raise ValueError("`shared` needs form: serial and places: [attention, mlp]")
        return self

    @property
    def factor(self) -> float:
        """The factor on the adapter's output."""
        if self.scale is not None:
            return self.scale
        return 1.0 if self.form == "serial" else 0.1


class PromptSettings(ModuleSettings):
    """Learnable tokens in the input of a tower (VPT, arXiv 2203.12119; CoOp, arXiv 2109.01134).

    Attributes:
        count: tokens per block; with `init`, the number of tokens of its words.
        depth: the number of blocks with their own tokens, counted from the first: 1 is "shallow"; `all` is "deep".
        init: words whose embeddings are the initial values of the first text tokens (`a photo of a`).
        coupled: whether the image tokens of a block are a linear map of its text tokens (MaPLe, arXiv 2210.03117).
    """

    tower: Side = "image"
    count: int | None = Field(None, ge=1)
    depth: int | Literal["all"] = 1
    init: str | None = None
    coupled: bool = False

    @model_validator(mode="after")
    def _fits(self) -> PromptSettings:
        if self.coupled and self.tower != "both":
            raise ValueError("`coupled` makes image tokens of text tokens: it needs tower: both")
        if self.init is not None and not ((self.tower == "text" or self.coupled) and self.init.strip()):
            raise ValueError(
                "`init` initialises text tokens: it needs tower: text, or coupled: true, and at least one word"
            )
        if self.init is not None and self.count is not None:
            raise ValueError("give `count` or `init`, not both: the words decide how many tokens there are")
        if self.depth != "all" and self.depth < 1:
            raise ValueError("`depth` is at least 1, or `all`")
        if self.blocks != "all":
            raise ValueError(
                "prompts begin at the first block; set `depth` to the number of blocks with prompts"
            )
        return self


class ExpertsSettings(ModuleSettings):
    """A mixture of experts beside the MLP (MoE-Adapters, arXiv 2403.11549); needs a method that routes.

    Attributes:
        count: experts per block at the start.
        active: the number of experts per sample.
        width: width of an expert's bottleneck.
        activation: between its two projections.
        scale: factor on its output.
        dropout: of its hidden units, in training.
        input: the input of experts and routers: the tokens after attention (`raw`, as published), or `normed` by the
            block's second layer norm.
        noise: whether routers add noise of learned size in training.
    """

    count: int = Field(22, ge=1)
    active: int = Field(2, ge=1)
    width: int = Field(64, ge=1)
    activation: Literal["gelu", "relu", "quick-gelu"] = "relu"
    scale: float = Field(0.1, gt=0, allow_inf_nan=False)
    dropout: float = Field(0.1, ge=0, lt=1)
    input: Literal["raw", "normed"] = "raw"
    noise: bool = True

    @model_validator(mode="after")
    def _enough(self) -> ExpertsSettings:
        if self.active > self.count:
            raise ValueError(
                f"{self.active} `active` experts of {self.count}: set `count` to {self.active} or more"
            )
        return self


MODULES: dict[str, type[ModuleSettings]] = {
    "lora": LoraSettings,
    "adapter": AdapterSettings,
    "prompt": PromptSettings,
}
"""name in the slot `trainable` -> its settings; `kinds.py` holds the functions that grow them."""


def module_settings(name: str, settings: Any, where: str = "method.trainable") -> ModuleSettings:
    """Return the complete settings of a grown module.

    Raises:
        ConfigError: for an unknown module, setting or value.
    """
    if name not in MODULES:
        raise ConfigError(f"{where}: unknown module {name!r}.{did_you_mean(name, MODULES)}")
    if settings is not None and not isinstance(settings, dict):
        raise ConfigError(f"{where}.{name}: expected settings such as {{tower: text}}; found {settings!r}.")
    return validated(MODULES[name], settings or {}, f"{where}.{name}")
