"""What it takes to run a preset on the small streams: sizes in place of the published ones, and which streams fit."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from everclip.config import resolve_config
from everclip.methods.build import method_class
from everclip.registry import benchmarks, methods
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario
from micro import REFERENCE

STEPS = ("training.steps=4", "training.batch_size=8", "training.warmup=1")
MOE = "method.experts={count: 4, active: 2, width: 4}"
AUTOENCODER = "method.selector={kind: autoencoder, steps: 3, reference_steps: 3}"
"""Three steps per task in place of 300: the way is the same, only the choice of tasks is worse."""
SMALL: dict[str, tuple[str, ...]] = {
    # Its state is the square of the width: 1.8 GB as published.
    "rail-primal-published": ("method.dimension=64",),
    "rail": ("method.dimension=64",),
    "coleclip-mtil": ("training.batch_size=8",),
    "zscl": (REFERENCE,),
    "zscl-mtil": (REFERENCE, *STEPS),
    "zscl-cil": (REFERENCE, *STEPS),
    **dict.fromkeys(("finetune-mtil", "wise-ft-mtil", "lwf-mtil", "lwf-vr-mtil", "icarl-mtil"), STEPS),
    "icarl": ("method.replay.size=7",),
    "moe-adapters": (MOE,),
    **dict.fromkeys(("moe-adapters-mtil", "moe-adapters-mtil-fewshot"), (MOE, AUTOENCODER, *STEPS)),
    "moe-adapters-cil": ("method.experts.width=4", *STEPS),
}
"""preset -> what is set differently for a model of two layers and some dozens of pictures."""


def settings(name: str) -> tuple[str, ...]:
    """Return the overrides that choose a preset, small enough for tests."""
    return (f"method={name}", *SMALL.get(name, ()))


def learns(name: str, kind: str) -> bool:
    """Return whether a preset can learn from a kind of stream; only that of classes has classes throughout."""
    return kind == "classes" or "captions" in method_class(name).needs.supervision


def of_any_kind() -> list[str]:
    """Return the presets that learn from captions as well as from classes; not their twins with published numbers."""
    names = [name for name in sorted(methods()) if learns(name, "time")]
    return [name for name in names if name.rpartition("-")[0] not in names]


def case(name: str, *more: str) -> Any:
    """Return a case for `parametrize`; presets for MTIL are slow: their code runs with other numbers without them."""
    twin = name in methods() and name.endswith(("-mtil", "-mtil-fewshot"))
    return pytest.param(name, *more, marks=[pytest.mark.slow] if twin else [])


def builtin_benchmarks() -> list[str]:
    """Return the benchmarks whose data come with the package, by name.

    Without emoji-languages, whose 90,000 rows take a minute to read: tests/unit/test_scenario_languages.py tests it.
    """
    data = {name: entry.document.get("data", {}) for name, entry in benchmarks().items()}
    return sorted(
        name
        for name, block in data.items()
        if str(block.get("source", "")).startswith("builtin:") and "languages" not in block
    )


@cache
def builtin_scenario(name: str) -> ListScenario:
    """Return the scenario of such a benchmark, which takes a second to load: once per process, only to be read."""
    return load_scenario(resolve_config(name).scenario)
