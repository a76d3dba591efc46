"""What `describe()` says of ViT-B/16 under the published settings: the numbers of the papers and their code."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from coleclip_fixtures import task as of_names
from open_clip.model import CLIP

from everclip.config import MethodConfig
from everclip.contracts import Past, Task
from everclip.methods.build import build_method
from everclip.models.backbone import Backbone
from everclip.registry import method_entry

PLAIN = 149_620_737
LORA, PROMPT = 122_904, 768
ADAPTERS, ROUTERS, AUTOENCODER = 51_059_712, 675_840, 8_696_164
DDAS = {"kind": "ddas", "weights": "random"}


def method_on_vit_b_16(preset: str, device: str = "meta", **settings: Any) -> Any:
    """Build a preset on ViT-B/16 whose weights nobody filled in: the shapes are what counts."""
    with torch.device("meta"):
        clip = CLIP(**open_clip.get_model_config("ViT-B-16"))
    clip = clip.to_empty(device=device)
    pixels: Any = SimpleNamespace(size=224, mean=(0.5,) * 3, std=(0.5,) * 3)
    backbone = Backbone(clip, open_clip.SimpleTokenizer(), lambda x: x, pixels, "ViT-B-16")  # type: ignore[arg-type]
    assert sum(p.numel() for p in backbone.parameters()) == PLAIN
    entry = method_entry(preset)
    return build_method(MethodConfig(name=entry.name, settings=entry.settings | settings), backbone)


def empty_task(index: int) -> Task:
    return Task(index, str(index), (), classes=())  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", ["coleclip", "coleclip-mtil"])
def test_coleclip_says_768_values_per_task_and_122904_of_the_lora_that_goes(preset: str) -> None:
    method = method_on_vit_b_16(preset, "cpu")  # a LoRA that leaves computes, which `meta` cannot
    wanted = f"{PROMPT} prompt values and 512 per new class; {LORA:,} LoRA values while the task lasts"
    before = method.describe()
    assert before.growth_per_task == wanted
    assert (before.trainable_parameters, before.stored_parameters) == (PROMPT + LORA, PLAIN)
    assert before.task_parameters == LORA
    method.encode_texts = lambda tokens: {
        "embedding": torch.ones(len(tokens), 512)
    }  # of weights that mean nothing
    for number, names in enumerate((("cow", "hen"), ("pig", "hen"))):
        now = of_names(number, *names)
        method.begin_task(now, Past())
        inside = method.describe()
        method.end_task(now, Past(), dict)
        after = method.describe()
        classes = len(method.vocabulary)
        assert after.growth_per_task == inside.growth_per_task == wanted
        assert after.trainable_parameters == inside.trainable_parameters == PROMPT + LORA
        assert after.stored_parameters == PLAIN + (number + 1) * PROMPT + classes * 512
        assert inside.stored_parameters == after.stored_parameters + LORA
        assert after.active_parameters == PLAIN + (number + 1) * PROMPT
    assert classes == 3


@pytest.mark.parametrize("preset", ["moe-adapters-mtil", "moe-adapters-mtil-fewshot"])
def test_moe_adapters_say_51059712_after_eleven_tasks(preset: str) -> None:
    method = method_on_vit_b_16(preset, selector=None)
    planned = method.describe()  # what a dry run says
    for index in range(11):
        method.begin_task(empty_task(index), Past())
    cost = method.describe()
    assert cost.trainable_parameters == planned.trainable_parameters
    assert cost.growth_per_task == planned.growth_per_task
    assert cost.stored_parameters - PLAIN == ADAPTERS
    assert cost.growth_per_task == f"{ROUTERS:,} parameters of routers"
    assert cost.trainable_parameters == ADAPTERS - 10 * ROUTERS


@pytest.mark.parametrize(
    ("settings", "size"), [({"selector": DDAS}, AUTOENCODER), ({}, 2 * 1536 * 100 + 100 + 1536)]
)
def test_moe_adapters_say_8696164_per_autoencoder_as_published_and_less_on_early_tokens(
    settings: dict[str, Any], size: int
) -> None:
    method = method_on_vit_b_16("moe-adapters-mtil", **settings)
    stored = []
    for index in range(2):
        method.begin_task(empty_task(index), Past())
        cost = method.describe()
        assert cost.growth_per_task == f"{ROUTERS:,} parameters of routers; {size:,} of the selector"
        stored.append(cost.stored_parameters)
    thresholds = 3  # of a route: middle, limit, and whether they are known
    assert stored[1] - stored[0] == ROUTERS + size + thresholds
