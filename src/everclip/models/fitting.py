"""Weights put into a model: the same conversions as open_clip makes, but nothing resized or left out in silence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from torch import nn

from everclip.errors import ConfigError
from everclip.models.quiet import quiet
from everclip.models.weights import OPENAI_KEYS, State

_POSITION_IDS = "text.transformer.embeddings.position_ids"


def put_weights(clip: nn.Module, state: State, path: Path, resize: bool = False) -> list[str]:
    """Load `state` into `clip`, as float32.

    Args:
        clip: one of open_clip's models.
        state: tensors by name, as stored.
        path: where they come from, for errors.
        resize: whether position embeddings of another image size are interpolated.

    Returns:
        What was assumed, in words.

    Raises:
        ConfigError: if names, shapes or values do not fit; names them.
    """
    state, notes = _converted(clip, dict(state))
    if resize:
        notes += _resized(clip, state)
    _check_names(clip, state, path)
    _check_shapes(clip, state, path)
    floats = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    for name, tensor in floats.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(
                f"backbone: {path}: the weights {name!r} hold NaN or infinity; the file is damaged."
            )
    try:
        clip.load_state_dict(floats)
    except RuntimeError as error:
        raise ConfigError(f"backbone: {path} does not fit its configuration: {error}") from error
    return notes


def _converted(clip: nn.Module, state: State) -> tuple[State, list[str]]:
    notes = []
    for key in OPENAI_KEYS:
        state.pop(key, None)
    if any(k.startswith("image_encoder.model.patch_emb") for k in state):  # Apple's own MobileCLIP files
        from open_clip.convert import convert_state_dict

        state = convert_state_dict(clip, state)
    if "positional_embedding" in state and not hasattr(clip, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for key in ("logit_scale", "logit_bias"):
        own = getattr(clip, key, None)
        if key in state and own is not None and state[key].numel() == own.numel():
            state[key] = state[key].reshape(own.shape)
    if getattr(clip, "logit_bias", None) is not None and "logit_bias" not in state and "logit_scale" in state:
        state["logit_bias"] = torch.zeros_like(state["logit_scale"])
        notes.append("logit bias: the weights have none; it starts at 0")
    if _POSITION_IDS in state and _POSITION_IDS not in clip.state_dict():
        del state[_POSITION_IDS]
    return state, notes


def _resized(clip: nn.Module, state: State) -> list[str]:
    key = "visual.positional_embedding"
    before = state[key].shape[0] if key in state else 0
    with quiet():
        resize_pos_embed(state, clip)
    after = state[key].shape[0] if key in state else 0
    return (
        []
        if before == after
        else [f"image size: {before - 1} position embeddings interpolated to {after - 1}"]
    )


def _check_names(clip: nn.Module, state: State, path: Path) -> None:
    own = clip.state_dict().keys()
    missing, unexpected = sorted(own - state.keys()), sorted(state.keys() - own)
    if not missing and not unexpected:
        return
    raise ConfigError(
        f"backbone: {path} does not fit its configuration: missing {missing[:5]}{_more(missing)}, "
        f"unexpected {unexpected[:5]}{_more(unexpected)}.{_layout_of(state)}"
    )


def _more(names: list[str]) -> str:
    return f" and {len(names) - 5} more" if len(names) > 5 else ""


def _layout_of(state: Mapping[str, object]) -> str:
    if any(k.startswith(("vision_model.", "text_model.")) for k in state):
        return " These are weights in transformers' layout; take the model's weights for open_clip instead."
    if any(k.startswith(("model/", "backbone.clip.")) for k in state):
        return " This is a checkpoint of everclip; everclip export makes a backbone of its run folder."
    if all(k.startswith(("transformer.", "conv1.", "ln_", "class_embedding", "proj", "pos")) for k in state):
        return " This seems to be a single tower."
    if any(k.startswith("text.") for k in state):
        return " The weights have a text tower of their own (model_cfg.custom_text: true)."
    return " Is backbone.name the architecture they were trained with?"


def _check_shapes(clip: nn.Module, state: State, path: Path) -> None:
    own = clip.state_dict()
    wrong = [k for k in own if own[k].shape != state[k].shape]
    if not wrong:
        return
    listed = "; ".join(f"{k} {tuple(state[k].shape)}, expected {tuple(own[k].shape)}" for k in wrong[:5])
    raise ConfigError(
        f"backbone: {path} does not fit its configuration: {listed}{_more(wrong)}.{_cause(clip, state, wrong)}"
    )


def _cause(clip: nn.Module, state: State, wrong: list[str]) -> str:
    """Explain a wrong shape where only one setting can be behind it."""
    if wrong == ["visual.positional_embedding"]:
        patch = clip.visual.patch_size[0]  # type: ignore[union-attr, index]
        side = math.isqrt(state[wrong[0]].shape[0] - 1) * patch
        return (
            f" The weights are for pictures of {side} pixels, the configuration says "
            f"{clip.visual.image_size[0]}: use the architecture for {side} pixels, or set "  # type: ignore[union-attr, index]
            f"backbone.image_size={clip.visual.image_size[0]} to interpolate."  # type: ignore[union-attr, index]
        )
    if wrong in (["visual.attnpool.positional_embedding"], ["visual.trunk.pos_embed"]):
        return (
            " The weights are for pictures of another size, and the position embeddings of this tower are not "
            "interpolated: leave out backbone.image_size, or use the architecture for that size."
        )
    if wrong in (["positional_embedding"], ["text.positional_embedding"]):
        return (
            f" The weights read {state[wrong[0]].shape[0]} tokens: model_cfg.text_cfg.context_length must say so (a "
            "folder with its own open_clip_config.json beside the weights can)."
        )
    if wrong in (["token_embedding.weight"], ["text.token_embedding.weight"]):
        return (
            f" The weights know {state[wrong[0]].shape[0]} tokens: model_cfg.text_cfg.vocab_size and the tokenizer "
            "must fit them."
        )
    return " Is backbone.name the architecture they were trained with?"
