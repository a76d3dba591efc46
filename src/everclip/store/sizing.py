"""How an update trains by default: batch size, epochs and learning rate for the number of new rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def training_line(training: Mapping[str, Any]) -> str:
    """Return what an update trains with, for people."""
    known = [f"{name} {training[name]:g}" for name in (*BUDGETS, "batch_size", "lr") if training.get(name)]
    return ", ".join(known)
