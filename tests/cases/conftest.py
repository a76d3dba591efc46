"""The small model whose checkpoints the cases change: its folder, weights, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from build import tiny, weights
from case_checkpoints import State, embeddings

from everclip.models.backbone import load_backbone


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def state(base: Path) -> State:
    return weights(base)


@pytest.fixture(scope="module")
def expected(base: Path) -> torch.Tensor:
    return embeddings(load_backbone(str(base)))
