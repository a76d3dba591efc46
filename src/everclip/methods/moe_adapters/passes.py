"""The routing of towers in training: one router, and noise that depends only on seed, step, tower and sample."""

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
        progress: the position of the step; decides the noise.
        router: the router that trains.
        texts: whether texts take experts.
        balance: whether to collect imbalances.
    """
    ids, labels = columns["id"], "label" in columns
    passes: dict[Side, Pass] = {"image": _pass(clip, "image", ids, progress, router, False, balance)}
    if texts:
        prompts = [f"class {i}" for i in range(len(columns.get("class_tokens", ())))]
        passes["text"] = _pass(clip, "text", prompts if labels else ids, progress, router, labels, balance)
    return passes


def _pass(
    clip: Clip,
    side: Side,
    names: Sequence[str],
    progress: Progress,
    router: str,
    shared: bool,
    balance: bool,
) -> Pass:
    with_experts = [experts for _, experts in experts_in(clip, side)]
    routing = Pass((router,), shared=shared, balance=balance)
    if with_experts and with_experts[0].settings.noise:
        blocks = 1 + max(experts.number for experts in with_experts)
        most = max(experts.bank.count for experts in with_experts)
        key = (progress.seed, "gate", progress.task, progress.phase, progress.repeat, progress.step, side)
        draws = [generator(*key, name).standard_normal((blocks, most), np.float32) for name in names]
        routing.noise = _to_device(torch.from_numpy(np.stack(draws)), with_experts[0].counts.device)
    return routing


def _to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    # Pinned memory makes the copy asynchronous.
    return values if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)
