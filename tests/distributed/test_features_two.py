"""Two processes share what the feature service encodes, also where they do not agree in all that they hold."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pair
import pytest
import torch

from everclip.contracts import Features
from everclip.data.pictures.images import ImageStore
from everclip.features.encoder import Encoder
from everclip.features.service import FeatureService

TEXTS = [f"{i}" for i in range(600)]


def encoder(key: str) -> Encoder:
    def tokens(texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[int(text) if text.isdecimal() else -1] for text in texts])

    def encode(found: torch.Tensor) -> Features:
        return {"embedding": found.float()}

    return Encoder("text", "method", key, tokens, encode)


def job(folder: str | None, alone: int, memory: int) -> list[bool]:
    """Ask twice; keys differ between processes, and the process `alone` asked before, with little memory."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    service = FeatureService(ImageStore(), memory=memory if rank == alone else 2**20)
    service.folders.shared = None if folder is None else Path(folder)
    own = encoder(f"statistics of {rank}")
    if rank == alone:
        service.texts(own, TEXTS, together=False)
    found = [service.texts(own, TEXTS)[0]["embedding"][:, 0] for _ in range(2)]
    return [values.tolist() == list(range(600)) for values in found]


@pytest.mark.parametrize("alone", [0, 1])
def test_processes_that_remember_different_things_do_not_wait_for_each_other(
    tmp_path: Path, alone: int
) -> None:
    jobs = [(job, (folder, alone, memory)) for folder in (None, str(tmp_path)) for memory in (0, 2**20)]
    for first, second in pair.Pair(*jobs).results():
        assert first == second == [True, True]
