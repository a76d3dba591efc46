"""Encode without gradients, with the kernels of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Keep torch's fast path of attention off: it rounds differently, and counters of operations do not see it."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def same_kernels_as_training() -> Iterator[None]:
    """Turn off gradients but keep the kernels of training."""
    with without_fast_path(), torch.no_grad():
        yield
