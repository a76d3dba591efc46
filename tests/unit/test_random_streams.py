"""The name of a random stream is part of what a seed means: another name, and every published number moves."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import module_models as models
import pytest

from everclip.data.sampling import order
from everclip.methods.coleclip import method as coleclip
from everclip.models.modules import base, insert
from everclip.run import execute

ALWAYS = {
    "everclip-validation-v1 ID",
    "examples classes 1-4 ID",
    "examples classes 5-6 ID",
    "examples names ID",
}
TRAINING = {
    *(f"# {task}/train/0/main # ID" for task in range(2)),
    *(f"order 0/{task}/train/0/main/0 #" for task in range(2)),
}
RUNS: dict[str, set[str]] = {
    "finetune": TRAINING,
    "replay": TRAINING | {"order 0/1/train/0/main/1 #"},
    "lwf-vr": TRAINING | {"lwf-vr # #"},
    "icarl": TRAINING
    | {"# 1/train/0/memory # ID", "order 0/1/train/0/memory/0 #"}
    | {f"herding # class-{number}" for number in range(6)}
    | {f"herding # task {number} ID" for number in range(2)},
    "rail": {"# 0/regress/0/main # ID", "# 1/regress/0/main # ID", "rail #"},
    "coleclip": TRAINING | {"# coleclip #", "module # lora text all #", "module # task-prompt #"},
    "moe-adapters": TRAINING
    | {f"# {task}/selector{phase}/0/selector # ID" for task in range(2) for phase in ("", "-calibrate")}
    | {"# gate # train # # image ID", *(f"# gate # train # # text class {number}" for number in range(4))}
    | {"module # experts image # #", "module # experts text # #"},
}

MODULES: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2},
    "adapter": {"width": 2},
    "prompt": {"tower": "both", "count": 2, "depth": "all"},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Return the list of all streams that are asked for from now on."""
    order._permutation.cache_clear()
    seen: list[tuple[object, ...]] = []
    key_of = order.key_of

    def watched(*parts: object) -> int:
        seen.append(parts)
        return key_of(*parts)

    for module in (order, base, coleclip):  # those that have `key_of` under their own name
        monkeypatch.setattr(module, "key_of", watched)
    return seen


def shape(parts: tuple[object, ...]) -> str:
    """Return the parts of a stream, with `#` for a number and `ID` for a sample."""
    return " ".join("#" if isinstance(part, int) else re.sub(r"^\d+-\d+$", "ID", str(part)) for part in parts)


def test_modules(asked: list[tuple[object, ...]]) -> None:
    for name, settings in MODULES.items():
        insert(models.build("vit"), name, settings, seed=7)
    towers = ("image", "text")
    assert set(asked) == {
        *(("module", 7, "lora", tower, "all", block) for tower in towers for block in range(2)),
        *(("module", 7, "prompt", tower, block) for tower in towers for block in range(2)),
        *(
            ("module", 7, "adapter", tower, block, place)
            for tower in towers
            for block in range(2)
            for place in ("attention", "mlp")
        ),
    }


@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str, asked: list[tuple[object, ...]], micro_config: Callable[..., Any]) -> None:
    few = ("training.steps=2", "scenario.per_task=4", "evaluation.examples=0")
    execute(micro_config("classes", f"method={name}", *few))
    # The hash of a table keys the cache of a selector's features; no draw depends on it.
    assert {shape(p) for p in asked if not re.match("[0-9a-f]{16}", str(p[0]))} == ALWAYS | RUNS[name]
