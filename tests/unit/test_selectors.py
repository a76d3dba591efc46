"""Selectors: which task a picture belongs to, if any.

Proven here: the autoencoders and their decision are those of the reference (golden numbers, also the rate), their size
is the published one, and the convolutions are torchvision's AlexNet; early features are what a hook before the block
sees; Gaussians and energies agree with loops over classes; decisions per sample depend on no other sample; a picture
beyond a task's own held-out pictures takes the zero-shot route; no test picture is touched; every selector survives
being killed at any step bit for bit, leaves the CLIP alone, and learns twelve tasks, one class, one picture.
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

from everclip.contracts import EvalSet, ParamGroup, Past, Phase, Progress, Reference, StepDecay, Stream, Task
from everclip.data.images import PixelFormat
from everclip.errors import ConfigError
from everclip.learner import Learner
from everclip.methods.selectors.autoencoder import Autoencoder, Network
from everclip.methods.selectors.base import choose, quantiles
from everclip.methods.selectors.build import KINDS, build
from everclip.methods.selectors.energy import Energy
from everclip.methods.selectors.features import Convolution, Embedding, alexnet_convolutions, early_tokens
from everclip.methods.selectors.gaussian import Density, Gaussian
from everclip.methods.selectors.settings import SELECTORS, DdasSettings, EnergySettings, selector_settings
from everclip.models.backbone import load_backbone
from everclip.run import Run
from everclip.scenarios.load import load_scenario
from everclip.training.optim import build_optimiser
from everclip.training.progress import Progress as Shown

GOLDEN = Path(__file__).parent.parent / "golden"
METHOD = f"method={Path(__file__).parent / 'routed.py'}:Routed"
QUICK = {"steps": 3, "reference_steps": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "autoencoder": {"kind": "autoencoder", **QUICK},
    "published": {"kind": "ddas", "weights": "random", "size": 63, **QUICK},
    "gaussian": {"kind": "gaussian"},
    "full covariance": {"kind": "gaussian", "covariance": "shared", "means": "task", "features": "embedding"},
    "energy": {"kind": "energy"},
}


# -- as published ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "ddas.npz"))


def published(golden: dict[str, np.ndarray], **options: Any) -> Autoencoder:
    """A selector that holds the reference's networks."""
    settings = DdasSettings(weights="random", width=6, **options)
    selector = Autoencoder(settings, Embedding(), "selector")
    selector.tasks, selector.reference = [(i, f"task {i}") for i in range(11)], True
    selector._resize()
    selector.limits[:, 2] = 1
    for route in range(12):
        network = selector._add(route - 1, 40, 0)
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


def test_an_autoencoder_has_the_published_size() -> None:
    with torch.device("meta"):
        stack = alexnet_convolutions()
        features = stack(torch.zeros(1, 3, 224, 224)).flatten(1).shape[1]
    assert features == 43264
    assert sum(p.numel() for p in Network(features, 100).parameters()) == 8_696_164


def test_the_rate_falls_as_published(micro_config: Callable[..., Any]) -> None:
    expected = np.load(GOLDEN / "ddas_lr_schedule.npz")
    run = Run(micro_config("classes", METHOD), Shown(quiet=True))
    phase = Phase("selector", {}, optimiser="adam", lr=0.01, schedule=StepDecay(10 * 7, 0.1))
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
    with pytest.raises(ConfigError, match=r"none\.pth is not there.*downloads nothing"):
        build({"kind": "ddas", "weights": str(tmp_path / "none.pth")}, backbone)
    save_file({"features.0.weight": torch.zeros(3)}, tmp_path / "odd.safetensors")
    with pytest.raises(ConfigError, match=r"should be \(64, 3, 11, 11\), found \(3,\)"):
        build({"kind": "ddas", "weights": str(tmp_path / "odd.safetensors")}, backbone)
    with pytest.raises(ConfigError, match="need `weights`"):
        selector_settings("ddas")
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
    assert selector_settings("none") is None
    assert KINDS.keys() == SELECTORS.keys()


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
    selector._keep(1, bank)
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
    assert choose(far, limits, calibrated).tolist() == [1, 2, 0]
    # By bare distance the first task wins all three, and two of them lie beyond its threshold.
    assert choose(far, limits, raw).tolist() == [1, 0, 0]
    assert choose(far, limits, raw.model_copy(update={"threshold": "none"})).tolist() == [1, 1, 1]
    assert choose(far, limits, raw.model_copy(update={"threshold": 2.0})).tolist() == [1, 0, 0]
    nothing = torch.full((2, 4), inf)
    for settings in (calibrated, raw.model_copy(update={"threshold": "none"})):
        assert choose(nothing, limits, settings).tolist() == [0, 0]


def test_a_threshold_holds_its_share_of_the_held_out_pictures() -> None:
    own = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    middle, limit = quantiles(own, 0.9)
    assert float((own <= limit).double().mean()) == pytest.approx(0.9, abs=2e-3)
    assert float((own <= middle).double().mean()) == pytest.approx(0.5, abs=2e-3)
    assert quantiles(torch.tensor([3.0]), 0.99).tolist() == [3.0, 3.0]


# -- in a run -------------------------------------------------------------------------------------------------


def settings_of(selector: dict[str, Any]) -> str:
    """The override that names a selector."""
    listed = ", ".join(f"{key}: {value}" for key, value in selector.items())
    return f"method.selector={{{listed}}}"


@pytest.fixture
def run_of(micro_config: Callable[..., Any]) -> Callable[..., Run]:
    """Return a function that starts a run of the small method with a selector."""

    def make(variant: str, *overrides: str, output: str = "run", kind: str = "classes", **more: Any) -> Run:
        chosen = settings_of({**VARIANTS[variant], **more})
        return Run(micro_config(kind, METHOD, chosen, *overrides, output=output), Shown(quiet=True))

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
        return inner(batch, progress)

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
