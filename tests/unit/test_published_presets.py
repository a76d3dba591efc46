"""Presets with published numbers: what they say on which benchmark, and the rates that come of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everclip import registry
from everclip.config import AugmentConfig, TrainingConfig, resolve_config
from everclip.contracts import Progress
from everclip.learner.fit import learner_for
from everclip.methods.build import method_class
from everclip.scenarios.load import load_scenario
from everclip.training.budget import phase_steps

PUBLISHED_CROP = AugmentConfig(kind="random-resized-crop", crop_min=0.9, ratio=4 / 3)
"""RandomResizedCrop(scale=(0.9, 1)) with torchvision's default shapes, and nothing else."""

GOLDEN = Path(__file__).parent.parent / "golden"
FULL = ("finetune-mtil", "wise-ft-mtil", "lwf-mtil", "lwf-vr-mtil", "icarl-mtil", "zscl-mtil")


def training(benchmark: str, *overrides: str) -> TrainingConfig:
    return resolve_config(benchmark, overrides).training


@pytest.fixture
def begin(micro_config: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function (*overrides) -> (learner, tasks) on the small stream of classes."""

    def make(*overrides: str) -> Any:
        config = micro_config("classes", *overrides)
        scenario = load_scenario(config.scenario)
        return learner_for(config, scenario), scenario.tasks

    return make


# -- MTIL -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FULL)
def test_the_methods_that_train_the_whole_model_train_alike_on_mtil(name: str) -> None:
    config = resolve_config("mtil", [f"method={name}"])
    used = config.training
    assert (used.steps, used.extra_steps, used.batch_size, used.lr) == (1000, 1, 64, 1e-5)
    assert (used.warmup, used.weight_decay, used.betas, used.clip_norm) == (100, 0, (0.9, 0.999), None)
    assert (used.augment, used.precision) == (PUBLISHED_CROP, "fp32")
    settings = config.method.settings
    assert settings["per_task"] == {"Aircraft": {"lr": 5e-5}, "MNIST": {"lr": 5e-5}}
    assert (settings["trainable"], settings["label_smoothing"]) == (["image", "text"], 0.2)


def test_wise_ft_keeps_a_fifth_of_the_weights_before_the_task(begin: Callable[..., Any]) -> None:
    learner, tasks = begin(
        "method=wise-ft-mtil", "training.steps=3", "training.batch_size=8", "training.lr=1e-2"
    )
    method = learner.method
    for task in tasks[:2]:
        before, kept = method.weights(), []
        method.on_step = lambda progress, kept=kept: kept.append(method.weights())
        learner.learn(task)
        trained = kept[-1]
        for name, merged in method.weights().items():
            assert merged.allclose(0.2 * before[name] + 0.8 * trained[name], atol=1e-7), name
        assert any(not trained[name].equal(before[name]) for name in trained)
        assert method.notes["merge"] == {"alpha": 0.8}
    assert not any("logit_scale" in name for name in method.trainable)


def test_plain_fine_tuning_merges_nothing_and_has_no_penalty(begin: Callable[..., Any]) -> None:
    learner, _ = begin("method=finetune-mtil")
    assert (learner.method.settings.merge.kind, learner.method.penalties) == ("none", ())


AIRCRAFT_TO_SUN = (
    "Aircraft",
    "Caltech101",
    "CIFAR100",
    "DTD",
    "EuroSAT",
    "Flowers",
    "Food",
    "MNIST",
    "OxfordPet",
)
AIRCRAFT_TO_SUN += ("StanfordCars", "SUN397")
EXPERT_RATES = {
    "moe-adapters-mtil": (5e-3, 1e-3, 5e-3, 1e-3, 1e-4, 1e-3, 1e-3, 1e-4, 1e-3, 1e-3, 1e-3),
    "moe-adapters-mtil-fewshot": (8e-3, 5e-4, 2e-4, 5e-3, 1e-3, 1e-3, 1e-2, 1e-4, 1e-2, 1e-2, 1e-2),
}
PROMPT_EPOCHS = (20, 10, 2, 35, 3, 63, 1, 2, 18, 8, 1)


def complete(benchmark: str, name: str, *overrides: str) -> tuple[Any, TrainingConfig]:
    """Return all settings of a method, defaults and all, and its training on a benchmark."""
    config = resolve_config(benchmark, [f"method={name}", *overrides])
    return method_class(name).Settings(**config.method.settings), config.training


@pytest.mark.parametrize(("name", "steps"), [("moe-adapters-mtil", 1000), ("moe-adapters-mtil-fewshot", 500)])
@pytest.mark.parametrize("order", ["I", "II"])
def test_experts_on_mtil_are_the_published_ones(name: str, steps: int, order: str) -> None:
    settings, used = complete("mtil", name, f"scenario.order={order}")
    experts = settings.experts
    assert (experts.count, experts.active, experts.width, experts.scale, experts.dropout) == (
        22,
        2,
        64,
        0.1,
        0.1,
    )
    assert (experts.tower, experts.blocks, experts.activation) == ("both", "all", "relu")
    assert (experts.input, experts.noise) == ("raw", True)
    assert (settings.routers, settings.freeze, settings.grow, settings.balance) == ("per-task", 2, False, 0)
    assert (settings.trainable, settings.label_smoothing) == ((), 0.2)
    # Iterations 0 to 1,000 (500), of which the schedule spans all but the last.
    assert (used.steps, used.extra_steps, used.batch_size, used.warmup) == (steps, 1, 64, 100)
    assert (used.optimiser, used.betas, used.weight_decay, used.eps) == ("adamw", (0.9, 0.999), 0, 1e-8)
    assert (used.schedule, used.clip_norm) == ("cosine", None)
    # Five pictures of a class are cropped once and stay so.
    crop = PUBLISHED_CROP.model_copy(update={"fixed": name.endswith("fewshot")})
    assert (used.augment, used.precision) == (crop, "fp32")
    assert {k: (v.lr, v.epochs, v.steps) for k, v in settings.per_task.items()} == {
        task: (rate, None, None) for task, rate in zip(AIRCRAFT_TO_SUN, EXPERT_RATES[name], strict=True)
    }


@pytest.mark.parametrize(
    ("name", "own", "rate", "threshold", "decay"),
    [
        ("moe-adapters-mtil", "", 0.01, 0.0655, 10),
        ("moe-adapters-mtil-fewshot", ", threshold: 0.06, lr: 0.003, decay_epochs: 1000", 0.003, 0.06, 1000),
    ],
)
def test_ddas_as_the_presets_name_it_is_the_published_selector(
    name: str, own: str, rate: float, threshold: float, decay: int
) -> None:
    text = (Path(registry.__file__).parent / "methods" / f"{name}.yaml").read_text()
    named = f"method.selector={{kind: ddas, weights: FILE{own}}}"
    assert named in text
    selecting = complete("mtil", name, named)[0].selecting
    assert (selecting.lr, selecting.threshold) == (rate, threshold)
    assert (selecting.weight_decay, selecting.decay, selecting.decay_epochs) == (1e-4, 0.1, decay)
    assert (selecting.width, selecting.features, selecting.standardise) == (100, "convolution", False)
    assert (selecting.decision, selecting.compare, selecting.normalisation) == ("batch", "raw", "clip")
    assert selecting.decision_batch == 128
    assert (selecting.steps, selecting.reference_steps) == (300, 1000)


@pytest.mark.parametrize("benchmark", ["mtil", "odcl-til", "odcl-cil"])
@pytest.mark.parametrize("order", ["I", "II"])
def test_coleclip_on_mtil_is_the_published_one(benchmark: str, order: str) -> None:
    settings, used = complete(benchmark, "coleclip-mtil", f"scenario.order={order}")
    assert (settings.prompts, settings.momentum, settings.weight) == (1, 0.1, 1)
    assert (settings.stage_two, settings.quantile) == (0.5, 0.7)
    assert (settings.templates.training, settings.templates.vocabulary) == ("first", "all")
    lora = settings.lora
    assert (lora.tower, lora.targets, lora.rank) == ("text", ("k", "v"), 5)
    assert (lora.blocks, lora.learned_scale) == ("all", True)
    assert (used.batch_size, used.lr, used.schedule, used.warmup) == (128, 1e-3, "constant", 0)
    # Adam: without weight decay AdamW is the same.
    assert (used.optimiser, used.betas, used.weight_decay, used.eps) == ("adamw", (0.9, 0.999), 0, 1e-8)
    assert (used.clip_norm, used.extra_steps) == (None, 0)
    assert (used.augment, used.precision) == (PUBLISHED_CROP, "fp32")
    assert {k: (v.epochs, v.lr, v.steps) for k, v in settings.per_task.items()} == {
        task: (epochs, None, None) for task, epochs in zip(AIRCRAFT_TO_SUN, PROMPT_EPOCHS, strict=True)
    }


@pytest.mark.parametrize("name", ["rail-primal-published", "rail-dual"])
def test_rail_on_x_tail_is_the_published_one(name: str) -> None:
    settings, used = complete("x-tail", name)
    assert (settings.fusion, settings.augmented, settings.passes) == (0.8, True, 1)
    assert used.batch_size == 128
    assert used.augment == PUBLISHED_CROP
    if name == "rail-dual":
        assert (settings.form, settings.gamma, settings.penalty(0)) == ("dual", 0.1, 0.001)
        assert settings.limit >= 16 * 1100
    else:
        assert (settings.form, settings.update, settings.expansion) == ("primal", "recursive", "relu")
        assert (settings.dimension, settings.width(17_600, 512)) == (15_000, 15_000)
        assert settings.penalty(15_000) == 0.1


# -- class-incremental ----------------------------------------------------------------------------------------

ZSCL, MOE = "method=zscl-cil", "method=moe-adapters-cil"


@pytest.mark.parametrize(
    ("benchmark", "method", "batch_size", "lr"),
    [
        ("cifar100-b0-10", ZSCL, 64, 7.1e-6),
        ("cifar100-b0-50", ZSCL, 64, 7.1e-6),
        ("tinyimagenet-b100-5", ZSCL, 64, 7.1e-6),
        ("imagenet100-b0-10", ZSCL, 128, 7e-6),
        ("imagenet100-b50-10", ZSCL, 128, 7e-6),
        ("imagenet1k-b0-10", ZSCL, 128, 7.1e-6),
        ("cifar100-b0-10", MOE, 128, 1e-3),
        ("cifar100-b0-20", MOE, 128, 1e-3),
        ("cifar100-b0-50", MOE, 64, 1e-3),
        ("tinyimagenet-b100-20", MOE, 64, 1e-3),
        ("imagenet100-b0-10", MOE, 128, 1e-3),  # nothing is published: the benchmark's own
    ],
)
def test_batch_and_rate_are_those_of_the_benchmark(
    benchmark: str, method: str, batch_size: int, lr: float
) -> None:
    used = training(benchmark, method)
    assert (used.batch_size, used.lr) == (batch_size, lr)
    assert (used.epochs, used.extra_steps, used.warmup, used.weight_decay) == (1, 1, 30, 0)
    assert (used.augment, used.precision) == (PUBLISHED_CROP, "fp32")


def test_what_the_user_says_counts_more() -> None:
    assert training("cifar100-b0-10", MOE, "training.batch_size=32").batch_size == 32
    assert training("imagenet100-b0-10@1", ZSCL, "training.lr=1e-6").lr == 1e-6
    other = training("cifar100-b0-10", MOE, "training.epochs=3")
    assert (other.epochs, other.extra_steps, other.batch_size) == (3, 0, 128)


def test_presets_name_benchmarks_that_exist_and_settings_of_training() -> None:
    found = [(entry, name) for entry in registry.methods().values() for name in entry.per_benchmark]
    assert found
    for entry, name in found:
        assert name in registry.benchmarks(), entry.name
        assert set(entry.per_benchmark[name]) <= set(TrainingConfig.model_fields), entry.name


# -- the step behind the schedule -----------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["mtil", "cil"])
def test_rates_are_those_of_the_reference_to_its_last_step(begin: Callable[..., Any], stream: str) -> None:
    with np.load(GOLDEN / "lr_schedule.npz", allow_pickle=False) as stored:
        expected, warmup = stored[f"{stream}_lr"].tolist(), int(stored[f"{stream}_warmup"])
        base, steps = float(stored[f"{stream}_base"]), int(stored[f"{stream}_steps"])
    budget = () if stream == "mtil" else (f"training.steps={steps}", "training.extra_steps=1")
    learner, tasks = begin(
        "method=finetune-mtil", *budget, f"training.lr={base}", f"training.warmup={warmup}"
    )
    (phase,) = learner.plan(tasks[0])
    taken = phase_steps(phase, learner.training)
    assert taken == steps + 1 == len(expected)
    found = [learner.engine.rate(phase, Progress(0, "train", 0, step, taken, 0)) for step in range(taken)]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-18)
    assert found[-1] == 0


@pytest.mark.parametrize(("steps", "peak"), [(20, 7.0e-4), (16, 17 / 30 * 1e-3), (40, 1e-3)])
def test_a_run_that_ends_inside_the_warm_up_peaks_where_the_reference_does(
    begin: Callable[..., Any], steps: int, peak: float
) -> None:
    learner, tasks = begin(MOE, f"training.steps={steps}", "training.extra_steps=1", "method.experts.width=4")
    (phase,) = learner.plan(tasks[0])
    rates = [
        learner.engine.rate(phase, Progress(0, "train", 0, step, steps + 1, 0)) for step in range(steps + 1)
    ]
    assert max(rates) == pytest.approx(peak)
    assert (rates[-1] == 0) == (steps == 40)


def test_an_epoch_and_one_step_are_taken_but_no_more_than_a_task_says(begin: Callable[..., Any]) -> None:
    small = (
        MOE,
        "method.experts.width=4",
        "training.batch_size=8",
        "training.epochs=1",
        "training.extra_steps=1",
    )
    name = begin(*small)[1][1].name
    learner, tasks = begin(*small, f'method.per_task={{"{name}": {{steps: 3}}}}')
    (first,), (second,) = (learner.plan(task) for task in tasks[:2])
    assert phase_steps(first, learner.training) == -(-len(tasks[0].train) // 8) + 1
    assert phase_steps(second, learner.training) == 3
    assert learner.engine.rate(second, Progress(1, "train", 0, 2, 3, 0)) > 0
