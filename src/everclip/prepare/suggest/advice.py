"""Rules from the size and kind of data to settings; each choice comes with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

STEPS = 400
"""Steps that small data are given; large data get one pass."""

FEW, SOME = 500, 20_000
"""Training pictures below which only norms and projections train, and below which modules of low rank do."""


class Choice(BaseModel):
    """One setting: what to set, to which value, and why."""

    model_config = ConfigDict(frozen=True)

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Facts:
    """What is known of data and model before anything is measured.

    Attributes:
        rows: training rows.
        pictures: distinct pictures among them.
        classes: distinct classes, `None` where captions are learned.
        validation: rows set aside for choices.
        parameters: of the whole model.
        grows: whether modules of low rank fit this model.
        gpu: whether training runs on one.
    """

    rows: int
    pictures: int
    classes: int | None
    validation: int
    parameters: int
    grows: bool
    gpu: bool


def choose(facts: Facts) -> list[Choice]:
    """Return method, trainable parts, batch size and epochs; the rate is measured apart."""
    return [*_method(facts), _trainable(facts), *_batch_and_epochs(facts)]


def _method(facts: Facts) -> list[Choice]:
    why = (
        "holds the model to its start and replays what it learned; where the stream has a retention set, the guard "
        "takes back what costs it"
    )
    chosen = [Choice(key="method", value="safe", reason=why)]
    if not facts.validation:
        why = "no validation rows can show how much of the new is too much, so half of each task is taken in"
        chosen.append(Choice(key="method.merge.kind", value="wise-ft", reason=why))
        chosen.append(
            Choice(key="method.merge.alpha", value=0.5, reason="the middle between before and after")
        )
    return chosen


def _trainable(facts: Facts) -> Choice:
    share = f"{facts.parameters / 1e6:.1f} M parameters, {facts.pictures:,} pictures"
    if facts.pictures < FEW:
        parts = ["image-layernorm", "text-layernorm", "image-projection", "text-projection"]
        return Choice(key="method.trainable", value=parts, reason=f"{share}: more would be learned by heart")
    if facts.pictures < SOME and facts.grows:
        why = f"{share}: changes of rank 8 beside frozen weights adapt enough and forget less"
        return Choice(key="method.trainable", value=["lora", "logit-scale"], reason=why)
    why = f"{share}: enough to train all; lower layers at smaller rates (training.layer_decay of the preset)"
    return Choice(key="method.trainable", value=["image", "text", "logit-scale"], reason=why)


def _batch_and_epochs(facts: Facts) -> list[Choice]:
    # Some eight batches at least: a contrastive loss wants many others, a short task wants many steps.
    most = 256 if facts.gpu else 64
    batch = min(most, facts.rows, 2 ** int(math.log2(max(8, facts.rows / 8))))
    steps = max(1, facts.rows // batch)
    epochs = max(1, min(20, round(STEPS / steps)))
    wide = "many others to be told apart from" if facts.classes is None else "a steady mean over classes"
    size = Choice(
        key="training.batch_size",
        value=batch,
        reason=f"{facts.rows:,} training rows; {wide}" + ("" if facts.gpu else ", within a CPU's reach"),
    )
    why = (
        f"{steps:,} steps each over the training rows, {steps * epochs:,} in all, without what is replayed: "
    )
    why += (
        "enough to learn by, few enough not to overfit" if epochs > 1 else "one pass over many rows is enough"
    )
    return [size, Choice(key="training.epochs", value=epochs, reason=why)]
