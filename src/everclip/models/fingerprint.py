"""Hashes of weights, one per tower: they identify a model in caches and results."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch


def tensors_hash(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return a hash of the names, types, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        data = tensor.detach().cpu().contiguous()
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
