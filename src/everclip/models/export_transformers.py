"""Write a backbone as a `CLIPModel` folder of transformers; the package transformers is not needed.

Names, configuration and preprocessing are the inverse of `everclip.models.transformers_layout`, which reads the folder
back for the comparison. What that layout cannot say is refused: a tower of timm, another pooling, a bias of logits...
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import TextTransformer, VisionTransformer
from safetensors.torch import save_file

from everclip.errors import ConfigError, EverclipError
from everclip.models.architecture import build_clip
from everclip.models.backbone import Backbone
from everclip.models.export_parity import TEXTS, Expected, ExportLayout, Parity, distance, probes
from everclip.models.export_tokenizer import NOTE, read_tokens, write_tokenizer
from everclip.models.fitting import put_weights
from everclip.models.layout import MERGES
from everclip.models.preprocessing import build_preprocessing
from everclip.models.transformers_layout import (
    CONFIG,
    NAMES,
    PREPROCESSOR,
    PROJECTIONS,
    model_config,
    preprocessing,
)
from everclip.models.vocabulary import GrownTokenizer
from everclip.models.weights import read_state

WEIGHTS = "model.safetensors"

_FUSED = re.compile(r"(.*)\.attn\.in_proj_(weight|bias)")
_INVERSE = tuple((ours, pattern.replace("\\", "")) for pattern, ours in NAMES)
_INSTEAD = "use --format open_clip, which holds every model, or --format onnx."
_SAID = {
    *("layers", "width", "head_width", "heads", "mlp_ratio", "patch_size", "image_size", "context_length"),
    *(
        "vocab_size",
        "norm_kwargs",
        "eos_id",
        "patch_dropout",
        "output_tokens",
        "pad_id",
        "final_ln_after_pool",
    ),
    *("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "timm_model_pretrained", "no_ln_pre"),
}
"""Settings that the configuration says, that no embedding depends on, or that `_require_towers` judges."""


def check(backbone: Backbone) -> None:
    """Check that a `CLIPModel` can be the same function.

    Raises:
        ConfigError: if not; names what was found, and what to do.
    """
    assert backbone.layout is not None
    _require_towers(backbone)
    if isinstance(backbone.tokenizer, GrownTokenizer):
        raise _refused("a vocabulary that has grown, whose end token is not the last one")
    model_cfg = backbone.layout.model_cfg
    for side, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        for key, found in model_cfg[side].items():
            if key not in _SAID and found != _default(kind, key) and (found or _default(kind, key)):
                pooled_at_end = key == "pool_type" and side == "text_cfg" and found == "eos"
                if not pooled_at_end:
                    raise _refused(f"model_cfg.{side}.{key} = {found!r}")
    text = model_cfg["text_cfg"]
    if text.get("pool_type") == "eos" and int(text.get("eos_id", 2)) == 2:
        raise _refused("an end token with id 2, which transformers takes for an old configuration")
    resize = backbone.layout.preprocess_cfg.get("resize_mode")
    if resize not in ("shortest", "squash"):
        raise _refused(f"preprocess_cfg.resize_mode = {resize!r}")
    if backbone.layout.preprocess_cfg.get("interpolation") not in ("bicubic", "bilinear"):
        raise _refused(f"preprocess_cfg.interpolation = {backbone.layout.preprocess_cfg['interpolation']!r}")


def _refused(found: str) -> ConfigError:
    return ConfigError(
        f"export: a CLIPModel of transformers cannot hold this model: it has {found}; {_INSTEAD}"
    )


def _default(kind: type, key: str) -> Any:
    for field in fields(kind):
        if field.name == key:
            return None if field.default is MISSING else field.default
    return None


def _require_towers(backbone: Backbone) -> None:
    clip = backbone.clip
    visual: Any = clip.visual
    if not isinstance(visual, VisionTransformer):
        inner = getattr(visual, "trunk", None)
        trunk = "" if inner is None else f", {type(inner).__name__}"
        raise _refused(f"an image tower of another kind ({type(visual).__name__}{trunk})")
    text: Any = getattr(clip, "text", None)
    if hasattr(clip, "text_decoder") or (text is not None and not isinstance(text, TextTransformer)):
        found = "a text decoder (CoCa)" if hasattr(clip, "text_decoder") else type(text).__name__
        raise _refused(f"a text tower of another kind ({found})")
    if visual.attn_pool is not None:
        raise _refused("attentional pooling of the image tower")
    if not isinstance(visual.ln_pre, torch.nn.LayerNorm):
        raise _refused("no normalisation before the blocks of the image tower")
    if backbone.logit_bias is not None:
        raise _refused("a bias of the logits (a sigmoid loss)")


def renamed(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights under transformers' names; the inverse of `transformers_layout.convert`.

    Raises:
        ConfigError: for a tensor that has no place; names it.
    """
    transposed = {ours: theirs for theirs, ours in PROJECTIONS.items()}
    result: dict[str, torch.Tensor] = {}
    for full, tensor in state.items():
        name = full.removeprefix("text.")
        if name == "logit_scale":
            result[name] = tensor.reshape(())
        elif name in transposed:
            result[transposed[name]] = tensor.T
        elif match := _FUSED.fullmatch(name):
            layer = new_name(match[1] + ".")
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                result[f"{layer}self_attn.{letter}_proj.{match[2]}"] = part
        else:
            result[new_name(name)] = tensor
    strange = [n for n in result if not n.startswith(("text_", "vision_", "visual_", "logit_scale"))]
    if strange:
        raise _refused(f"the tensor {strange[0]!r}")
    return {name: tensor.contiguous().clone() for name, tensor in result.items()}


def new_name(name: str) -> str:
    """Return transformers' name of a tensor or module, given open_clip's."""
    for ours, theirs in _INVERSE:
        if ours.startswith("."):
            name = name.replace(ours, theirs)
        elif name.startswith(ours):
            name = theirs + name[len(ours) :]
    return name


def _write(backbone: Backbone, folder: Path, half: bool) -> None:
    assert backbone.layout is not None
    state = renamed({k: v.detach().cpu() for k, v in backbone.clip.state_dict().items()})
    if half:
        state = {k: v.half() if v.numel() > 1 else v for k, v in state.items()}
        lost = [k for k, v in state.items() if not bool(torch.isfinite(v).all())]
        if lost:
            raise ConfigError(
                f"export: {lost[0]!r} holds numbers too large for half precision (65,504); leave out --half."
            )
    _write_json(folder / CONFIG, _configuration(backbone, half))
    _write_json(folder / PREPROCESSOR, _preprocessor(backbone.layout.preprocess_cfg))
    write_tokenizer(backbone, folder)
    for file in backbone.layout.tokenizer_files:
        if isinstance(backbone.tokenizer, SimpleTokenizer):
            # For everclip, which then reads the folder without transformers.
            shutil.copyfile(file, folder / MERGES)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    # safetensors creates files that only their owner can read; others must be able to read an export.
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)


def _configuration(backbone: Backbone, half: bool) -> dict[str, Any]:
    assert backbone.layout is not None
    cfg = backbone.layout.model_cfg
    vision = {**_defaults(CLIPVisionCfg), **cfg["vision_cfg"]}
    text = {**_defaults(CLIPTextCfg), **cfg["text_cfg"]}
    activation = "quick_gelu" if cfg.get("quick_gelu") else "gelu"
    image_size, patch = (_side(vision[key]) for key in ("image_size", "patch_size"))
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": cfg["embed_dim"],
        "dtype": "float16" if half else "float32",
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "num_attention_heads": text["heads"],
            **_shape(text, activation, cfg["embed_dim"]),
            **_ends(backbone, text),
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": image_size,
            "patch_size": patch,
            "num_attention_heads": vision["width"] // vision["head_width"],
            **_shape(vision, activation, cfg["embed_dim"]),
        },
    }


def _defaults(kind: type) -> dict[str, Any]:
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, tuple | list) else size)


def _shape(part: Mapping[str, Any], activation: str, embed_dim: int) -> dict[str, Any]:
    return {
        "hidden_size": part["width"],
        "intermediate_size": int(part["width"] * part["mlp_ratio"]),
        "num_hidden_layers": part["layers"],
        "hidden_act": activation,
        "layer_norm_eps": (part["norm_kwargs"] or {}).get("eps", 1e-5),
        "projection_dim": embed_dim,
    }


def _ends(backbone: Backbone, text: Mapping[str, Any]) -> dict[str, int]:
    """Return the ids of start and end. transformers pools the first end token, or the largest id if the end is 2."""
    tokenizer = backbone.tokenizer
    if isinstance(tokenizer, SimpleTokenizer):
        start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
    else:
        inner = tokenizer.tokenizer
        start, end = (int(i or 0) for i in (inner.bos_token_id, inner.eos_token_id))
    if text["pool_type"] == "eos":
        end = int(text["eos_id"])
    elif end != text["vocab_size"] - 1:
        end = 2
    return {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}


def _preprocessor(settings: Mapping[str, Any]) -> dict[str, Any]:
    side = _side(settings["size"])
    whole = {"height": side, "width": side}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": whole if settings["resize_mode"] == "squash" else {"shortest_edge": side},
        "resample": {"bilinear": 2, "bicubic": 3}[settings["interpolation"]],
        "do_center_crop": True,
        "crop_size": whole,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(settings["mean"]),
        "image_std": list(settings["std"]),
    }


def _write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _compare(backbone: Backbone, folder: Path, expected: Expected) -> Parity:
    """Read a folder with the reader of `CLIPModel` folders, strictly, and compare."""
    try:
        cfg = model_config(folder)
        clip = build_clip(cfg, 0, str(folder))
        own = clip.state_dict()
        size = 4 * sum(tensor.numel() for tensor in own.values())
        put_weights(clip, read_state(folder / WEIGHTS, size, own.keys()), folder / WEIGHTS)
        prepare = build_preprocessing(clip, preprocessing(folder), None, str(folder), False).transform
    except ConfigError as error:
        raise EverclipError(f"export: the written CLIPModel cannot be read ({error}).") from error
    clip.eval()
    ids = read_tokens(folder, list(TEXTS), expected.tokens.shape[1], 0)
    return Parity(
        pixels=distance(torch.stack([prepare(image) for image in probes()]), expected.pixels),
        images=distance(clip.encode_image(expected.pixels, normalize=True), expected.images),
        texts=distance(clip.encode_text(expected.tokens, normalize=True), expected.texts),
        logit_scale=distance(clip.logit_scale.exp().squeeze(), backbone.logit_scale),
        tokens=torch.equal(_without_padding(ids), _without_padding(expected.tokens)),
    )


def _without_padding(ids: torch.Tensor) -> torch.Tensor:
    """Return ids with zeros behind the first end token, the largest id."""
    ends = ids.argmax(dim=1, keepdim=True)
    return torch.where(torch.arange(ids.shape[1]) <= ends, ids, 0)


def _usage(folder: Path, backbone: Backbone) -> list[str]:
    return [
        "from transformers import CLIPModel, CLIPProcessor",
        f"model = CLIPModel.from_pretrained('{folder}')",
        f"processor = CLIPProcessor.from_pretrained('{folder}')",
    ]


TRANSFORMERS = ExportLayout(
    "transformers",
    "the reader of CLIPModel folders",
    check,
    _write,
    _compare,
    _usage,
    notes=(
        "transformers may resize images with torchvision instead of pillow: pixels then differ in the last of 256 "
        "levels, and embeddings a little.",
        NOTE,
    ),
)
