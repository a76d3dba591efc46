"""What the resume tier kills: every preset of the registry, a method of one's own, and settings that keep more."""

from __future__ import annotations

from everclip.methods.build import method_class
from everclip.registry import methods
from micro import FEATURES, REFERENCE
from presets import learns, settings

TWO_YEARS = 'scenario.tasks=[{name: "2001", where: {time: 2001}}, {name: "2002", where: {time: 2002}}]'
SHORT = (
    "training.steps=3",
    "training.warmup=1",
    "checkpoint.every_steps=1",
    "evaluation.examples=1",
    "evaluation.batch_size=5",
)
SMALL_REPLAY = ("method=replay", "method.replay.size=7")
PROMPTS = "{prompt: {tower: both, count: 2, depth: all}}"
STRICT = ("guard.max_drop=1", "guard.every=1", "training.lr=3e-3")
MOE = "method.experts={count: 4, active: 2, width: 4}"
SWEEPS = ("training.batch_size=12",)
"""Passes of three steps over 36 and 28 samples, for methods that see each sample once."""
MORE: dict[str, tuple[str, ...]] = {
    "replay": ("method.replay.size=7",),
    "replay-merge": ("method.replay.size=7",),
    "safe": ("method.replay.size=7", "guard.every=1"),
    "coleclip": ("training.lr=1e-2",),
    "moe-adapters": ("training.lr=1e-2",),
    **dict.fromkeys(("rail", "rail-primal-published", "rail-dual", "text-ridge"), SWEEPS),
}
"""preset -> settings that let three steps change more; a preset that is added needs none."""


def _kind(preset: str) -> str:
    return "time" if learns(preset, "time") else "classes"


MINE = "mine"
"""The case of `method=./mine.py:Mine`, a file that a fixture puts into the current folder (`growing.py`)."""
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{name: (_kind(name), (*settings(name), *MORE.get(name, ()))) for name in sorted(methods())},
    MINE: ("time", ("method=./mine.py:Mine",)),
}
"""name -> (kind of scenario, overrides): a preset that is added to the registry is killed by being there."""
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "finetune-sgd": ("time", ("training.optimiser=sgd", "training.nesterov=true")),
    "finetune-classes": ("classes", ("method.label_smoothing=0.1",)),
    "replay-base": ("time", (*SMALL_REPLAY, "method.replay.base=true")),
    "replay-balanced": ("classes", (*SMALL_REPLAY, "method.replay.kind=balanced")),
    "replay-all": ("time", ("method=replay", "method.replay.kind=all", "method.replay.share=null")),
    "wise-ft-classes": ("classes", ("method=wise-ft",)),
    "wise-ft-initial": (
        "time",
        ("method=wise-ft", "method.merge.alpha=0.5", "method.merge.reference=initial"),
    ),
    "running-mean": ("time", ("method.merge.kind=running-mean", "method.merge.every=2")),
    "running-mean-late": (
        "time",
        ("method.merge.kind=running-mean", "method.merge.every=1", "method.merge.start=0.4"),
    ),
    "weight-constraint": ("time", ("method.penalties={weight-constraint: {weight: 0.1}}",)),
    "weight-constraint-initial": ("time", ("method.penalties={weight-constraint: {reference: initial}}",)),
    "oewc": ("time", ("method.penalties={oewc: {weight: 100, decay: 0.5}}",)),
    "macs-carried": (
        "time",
        (
            "method=cumulative-exp",
            "training.macs=3e7",
            "training.carry_optimiser=true",
            "training.rewarm=false",
            "training.chunk=3",
        ),
    ),
    "lwf-layer-decay": ("time", ("method.penalties={lwf: {}}", "training.layer_decay=0.7")),
    "lwf-classes": ("classes", ("method.penalties={lwf: {images: own, text: student}}",)),
    "zscl-mean": (
        "time",
        ("method=zscl", REFERENCE, "method.penalties.zscl.batch_size=3", "method.merge.wise_we=0.9"),
    ),
    "zscl-between": (
        "classes",
        ("method=zscl", REFERENCE, "method.penalties.zscl={toward_task_start: 0.8, image_image_weight: 1}"),
    ),
    "mod-x-classes": ("classes", ("method=mod-x", "method.penalties.mod-x={reduce: mean, temperature: 0.1}")),
    "lwf-vr-own": ("classes", ("method=lwf-vr", "method.penalties.lwf-vr={sentences: 7, images: own}")),
    "icarl-classes": ("classes", ("method=icarl", "method.replay.size=7")),
    "icarl-both": ("time", ("method=icarl", "method.replay.size=7", "method.replay.use=both")),
    "feature-distill": ("time", ("method.penalties={feature-distill: {}, lwf: {reference: initial}}",)),
    "table-distill": ("time", (FEATURES, "method.merge={kind: running-mean, every: 2}")),
    "table-distill-classes": ("classes", (FEATURES, *SMALL_REPLAY)),
    "guard-stop": ("classes", (*STRICT, "guard.action=stop")),
    "guard-step-back": ("classes", (*STRICT, "method=replay", "method.replay.size=7")),
    "lora": ("time", ("method.trainable=[{lora: {rank: 2}}, logit-scale]",)),
    "adapters-prompts": (
        "classes",
        (
            f"method.trainable=[{{adapter: {{width: 3}}}}, {PROMPTS}]",
            "method.merge={kind: wise-ft, alpha: 0.5}",
        ),
    ),
    "blocks": ("classes", ("method.trainable=[image-blocks:last1, text-bias, text-embeddings]",)),
    "frozen-image": (
        "time",
        (*SMALL_REPLAY, "method.trainable=[text, logit-scale]", "training.augment=none"),
    ),
    "frozen-text": ("classes", ("method.trainable=[image]", "training.augment=none")),
    "coleclip-plain": (
        "classes",
        ("method=coleclip", "method.momentum=null", "method.templates.training=all", "method.prompts=2"),
    ),
    "coleclip-guarded": (
        "classes",
        ("method=coleclip", "guard.max_drop=1", "guard.every=1", "training.lr=0.1"),
    ),
    "moe-adapters-classes": ("classes", ("method=moe-adapters", MOE, "training.lr=1e-2")),
    "moe-adapters-fixed": (
        "classes",
        ("method=moe-adapters", MOE, "method.grow=false", "method.balance=0.01", "method.selector=none"),
    ),
    "moe-adapters-anchored": (
        "classes",
        (
            "method=moe-adapters",
            MOE,
            "method.selector=none",
            "method.penalties={lwf: {}, weight-constraint: {reference: initial}}",
            "method.merge={kind: wise-ft, alpha: 0.7, reference: initial}",
            "training.lr=1e-2",
        ),
    ),
    "moe-adapters-autoencoder": (
        "classes",
        (
            "method=moe-adapters",
            MOE,
            REFERENCE,
            "method.selector={kind: autoencoder, steps: 3, reference_steps: 3}",
            "training.lr=1e-2",
        ),
    ),
    "cll-clip-der": (
        "time",
        (
            "method=cll-clip",
            "method.replay={kind: reservoir, size: 7, target: student}",
            "method.trainable=[{lora: {rank: 2}}, {prompt: {count: 2}}]",
            "training.lr=1e-2",
        ),
    ),
    "cll-clip-oewc": ("time", ("method=cll-clip", "method.penalties={oewc: {}}", "training.lr=1e-2")),
    "cll-clip-gradient": ("time", ("method=cll-clip", "method.rows=gradient", "training.lr=1e-2")),
    "moe-adapters-captions": ("time", ("method=moe-adapters", MOE, "method.freeze=4", "training.lr=1e-2")),
}
"""name -> (kind of scenario, overrides): settings that make a method keep what its preset does not."""
CASES = METHODS | VARIANTS


def overrides_of(case: str) -> tuple[str, tuple[str, ...]]:
    """Return the scenario kind and all overrides of a case: two short tasks."""
    kind, own = CASES[case]
    return kind, (*SHORT, TWO_YEARS if kind == "time" else "scenario.per_task=3", *own)


def at_once(case: str) -> bool:
    """Return whether a case learns all tasks at once."""
    name = next((s.partition("=")[2] for s in CASES[case][1] if s.startswith("method=")), "finetune")
    return case != MINE and bool(method_class(name).needs.all_tasks_at_once)
