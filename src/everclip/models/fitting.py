"""Load weights into a model with open_clip's conversions; nothing is resized or left out silently."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed

from everclip.errors import ConfigError
from everclip.models.checkpoint_keys import State
from everclip.models.clip import Clip
from everclip.models.quiet import quiet
from everclip.models.scalars import fit_scalars
from everclip.models.transformers_layout import convert, is_transformers
from everclip.models.weights import OPENAI_KEYS

_POSITION_IDS = "text.transformer.embeddings.position_ids"


def put_weights(clip: Clip, state: State, path: Path, resize: bool = False) -> list[str]:
    """Load `state` into `clip`, as float32.

    Args:
        clip: one of open_clip's models.
        state: tensors by name, as stored.
        path: their file, for errors.
        resize: whether to interpolate position embeddings of another image size.

    Returns:
        Notes on assumptions.

    Raises:
        ConfigError: if names, shapes or values do not fit; names them.
    """
    # Convert first: on a CPU, interpolation does not work in half precision.
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    state, notes = _converted(clip, state, path)
    if resize:
        notes += _resized(clip, state)
    _check_names(clip, state, path)
    _check_shapes(clip, state, path)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(
                f"backbone: {path}: the weights {name!r} hold NaN or infinity; the file is damaged."
            )
    try:
        clip.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(f"backbone: {path} does not fit its configuration: {error}") from error
    return notes


def _converted(clip: Clip, state: State, path: Path) -> tuple[State, list[str]]:
    for key in OPENAI_KEYS:
        state.pop(key, None)
    if is_transformers(state):
        state = convert(state)
    if any(k.startswith("image_encoder.model.patch_emb") for k in state):  # Apple's own MobileCLIP files
        from open_clip.convert import convert_state_dict

        state = convert_state_dict(clip, state)
    if "positional_embedding" in state and not hasattr(clip, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    elif "text.positional_embedding" in state and hasattr(clip, "positional_embedding"):
        state = {k.removeprefix("text."): v for k, v in state.items()}
    if _POSITION_IDS in state and _POSITION_IDS not in clip.state_dict():
        del state[_POSITION_IDS]
    return state, fit_scalars(clip, state, path)


def _resized(clip: Clip, state: State) -> list[str]:
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


def _check_names(clip: Clip, state: State, path: Path) -> None:
    expected = set(clip.state_dict())
    missing, unexpected = sorted(expected - state.keys()), sorted(state.keys() - expected)
    if not missing and not unexpected:
        return
    if not missing and not any(".lora_" in name for name in unexpected):
        first = unexpected[0].partition(".")[0]
        raise ConfigError(
            f"backbone: {path} holds all weights of the model, and {len(unexpected):,} that the model does not have: "
            f"{unexpected[:5]}{_more(unexpected)}. Remove them from the file, in Python: state = "
            f"{{k: v for k, v in state.items() if not k.startswith({first + '.'!r})}}; or is backbone.name another "
            "architecture?"
        )
    incomplete = "" if unexpected or all(k.startswith(_TOWER_PREFIXES) for k in state) else _INCOMPLETE
    raise ConfigError(
        f"backbone: {path} does not fit its configuration: missing {missing[:5]}{_more(missing)}, "
        f"unexpected {unexpected[:5]}{_more(unexpected)}."
        f"{_single_tower(expected, state) or incomplete or _layout_of(state)}"
    )


_INCOMPLETE = (
    " The file holds only a part of the model: use all of its weights (if they are in several files, set "
    "backbone.weights to the .index.json), or fetch it again."
)


def _more(names: list[str]) -> str:
    return f" and {len(names) - 5} more" if len(names) > 5 else ""


def _layout_of(state: Mapping[str, object]) -> str:
    if any(k.startswith(("vision_model.", "text_model.")) for k in state):
        return " The weights are in transformers' layout, but not those of a CLIPModel."
    if any(".lora_" in k or ".lokr_" in k or ".hada_" in k for k in state):
        return (
            " These are the weights of an adapter (LoRA), which only change a model. If they are in PEFT's layout, "
            "name the model as backbone.name and their folder as backbone.adapter; else merge them into the model with "
            "the library that made them (with peft: model.merge_and_unload()), save its state_dict, and use that file."
        )
    if any(k.startswith(("model/", "backbone.clip.")) for k in state):
        return " This is a checkpoint of everclip; make a backbone from its run folder with everclip export."
    if all(k.startswith(_TOWER_PREFIXES) for k in state):
        return f" This seems to be a single tower, without the other.{_JOIN}"
    if any(k.startswith("text.") for k in state):
        return " The weights have a separate text tower (model_cfg.custom_text: true)."
    return " Is backbone.name the architecture they were trained with?"


_TOWER_PREFIXES = (
    *(
        "transformer.",
        "conv1.",
        "ln_",
        "class_embedding",
        "proj",
        "pos",
        "token_embedding",
        "text_projection",
    ),
    *("blocks.", "patch_embed.", "cls_token", "norm.", "head.", "fc_norm.", "trunk."),
)
_JOIN = (
    " Both towers are needed. Join them first, in Python, where `model` is the CLIP that the tower was trained from: "
    "state = {**model.state_dict(), **{'visual.' + k: v for k, v in tower.items()}} for an image tower (without "
    "'visual.' for a text tower); then torch.save(state, 'both.pt') and backbone.weights=both.pt."
)


def _single_tower(expected: set[str], state: Mapping[str, object]) -> str:
    """Explain what is missing if a file holds one tower under the model's names."""
    image = {k for k in expected if k.startswith("visual.")}
    text = {k for k in expected if not k.startswith(("visual.", "logit_"))}
    for name, present, absent in (("image", image, text), ("text", text, image)):
        other = "text" if name == "image" else "image"
        if present <= state.keys() and not absent & state.keys():
            return (
                f" The file holds only the {name} tower; the {other} tower ({len(absent)} tensors) is missing. Join "
                "them first, in Python: state = {**model.state_dict(), **tower}, where `model` is the CLIP that the "
                "tower was trained from; then torch.save(state, 'both.pt') and backbone.weights=both.pt."
            )
    missing = expected - state.keys()
    if missing and missing <= {"visual.proj", "text_projection", "text.text_projection"}:
        return (
            " Only projections are missing: the file holds the towers without the projections into the shared space. "
            "Use the weights of the whole model."
        )
    return ""


def _check_shapes(clip: Clip, state: State, path: Path) -> None:
    expected = clip.state_dict()
    integers = [k for k in expected if expected[k].is_floating_point() and not state[k].is_floating_point()]
    if integers:
        raise ConfigError(
            f"backbone: {path}: {integers[0]!r} has type {state[integers[0]].dtype}: the weights are quantised. "
            "Use the model in float32, float16 or bfloat16."
        )
    wrong = [k for k in expected if expected[k].shape != state[k].shape]
    if not wrong:
        return
    listed = "; ".join(f"{k} {tuple(state[k].shape)}, expected {tuple(expected[k].shape)}" for k in wrong[:5])
    raise ConfigError(
        f"backbone: {path} does not fit its configuration: {listed}{_more(wrong)}.{_cause(clip, state, wrong)}"
    )


def _cause(clip: Clip, state: State, wrong: list[str]) -> str:
    """Explain a wrong shape if only one setting can be the cause."""
    if wrong == ["visual.positional_embedding"]:
        patch = clip.visual.patch_size[0]
        side = math.isqrt(state[wrong[0]].shape[0] - 1) * patch
        return (
            f" The weights are for images of {side} pixels, the configuration says "
            f"{clip.visual.image_size[0]}: use the architecture for {side} pixels, or set "
            f"backbone.image_size={clip.visual.image_size[0]} to interpolate."
        )
    if wrong in (["visual.attnpool.positional_embedding"], ["visual.trunk.pos_embed"]):
        return (
            " The weights are for images of another size, and the position embeddings of this tower cannot be "
            "interpolated: leave out backbone.image_size, or use the architecture for that size."
        )
    if wrong in (["positional_embedding"], ["text.positional_embedding"]):
        return (
            f" The weights read {state[wrong[0]].shape[0]} tokens: set model_cfg.text_cfg.context_length to this "
            "number (in an open_clip_config.json beside the weights)."
        )
    if wrong in (["token_embedding.weight"], ["text.token_embedding.weight"]):
        return (
            f" The vocabulary of the weights has {state[wrong[0]].shape[0]} tokens: model_cfg.text_cfg.vocab_size and "
            "the tokenizer must have the same number."
        )
    return " Is backbone.name the architecture they were trained with?"
