"""What holds for every built-in method: it is what it says it is, and all of it comes back from a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import presets
from everclip.config import MethodConfig
from everclip.contracts import LabelSpace
from everclip.methods.base import Method
from everclip.methods.build import build_method, method_class
from everclip.models.backbone import load_backbone
from everclip.registry import methods
from everclip.run import Run
from everclip.training.progress import Progress

NAMES = [name for name in sorted(methods()) if not name.endswith(("-mtil", "-mtil-fewshot", "-cil"))]
SIZES = ("scenario.per_task=3", "training.steps=2", "evaluation.examples=0")


@pytest.fixture(params=NAMES)
def learned(request: pytest.FixtureRequest, micro_config: Callable[..., Any]) -> Run:
    """A finished run of each method that has numbers of its own."""
    run = Run(micro_config("classes", *presets.settings(request.param), *SIZES), Progress(quiet=True))
    run.execute()
    return run


def predicted(method: Method, space: LabelSpace) -> torch.Tensor:
    """Return scores `(N, C)` of pictures of noise."""
    pixels = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return method.eval().class_scores(method.encode_images(pixels), space, method.class_bank(space))


def test_a_method_is_rebuilt_from_its_files_and_its_counts_are_what_it_holds(learned: Run) -> None:
    config, method = learned.config, learned.learner.method
    entries = {e.key: e for s in learned.scenario.eval_sets for e in s.classes or ()}
    space = LabelSpace(tuple(entries.values()))
    wanted = predicted(method, space)
    assert wanted.shape == (5, len(entries))
    assert bool(torch.isfinite(wanted).all())

    again = build_method(config.method, load_backbone(str(config.backbone.name)), config.seed)
    again.grow(json.loads(json.dumps(method.structure())))
    assert {k: (v.shape, v.dtype) for k, v in again.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in method.state_dict().items()
    }
    again.load_state_dict(method.state_dict())
    kept = {name: tensor.clone() for name, tensor in method.extra_tensors().items()}
    again.load_extra(kept, json.loads(json.dumps(method.extra_state())))
    assert torch.equal(predicted(again, space), wanted)
    assert again.describe() == method.describe()
    assert again.encoder_keys() == method.encoder_keys()
    assert again.routes() == method.routes()
    assert again.notes == method.notes
    assert json.dumps(again.structure()) == json.dumps(method.structure())
    assert json.dumps(again.extra_state()) == json.dumps(method.extra_state())
    assert again.extra_tensors().keys() == kept.keys()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in again.extra_tensors().items())

    said = method.describe()
    weights = list(method.parameters())
    between = (
        said.task_parameters if config.method.name == "coleclip" else 0
    )  # its LoRA is there inside a task alone
    assert said.trainable_parameters == between + sum(p.numel() for p in weights if p.requires_grad)
    assert said.active_parameters <= said.stored_parameters
    assert said.bytes >= sum(t.numel() * t.element_size() for t in weights)
    assert said.buffer_samples == (0 if method.buffer is None else len(method.buffer))
    assert (method.preset, method.seed) == (config.method.name, config.seed)
    assert type(method) is method_class(config.method.name)
    assert not any(module.training for module in method.modules())


def test_the_seed_of_a_method_reaches_what_it_draws(micro_folder: Path) -> None:
    """Modules of the slot `trainable`, experts, and the buffer."""
    for settings in (
        {"trainable": [{"lora": {"rank": 2}}]},
        {"trainable": [{"adapter": {"width": 2}}]},
        {"trainable": [{"prompt": {"count": 2, "tower": "both", "depth": "all"}}]},
    ):
        starts = []
        for seed in (0, 0, 1):
            backbone = load_backbone(str(micro_folder / "model"))
            method = build_method(MethodConfig(settings=settings), backbone, seed)
            method.mark_trainable()
            starts.append(
                {n: p.detach() for n, p in method.named_parameters() if p.requires_grad and p.any()}
            )
        assert starts[0]
        assert all(torch.equal(value, starts[1][name]) for name, value in starts[0].items())
        assert [name for name, value in starts[0].items() if torch.equal(value, starts[2][name])] == []
