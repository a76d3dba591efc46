"""Encoding for measurement: always the same way, whatever trains; texts in blocks, equal texts once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from everclip.contracts import Features

BLOCK = 256


def device_of(module: torch.nn.Module) -> torch.device:
    """Return where a module's parameters are."""
    return next(module.parameters()).device


@contextmanager
def measuring(method: Any) -> Iterator[None]:
    """Encode without gradient, with nothing marked as trainable (whose mode it is is the caller's).

    Torch chooses kernels by what requires a gradient, also where none is computed; without this the same weights
    would give other low bits under another method.
    """
    marked = [p for p in method.parameters() if p.requires_grad]
    for parameter in marked:
        parameter.requires_grad_(False)
    try:
        with torch.inference_mode():
            yield
    finally:
        for parameter in marked:
            parameter.requires_grad_(True)


def encode_prompts(method: Any, texts: Sequence[str], block: int = BLOCK) -> Features:
    """Encode texts with a method, equal texts once.

    Returns:
        Features with leading dimension `len(texts)`, float32 on the CPU.
    """
    unique = list(dict.fromkeys(texts))
    device = device_of(method)
    parts: list[Features] = []
    with measuring(method):
        for start in range(0, len(unique), block):
            tokens = method.backbone.tokenise(unique[start : start + block]).to(device)
            parts.append({k: v.float().cpu() for k, v in method.encode_texts(tokens).items()})
    index = {text: i for i, text in enumerate(unique)}
    where = torch.tensor([index[text] for text in texts], dtype=torch.int64)
    return {key: torch.cat([part[key] for part in parts])[where] for key in parts[0]} if parts else {}
