"""Batch size, epochs and learning rate for the size of the tasks."""

from __future__ import annotations

import math
from typing import Any

from everclip.scenarios.base import ListScenario

STEPS = 300
"""Steps per task for small data; large data get one epoch."""


def training_settings(scenario: ListScenario) -> tuple[dict[str, Any], str]:
    """Return batch size and epochs for the sizes of the tasks, and the reason."""
    if scenario.spec.kind == "online":
        total = sum(len(task.train) for task in scenario.tasks)
        settings = {"epochs": 1, "batch_size": max(2, min(64, total // 8)), "lr": 5e-4}
        more = {"steps_per_batch": 3, "schedule": "constant", "warmup": 0}
        return {**settings, **more}, f"The stream has {total:,} samples, each seen once"
    sizes = sorted(len(task.train) for task in scenario.tasks)
    typical, smallest = sizes[len(sizes) // 2], sizes[0]
    # About eight batches in the smallest task: a compromise between many negatives per batch and many steps.
    batch = max(2, min(256, smallest, 2 ** int(math.log2(max(8, smallest / 8)))))
    steps = max(1, typical // batch)
    epochs = max(1, min(20, round(STEPS / steps)))
    spread = "" if smallest == sizes[-1] else f" (median; {smallest:,} to {sizes[-1]:,})"
    reason = (
        f"A task has {typical:,} training rows{spread}: about "
        f"{math.ceil(typical * epochs / batch):,} steps of {batch} in all, more where earlier samples are replayed"
    )
    return {"epochs": epochs, "batch_size": batch, "lr": 1e-5}, reason
