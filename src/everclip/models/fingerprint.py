"""Hashes of weights, one per tower: what caches and results call a model by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch


def tensors_hash(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Hash names, types, shapes and bytes of tensors, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        data = tensor.detach().cpu().contiguous()
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
