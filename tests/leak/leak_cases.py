"""What the leak tier shares: every method (and every way to replay and merge), trained on the small stream."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from everclip import registry
from everclip.config import resolve_config
from everclip.run import Run
from everclip.training.progress import Progress
from presets import case, learns, settings

TWO_YEARS = 'scenario.tasks=[{name: "2001", where: {time: 2001}}, {name: "2002", where: {time: 2002}}]'
SHORT = {
    "time": (TWO_YEARS,),
    "classes": ("scenario.per_task=3",),
    "domains": (),
    "single": (),
    "sources": (),
}
SETTINGS: dict[str, tuple[str, ...]] = {
    **{name: settings(name) for name in sorted(registry.methods())},
    "replay, balanced": ("method=replay", "method.replay.kind=balanced", "method.replay.size=9"),
    "replay, all": ("method=replay", "method.replay.kind=all", "method.replay.share=null"),
    "running-mean": ("method.merge.kind=running-mean", "method.merge.every=2"),
    "lwf, own pictures": ("method.penalties={lwf: {images: own}}",),
    "icarl, labels too": ("method=icarl", "method.replay.size=7", "method.replay.use=both"),
    "feature-distill": ("method.penalties={feature-distill: {}, weight-constraint: {}}",),
    "lora and adapters": ("method.trainable=[{lora: {rank: 2}}, {adapter: {width: 3}}]",),
    "prompts": ("method.trainable=[{prompt: {tower: both, count: 1, depth: 2}}, text-bias]",),
    "frozen image tower": (
        "method.trainable=[text]",
        "training.augment=none",
        "method.replay.kind=reservoir",
    ),
    "finetune, guarded": ("guard.max_drop=1", "guard.every=1", "training.lr=3e-3"),
}
"""name -> overrides; a preset that is added to the package is covered by being there."""
CASES = [case(name) for name in SETTINGS]
"""The names for `parametrize`."""


_SAME_SLOTS = (
    *(
        "cumulative-all",
        "cumulative-equal",
        "restart",
        "oracle",
        "replay-merge",
        "replay, balanced",
        "replay, all",
    ),
    *("lwf", "lwf-tic", "lwf-vr", "mod-x", "lwf, own pictures", "feature-distill"),
    *("icarl, labels too", "zscl-cil", "running-mean", "cll-clip-naive"),
)
SAME_DATA = (
    *_SAME_SLOTS,
    *("moe-adapters-cil", "rail-dual", "rail-primal-published"),
    *("lora and adapters", "prompts", "frozen image tower"),
)
"""Cases that use data through the same code as another case: past tasks, the base, validation images, references."""
SAME_PREDICTIONS = (
    *_SAME_SLOTS,
    *("safe", "replay", "wise-ft", "icarl", "zscl", "cumulative-exp", "joint", "finetune, guarded"),
)
"""Cases that predict through the same code as another case; only their weights were found in another way."""


def cases(slow: Collection[str]) -> list[Any]:
    """Return all cases for `parametrize`; those in `slow` are slow, as are presets for MTIL."""
    assert set(slow) <= SETTINGS.keys()
    marked = pytest.mark.slow
    return [pytest.param(name, marks=marked) if name in slow else case(name) for name in SETTINGS]


def kind_for(name: str, kind: str) -> str:
    """Return the stream that a case learns from: `kind`, or that of classes if its method takes nothing else."""
    preset = next((s.partition("=")[2] for s in SETTINGS[name] if s.startswith("method=")), "finetune")
    return kind if learns(preset, kind) else "classes"


def maker(micro_folder: Path, output: Path) -> Callable[..., Any]:
    """Return what the fixture `micro_config` returns, for models that a whole module shares."""
    fixed = [
        f"backbone={micro_folder / 'model'}",
        "training.threads=1",
        "training.device=cpu",
        "report=false",
    ]

    def make(kind: str, *overrides: str, **place: str) -> Any:
        named = f"output={output / place.get('output', 'run')}"
        return resolve_config(str(micro_folder / f"{kind}.yaml"), [*fixed, named, *overrides])

    return make


def trained(make: Callable[..., Any], name: str, kind: str = "time", output: str = "run", *more: str) -> Run:
    """Run a method to its end and return the run, which still holds scenario and learner."""
    kind = kind_for(name, kind)
    run = Run.of(make(kind, *SHORT[kind], *SETTINGS[name], *more, output=output), Progress(quiet=True))
    run.execute()
    return run
