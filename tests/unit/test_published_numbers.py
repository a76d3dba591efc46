"""The settings of presets with published numbers, default values included, against the numbers of their sources.

Each number below is written from its source, not from the preset:

* ZSCL: arXiv 2303.06628, section 4 and its code (github.com/Thunderbeee/ZSCL at b96e714: mtil/src/models/finetune.py,
  helpers.py, icarl.py, mtil/scripts, cil/continual_clip/models.py and configs), which has LwF, LwF-VR and iCaRL too.
* MoE-Adapters: arXiv 2403.11549, section 4, and the class-incremental configurations of its code.
"""

from __future__ import annotations

from typing import Any

import pytest

from everclip.config import TrainingConfig, resolve_config
from everclip.methods.build import method_class
from everclip.methods.penalties.build import build as build_penalties

CROP = ("kind", "crop_min", "flip")


def complete(benchmark: str, name: str) -> tuple[Any, dict[str, Any], TrainingConfig]:
    """Return a method's settings and those of its penalties, defaults and all, and its training."""
    config = resolve_config(benchmark, [f"method={name}"])
    settings = method_class(name).Settings(**config.method.settings)
    penalties = {penalty.name: penalty.settings for penalty in build_penalties(settings.penalties)}
    return settings, penalties, config.training


def values(settings: Any, *names: str) -> tuple[Any, ...]:
    return tuple(getattr(settings, name) for name in names)


@pytest.mark.parametrize("name", ["lwf-mtil", "lwf-vr-mtil", "icarl-mtil", "zscl-mtil"])
def test_the_distilling_methods_train_on_mtil_as_published(name: str) -> None:
    settings, penalties, used = complete("mtil", name)
    # AdamW, betas 0.9 and 0.999, no decay, batch 64, iterations 0 to 1,000, 100 of warm-up, cosine to 0.
    assert values(used, "optimiser", "betas", "eps", "weight_decay") == ("adamw", (0.9, 0.999), 1e-8, 0)
    assert values(used, "batch_size", "steps", "extra_steps", "epochs") == (64, 1000, 1, None)
    assert values(used, "warmup", "schedule", "clip_norm", "layer_decay") == (100, "cosine", None, 1)
    # 5e-5 for Aircraft and MNIST, 1e-5 for all others.
    assert used.lr == 1e-5
    assert {k: values(v, "lr", "epochs", "steps") for k, v in settings.per_task.items()} == {
        "Aircraft": (5e-5, None, None),
        "MNIST": (5e-5, None, None),
    }
    # The whole CLIP but for the logit scale; cross entropy with label smoothing 0.2 on class prompts.
    assert settings.trainable == ("image", "text")
    assert values(settings, "label_smoothing", "lr_scale", "contrast") == (0.2, 1, "softmax")
    assert settings.loss in ("auto", "labels")
    # Random resized crops of 0.9 to 1.
    assert used.augment is not None
    assert values(used.augment, *CROP) == ("random-resized-crop", 0.9, 0)
    # Distillation at temperature 2, cross entropy, pictures over texts and back, weights 1.
    distilling = penalties["zscl" if name == "zscl-mtil" else "lwf-vr" if name == "lwf-vr-mtil" else "lwf"]
    assert values(distilling, "weight", "temperature", "form") == (1, 2, "cross-entropy")


@pytest.mark.parametrize("name", ["lwf-mtil", "lwf-vr-mtil"])
def test_lwf_asks_the_model_before_the_task_about_the_tasks_own_pictures(name: str) -> None:
    settings, penalties, _ = complete("mtil", name)
    (kind,) = penalties
    assert kind == name.removesuffix("-mtil")
    assert values(penalties[kind], "reference", "images", "directions", "text") == (
        "task-start",
        "own",
        "both",
        "teacher",
    )
    assert (settings.replay.kind, settings.merge.kind) == ("none", "none")


def test_lwf_vr_asks_about_a_thousand_sentences_of_ten_tokens() -> None:
    _, penalties, _ = complete("mtil", "lwf-vr-mtil")
    assert values(penalties["lwf-vr"], "sentences", "length", "published") == (1000, 10, True)


def test_icarl_keeps_ten_thousand_pictures_and_asks_the_original_model_about_them() -> None:
    settings, penalties, _ = complete("mtil", "icarl-mtil")
    assert list(penalties) == ["lwf"]
    assert values(penalties["lwf"], "reference", "images", "directions", "text") == (
        "initial",
        "memory",
        "both",
        "teacher",
    )
    # 10,000 in all, herding among at most 30,000 candidates of a data set; their labels are not learned.
    kept = values(settings.replay, "kind", "size", "candidates", "per", "use", "base", "beside")
    assert kept == ("herding", 10_000, 30_000, "task", "distil", False, False)
    assert settings.merge.kind == "none"


def test_zscl_asks_the_original_model_and_holds_weights_to_those_before_the_task() -> None:
    settings, penalties, _ = complete("mtil", "zscl-mtil")
    assert set(penalties) == {"zscl", "weight-constraint"}
    asked = penalties["zscl"]
    assert values(asked, "reference", "toward_task_start") == ("initial", 0)
    assert values(asked, "image_weight", "text_weight", "image_image_weight", "feature_weight") == (
        1,
        1,
        0,
        0,
    )
    assert asked.batch_size in (None, 64)
    # All of ImageNet's 1,281,167 training pictures, and all of Conceptual Captions' 15,840 validation texts.
    assert asked.images >= 1_281_167
    assert asked.texts >= 15_840
    # The squared distance to the model at the start of the task, summed over all parameters, weight 1.
    assert values(penalties["weight-constraint"], "weight", "reference", "on", "reduce") == (
        1,
        "task-start",
        None,
        "sum",
    )
    # The plain mean of the model at the start and of snapshots every 100 iterations; no share of the start comes back.
    assert values(settings.merge, "kind", "every", "start", "wise_we") == ("running-mean", 100, 0, 1)
    assert settings.replay.kind == "none"


@pytest.mark.parametrize(
    ("benchmark", "batch_size", "lr"),
    [
        ("cifar100-b0-10", 64, 7.1e-6),
        ("tinyimagenet-b100-5", 64, 7.1e-6),
        ("imagenet100-b0-10", 128, 7e-6),
        ("imagenet100-b50-10", 128, 7e-6),
        ("imagenet1k-b0-10", 128, 7.1e-6),
    ],
)
def test_zscl_on_class_incremental_streams_is_the_published_one(
    benchmark: str, batch_size: int, lr: float
) -> None:
    settings, penalties, used = complete(benchmark, "zscl-cil")
    assert values(used, "batch_size", "lr", "epochs", "extra_steps") == (batch_size, lr, 1, 1)
    assert values(used, "warmup", "weight_decay", "betas", "optimiser") == (30, 0, (0.9, 0.999), "adamw")
    assert values(used, "eps", "clip_norm", "schedule") == (1e-8, None, "cosine")
    assert used.augment is not None
    assert values(used.augment, *CROP) == ("random-resized-crop", 0.9, 0)
    # Weights 5 and 5, the original CLIP, no weight constraint, weights averaged every 10 iterations.
    assert set(penalties) == {"zscl"}
    asked = penalties["zscl"]
    assert values(asked, "weight", "temperature", "form", "reference") == (5, 2, "cross-entropy", "initial")
    assert values(asked, "image_weight", "text_weight") == (1, 1)
    assert values(settings.merge, "kind", "every", "start", "wise_we") == ("running-mean", 10, 0, 1)
    assert (settings.trainable, settings.label_smoothing) == (("image", "text"), 0.2)


@pytest.mark.parametrize(
    ("benchmark", "batch_size"),
    [
        ("cifar100-b0-10", 128),
        ("cifar100-b0-20", 128),
        ("cifar100-b0-50", 64),
        ("tinyimagenet-b100-5", 64),
        ("tinyimagenet-b100-10", 64),
        ("tinyimagenet-b100-20", 64),
    ],
)
def test_experts_on_class_incremental_streams_are_the_published_ones(benchmark: str, batch_size: int) -> None:
    settings, penalties, used = complete(benchmark, "moe-adapters-cil")
    experts = settings.experts
    # One router for all tasks, two experts that are both always on, nothing frozen, no selector of tasks.
    assert values(settings, "routers", "freeze", "grow", "balance", "selector") == ("one", 0, False, 0, None)
    assert values(experts, "count", "active", "width", "scale", "dropout") == (2, 2, 64, 0.1, 0.1)
    assert values(experts, "tower", "blocks", "activation", "input") == ("both", "all", "relu", "raw")
    assert (penalties, settings.trainable, settings.replay.kind) == ({}, (), "none")
    # No label smoothing; one epoch and one step of AdamW at 1e-3, 30 steps of warm-up.
    assert settings.label_smoothing == 0
    assert values(used, "batch_size", "lr", "epochs", "extra_steps", "steps") == (
        batch_size,
        1e-3,
        1,
        1,
        None,
    )
    assert values(used, "warmup", "schedule", "weight_decay", "clip_norm") == (30, "cosine", 0, None)
    assert values(used, "optimiser", "betas", "eps") == ("adamw", (0.9, 0.999), 1e-8)
    assert used.augment is not None
    assert values(used.augment, *CROP) == ("random-resized-crop", 0.9, 0)
