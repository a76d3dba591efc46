"""Selectors by themselves: which task a picture belongs to, if any.

Proven here: the autoencoders and their decision are those of the reference (golden numbers, also the rate), their size
is the published one, and the convolutions are torchvision's AlexNet; early features are what a hook before the block
sees; Gaussians and energies agree with loops over classes; decisions per sample depend on no other sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import module_models
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from everclip.config import TrainingConfig
from everclip.contracts import ParamGroup, Past, Phase, Progress, Task
from everclip.data.pictures.images import PixelFormat
from everclip.errors import ConfigError
from everclip.methods.selectors import gaussian
from everclip.methods.selectors.autoencoder import Autoencoder, Network
from everclip.methods.selectors.base import choose_route, quantiles, route_names
from everclip.methods.selectors.build import KINDS, build
from everclip.methods.selectors.energy import Energy
from everclip.methods.selectors.features import Convolution, Embedding, alexnet_convolutions
from everclip.methods.selectors.gaussian import Density
from everclip.methods.selectors.settings import SELECTORS, DdasSettings, EnergySettings, selector_settings
from everclip.models.backbone import load_backbone
from everclip.models.vision_tokens import early_tokens
from everclip.run import Run
from everclip.training.optim import build_optimiser
from everclip.training.progress import Progress as Shown

GOLDEN = Path(__file__).parent.parent / "golden"
METHOD = f"method={Path(__file__).parent / 'routed.py'}:Routed"


# -- as published ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "ddas.npz"))


def published(golden: dict[str, np.ndarray], **options: Any) -> Autoencoder:
    """A selector that holds the reference's networks."""
    settings = DdasSettings(weights="random", width=6, **options)
    selector = Autoencoder(settings, Embedding(), "selector")
    sizes = {str(route): 40 for route in range(12)}
    parts = {"networks": sizes, "scale": len(selector.mean), "gathering": selector.total.shape[1]}
    tasks = [[i, f"task {i}"] for i in range(11)]
    selector.grow({"tasks": tasks, "reference": True, "held": 0, "parts": parts, "notes": {}})
    selector.limits[:, 2] = 1
    for route in range(12):
        network: Any = selector.networks[str(route)]
        for layer, name in ((network.encode, "enc"), (network.decode, "dec")):
            layer.weight.data = torch.from_numpy(golden[f"{name}_w"][route])
            layer.bias.data = torch.from_numpy(golden[f"{name}_b"][route])
    return selector


def test_distances_and_decisions_are_those_of_the_reference(golden: dict[str, np.ndarray]) -> None:
    selector = published(golden, threshold=float(golden["threshold"]))
    for number, features in enumerate(torch.from_numpy(golden["features_raw"])):
        far = selector.distances(features)
        assert np.allclose(far, golden["per_sample_losses"][number], atol=1e-6)
        assert np.allclose(far.mean(dim=0), golden["batch_losses"][number], atol=1e-6)
        assert selector.decide(features).tolist() == [int(golden["chosen_task"][number]) + 1] * 16
    low = published(golden, threshold=float(golden["low_threshold"]))
    assert all(not low.decide(f).any() for f in torch.from_numpy(golden["features_raw"]))


def test_a_decision_per_sample_splits_the_batch_that_the_reference_misroutes(
    golden: dict[str, np.ndarray],
) -> None:
    selector = published(golden, threshold=float(golden["threshold"]), decision="sample")
    features = torch.from_numpy(golden["features_raw"][3])
    assert selector.decide(features).tolist() == [7] * 9 + [5] * 7
    assert selector.batch_dependent is None
    reason = published(golden).batch_dependent
    assert reason is not None
    assert "decision=batch" in reason
    # One picture alone takes the route that it takes among others.
    assert [int(selector.decide(one[None])) for one in features] == [7] * 9 + [5] * 7
    shuffled = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(published(golden).decide(features[shuffled]), published(golden).decide(features))


def test_a_batch_that_decides_together_has_its_own_size(golden: dict[str, np.ndarray]) -> None:
    threshold = float(golden["threshold"])
    together = torch.from_numpy(golden["features_raw"])  # batches of 16, each of one task
    assert published(golden).settings.decision_batch == 128
    whole = published(golden, threshold=threshold, decision_batch=16)
    assert torch.equal(whole.decide(together.flatten(0, 1)), torch.cat([whole.decide(f) for f in together]))
    # A last batch may be smaller, one picture decides alone, and none is no error.
    alone = published(golden, threshold=threshold, decision_batch=1)
    sample = published(golden, threshold=threshold, decision="sample")
    assert torch.equal(alone.decide(together[3]), sample.decide(together[3]))
    assert len(whole.decide(together[3, :7])) == 7
    assert len(published(golden, decision_batch=None).decide(together[3, :0])) == 0


def test_an_autoencoder_has_the_published_size() -> None:
    with torch.device("meta"):
        stack = alexnet_convolutions()
        features = stack(torch.zeros(1, 3, 224, 224)).flatten(1).shape[1]
    assert features == 43264
    assert sum(p.numel() for p in Network(features, 100).parameters()) == 8_696_164


def test_the_rate_falls_as_published(micro_config: Callable[..., Any]) -> None:
    expected = np.load(GOLDEN / "ddas_lr_schedule.npz")
    run = Run.of(micro_config("classes", METHOD), Shown(quiet=True))
    # 49 pictures in batches of 8 are 7 steps an epoch, the last one not full.
    pictures = run.scenario.tasks[0].train.select([i % 5 for i in range(49)])
    task, past = Task(0, "first", pictures), Past(training=TrainingConfig(steps=1, batch_size=8))
    selector = build({"kind": "ddas", "weights": "random", "size": 63}, run.learner.method.backbone)
    assert isinstance(selector, Autoencoder)
    (phase,) = selector.fitting(task, task.train, 0, past)
    assert (phase.name, phase.optimiser, phase.steps, phase.lr) == ("selector", "adam", 300, 0.01)
    (stream,) = phase.streams.values()
    assert [source.table for source in stream.sources] == [pictures]
    assert (stream.batch_size, stream.view, stream.order, stream.columns) == (
        8,
        "train",
        "shuffle",
        ("image",),
    )
    (reference,) = selector.fitting(None, task.train, -1, past)
    assert reference.name == "selector-reference"
    assert (reference.optimiser, reference.steps, reference.schedule) == ("adam", 1000, phase.schedule)
    for epoch, rate in zip(expected["epoch"], expected["lr"], strict=True):
        for step in (7 * int(epoch), 7 * int(epoch) + 6):
            found = run.learner.engine.rate(phase, Progress(0, "selector", 0, step, 300, 0))
            assert found == pytest.approx(float(rate), rel=1e-9)


def test_adam_couples_its_decay(micro_config: Callable[..., Any]) -> None:
    module = torch.nn.Linear(3, 2)
    phase = Phase("p", {}, (ParamGroup(("weight", "bias"), weight_decay=0.1),), optimiser="adam", lr=0.01)
    ours = build_optimiser(module, phase, micro_config("classes").training)
    assert type(ours) is torch.optim.Adam  # AdamW is a subclass, and decouples
    assert ours.param_groups[0]["weight_decay"] == 0.1


# -- features -------------------------------------------------------------------------------------------------


def test_convolutions_are_those_of_torchvision(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    theirs = torchvision.models.alexnet(weights=None).eval()
    ours = {k: v for k, v in theirs.state_dict().items() if k.startswith("features.")}
    torch.save(theirs.state_dict(), tmp_path / "alexnet.pth")
    save_file(ours, tmp_path / "alexnet.safetensors")
    given_by = PixelFormat(224, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for file in ("alexnet.pth", "alexnet.safetensors"):
        for normalisation in ("clip", "imagenet"):
            stack = Convolution(tmp_path / file, given_by, normalisation, 224)
            given = pixels
            if normalisation == "imagenet":
                mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (given_by.mean, given_by.std))
                picture = pixels * std + mean
                given = torch.stack([_normalised(one, torchvision) for one in picture])
            with torch.no_grad():
                expected = theirs.features[:11](given).flatten(1)
                assert torch.allclose(stack(None, pixels), expected, atol=1e-4)
    assert not any(p.requires_grad for p in stack.parameters())


def _normalised(picture: torch.Tensor, torchvision: Any) -> torch.Tensor:
    found: torch.Tensor = torchvision.transforms.functional.normalize(
        picture, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    return found


def test_weights_that_are_not_there_or_others_are_refused(tmp_path: Path, micro_folder: Path) -> None:
    backbone = load_backbone(str(micro_folder / "model"))
    with pytest.raises(ConfigError, match=r"none\.pth does not exist.*downloads nothing"):
        build({"kind": "ddas", "weights": str(tmp_path / "none.pth")}, backbone)
    save_file({"features.0.weight": torch.zeros(3)}, tmp_path / "odd.safetensors")
    with pytest.raises(ConfigError, match=r"should be \(64, 3, 11, 11\), found \(3,\)"):
        build({"kind": "ddas", "weights": str(tmp_path / "odd.safetensors")}, backbone)
    with pytest.raises(ConfigError, match="need `weights`"):
        selector_settings("ddas")
    with pytest.raises(ConfigError, match="leave out `weights`"):
        build({"kind": "autoencoder", "weights": "random"}, backbone)
    random = build({"kind": "ddas", "weights": "random"}, backbone)
    assert random is not None
    assert "random" in random.notes["weights"]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("block", [0, 1])
def test_early_tokens_are_what_enters_the_block(batch_first: bool, block: int) -> None:
    model = module_models.build("vit", batch_first)
    pixels, _ = module_models.inputs(model)
    seen = []
    model.visual.transformer.resblocks[block].register_forward_pre_hook(
        lambda module, given: seen.append(given[0])
    )
    with torch.no_grad():
        model.encode_image(pixels)
        entered = seen[0] if batch_first else seen[0].transpose(0, 1)
        assert torch.allclose(early_tokens(model, pixels, block), entered, atol=1e-6)


def test_other_towers_are_refused_with_what_fits() -> None:
    class Backbone:
        clip = module_models.build("resnet")

    with pytest.raises(ConfigError, match=r"ModifiedResNet.*Choose `embedding` or `convolution`"):
        build("gaussian", Backbone())  # type: ignore[arg-type]


def test_unknown_selectors_and_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="gaussian"):
        selector_settings("gausian")
    with pytest.raises(ConfigError, match=r"method\.selector\.shrinkage"):
        selector_settings({"kind": "gaussian", "shrinkage": 2})
    for name in ("lr", "weight_decay"):
        with pytest.raises(ConfigError, match=rf"method\.selector\.{name}: .* finite"):
            selector_settings({"kind": "autoencoder", name: math.inf})
    assert selector_settings("none") is None
    assert KINDS.keys() == SELECTORS.keys()


def test_a_full_covariance_of_too_many_features_is_refused_before_anything_is_allocated(
    micro_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(str(micro_folder / "model"))
    wide = {"kind": "gaussian", "pool": "tokens"}
    monkeypatch.setattr(gaussian, "WIDEST", 100)
    assert build(wide, backbone) is not None
    with pytest.raises(
        ConfigError, match=r"`shared` is a matrix of 160 x 160 for each task.*Choose `diagonal`"
    ):
        build({**wide, "covariance": "shared"}, backbone)


def test_every_route_has_a_name_of_its_own() -> None:
    assert route_names(["a", "b"]) == ("zero-shot", "a", "b")
    found = route_names(["zero-shot", "a", "a", "a (task 3)", "a"])
    assert found[:4] == ("zero-shot", "zero-shot (task 1)", "a", "a (task 3)")
    assert len(set(found)) == 6


# -- closed forms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [True, False])
def test_densities_agree_with_a_loop_in_any_order(full: bool) -> None:
    draw = np.random.default_rng(0)
    means = draw.normal(size=(3, 5)) * 3 + 20  # far from the origin
    labels = np.array([0, 0, 0, 0, 2, 2, 2, 2, 2, 2])  # class 1 has no picture
    values = means[labels] + draw.normal(size=(10, 5))
    within = np.zeros((5, 5))
    for c in (0, 2):
        apart = values[labels == c] - values[labels == c].mean(0)
        within += apart.T @ apart
    within /= 10 - 2
    within = within if full else np.diag(np.diag(within))
    covariance = 0.8 * within + 0.2 * np.trace(within) / 5 * np.eye(5)
    query = draw.normal(size=(4, 5)) * 5 + 20
    expected = []
    for x in query:
        far = [d @ np.linalg.solve(covariance, d) for c in (0, 2) for d in [x - values[labels == c].mean(0)]]
        expected.append((min(far) + np.linalg.slogdet(covariance)[1]) / 10)
    for order in (np.arange(10), draw.permutation(10)):
        density = Density(3, 5, full)
        for part in np.array_split(order, 4):
            density.add(torch.from_numpy(values[part]).float(), torch.from_numpy(labels[part]))
        density.solve(0.2)
        found = density.distance(torch.from_numpy(query).float())
        assert np.allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("full", [True, False])
def test_a_density_of_one_picture_is_finite(full: bool) -> None:
    density = Density(1, 4, full)
    density.add(torch.full((1, 4), 2.0), torch.zeros(1, dtype=torch.int64))
    density.solve(0.1)
    near, far = density.distance(torch.stack([torch.full((4,), 2.0), torch.full((4,), 3.0)]))
    assert float(near) < float(far) < math.inf


@pytest.mark.parametrize("count", ["mean", "sum"])
def test_energies_agree_with_a_loop(count: str) -> None:
    draw = torch.Generator().manual_seed(0)
    bank, images = (torch.nn.functional.normalize(torch.randn(n, 8, generator=draw), dim=1) for n in (5, 3))
    selector = Energy(EnergySettings(count=count), Embedding())  # type: ignore[arg-type]
    selector.reshape({"1": list(bank.shape)})
    selector.get_buffer("bank1").copy_(bank)
    selector.scale.fill_(20)
    for image, found in zip(images, selector.measure_one(images, 0), strict=True):
        total = sum(math.exp(20 * float(image @ text)) for text in bank)
        energy = math.log(total / 5 if count == "mean" else total) / 20
        assert float(found) == pytest.approx(-energy, rel=1e-4)
        cosines = [float(image @ text) for text in bank]
        if count == "mean":
            assert np.mean(cosines) <= -float(found) <= max(cosines)


def test_what_is_too_far_from_every_task_takes_the_zero_shot_route() -> None:
    inf = math.inf
    limits = torch.tensor([[0.0, 0.0], [1.0, 2.0], [10.0, 14.0], [0.0, 0.0]])
    far = torch.tensor([[inf, 1.9, 30.0, inf], [inf, 2.1, 13.0, inf], [inf, 2.1, 14.1, inf]])
    raw = selector_settings("gaussian")
    assert raw is not None
    calibrated = raw.model_copy(update={"compare": "calibrated"})
    assert choose_route(far, limits, calibrated).tolist() == [1, 2, 0]
    # By bare distance the first task wins all three, and two of them lie beyond its threshold.
    assert choose_route(far, limits, raw).tolist() == [1, 0, 0]
    assert choose_route(far, limits, raw.model_copy(update={"threshold": "none"})).tolist() == [1, 1, 1]
    assert choose_route(far, limits, raw.model_copy(update={"threshold": 2.0})).tolist() == [1, 0, 0]
    nothing = torch.full((2, 4), inf)
    for settings in (calibrated, raw.model_copy(update={"threshold": "none"})):
        assert choose_route(nothing, limits, settings).tolist() == [0, 0]


def test_a_threshold_holds_its_share_of_the_held_out_pictures() -> None:
    own = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    middle, limit = quantiles(own, 0.9)
    assert float((own <= limit).double().mean()) == pytest.approx(0.9, abs=2e-3)
    assert float((own <= middle).double().mean()) == pytest.approx(0.5, abs=2e-3)
    assert quantiles(torch.tensor([3.0]), 0.99).tolist() == [3.0, 3.0]


def test_a_spread_has_a_floor_in_the_size_of_the_distances() -> None:
    # Middle 0 and threshold 0: the spread is the floor, 1e-6. Middle 3: the floor is 4e-6.
    settings = selector_settings({"kind": "gaussian", "threshold": "none", "compare": "calibrated"})
    assert settings is not None
    limits = torch.tensor([[0.0, 0.0], [0.0, 1.5e-6], [3.0, 3.0]], dtype=torch.float64)
    far = torch.tensor([[1.0e-6, 1.2e-6, torch.inf], [1.0e-6, 1.8e-6, torch.inf]], dtype=torch.float64)
    assert choose_route(far, limits, settings).tolist() == [1, 0]
    far = torch.tensor([[0.9e-6, torch.inf, 3 + 4e-6], [1.1e-6, torch.inf, 3 + 4e-6]], dtype=torch.float64)
    assert choose_route(far, limits, settings).tolist() == [0, 2]


@pytest.mark.parametrize("after", ["nothing", "the pass", "the end of the pass"])
def test_an_autoencoder_is_rebuilt_with_the_sizes_that_it_had(
    micro_config: Callable[..., Any], after: str
) -> None:
    run = Run.of(micro_config("classes", METHOD), Shown(quiet=True))
    backbone, past = run.learner.method.backbone, Past(training=TrainingConfig(steps=1, batch_size=8))
    chosen = {"kind": "autoencoder", "width": 3}
    selector, again = build(chosen, backbone), build(chosen, backbone)
    assert isinstance(selector, Autoencoder)
    assert again is not None
    for task in run.scenario.tasks[:2]:
        selector.begin_task(backbone, task, past)
    scale, _, _ = selector.phases(run.scenario.tasks[0], past)
    if after != "nothing":
        values = torch.rand(5, selector.networks["1"].encode.in_features)
        assert selector.fit(values, {}, 0, Progress(0, scale.name, 0, 0, 1, 0)) is None
        assert selector.total[0].allclose(values.double().sum(dim=0))
        assert selector.total[1].allclose(values.double().square().sum(dim=0))
        assert float(selector.count) == 5
    if after == "the end of the pass":
        selector.end_phase(scale)
        assert selector.mean.allclose(values.mean(dim=0), atol=1e-6)
        assert selector.std.allclose(values.std(dim=0, correction=0), atol=1e-5)
        assert selector.total.shape[1] == 0
    again.grow(selector.structure())
    found, wanted = again.state_dict(), selector.state_dict()
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in wanted.items()}
    assert {"1", "2"} == set(selector.networks)
    assert again.shape() == selector.shape()
    again.load_state_dict(wanted)
    assert again.structure() == selector.structure()
