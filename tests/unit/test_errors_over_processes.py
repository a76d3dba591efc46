"""Errors of several processes: what they say, and what a sharded model is after them. No process is started."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as group
from torch import nn

from everclip import distributed
from everclip.errors import DivergedError, ProcessLostError
from everclip.training import sharding


def test_an_error_of_the_communication_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be no other process's fault: a wrong device, say."""
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "_reason", lambda: "it left no reason")
    with (
        pytest.raises(
            ProcessLostError, match=r"number 1, which met: No backend type for NCCL and cpu\). The last"
        ),
        distributed.stopping_together(),
    ):
        raise RuntimeError("No backend type for NCCL and cpu.\nCall stack: ...")


class _Counted(sharding.Whole):
    ends = 0

    def end(self) -> None:
        self.ends += 1


def test_a_model_is_whole_again_after_an_error_of_all_processes_only() -> None:
    model = _Counted()
    with pytest.raises(DivergedError), model.stopping():
        raise DivergedError("the loss is nan")
    assert model.ends == 1
    with pytest.raises(MemoryError), model.stopping():
        raise MemoryError
    assert model.ends == 1  # the others would not send their parts


def test_a_sharded_step_without_any_gradient_has_norm_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "all_reduce", lambda tensor: None)
    assert float(sharding._clipped([nn.Parameter(torch.ones(3))], 1.0)) == 0.0
