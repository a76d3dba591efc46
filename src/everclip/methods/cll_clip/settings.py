"""Settings of the method `cll-clip`. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from everclip.config import Frozen
from everclip.methods.settings import TrainedSettings, modules_of, names_of, normal_part
from everclip.models.modules.settings import MODULES, ModuleSettings

PARTS = ("text", "text-projection", "text-layernorm", "text-bias", "text-blocks")
"""The parts of the text tower that may train beside the token rows."""


class VocabularySettings(Frozen):
    """The vocabulary that each language adds.

    Attributes:
        size: entries of a language's own byte-pair vocabulary; 0: the vocabulary does not grow.
        min_frequency: how often two pieces must follow each other to become a token.
    """

    size: int = Field(10_000, ge=0)
    min_frequency: int = Field(2, ge=1)


class CllReplaySettings(Frozen):
    """Captions of earlier languages that are learned beside the task's own, in a stream of their own.

    Attributes:
        kind: `none`, `reservoir` (a uniform sample of all captions so far), `balanced` (the same number per language).
        size: the largest number of stored captions.
        share: share of the captions of a step; the task's own keep the whole batch size.
        target: what a stored caption is drawn to: the `teacher`'s embedding of its source caption (ER), or the
            `student`'s of the caption itself when it was stored (DER, arXiv 2004.07211).
    """

    kind: Literal["none", "reservoir", "balanced"] = "none"
    size: int = Field(8000, ge=1)
    share: float = Field(0.5, gt=0, lt=1)
    target: Literal["teacher", "student"] = "teacher"


class CllClipSettings(TrainedSettings):
    """Settings of CLL-CLIP with TEIR (arXiv 2401.17186).

    Attributes:
        vocabulary: the vocabulary that each language adds.
        init: initial values of new token rows: `teir` draws them from a normal distribution with the mean and deviation
            of the whole table, `fixed` from N(0, 0.02^2), a number x from N(0, x^2).
        rows: what the factors of the token rows multiply (TEIR's regularisation): `both` gradient and weight decay,
            only the `gradient`, only the `decay`, the `update` (the optimiser's step) and the decay, or `none`: every
            row trains and decays alike.
        factor: of a row that the task uses: `reciprocal` of the number of languages that have used it, `used` (1),
            `unique` (1 if no other language has used it, else 0), `rescaled` and `rescaled-log2` (reciprocal, unique
            rows raised to make up for it), `fixed` (1 / k) and `addend` (1 / (count + k)) for rows that others used.
            All other rows have the factor 0.
        k: of `fixed` and `addend`.
        train_specials: whether the rows of start and end train, too.
        text_loss: from a caption to the teacher's embedding of its source caption: `mse` or `contrastive`.
        text_weight: weight of this loss.
        image_loss: from a caption to the teacher's embedding of its image: `mse` or `contrastive`.
        image_weight: weight of this loss.
        temperature: start of the learned temperature of contrastive losses, at every task.
        trainable: further parts and modules of the text tower that train (`{lora: {rank: 8}}`, `prompt`, `text`).
        replay: captions of earlier languages.
        penalties: `{oewc: {...}}` keeps rows that earlier languages depend on near their values before the task.
    """

    vocabulary: VocabularySettings = VocabularySettings()
    init: Literal["teir", "fixed"] | Annotated[float, Field(gt=0, le=10)] = "teir"
    rows: Literal["both", "gradient", "decay", "update", "none"] = "both"
    factor: Literal["reciprocal", "used", "unique", "rescaled", "rescaled-log2", "fixed", "addend"] = (
        "reciprocal"
    )
    k: int = Field(4, ge=1)
    train_specials: bool = False
    text_loss: Literal["mse", "contrastive"] = "mse"
    text_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    image_loss: Literal["mse", "contrastive"] = "contrastive"
    image_weight: float = Field(0.01, ge=0, allow_inf_nan=False)
    temperature: float = Field(0.07, ge=0.001, le=0.5)
    trainable: tuple[str | dict[str, Any], ...] = ()
    replay: CllReplaySettings = CllReplaySettings()
    penalties: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @field_validator("trainable", mode="before")
    @classmethod
    def _of_the_text_tower(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise ValueError("expected a list of parts, such as [{lora: {rank: 8}}]")
        return tuple(_text_part(entry) for entry in value)

    @field_validator("penalties")
    @classmethod
    def _of_weights(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        others = sorted(value.keys() - {"oewc"})
        if others:
            raise ValueError(f"{', '.join(others)}: cll-clip takes the penalty oewc only")
        return value

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of parts and modules in `trainable`."""
        return names_of(self.trainable)

    @property
    def modules(self) -> tuple[tuple[str, ModuleSettings], ...]:
        """The modules that `trainable` grows, with their complete settings."""
        return modules_of(self.trainable)

    @property
    def compact(self) -> bool:
        """Whether rows that a task does not use keep their bits, so that only the others are optimised."""
        return self.rows in ("both", "decay", "update")


def _text_part(entry: Any) -> str | dict[str, Any]:
    """Return an entry of `trainable` in normal form; a module grows in the text tower.

    Raises:
        ValueError: if it is not of the text tower.
    """
    if isinstance(entry, str) and entry in MODULES:
        entry = {entry: None}
    if isinstance(entry, dict) and len(entry) == 1:
        name, settings = next(iter(entry.items()))
        if name in MODULES and isinstance(settings, dict | None):
            entry = {name: {"tower": "text", **(settings or {})}}
    part = normal_part(entry)
    if isinstance(part, dict):
        name, settings = next(iter(part.items()))
        if settings["tower"] != "text":
            raise ValueError(f"{name}: tower: {settings['tower']}: cll-clip trains the text tower only")
    elif part.partition(":")[0] not in PARTS:
        raise ValueError(f"{part!r}: cll-clip trains parts of the text tower only ({', '.join(PARTS)})")
    return part
