"""What the towers are told in training: one router, and noise that depends on seed, place and sample alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from everclip.contracts import Progress
from everclip.data.sampling.order import generator
from everclip.models.clip import Clip
from everclip.models.modules.experts import experts_in
from everclip.models.modules.routing import Pass
from everclip.models.modules.towers import Side


def training_passes(
    clip: Clip, columns: dict[str, Any], progress: Progress, router: str, texts: bool, balance: bool
) -> dict[Side, Pass]:
    """Return the passes of one step.

    Args:
        clip: the model.
        columns: of the stream `main`.
        progress: where the step stands; enters the noise.
        router: which trains.
        texts: whether texts take experts.
        balance: whether imbalances are wanted.
    """
    ids, labels = columns["id"], "label" in columns
    passes: dict[Side, Pass] = {"image": _told(clip, "image", ids, progress, router, False, balance)}
    if texts:
        prompts = [f"class {i}" for i in range(len(columns.get("class_tokens", ())))]
        passes["text"] = _told(clip, "text", prompts if labels else ids, progress, router, labels, balance)
    return passes


def _told(
    clip: Clip,
    side: Side,
    names: Sequence[str],
    progress: Progress,
    router: str,
    shared: bool,
    balance: bool,
) -> Pass:
    found = [experts for _, experts in experts_in(clip, side)]
    told = Pass((router,), shared=shared, balance=balance)
    if found and found[0].settings.noise:
        blocks = 1 + max(experts.number for experts in found)
        most = max(experts.bank.count for experts in found)
        place = (progress.seed, "gate", progress.task, progress.phase, progress.repeat, progress.step, side)
        drawn = [generator(*place, name).standard_normal((blocks, most), np.float32) for name in names]
        told.noise = _to_device(torch.from_numpy(np.stack(drawn)), found[0].counts.device)
    return told


def _to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    # From pinned memory, so that nobody waits for the copy.
    return values if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)
