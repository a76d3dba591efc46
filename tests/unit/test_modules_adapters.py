"""Adapters against the equations they come from."""

from __future__ import annotations

import math
from typing import Any

import module_models as models
import pytest
import torch
import torch.nn.functional as F

from everclip.models.modules import insert
from everclip.models.modules.base import first_projection


def added(adapter: Any, x: torch.Tensor, activation: Any) -> torch.Tensor:
    hidden = activation(x @ adapter.down.weight.T + adapter.down.bias)
    return hidden @ adapter.up.weight.T + adapter.up.bias


def run_block(block: Any, x: torch.Tensor, **kinds: Any) -> torch.Tensor:
    """A residual attention block written out, with what the adapters add."""
    attended = block.ls_1(block.attention(block.ln_1(x)))
    x = x + attended + kinds.get("attention", lambda h: 0)(attended)
    normed = block.ln_2(x)
    mixed = block.mlp.c_proj(block.mlp.gelu(block.mlp.c_fc(normed)))
    mixed = block.ls_2(mixed + kinds.get("parallel", lambda h: 0)(normed))
    return x + mixed + kinds.get("mlp", lambda h: 0)(mixed)


@pytest.mark.parametrize("model", ["vit", "layer scale"])
@pytest.mark.parametrize(
    ("settings", "activation"),
    [
        ({}, F.gelu),
        ({"scale": 0.5, "activation": "relu"}, F.relu),
        ({"places": ["attention"]}, F.gelu),
        ({"places": ["mlp"], "activation": "quick-gelu"}, lambda x: x * torch.sigmoid(1.702 * x)),
        ({"form": "parallel", "activation": "relu"}, F.relu),
    ],
)
@torch.no_grad()
def test_adapters_stand_where_their_papers_put_them(model: str, settings: Any, activation: Any) -> None:
    plain, clip = models.build(model), models.build(model)
    models.shake(clip, insert(clip, "adapter", {"tower": "image", "width": 4, **settings}).parameters)
    block, bare = clip.visual.transformer.resblocks[1], plain.visual.transformer.resblocks[1]
    scale = settings.get("scale", 0.1 if settings.get("form") == "parallel" else 1.0)
    places = {n.removeprefix("adapter_"): m for n, m in block.named_children() if n.startswith("adapter_")}
    wanted = (
        ["parallel"] if settings.get("form") == "parallel" else settings.get("places", ["attention", "mlp"])
    )
    assert set(places) == set(wanted)
    kinds = {
        place: (lambda h, adapter=adapter: scale * added(adapter, h, activation))
        for place, adapter in places.items()
    }
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(block(x), run_block(bare, x, **kinds), atol=1e-5)
    assert torch.allclose(bare(x), run_block(bare, x), atol=1e-6)
    assert (block(x) - bare(x)).abs().max() > 0.01


def test_width_and_parameters_are_counted() -> None:
    clip = models.build("vit")
    new = insert(clip, "adapter", {"tower": "text", "width": 5, "blocks": 0}).parameters
    assert sum(clip.get_parameter(n).numel() for n in new) == 2 * (2 * 32 * 5 + 5 + 32)


def test_first_projections_are_drawn_as_they_always_were() -> None:
    for rows, columns in ((3, 7), (5, 32)):
        drawn = [torch.Generator().manual_seed(4) for _ in range(2)]
        values = (2 * torch.rand(rows, columns, generator=drawn[0]) - 1) * (1 / math.sqrt(columns))
        assert torch.equal(first_projection(rows, columns, drawn[1]), values)
