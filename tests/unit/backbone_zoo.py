"""Small models of every kind that open_clip builds, written in its folder layout with random weights."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from PIL import Image
from safetensors.torch import save_file
from torch import nn

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
PREPROCESS = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3],
    "interpolation": "bilinear",
    "resize_mode": "squash",
}

MODELS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 2, 1], "width": 16, "patch_size": None},
        "text_cfg": TEXT,
    },
    "siglip": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 160,
            "timm_model_name": "test_vit",
            # A hub would be asked for the tower's own weights if this were believed.
            "timm_model_pretrained": True,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            **TEXT,
            "width": 64,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    },
    "custom-text": {"embed_dim": 24, "custom_text": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "coca": {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**TEXT, "context_length": 15, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
}


def make(model_cfg: dict[str, Any], seed: int = 0) -> nn.Module:
    """Build a model with open_clip's own classes; every weight is drawn, so that none is left at 0 or 1."""
    settings = deepcopy(model_cfg)
    custom = settings.pop("custom_text", False)
    settings["vision_cfg"].pop("timm_model_pretrained", None)
    torch.manual_seed(seed)
    kind = CoCa if "multimodal_cfg" in settings else CustomTextCLIP if custom else CLIP
    clip = kind(**settings)
    if kind is CoCa:
        nn.init.normal_(clip.text_decoder.text_projection)
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return clip.eval()


def write(
    folder: Path, model_cfg: dict[str, Any], preprocess: dict[str, Any] | None = PREPROCESS, seed: int = 0
) -> Path:
    """Write a model in open_clip's folder layout; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"model_cfg": model_cfg} | ({} if preprocess is None else {"preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    save_file(make(model_cfg, seed).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def pictures() -> list[Image.Image]:
    """Return noisy pictures, wide, high and square."""
    draw = np.random.default_rng(0)
    return [
        Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8))
        for size in ((40, 70), (90, 33), (64, 64))
    ]


def reference(name: str, tokens: torch.Tensor, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return open_clip's own unit embeddings of `pictures()` and of token ids."""
    clip, _, preprocess = open_clip.create_model_and_transforms(name, **settings)
    clip.eval()
    with torch.no_grad():
        pixels = torch.stack([preprocess(p) for p in pictures()])
        return clip.encode_image(pixels, normalize=True), clip.encode_text(tokens, normalize=True)
