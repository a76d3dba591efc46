"""Rules that choose settings by the size and kind of data, each with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

STEPS = 400
"""Steps for small data; large data are trained on once."""

FEW, SOME = 500, 20_000
"""With fewer training images, only LayerNorms and projections train; with fewer of the second, low-rank modules."""


class Choice(BaseModel):
    """One setting: key, value and reason."""

    model_config = ConfigDict(frozen=True)

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Facts:
    """Facts on data and model that are known before anything is measured.

    Attributes:
        rows: training rows.
        pictures: distinct images among them.
        classes: distinct classes, `None` if captions are learned.
        validation: validation rows.
        parameters: parameters of the whole model.
        grows: whether low-rank modules fit this model.
        gpu: whether training runs on a GPU.
    """

    rows: int
    pictures: int
    classes: int | None
    validation: int
    parameters: int
    grows: bool
    gpu: bool


def choose(facts: Facts) -> list[Choice]:
    """Return method, trainable parts, batch size and epochs; the learning rate is measured separately."""
    return [_method(), _trainable(facts), *_batch_and_epochs(facts)]


def _method() -> Choice:
    why = (
        "keeps the model near its start, goes half of the way of each task, and replays what it learned; if the stream "
        "has a retention set, the guard takes back a large loss there"
    )
    return Choice(key="method", value="safe", reason=why)


def _trainable(facts: Facts) -> Choice:
    share = f"{facts.parameters / 1e6:.1f} M parameters, {facts.pictures:,} images"
    if facts.pictures < FEW:
        parts = ["image-layernorm", "text-layernorm", "image-projection", "text-projection"]
        return Choice(
            key="method.trainable", value=parts, reason=f"{share}: more parameters would memorise them"
        )
    if facts.pictures < SOME and facts.grows:
        why = f"{share}: modules of rank 8 on frozen weights adapt enough and forget less"
        return Choice(key="method.trainable", value=["lora", "logit-scale"], reason=why)
    why = f"{share}: enough to train all parts; lower layers at smaller rates (training.layer_decay of the preset)"
    return Choice(key="method.trainable", value=["image", "text", "logit-scale"], reason=why)


def batch_and_epochs(rows: int, gpu: bool) -> tuple[int, int]:
    """Return batch size and epochs for so many training rows: some 400 steps of small data, large data once.

    At least about eight batches: a contrastive loss needs large batches, a short task needs many steps.
    """
    batch = min(256 if gpu else 64, rows, 2 ** int(math.log2(max(8, rows / 8))))
    return batch, max(1, min(20, round(STEPS / max(1, rows // batch))))


def _batch_and_epochs(facts: Facts) -> list[Choice]:
    batch, epochs = batch_and_epochs(facts.rows, facts.gpu)
    steps = max(1, facts.rows // batch)
    why = "many negatives for the contrastive loss" if facts.classes is None else "a stable mean over classes"
    size = Choice(
        key="training.batch_size",
        value=batch,
        reason=f"{facts.rows:,} training rows; {why}" + ("" if facts.gpu else ", small enough for a CPU"),
    )
    why = f"{steps:,} steps per epoch, {steps * epochs:,} in all, without replayed samples: "
    why += (
        "enough to learn, few enough not to overfit" if epochs > 1 else "one epoch over many rows is enough"
    )
    return [size, Choice(key="training.epochs", value=epochs, reason=why)]
