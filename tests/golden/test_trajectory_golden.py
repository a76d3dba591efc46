"""Five steps of the engine equal five steps of a bare open_clip + torch loop on the same batches.

But for the bias of attention's keys: it adds the same number to all scores of a query, which softmax takes away, so its
gradient is 0. What a processor computes there is rounding, and Adam, which divides by the gradient's size, makes steps
of it. That slice is held to what is true of it: no gradient beyond rounding.
"""

import math
from pathlib import Path
from typing import Any

import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import load_file

import micro
from everclip.config import MethodConfig, TrainingConfig
from everclip.contracts import Task
from everclip.data.table import Table
from everclip.learner import Learner
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone

STEPS = 5
SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 1e-2, "weight_decay": 0.2, "warmup": 2},
    "sgd": {"optimiser": "sgd", "lr": 0.05, "warmup": 0},
    "no clipping": {"lr": 1e-2, "clip_norm": None, "schedule": "constant", "warmup": 0},
}


def bare_optimiser(model: torch.nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Weight decay on matrices only, but for look-up tables, as open_clip's own trainer does for vectors."""
    tables = ("positional_embedding", "class_embedding", "token_embedding.weight")
    named = list(model.named_parameters())
    plain = [p for n, p in named if p.dim() < 2 or n.endswith(tables)]
    decayed = [p for n, p in named if not (p.dim() < 2 or n.endswith(tables))]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-6)


def bare_rate(step: int, config: TrainingConfig) -> float:
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    return config.lr * (1 + math.cos(math.pi * (step - config.warmup) / (STEPS - config.warmup))) / 2


def without_key_bias(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a parameter, or its gradient, without the part that belongs to the keys' bias."""
    if not name.endswith("attn.in_proj_bias"):
        return tensor
    query, _, value = tensor.chunk(3)
    return torch.cat([query, value])


def key_gradient(model: torch.nn.Module) -> float:
    """Return the largest gradient of a keys' bias, as a share of the largest of its queries and values."""
    shares = []
    for name, parameter in model.named_parameters():
        if name.endswith("attn.in_proj_bias"):
            assert parameter.grad is not None
            others = without_key_bias(name, parameter.grad)
            shares.append(float(parameter.grad.chunk(3)[1].abs().max() / others.abs().max()))
    assert shares
    return max(shares)


def bare_loop(
    folder: Path, config: TrainingConfig, batches: list[dict[str, Any]]
) -> list[dict[str, torch.Tensor]]:
    model = open_clip.CLIP(**micro.MODEL)
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    model.train()
    optimiser, loss, states = bare_optimiser(model, config), ClipLoss(), []
    for step, batch in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = bare_rate(step, config)
        image, text, scale = model(batch["image"], batch["tokens"])
        optimiser.zero_grad()
        loss(image, text, scale).backward()
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimiser.step()
        states.append({k: v.clone() for k, v in model.state_dict().items()})
    return states


@pytest.mark.parametrize("name", SETTINGS)
def test_the_engine_takes_the_steps_of_a_bare_loop(micro_folder: Path, name: str) -> None:
    torch.set_num_threads(1)
    config = TrainingConfig(steps=STEPS, batch_size=8, device="cpu", **SETTINGS[name])
    # One drawing per thing and whole epochs: no batch repeats a caption, so the loss is plain CLIP's.
    table = Table(pq.read_table(micro_folder / "data.parquet")).where("style", lambda s: s == "style-1")
    table = table.select(range(0, len(table), 2))
    assert len(set(table.column("concept"))) == len(table) == 16

    method = build_method(MethodConfig(), load_backbone(str(micro_folder / "model")))
    learner = Learner(method, config)
    batches: list[dict[str, Any]] = []
    real = learner.engine.maker.batch
    object.__setattr__(learner.engine.maker, "batch", lambda *a: batches.append(real(*a)) or batches[-1])
    found: list[dict[str, torch.Tensor]] = []
    clip = method.backbone.clip
    shares: list[float] = []

    def keep(progress: object) -> None:
        found.append({k: v.clone() for k, v in clip.state_dict().items()})
        shares.append(key_gradient(clip))

    method.after_step = keep  # type: ignore[method-assign]
    learner.learn(Task(0, "t", table))
    expected = bare_loop(micro_folder / "model", config, batches)
    assert len(found) == len(expected) == STEPS
    for ours, bare in zip(found, expected, strict=True):
        assert ours.keys() == bare.keys()
        for key in ours:
            pair = without_key_bias(key, ours[key]), without_key_bias(key, bare[key])
            assert torch.allclose(*pair, atol=1e-6, rtol=0), key
    assert len(shares) == STEPS
    assert max(shares) < 1e-5
    start = load_file(micro_folder / "model" / "open_clip_model.safetensors")
    assert (found[-1]["visual.proj"] - start["visual.proj"]).abs().max() > 1e-4, "nothing moved"
