"""How an update trains by default: batch size, epochs and learning rate for the number of new rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everclip.config import TrainingConfig
from everclip.learner.core import Learner
from everclip.prepare.suggest.advice import batch_and_epochs
from everclip.registry import method_entry
from everclip.store.records import Learning, Settings

BUDGETS = ("steps", "epochs", "samples", "macs")

SMALL_MODEL = 20_000_000
"""With fewer parameters, a CLIP learns at the rate of small models."""

RATES = (3e-4, 1e-5)
"""Learning rates of a small model, and of a larger one (that of WiSE-FT, arXiv 2109.01903, and FLYP, 2212.00638)."""


def sized(settings: Settings, learning: Learning | None, rows: int, learner: Learner) -> Learning:
    """Return how an update learns: what was asked for, and the training that fits the number of rows.

    What the command, the store or the preset says of a budget, a batch size or a rate holds; the rest is chosen here.
    The parts that train, the replay and the penalties are those of the preset.

    Args:
        settings: of the store.
        learning: what the command says.
        rows: to be learned.
        learner: the version that serves, for its size and its device.
    """
    asked = learning or Learning()
    entry = method_entry(asked.method or settings.method)
    said = {**entry.training, **settings.training, **asked.training}
    found = _by_size(rows, learner)
    if any(said.get(kind) is not None for kind in BUDGETS):
        del found["epochs"]
    new = {key: value for key, value in found.items() if said.get(key) is None}
    return asked.model_copy(update={"training": {**asked.training, **new}})


def _by_size(rows: int, learner: Learner) -> dict[str, Any]:
    parameters = sum(p.numel() for p in learner.method.backbone.clip.parameters())
    batch, epochs = batch_and_epochs(rows, learner.accelerator.device.type == "cuda")
    return {"epochs": epochs, "batch_size": batch, "lr": RATES[parameters >= SMALL_MODEL]}


def trained_with(training: TrainingConfig) -> dict[str, float]:
    """Return the budget, the batch size and the rate of a training, wherever they were set."""
    values = {name: getattr(training, name) for name in (*BUDGETS, "batch_size", "lr")}
    return {name: value for name, value in values.items() if value is not None}


def training_line(training: Mapping[str, float]) -> str:
    """Return what `trained_with` gives, for people."""
    return ", ".join(f"{name} {value:g}" for name, value in training.items())
