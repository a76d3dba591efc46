"""A loss that is NaN, infinite or too large stops the run before it can spoil a good checkpoint, and says where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import resume_harness as harness
import torch

import everclip
from everclip.errors import DivergedError
from everclip.training.checkpoint import Checkpoints

MINE = '''
import torch
from everclip import SlotMethod

class Mine(SlotMethod):
    """A method of one's own whose loss turns bad in the second task's second step."""

    def forward(self, batch, progress):
        losses = super().forward(batch, progress)
        if progress.task == 1 and progress.step == 1:
            losses["mine"] = BAD
        return losses
'''
BAD = {
    "nan": ("losses['contrastive'] * float('nan')", "mine is nan"),
    "inf": ("losses['contrastive'] * float('inf')", "mine is inf"),
    "large": ("losses['contrastive'].detach() * 0 + 1e6", "mine is 1000000.0"),
    "gradient": ("(self.backbone.clip.logit_scale * 0).sqrt()", "gradient norm is nan"),
}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function (expression) -> the name of a method whose loss becomes that."""

    def make(bad: str) -> str:
        (tmp_path / "mine.py").write_text(MINE.replace("BAD", bad))
        monkeypatch.chdir(tmp_path)
        return "method=./mine.py:Mine"

    return make


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_loss_stops_with_exit_code_6_and_names_task_phase_and_step(
    bad: str, mine: Callable[[str], str], case_config: Callable[..., Any], arguments: Callable[..., list[str]]
) -> None:
    expression, said = BAD[bad]
    method, folder = mine(expression), Path(case_config("finetune").output)
    log = folder.parent / "said"
    for _ in range(2):  # the second time from the checkpoint, with the same end
        assert harness.command(arguments("finetune", method), log) == 6
        assert "task 2, phase 'train', step 2 of 3" in log.read_text()
        assert said in log.read_text()
        assert "What was saved before is kept" in log.read_text()
        found = harness.newest(folder)
        assert found.damaged == ()
        assert found.state["place"]["step"] == 4
        assert all(torch.isfinite(tensor).all() for tensor in found.tensors.values())
    harness.assert_log_counts_up(folder)


def test_without_clipping_a_bad_gradient_is_seen_in_the_weights_before_they_are_saved(
    mine: Callable[[str], str], case_config: Callable[..., Any]
) -> None:
    config = case_config("finetune", mine(BAD["gradient"][0]), "training.clip_norm=null")
    with pytest.raises(DivergedError, match="task 2, phase 'train', step 2 of 3: a weight is NaN"):
        harness.run(config)
    found = harness.newest(Path(config.output))
    assert found.state["place"]["step"] == 4
    assert all(torch.isfinite(tensor).all() for tensor in found.tensors.values())


def test_exploded_weights_are_never_saved(micro_config: Callable[..., Any], tmp_path: Path) -> None:
    fast = ("training.lr=1e30", "training.warmup=0", "checkpoint.every_steps=1", "training.steps=3")
    config = micro_config("single", *fast)
    with pytest.raises(DivergedError, match="task 1, phase 'train', step"):
        everclip.execute(config)
    held = Checkpoints(tmp_path / "run", config.checkpoint).latest()
    assert held is not None
    assert all(bool(t.isfinite().all()) for k, t in held.tensors.items() if k.startswith("model/"))
