"""Large batches in the memory of small ones: the gradients are those of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from everclip.contracts import Progress, Task
from everclip.errors import ConfigError
from everclip.learner import Learner
from everclip.models.modules.short_texts import short_texts
from everclip.scenarios.load import load_scenario


@pytest.fixture
def tasks(micro_config: Callable[..., Any]) -> dict[str, list[Task]]:
    return {kind: list(load_scenario(micro_config(kind).scenario).tasks) for kind in ("time", "classes")}


def gradients(
    folder: Path, task: Task, chunk: int | None, method: str, recompute: bool = False, **more: Any
) -> Any:
    """Return the gradients of the first step, on a batch of 10."""
    training = {"steps": 2, "batch_size": 10, "threads": 1, "device": "cpu"}
    training |= {"chunk": chunk, "recompute": recompute}
    learner = Learner.create(str(folder / "model"), method, training, **more)
    learner.method.begin_task(task, learner.past())
    learner.method.train()
    (phase,) = learner.plan(task)
    batch = {name: learner.engine.maker.batch(s, "scope", 0) for name, s in phase.streams.items()}
    learner.engine.columns.add_once(learner.method, batch, phase.streams, "scope")
    losses = learner.method(batch, Progress(0, "train", 0, 0, 2, 0))
    torch.stack([loss.float() for loss in losses.values()]).sum().backward()
    return {n: p.grad for n, p in learner.method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["time", "classes"])
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("finetune", {}),
        ("lwf-tic", {}),
        ("finetune", {"trainable": [{"lora": {"rank": 2}}, "text-blocks:last1"]}),
        ("finetune", {"trainable": ["text"]}),
    ],
)
def test_gradients_are_those_of_the_whole_batch(
    kind: str, method: str, settings: dict[str, Any], micro_folder: Path, tasks: dict[str, list[Task]]
) -> None:
    whole = gradients(micro_folder, tasks[kind][0], None, method, **settings)
    for chunk in (1, 3, 10):
        found = gradients(micro_folder, tasks[kind][0], chunk, method, **settings)
        assert found.keys() == whole.keys()
        for name, gradient in found.items():
            largest = float(whole[name].abs().max())
            assert torch.allclose(gradient, whole[name], rtol=1e-4, atol=1e-5 * largest), (chunk, name)


def test_dropout_of_patches_is_the_same_the_second_time(micro_folder: Path) -> None:
    """Otherwise torch compares the shapes only, and the gradient would be that of other patches."""
    backbone = Learner.create({"name": str(micro_folder / "model"), "patch_dropout": 0.5}).method.backbone
    backbone.train()
    pixels = torch.randn(6, 3, 16, 16)

    def gradient(chunk: int | None) -> torch.Tensor:
        backbone.zero_grad()
        backbone.chunk = chunk
        torch.manual_seed(1)
        if chunk is None:
            parts = [backbone.encode_image(part) for part in pixels.split(2)]
            torch.cat(parts).square().sum(dim=1).sub(0.3).pow(3).sum().backward()
        else:
            backbone.encode_image(pixels).square().sum(dim=1).sub(0.3).pow(3).sum().backward()
        found = backbone.clip.visual.conv1.weight.grad
        assert found is not None
        return found.clone()

    assert torch.equal(gradient(2), gradient(None))


def test_texts_are_encoded_without_padding_the_second_time_too(micro_folder: Path) -> None:
    backbone = Learner.create(str(micro_folder / "model")).method.backbone
    backbone.train()
    tokens = backbone.tokenise(["a", "b", "c", "d"])
    lengths: list[int] = []
    block = backbone.clip.transformer.resblocks[0]
    block.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    backbone.chunk = 2
    with short_texts(backbone.clip, 3):
        embeddings = backbone.encode_text(tokens)
    embeddings.sum().backward()
    assert lengths == [3] * 4, "two chunks, each twice"


def test_a_run_in_chunks_ends_near_the_run_of_whole_batches(
    micro_folder: Path, tasks: dict[str, list[Task]]
) -> None:
    ends = []
    for chunk in (None, 3):
        training = {
            "steps": 4,
            "batch_size": 8,
            "threads": 1,
            "device": "cpu",
            "chunk": chunk,
            "optimiser": "sgd",
        }
        learner = Learner.create(str(micro_folder / "model"), "finetune", training)
        learner.learn(tasks["time"][0])
        ends.append(learner.method.backbone.state_dict())
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-6) for name in ends[0])


def test_methods_whose_step_depends_on_more_refuse_chunks(micro_folder: Path) -> None:
    for method in ("moe-adapters", "coleclip"):
        with pytest.raises(ConfigError, match=rf"training.chunk: {method} does not allow it"):
            Learner.create(str(micro_folder / "model"), method, {"steps": 1, "chunk": 2})
    for method in ("zero-shot", "rail", "text-ridge", "cll-clip"):
        Learner.create(str(micro_folder / "model"), method, {"steps": 1, "chunk": 2})
