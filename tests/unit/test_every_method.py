"""What holds for every built-in method: it is what it says it is, and all of it comes back from a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import presets
from everclip.config import MethodConfig, TrainingConfig
from everclip.contracts import ClassEntry, LabelSpace, Past, Task
from everclip.data.table import Table
from everclip.methods.base import Method
from everclip.methods.build import build_method, method_class
from everclip.models.backbone import load_backbone
from everclip.registry import methods
from everclip.run import Run
from everclip.training.progress import Progress

NAMES = [name for name in sorted(methods()) if not name.endswith(("-mtil", "-mtil-fewshot", "-cil"))]
SIZES = ("scenario.per_task=3", "training.steps=2", "evaluation.examples=0")


LIMITS = {"middle": "float", "threshold": "float"}
RIDGE = {
    "form": "str",
    "fusion": "float",
    "augmented": "bool",
    "ridge": "float",
    "rows": "int",
    "classes": "int",
}
PRIMAL = RIDGE | {"update": "str", "expansion": "str", "dimension": "int", "dimension_from": "str"}
SWEEP = {f"{alpha / 10}": {"old": "float", "new": "float"} for alpha in range(11)}
ADDED = {key: {"frozen": "list", "experts": "list"} for key in ("image", "text")}
NOTES: dict[str, dict[str, Any]] = {
    **{key: {"languages": "list"} for key in ("cll-clip", "cll-clip-naive", "cll-clip-joint")},
    "coleclip": {
        "coleclip": {
            "templates": {"training": "str", "vocabulary": "str"},
            "momentum": "float",
            "classes": "int",
            "recurring": "int",
        }
    },
    "moe-adapters": {
        "experts": ADDED,
        "selector": {
            "kind": "str",
            "features": "str",
            "limits": {"classes 1-3": LIMITS, "classes 4-6": LIMITS},
        },
    },
    "rail": {"rail": PRIMAL},
    "rail-dual": {"rail": RIDGE},
    "rail-primal-published": {"rail": PRIMAL},
    "replay-merge": {"merge": {"alpha": "float"}},
    "safe": {"merge": {"alpha": "float"}},
    "text-ridge": {
        "text-ridge": {
            "texts": "int",
            "anchors": "int",
            "own_score": "float",
            "rival_score": "float",
            "length": "float",
        }
    },
    "wise-ft": {"merge": {"alpha": "float", "chosen_on": "str", "sweep": SWEEP}},
}
"""preset -> the keys that its results carry, and what their values are; the others carry none."""

COPY = "a frozen copy (task-start): {whole:,}"
START = "a copy of the weights that train (task-start): {trained:,}"
ASKED = "an embedding of each text for the teacher"
HELD: dict[str, str] = {
    "coleclip": "LoRA: 1,284; a copy of the rows of the task's classes",
    "icarl": ASKED,
    "lwf": f"{COPY}; {START}; {ASKED}",
    "lwf-tic": f"{COPY}; {START}; {ASKED}",
    "lwf-vr": f"{COPY}; {START}; {ASKED}",
    "mod-x": f"{COPY}; {START}; {ASKED}",
    "replay-merge": START,
    "safe": f"{START}; {ASKED}",
    "wise-ft": START,
    "zscl": f"{START}; their running mean: {{trained:,}}; {ASKED}",
}
"""preset -> what it says that it will hold inside the next task; the others nothing more."""

EVERYTHING = "the task's samples (replay.kind=all)"
TOKENS = "the rows of the new tokens of its language, and one count each"
GROWTH: dict[str, str] = {
    **dict.fromkeys(("cll-clip", "cll-clip-naive", "cll-clip-joint"), TOKENS),
    **dict.fromkeys(("cumulative-all", "oracle", "restart"), EVERYTHING),
    "coleclip": "32 prompt values and 32 per new class; 1,284 LoRA values while the task lasts",
    "moe-adapters": "1,024 parameters of routers; 1,168 per expert that is added to all blocks; 260 of the selector",
    "rail": "16 x 64 bytes per new class; 32,768 bytes once, in every checkpoint",
    "rail-dual": "every sample's feature (4 bytes per number), and 8 bytes per sample and class",
    "rail-primal-published": "8 x 64 bytes per new class; 32,768 bytes once, in every checkpoint",
    "text-ridge": "1,040 bytes per new text",
}
EXTRA: dict[str, str] = {
    "coleclip": "task prompts: 2 more tokens per image",
    "moe-adapters": "experts: 1,024 multiplications per image token",
    **dict.fromkeys(("rail", "rail-dual", "rail-primal-published"), "2,432 products of the regression"),
    "sit": "adapters: 16,384 multiplications per image token",
}
PHASES: dict[str, list[str]] = {
    "moe-adapters": ["train", "selector", "selector-calibrate"],
    **{key: ["regress"] for key in ("rail", "rail-dual", "rail-primal-published", "text-ridge")},
    "zero-shot": [],
}


def kinds(value: Any) -> Any:
    """Return the keys of nested mappings, and the types of their values."""
    return {k: kinds(v) for k, v in value.items()} if isinstance(value, dict) else type(value).__name__


@pytest.fixture(params=NAMES)
def learned(request: pytest.FixtureRequest, micro_config: Callable[..., Any]) -> Run:
    """A finished run of each method that has numbers of its own."""
    run = Run.of(micro_config("classes", *presets.settings(request.param), *SIZES), Progress(quiet=True))
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
    says(learned)


def says(run: Run) -> None:
    """Assert that a method says what its tables say."""
    name, method = run.config.method.name, run.learner.method
    assert kinds({k: v for k, v in method.notes.items() if k != "guard"}) == NOTES.get(name, {})
    said = method.describe()
    whole = sum(p.numel() for p in method.backbone.parameters())
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert said.held_during_task == HELD.get(name, "nothing more").format(whole=whole, trained=trained)
    assert said.growth_per_task == GROWTH.get(name, "none")
    assert said.extra_per_image == EXTRA.get(name, "none")
    tasks = [task.name for task in run.scenario.tasks]
    assert method.routes() == (("zero-shot", *tasks) if name == "moe-adapters" else ())
    assert method.encoder_keys().keys() == {"image", "text"}
    assert [phase.name for phase in run.learner.plan(run.scenario.tasks[0])] == PHASES.get(name, ["train"])


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


def test_everything_at_once_is_one_phase_over_all_tasks_and_the_base(
    micro_folder: Path,
) -> None:
    method = build_method(MethodConfig(name="joint"), load_backbone(str(micro_folder / "model")))
    data = Table(pq.read_table(micro_folder / "data.parquet"))
    task = Task(0, "first", data.select(range(24)), data.select(range(24, 40)))
    assert task.val is not None
    names = tuple(ClassEntry(k, k) for k in dict.fromkeys(task.train.column("class_key")))
    for given in (task, replace(task, classes=names)):
        for base in (None, task.val):
            training = TrainingConfig(steps=3, batch_size=6)
            (phase,) = method.phases(given, Past(base=base, training=training))
            (stream,) = phase.streams.values()
            assert (phase.name, list(phase.streams)) == ("train", ["main"])
            (source,) = stream.sources
            assert source.table.name == "everything"
            assert source.table.ids == [*task.train.ids, *([] if base is None else base.ids)]
            assert (stream.classes, stream.batch_size) == (given.classes, 6)
    assert method.needs.all_tasks_at_once
