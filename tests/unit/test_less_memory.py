"""Less memory, or faster steps, for the same training: each setting against plain training, and where it is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_chunks import gradients

from everclip.config import TrainingConfig, resolve_config
from everclip.contracts import Task
from everclip.errors import ConfigError
from everclip.learner import Learner
from everclip.learner.allowed import apply_training
from everclip.models.blocks import blocks_of
from everclip.run import Run
from everclip.scenarios.load import load_scenario
from everclip.training.progress import Progress


@pytest.fixture
def task(micro_config: Callable[..., Any]) -> Task:
    return load_scenario(micro_config("time").scenario).tasks[0]


@pytest.mark.parametrize(
    "trainable",
    [
        ["image", "text"],
        pytest.param([{"lora": {"rank": 2}}, "text-blocks:last1"], marks=pytest.mark.slow),
        pytest.param([{"adapter": {"width": 3}}], marks=pytest.mark.slow),
        pytest.param([{"prompt": {"tower": "both", "count": 2, "depth": "all"}}], marks=pytest.mark.slow),
    ],
)
def test_blocks_that_are_computed_again_give_the_same_gradients(
    trainable: list[Any], micro_folder: Path, task: Task
) -> None:
    whole = gradients(micro_folder, task, None, "finetune", trainable=trainable)
    found = gradients(micro_folder, task, None, "finetune", recompute=True, trainable=trainable)
    assert found.keys() == whole.keys()
    for name, gradient in found.items():
        assert torch.equal(gradient, whole[name]), name


def test_blocks_are_computed_again_in_training_only(micro_folder: Path) -> None:
    training = {"steps": 1, "recompute": True}
    backbone = Learner.create(str(micro_folder / "model"), "finetune", training).method.backbone
    calls: list[int] = []
    blocks_of(backbone.clip)[0].register_forward_pre_hook(lambda *_: calls.append(1))
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        backbone.encode_image(pixels)
    assert len(calls) == 1
    backbone.encode_image(pixels).sum().backward()
    assert len(calls) == 3


def test_methods_that_count_what_towers_compute_refuse_to_compute_it_twice(micro_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"training.recompute: moe-adapters does not allow it"):
        Learner.create(str(micro_folder / "model"), "moe-adapters", {"steps": 1, "recompute": True})


@pytest.mark.parametrize("key", ["recompute", "compile"])
def test_a_tower_without_blocks_is_refused(key: str, micro_folder: Path) -> None:
    method = Learner.create(str(micro_folder / "model")).method
    method.backbone.clip.visual = torch.nn.Identity()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=rf"training.{key}: .* transformer blocks"):
        apply_training(method, TrainingConfig(steps=1, **{key: True}))


def test_compiling_without_a_compiler_is_refused(micro_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match=r"training.compile: torch needs a C\+\+ compiler"):
        Learner.create(str(micro_folder / "model"), "finetune", {"steps": 1, "compile": True})


def test_fused_8bit_is_refused() -> None:
    with pytest.raises(ConfigError, match="adamw-8bit has a kernel of its own"):
        resolve_config("emoji-time", ["training.fused=true", "training.optimiser=adamw-8bit"])


def test_without_the_library_8bit_is_refused_before_anything_is_measured(
    micro_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    config = micro_config("time", "training.steps=1", "training.optimiser=adamw-8bit")
    with pytest.raises(ConfigError, match=r"pip install 'everclip\[low-memory\]'"):
        Run.of(config, Progress(quiet=True))


def trained(config: Any) -> dict[str, torch.Tensor]:
    run = Run.of(config, Progress(quiet=True))
    run.execute()
    return {name: tensor.detach() for name, tensor in run.learner.method.state_dict().items()}


def apart(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """The largest difference of weights; the biases of attention are left out (see `test_two_processes`)."""
    return max(
        float((one[k] - two[k]).abs().max()) for k in one if one[k].numel() and not k.endswith("in_proj_bias")
    )


STEPS = ("training.steps=3", "training.lr=1e-3", "training.warmup=0", "evaluation.examples=1")


@pytest.mark.parametrize(
    ("setting", "limit"),
    [
        pytest.param("training.fused=true", 1e-5, marks=pytest.mark.slow),
        pytest.param("training.compile=true", 1e-4, marks=pytest.mark.slow),
        pytest.param("training.optimiser=adamw-8bit", 3e-3, marks=pytest.mark.slow),
    ],
)
def test_a_run_ends_near_the_plain_run(setting: str, limit: float, micro_config: Callable[..., Any]) -> None:
    if "8bit" in setting:
        pytest.importorskip("bitsandbytes")
    plain = trained(micro_config("time", *STEPS, output="plain"))
    found = trained(micro_config("time", *STEPS, setting, output="other"))
    assert 0 < apart(plain, found) < limit


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["training.fused=true", "training.optimiser=adamw-8bit"])
def test_a_stopped_run_goes_on_bit_for_bit(setting: str, micro_config: Callable[..., Any]) -> None:
    if "8bit" in setting:
        pytest.importorskip("bitsandbytes")
    from everclip import run as module

    own = ("training.steps=4", "training.lr=1e-3", "checkpoint.every_steps=1", setting)
    whole = trained(micro_config("time", *own, output="whole"))
    stopped = micro_config("time", *own, output="stopped")
    left = 3

    def fail(point: str) -> None:
        nonlocal left
        left -= point == "after step"
        if left == 0:
            raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "crash_point", fail)
        with pytest.raises(RuntimeError, match="killed"):
            trained(stopped)
    found = trained(stopped)
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (
            "finetune",
            {"penalties": {"weight-constraint": {"weight": 1.0}}},
            "weight-constraint reads all weights",
        ),
        ("finetune", {"merge": {"kind": "running-mean"}}, "merge running-mean reads all weights"),
        ("rail", {}, "rail does not allow it"),
    ],
)
def test_what_needs_all_weights_at_every_step_is_not_sharded(
    method: str, settings: dict[str, Any], message: str, micro_folder: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        Learner.create(str(micro_folder / "model"), method, {"steps": 1, "shard": True}, **settings)
