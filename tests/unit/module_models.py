"""Small models of every architecture that modules meet, with random weights, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn

import micro

IMAGE, TEXT = micro.MODEL["vision_cfg"], micro.MODEL["text_cfg"]
CASES: dict[str, dict[str, Any]] = {
    "vit": {},
    "quick-gelu, no pre-norm": {"quick_gelu": True, "vision": {"no_ln_pre": True}},
    "average pooling": {"vision": {"pool_type": "avg", "final_ln_after_pool": True}},
    "attentional pooling": {
        "vision": {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 4}
    },
    "layer scale": {"vision": {"ls_init_value": 0.1}, "text": {"ls_init_value": 0.1}},
    "custom blocks": {
        "vision": {"qk_norm": True, "scale_attn": True, "scale_fc": True},
        "text": {"block_type": "custom", "scale_heads": True},
    },
    "custom text": {"custom": True, "text": {"proj_bias": True}},
    "custom text, eos": {"custom": True, "text": {"pool_type": "eos", "eos_id": 513}},
    "custom text, no mask, last": {
        "custom": True,
        "bias": True,
        "text": {"pool_type": "last", "no_causal_mask": True, "proj_bias": True},
    },
    "custom text, class token": {"custom": True, "text": {"embed_cls": True}},
}
"""name -> what differs from the two-layer CLIP; all of open_clip's own transformers."""

OTHERS: dict[str, dict[str, Any]] = {
    "resnet": {"vision": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 32}},
    "timm": {
        "custom": True,
        "vision": {
            "timm_model_name": "test_vit",
            "timm_pool": "token",
            "timm_proj": "linear",
            "image_size": 160,
        },
    },
}
"""Image towers that modules cannot grow in."""


def build(name: str, batch_first: bool = True) -> nn.Module:
    """Return a model by its name in `CASES` or `OTHERS`."""
    case = {**CASES, **OTHERS}[name]
    torch.manual_seed(0)
    vision = {**IMAGE, **case.get("vision", {})}
    if name == "resnet":
        vision = {k: v for k, v in vision.items() if k not in ("patch_size", "mlp_ratio")}
    kind = CustomTextCLIP if case.get("custom") else CLIP
    model: nn.Module = kind(
        embed_dim=32,
        vision_cfg=vision,
        text_cfg={**TEXT, **case.get("text", {})},
        quick_gelu=case.get("quick_gelu", False),
        init_logit_bias=-10.0 if case.get("bias") else None,
    )
    if name == "resnet":
        for place, parameter in model.visual.named_parameters():
            if place.endswith(
                "bn3.weight"
            ):  # zero at birth, which would hide the whole branch from any gradient
                nn.init.ones_(parameter)
    if not batch_first:
        for transformer in (model.visual.transformer, getattr(model, "text", model).transformer):
            transformer.batch_first = False
            for block in transformer.resblocks:
                block.attn.batch_first = False
    return model.eval()


def inputs(model: nn.Module, count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels `(N, 3, S, S)` and token ids `(N, 12)`: texts of 3 to 10 tokens between start and end."""
    draw = torch.Generator().manual_seed(1)
    size = model.visual.image_size
    side = size[0] if isinstance(size, tuple) else size
    pixels = torch.randn(count, 3, side, side, generator=draw)
    return pixels, tokens([3 + i % 8 for i in range(count)])


def tokens(lengths: list[int], context: int = 12) -> torch.Tensor:
    """Return token ids with so many words each, as a tokeniser pads and cuts them."""
    draw = torch.Generator().manual_seed(2)
    ids = torch.zeros(len(lengths), context, dtype=torch.int64)
    for row, length in enumerate(lengths):
        words = torch.randint(10, 500, (length,), generator=draw)
        text = torch.cat([torch.tensor([512]), words, torch.tensor([513])])
        ids[row, : min(len(text), context)] = text[:context]
        if len(text) > context:
            ids[row, -1] = 513
    return ids


@torch.no_grad()
def embeddings(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a model makes of its inputs."""
    pixels, ids = inputs(model)
    image, text = model.encode_image(pixels), model.encode_text(ids)
    return image, text


def same(one: tuple[torch.Tensor, ...], two: tuple[torch.Tensor, ...]) -> bool:
    """Whether two sets of tensors are equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a model's tensors."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def shake(model: nn.Module, names: tuple[str, ...]) -> None:
    """Give parameters random values, as training would."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name in names:
            parameter = model.get_parameter(name)
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
