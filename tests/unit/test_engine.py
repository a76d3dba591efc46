"""The engine of training steps: which modules train, what a phase is given, and what a step must return."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import everclip
from everclip.contracts import Phase, Source, Stream
from everclip.errors import ConfigError
from everclip.learner import Learner
from everclip.scenarios.load import load_scenario
from everclip.training.engine import set_modes


def test_frozen_batch_norm_keeps_its_statistics() -> None:
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    module[0].requires_grad_(False)
    set_modes(module, training=True)
    module(torch.randn(8, 2))
    assert module[0].running_mean.eq(0).all()
    assert not module[2].running_mean.eq(0).all()


def test_closed_form_phases_see_every_sample_once(
    micro_folder: Path, micro_config: Callable[..., Any]
) -> None:
    config = micro_config("single")
    task = load_scenario(config.scenario).tasks[0]
    learner = Learner.create(str(micro_folder / "model"), training={"steps": 1})
    seen: list[str] = []
    learner.method.forward = lambda batch, progress: (  # type: ignore[method-assign]
        seen.extend(batch["main"]["id"]) or {"sum": torch.zeros(())}
    )
    phase = Phase("solve", {"main": Stream((Source(task.train),), 8)}, optimiser=None)
    learner.engine.run(learner.method, phase, 0)
    assert sorted(seen) == sorted(task.train.ids)


def test_a_forward_that_returns_no_losses_is_named(micro_config: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from everclip import SlotMethod\n"
        "class Mine(SlotMethod):\n    def forward(self, batch, progress):\n        return 3\n"
    )
    with pytest.raises(ConfigError, match="returned int; expected a dict"):
        everclip.execute(micro_config("single", f"method={file}:Mine"))
