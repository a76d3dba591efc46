"""What each task adds to a selector, where it starts from, what it looks at, and which passes it asks for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from everclip.config import TrainingConfig
from everclip.contracts import ParamGroup, Past, Phase, Reference, Task
from everclip.errors import ConfigError
from everclip.methods.selectors.build import build
from everclip.methods.selectors.gaussian import Density, Gaussian
from everclip.models.backbone import load_backbone
from everclip.models.vision_tokens import early_tokens
from everclip.run import Run
from everclip.training.progress import Progress as Shown

METHOD = f"method={Path(__file__).parent / 'routed.py'}:Routed"


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("kind", ["gaussian", "autoencoder", "energy"])
def test_each_task_adds_one_part_and_reference_data_one_before_them(
    kind: str, reference: bool, micro_config: Callable[..., Any]
) -> None:
    run = Run.of(micro_config("classes", METHOD), Shown(quiet=True))
    backbone, tasks = run.learner.method.backbone, run.scenario.tasks
    given = Reference(images=tasks[0].train, texts=("a dog", "a house", "a tree")) if reference else None
    past = Past(training=TrainingConfig(steps=1, batch_size=8), reference=given, seed=5)
    selector = build(kind, backbone)
    assert selector is not None
    for number, task in enumerate(tasks[:3], 1):
        selector.begin_task(backbone, task, past)
        shape = selector.shape()
        routes = set(shape["networks"] if kind == "autoencoder" else shape)
        assert routes == {str(route) for route in range(0 if reference else 1, number + 1)}
        selector.begin_task(backbone, task, past)  # a task that has begun adds nothing
        assert selector.shape() == shape
    assert selector.limits.shape == (4, 3)
    # A vocabulary has no pictures to be calibrated by: it can win at once.
    assert selector.ready.tolist() == [kind == "energy" and reference, False, False, False]
    again = build(kind, backbone)
    assert again is not None
    again.grow(json.loads(json.dumps(selector.structure())))
    again.load_state_dict(selector.state_dict())
    assert again.structure() == selector.structure()
    assert again.growth() == selector.growth() > 0
    assert sum(t.numel() for t in again.stored()) == sum(t.numel() for t in selector.stored())


def test_networks_start_from_the_seed_and_their_place(micro_config: Callable[..., Any]) -> None:
    run = Run.of(micro_config("classes", METHOD), Shown(quiet=True))
    starts = []
    for seed in (0, 1):
        selector = build("autoencoder", run.learner.method.backbone)
        assert selector is not None
        for task in run.scenario.tasks[:2]:
            selector.begin_task(run.learner.method.backbone, task, Past(seed=seed))
        starts += [float(selector.get_parameter(f"networks.{n}.encode.weight")[0, 0]) for n in (1, 2)]
        assert not any(parameter.requires_grad for parameter in selector.parameters())
    assert len(set(starts)) == 4


def test_a_selector_looks_where_its_method_adapts_first(micro_folder: Path) -> None:
    backbone = load_backbone(str(micro_folder / "model"))
    for block in (0, 1):
        selector = build("gaussian", backbone, block, "deciding")
        assert selector is not None
        assert (selector.early, selector.prefix) == (block, "deciding")
        pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        early = selector.features_of(early_tokens(backbone.clip, pixels, block))
        assert torch.allclose(early, selector.features(backbone, pixels), atol=1e-6)
    default = build("gaussian", backbone)
    assert default is not None
    assert (default.early, default.prefix) == (0, "selector")
    other = build({"kind": "gaussian", "features": "embedding"}, backbone, 1)
    assert other is not None
    assert other.early is None
    assert build("none", backbone) is build(None, backbone) is None


def facts(phase: Phase) -> tuple[Any, ...]:
    """What a phase says, but for its pictures and parameters."""
    ((stream_name, stream),) = phase.streams.items()
    assert stream_name == "selector"
    assert (phase.epochs, phase.stretch, phase.repeats, phase.notes) == (None, 1.0, 1, ())
    shown = (
        stream.view,
        stream.order,
        stream.columns,
        None if stream.classes is None else len(stream.classes),
    )
    return (phase.name, phase.optimiser, stream.batch_size, shown, phase.guarded, phase.chooses)


ONCE = ("eval", "once", ("image",), None)
TRAIN = ("train", "shuffle", ("image",), None)


@pytest.mark.parametrize("size", [7, None])
def test_which_passes_a_selector_asks_for(size: int | None, micro_config: Callable[..., Any]) -> None:
    run = Run.of(micro_config("classes", METHOD, "scenario.per_task=2"), Shown(quiet=True))
    backbone, tasks = run.learner.method.backbone, run.scenario.tasks
    first = tasks[0]
    batch = 64 if size is None else size
    training = None if size is None else TrainingConfig(steps=1, batch_size=size)
    bare = Task(0, "bare", first.train, None, first.classes)
    reference = Reference(images=tasks[1].train)
    labelled = ("eval", "once", ("image", "label"), 2)
    for chosen, wanted in (
        ({"kind": "autoencoder"}, [("-scale", None, ONCE), ("", "adam", TRAIN)]),
        ({"kind": "autoencoder", "standardise": False}, [("", "adam", TRAIN)]),
        ({"kind": "gaussian"}, [("", None, labelled)]),
        ({"kind": "gaussian", "means": "task"}, [("", None, ONCE)]),
        ({"kind": "energy"}, []),
    ):
        selector = build(chosen, backbone, prefix="deciding")
        assert selector is not None
        own = [(f"selector{end}", kind, batch, shown, kind is None, False) for end, kind, shown in wanted]
        last = ("selector-calibrate", None, batch, ONCE, True, True)
        found = selector.phases(first, Past(training=training))
        assert [facts(phase) for phase in found] == [*own, last]
        for phase in found:
            (stream,) = phase.streams.values()
            (source,) = stream.sources
            assert source.table.ids == (first.val if phase.chooses else first.train).ids  # type: ignore[union-attr]
            if phase.optimiser is not None:
                (group,) = phase.param_groups
                assert group == ParamGroup(
                    tuple(
                        f"deciding.networks.1.{n}.{of}"
                        for n in ("encode", "decode")
                        for of in ("weight", "bias")
                    ),
                    weight_decay=1e-4,
                )
        # Without validation data a share of the pictures is held out; reference pictures come before the first task.
        parts = [
            phase.streams["selector"].sources[0].table
            for phase in selector.phases(bare, Past(training=training))
        ]
        assert sorted([*parts[0].ids, *parts[-1].ids]) == sorted(first.train.ids) or not own
        assert 0 < len(parts[-1]) < len(first.train)
        before = selector.phases(bare, Past(training=training, reference=reference))
        names = [phase.name for phase in before]
        ends = [f"selector{end}" for end, _, _ in wanted]
        if not wanted:
            assert names == ["selector-calibrate"]
            continue
        task = [name for name in ends if not name.endswith("-scale")]
        assert names == [
            *(f"{n}-reference" for n in (*ends, "selector-calibrate")),
            *task,
            "selector-calibrate",
        ]
        held = {
            name: phase.streams["selector"].sources[0].table.ids
            for name, phase in zip(names, before, strict=True)
        }
        shown = [*held["selector-reference"], *held["selector-calibrate-reference"]]
        assert sorted(shown) == sorted(tasks[1].train.ids)
        selector.begin_task(backbone, first, Past(training=training))
        selector.begin_task(backbone, tasks[1], Past(training=training))
        later = [
            phase.name for phase in selector.phases(tasks[1], Past(training=training, reference=reference))
        ]
        assert later == [*task, "selector-calibrate"]


@pytest.mark.parametrize("covariance", ["shared", "diagonal"])
@pytest.mark.parametrize("means", ["task", "class"])
def test_a_density_has_the_means_and_the_covariance_that_were_asked_for(
    means: str, covariance: str, micro_config: Callable[..., Any]
) -> None:
    run = Run.of(micro_config("classes", METHOD, "scenario.per_task=2"), Shown(quiet=True))
    backbone, task = run.learner.method.backbone, run.scenario.tasks[0]
    chosen = {"kind": "gaussian", "covariance": covariance, "means": means, "features": "embedding"}
    selector = build(chosen, backbone)
    assert isinstance(selector, Gaussian)
    selector.begin_task(backbone, task, Past())
    density = selector.densities["1"]
    assert isinstance(density, Density)
    assert density.full == (covariance == "shared")
    assert density.means.shape == (2 if means == "class" else 1, 32)
    assert density.square.shape == density.whitening.shape == ((32, 32) if covariance == "shared" else (32,))
    assert density.count.dtype == density.total.dtype == density.square.dtype == torch.float64
    nameless = Task(9, "captions", task.train)
    selector.begin_task(backbone, nameless, Past())
    assert selector.shape()["2"] == {"classes": 1, "features": 32, "gathering": True}


@pytest.mark.parametrize("kind", ["gaussian", "autoencoder", "energy"])
def test_growth_is_what_the_last_task_left(kind: str, micro_config: Callable[..., Any]) -> None:
    run = Run.of(micro_config("classes", METHOD, "scenario.per_task=2"), Shown(quiet=True))
    selector = build(kind, run.learner.method.backbone)
    assert selector is not None
    sizes = []
    for task in run.scenario.tasks[:3]:
        selector.begin_task(run.learner.method.backbone, task, Past())
        sizes.append(sum(tensor.numel() for tensor in selector.state_dict().values()))
    found = selector.growth()
    assert isinstance(found, int)
    assert found == sizes[2] - sizes[1] - 3  # three limits of the route


@pytest.mark.parametrize("full", [True, False])
def test_distances_keep_their_digits_far_from_the_origin(full: bool) -> None:
    """As many classes and pictures as let a product of matrices stand for differences, which would round."""
    draw = torch.Generator().manual_seed(0)
    means = 1000 + torch.randn(30, 6, generator=draw)
    labels = torch.arange(30).repeat_interleave(4)
    values = means[labels] + 0.01 * torch.randn(120, 6, generator=draw)
    density = Density(30, 6, full)
    density.add(values, labels)
    density.solve(0.1)
    asked = values[::3] + 0.01
    wide = Density(30, 6, full).double()
    wide.load_state_dict(
        {k: v for k, v in density.state_dict().items() if k not in ("count", "total", "square")}, strict=False
    )
    white = asked.double() @ wide.whitening.T if full else asked.double() * wide.whitening
    centres = wide.means @ wide.whitening.T if full else wide.means * wide.whitening
    nearest = (white[:, None] - centres[None]).square().sum(dim=2).amin(dim=1)
    expected = (nearest + wide.volume) / 12
    assert torch.allclose(density.distance(asked).double(), expected, atol=0.05)


@pytest.mark.parametrize("features", ["early", "embedding"])
def test_a_batch_without_pictures_has_no_features(features: str, micro_folder: Path) -> None:
    backbone = load_backbone(str(micro_folder / "model"))
    selector = build({"kind": "gaussian", "features": features}, backbone)
    assert selector is not None
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    some, none = selector.features(backbone, pixels), selector.features(backbone, pixels[:0])
    assert some.dtype == none.dtype == torch.float32
    assert none.shape == (0, some.shape[1])


@pytest.mark.parametrize("full", [True, False])
def test_a_class_of_one_picture_has_that_picture_for_a_mean(full: bool) -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 5.0], [5.0, 1.0]])
    density = Density(3, 2, full)
    density.add(values, torch.tensor([0, 2, 2]))
    density.solve(0.1)
    assert density.present.tolist() == [1, 0, 1]
    assert torch.equal(density.means, torch.tensor([[1.0, 2.0], [0.0, 0.0], [4.0, 3.0]]))


def test_a_covariance_that_no_shrinkage_mends_is_told_in_words() -> None:
    density = Density(1, 32, full=True)
    density.add(
        torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(4, dtype=torch.int64)
    )
    with pytest.raises(ConfigError, match=r"method\.selector\.shrinkage: 1e-18 .* 32 features from 4 images"):
        density.solve(1e-18)
