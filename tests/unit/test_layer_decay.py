"""Layer-wise learning rates: depths of every kind of tower by hand, groups, and a step that shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from everclip.config import MethodConfig, TrainingConfig
from everclip.contracts import ParamGroup, Task
from everclip.data.table import Table
from everclip.learner import Learner
from everclip.methods.build import build_method
from everclip.methods.layer_decay import depths, scaled, with_layer_decay
from everclip.methods.trainable import decay_groups
from everclip.models.backbone import load_backbone


def vit(layers: int, text_layers: int) -> Any:
    from open_clip.model import CLIP

    vision = {"image_size": 16, "layers": layers, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": text_layers}
    return CLIP(8, vision, text)


def test_depths_of_a_vision_transformer_and_its_text_tower() -> None:
    found = depths(vit(3, 2))
    by_hand = {
        "visual.proj": 0,
        "visual.ln_post.weight": 0,
        "visual.transformer.resblocks.2.attn.in_proj_weight": 1,
        "visual.transformer.resblocks.1.mlp.c_fc.bias": 2,
        "visual.transformer.resblocks.0.ln_1.weight": 3,
        "visual.conv1.weight": 4,
        "visual.class_embedding": 4,
        "visual.positional_embedding": 4,
        "visual.ln_pre.bias": 4,
        "text_projection": 0,
        "ln_final.weight": 0,
        "transformer.resblocks.1.ln_2.bias": 1,
        "transformer.resblocks.0.attn.out_proj.weight": 2,
        "token_embedding.weight": 3,
        "positional_embedding": 3,
        "logit_scale": 0,
    }
    assert {name: found[name] for name in by_hand} == by_hand
    assert sorted(set(found.values())) == [0, 1, 2, 3, 4]


def test_depths_of_a_resnet_a_custom_text_tower_and_a_timm_tower() -> None:
    from open_clip.model import CLIP, CustomTextCLIP

    vision = {"image_size": 32, "layers": [1, 1, 2, 1], "width": 8, "head_width": 8}
    text = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
    found = depths(CLIP(8, vision, text))
    by_hand = {
        "visual.attnpool.c_proj.weight": 0,
        "visual.attnpool.positional_embedding": 0,
        "visual.layer4.0.conv1.weight": 1,
        "visual.layer3.1.bn2.bias": 2,
        "visual.layer2.0.downsample.0.weight": 3,
        "visual.layer1.0.conv3.weight": 4,
        "visual.conv2.weight": 5,
        "visual.bn1.weight": 5,
        "transformer.resblocks.0.ln_1.weight": 1,
        "token_embedding.weight": 2,
    }
    assert {name: found[name] for name in by_hand} == by_hand
    timm = {
        "image_size": 32,
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_pool": "",
        "timm_proj": "linear",
    }
    found = depths(CustomTextCLIP(8, timm, text))
    by_hand = {
        "visual.head.proj.weight": 0,
        "visual.trunk.norm.weight": 0,
        "visual.trunk.blocks.11.attn.qkv.weight": 1,
        "visual.trunk.blocks.0.mlp.fc1.bias": 12,
        "visual.trunk.patch_embed.proj.weight": 13,
        "visual.trunk.pos_embed": 13,
        "visual.trunk.cls_token": 13,
        "text.text_projection": 0,
        "text.transformer.resblocks.0.mlp.c_fc.weight": 1,
        "text.token_embedding.weight": 2,
    }
    assert {name: found[name] for name in by_hand} == by_hand


def test_what_is_looked_up_and_what_is_a_vector_does_not_decay() -> None:
    """By the name where the shape does not tell: embeddings and prompts are matrices, and so are stacked biases."""
    names = {
        "clip.visual.conv1.weight": 4, "clip.visual.proj": 2, "clip.text_projection": 2, "clip.a.mlp.c_fc.weight": 2,
        "clip.a.down": 3, "clip.a.tokens": 2, "clip.a.biased": 2, "clip.a.embedding.weight": 2,
        "clip.visual.positional_embedding": 2, "clip.visual.class_embedding": 2, "clip.token_embedding.weight": 2,
        "clip.a.prompt.tokens": 2, "clip.visual.task_prompts.tokens.0": 2, "clip.a.down_bias": 2,
        "clip.a.ln_1.weight": 1, "clip.a.ln_1.bias": 1, "clip.logit_scale": 0,
    }  # fmt: skip

    class Parts(torch.nn.Module):
        def get_parameter(self, target: str) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.zeros((2,) * names[target]))

    decayed, plain = decay_groups(names, Parts())
    assert (list(decayed.names), list(plain.names)) == (list(names)[:8], list(names)[8:])
    assert (decayed.weight_decay, plain.weight_decay) == (None, 0.0)
    assert decay_groups(list(names)[:2], Parts()) == (ParamGroup(tuple(list(names)[:2])),)
    assert decay_groups(list(names)[-1:], Parts()) == (ParamGroup(("clip.logit_scale",), weight_decay=0.0),)
    assert decay_groups([], Parts()) == ()


def test_groups_hold_every_parameter_once_at_its_rate() -> None:
    clip = vit(3, 2)
    groups = decay_groups([n for n, _ in clip.named_parameters()], clip)
    assert with_layer_decay(groups, clip, 1.0) == groups
    found = scaled(with_layer_decay(groups, clip, 0.5), 0.1)
    depth = depths(clip)
    assert sorted(n for g in found for n in g.names) == sorted(n for g in groups for n in g.names)
    fixed = {n: g.weight_decay for g in groups for n in g.names}
    for group in found:
        for name in group.names:
            assert group.lr_scale == pytest.approx(0.1 * 0.5 ** depth[name])
            assert group.weight_decay == fixed[name]
    assert len(found) <= 2 * 5


def test_lower_layers_move_less(micro_folder: Path) -> None:
    method = build_method(
        MethodConfig(settings={"lr_scale": 0.5}), load_backbone(str(micro_folder / "model"))
    )
    data = Table(pq.read_table(micro_folder / "data.parquet"))
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    config = TrainingConfig(
        steps=1, batch_size=8, lr=1e-3, warmup=0, weight_decay=0, device="cpu", layer_decay=0.1
    )
    Learner(method, config).learn(Task(0, "captions", data.select(range(48)), data.select(range(48, 64))))
    # AdamW's first step is lr for every element with a gradient.
    for name, depth in (("visual.proj", 0), ("transformer.resblocks.0.mlp.c_fc.weight", 2)):
        key = f"backbone.clip.{name}"
        step = (method.get_parameter(key) - before[key]).abs().max().item()
        assert step == pytest.approx(0.5e-3 * 0.1**depth, rel=0.05)
