"""Selectors in a run: which task a picture belongs to, if any.

Proven here: routes are counted and the CLIP is left alone; a picture beyond a task's own held-out pictures takes the
zero-shot route; no test picture is touched; every selector survives being killed at any step bit for bit, and learns
twelve tasks, one class, one picture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from everclip.contracts import EvalSet, Past, Phase, Reference, Stream, Task
from everclip.errors import ConfigError
from everclip.learner import Learner
from everclip.methods.selectors.build import build
from everclip.methods.selectors.gaussian import Gaussian
from everclip.models.backbone import load_backbone
from everclip.run import Run
from everclip.scenarios.load import load_scenario
from everclip.training.progress import Progress as Shown

METHOD = f"method={Path(__file__).parent / 'routed.py'}:Routed"
QUICK = {"steps": 3, "reference_steps": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "autoencoder": {"kind": "autoencoder", **QUICK},
    "published": {"kind": "ddas", "weights": "random", "size": 63, **QUICK},
    "gaussian": {"kind": "gaussian"},
    "full covariance": {"kind": "gaussian", "covariance": "shared", "means": "task", "features": "embedding"},
    "energy": {"kind": "energy"},
}


def settings_of(selector: dict[str, Any]) -> str:
    """The override that names a selector."""
    listed = ", ".join(f"{key}: {value}" for key, value in selector.items())
    return f"method.selector={{{listed}}}"


@pytest.fixture
def run_of(micro_config: Callable[..., Any]) -> Callable[..., Run]:
    """Return a function that starts a run of the small method with a selector."""

    def make(variant: str, *overrides: str, output: str = "run", kind: str = "classes", **more: Any) -> Run:
        chosen = settings_of({**VARIANTS[variant], **more})
        return Run.of(micro_config(kind, METHOD, chosen, *overrides, output=output), Shown(quiet=True))

    return make


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_counts_routes_and_leaves_the_clip_alone(variant: str, run_of: Callable[..., Run]) -> None:
    run = run_of(variant)
    before = {k: v.clone() for k, v in run.learner.method.backbone.state_dict().items()}
    results = run.execute()
    after = run.learner.method.backbone.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    names = ["zero-shot", *(task.name for task in results.tasks)]
    for row in results.rows:
        for column in results.columns:
            assert sum(row.routes[column.name].values()) == column.samples
            assert list(row.routes[column.name]) == names[: 1 + row.index]
    assert results.rows[0].routes[results.columns[0].name] == {"zero-shot": results.columns[0].samples}
    selector: Any = run.learner.method.selector
    assert selector.notes["limits"].keys() >= set(names[1:])
    if VARIANTS[variant].get("size"):
        assert "random" in selector.notes["weights"]


def test_pictures_of_tasks_that_look_different_find_their_task(
    run_of: Callable[..., Run], micro_folder: Path
) -> None:
    for variant in ("gaussian", "autoencoder"):
        more = {"steps": 40} if variant == "autoencoder" else {}
        run = run_of(variant, "scenario.per_task=2", "training.augment=none", output=variant, **more)
        results = run.execute()
        own = {t.index: t.name for t in results.tasks}
        right = [
            results.rows[-1].routes[c.name][own[c.task]] / c.samples
            for c in results.columns
            if c.task is not None
        ]
        assert np.mean(right) > 0.55, variant  # four routes; chance is a fourth


def test_pictures_that_decide_together_are_as_many_whatever_evaluation_encodes_at_once(
    micro_config: Callable[..., Any],
) -> None:
    """Predictions depend on the batch here, so its size must not be that of another setting."""
    chosen = settings_of({**VARIANTS["published"], "decision_batch": 3})
    found = []
    for size in (2, 256):
        settings = ("method=moe-adapters", chosen, "scenario.per_task=3", f"evaluation.batch_size={size}")
        run = Run.of(micro_config("classes", *settings, output=f"run{size}"), Shown(quiet=True))
        results = run.execute()
        found.append([(row.routes, row.scores) for row in results.rows])
        said = [event.message for event in results.events if event.kind == "batch"]
        assert len(said) == 1
        assert "3 images in the order of a set take one route" in said[0]
    assert found[0] == found[1]


KILLS = {"autoencoder": (1, 3, 6), "gaussian": (1,), "full covariance": (2,), "energy": (1,)}
"""After how many steps: inside a pass and between passes, inside training. The published variant has the same state."""


@pytest.mark.parametrize("variant", KILLS)
def test_a_selector_saved_at_any_step_goes_on_bit_for_bit(variant: str, run_of: Callable[..., Run]) -> None:
    def start(output: str) -> Run:
        return run_of(
            variant, "checkpoint.every_steps=1", "scenario.per_task=3", "evaluation.examples=0", output=output
        )

    whole = start("whole")
    expected = whole.execute()
    wanted = whole.learner.method.state_dict()
    for number in KILLS[variant]:
        _stop_after(start(f"broken-{number}"), number)
        resumed = start(f"broken-{number}")
        found = resumed.execute()
        assert found.without_timing()["rows"] == expected.without_timing()["rows"]
        state = resumed.learner.method.state_dict()
        assert state.keys() == wanted.keys()
        assert [k for k in wanted if not torch.equal(state[k], wanted[k])] == []


def _stop_after(run: Run, steps: int) -> None:
    left = steps

    def act(point: str) -> None:
        nonlocal left
        left -= point == "after step"
        if left < 0:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("everclip.run.crash_point", act)
        with pytest.raises(KeyboardInterrupt):
            run.execute()


def _learner(micro_folder: Path, selector: dict[str, Any]) -> Learner:
    return Learner.create(
        str(micro_folder / "model"),
        METHOD.partition("=")[2],
        {"steps": 2, "batch_size": 4, "threads": 1, "device": "cpu"},
        selector=selector,
    )


def _tasks(micro_config: Callable[..., Any], per_task: int = 1) -> list[Task]:
    return list(load_scenario(micro_config("classes", f"scenario.per_task={per_task}").scenario).tasks)


@pytest.mark.parametrize("variant", VARIANTS)
def test_twelve_tasks_of_one_class_and_shared_names(
    variant: str, micro_folder: Path, micro_config: Callable[..., Any]
) -> None:
    learner = _learner(micro_folder, VARIANTS[variant])
    tasks = _tasks(micro_config)
    for number in range(12):
        task = tasks[number % len(tasks)]
        small = task.train.select([0]) if number == 3 else task.train.select(range(3))
        learner.learn(Task(number, f"{number}", small, None, task.classes))
    selector: Any = learner.method.selector
    assert selector.routes() == ("zero-shot", *(str(n) for n in range(12)))
    assert len(selector.limits) == 13
    ready = int(selector.ready.sum())
    assert ready == 12
    again = _learner(micro_folder, VARIANTS[variant]).method
    again.grow(learner.method.structure())
    again.load_state_dict(learner.method.state_dict())
    pixels = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    learner.method.eval()
    routes = learner.method.encode_images(pixels)["route"]
    assert torch.equal(again.eval().encode_images(pixels)["route"], routes)
    if VARIANTS[variant]["kind"] != "ddas":
        alone = torch.cat([again.encode_images(one[None])["route"] for one in pixels])
        assert torch.equal(alone, routes)


def test_reference_pictures_stand_for_no_task(micro_folder: Path, micro_config: Callable[..., Any]) -> None:
    tasks = _tasks(micro_config, 2)
    for variant in ("autoencoder", "gaussian", "published"):
        learner = _learner(micro_folder, VARIANTS[variant])
        learner.reference = Reference(images=tasks[2].train)
        names = [phase.name for phase in learner.plan(tasks[0])]
        assert [n for n in names if n.endswith("reference")][-1] == "selector-calibrate-reference"
        learner.learn(tasks[0])
        assert not any(phase.name.endswith("reference") for phase in learner.plan(tasks[1]))
        selector: Any = learner.method.selector
        assert selector.ready.tolist() == [True, True]
        assert selector.notes["limits"].keys() == {"zero-shot", tasks[0].name}


def test_energy_takes_texts_for_the_zero_shot_route(
    micro_folder: Path, micro_config: Callable[..., Any]
) -> None:
    task = _tasks(micro_config, 2)[0]
    learner = _learner(micro_folder, {"kind": "energy", "vocabulary": ["a dog", "a house"]})
    learner.learn(task)
    selector: Any = learner.method.selector
    assert selector.bank0.shape == (2, 32)
    assert selector.ready.tolist() == [True, True]
    with pytest.raises(ConfigError, match="names none"):
        _learner(micro_folder, {"kind": "energy"}).learn(Task(0, "captions", task.train))


def test_no_evaluation_data_decide_a_threshold(micro_folder: Path, micro_config: Callable[..., Any]) -> None:
    """Held-out pictures are the task's validation data, else a part of its training data that it was not fitted on."""
    task = _tasks(micro_config, 2)[0]
    assert task.val is not None
    learner = _learner(micro_folder, VARIANTS["autoencoder"])
    used = {phase.name: _ids(phase) for phase in learner.plan(task)}
    assert used["selector-calibrate"] == set(task.val.ids)
    assert used["selector"] == set(task.train.ids)
    bare = Task(0, "bare", task.train, None, task.classes)
    used = {phase.name: _ids(phase) for phase in learner.plan(bare)}
    assert used["selector-calibrate"] | used["selector"] == set(task.train.ids)
    assert not used["selector-calibrate"] & used["selector"]


def _ids(phase: Phase) -> set[str]:
    streams: list[Stream] = list(phase.streams.values())
    return {name for stream in streams for source in stream.sources for name in source.table.ids}


def test_a_guard_looks_at_no_phase_of_a_selector(
    micro_folder: Path, micro_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = _tasks(micro_config, 2)[0]
    learner = _learner(micro_folder, VARIANTS["autoencoder"])
    assert task.val is not None
    guard = learner.watch([EvalSet("held", "classification", task.val, classes=task.classes)])
    looks: list[int] = []
    monkeypatch.setattr(guard, "look", lambda method, done, steps: bool(looks.append(done)))
    learner.learn(task)
    assert looks == []


def test_a_selector_trains_alone(micro_folder: Path, micro_config: Callable[..., Any]) -> None:
    """While it trains, nothing else takes a gradient: several processes would wait for it."""
    task = _tasks(micro_config, 2)[0]
    learner = _learner(micro_folder, VARIANTS["autoencoder"])
    seen: list[set[str]] = []
    inner = learner.method.forward

    def forward(batch: Any, progress: Any) -> Any:
        if progress.phase == "selector":
            seen.append({n for n, p in learner.method.named_parameters() if p.requires_grad})
        losses = inner(batch, progress)
        assert losses.keys() == {"selector"}
        assert losses["selector"].requires_grad == (progress.phase == "selector")
        return losses

    learner.method.forward = forward  # type: ignore[method-assign]
    learner.learn(task)
    assert seen
    assert all(n.startswith("selector.networks.1.") for names in seen for n in names)
    assert [n for n, p in learner.method.named_parameters() if p.requires_grad] == [
        "backbone.clip.logit_scale"
    ]


def test_gaussians_know_classes_only_where_a_task_names_them(micro_folder: Path) -> None:
    selector = build("gaussian", load_backbone(str(micro_folder / "model")))
    assert isinstance(selector, Gaussian)
    assert Past().reference is None
    assert not selector.knows_reference(Past())
