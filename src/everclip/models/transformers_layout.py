"""Read a `CLIPModel` of transformers as a model of open_clip: configuration, weights and preprocessing.

Both libraries compute the same function (arXiv 2103.00020) and differ in names, in the query, key and value weights
(three matrices or one), and in the projections (a linear layer `x W^T` or a matrix `x W`). The package transformers is
not needed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from everclip.errors import ConfigError
from everclip.models.layout import check_preprocess

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"

_VOCABULARY = 49408
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}
# Defaults of transformers' CLIPConfig.
_TEXT = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_NUMBERS = {"projection_dim", *_TEXT, *_VISION} - {"hidden_act"}
_LEGACY_END = 2
"""Old configurations have this id for the end token; transformers then uses the largest id, as open_clip does."""

_RESAMPLE = {2: "bilinear", 3: "bicubic"}

NAMES = (
    (r"text_model\.embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.final_layer_norm\.", "ln_final."),
    (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "visual.conv1.weight"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"vision_model\.pre_layrnorm\.", "visual.ln_pre."),  # transformers' spelling
    (r"vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm1\.", ".ln_1."),
    (r"\.layer_norm2\.", ".ln_2."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
PROJECTIONS = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
_QUERY = re.compile(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)")


def is_transformers(state: Mapping[str, object]) -> bool:
    """Return whether tensors have the names of transformers' CLIP."""
    return any(re.search(r"(^|\.)(text_model|vision_model)\.(encoder|embeddings)\.", name) for name in state)


def prefix_of(state: Mapping[str, object]) -> str:
    """Return the prefix before every name of transformers' CLIP."""
    matches = (re.match(r"(.*?)(text_model|vision_model)\.(encoder|embeddings)\.", name) for name in state)
    return next(match[1] for match in matches if match)


def convert(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights under open_clip's names; other names stay as they are."""
    result: dict[str, torch.Tensor] = {}
    parts: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        if name.endswith("embeddings.position_ids"):
            continue  # 0, 1, 2...
        if name in PROJECTIONS:
            result[PROJECTIONS[name]] = tensor.T.contiguous()
        elif match := _QUERY.fullmatch(name):
            parts.setdefault((match[1], match[3]), {})[match[2]] = tensor
        else:
            result[_renamed(name)] = tensor
    for (layer, kind), three in parts.items():
        if three.keys() == set("qkv"):
            result[f"{_renamed(layer + '.')}attn.in_proj_{kind}"] = torch.cat([three[c] for c in "qkv"])
        else:
            result |= {f"{layer}.self_attn.{c}_proj.{kind}": tensor for c, tensor in three.items()}
    return result


@dataclass(frozen=True)
class LayerPlace:
    """Where open_clip keeps the weight of a layer of transformers' CLIP.

    Attributes:
        name: of open_clip's tensor, without the prefix `text.` of a separate text tower.
        third: which third of its rows, if it holds query, key and value.
        transposed: whether it is the transposed weight.
    """

    name: str
    third: int | None = None
    transposed: bool = False


def place_of(layer: str) -> LayerPlace:
    """Return where open_clip keeps the weight of a layer, given its name in a `CLIPModel`."""
    weight = f"{layer}.weight"
    if weight in PROJECTIONS:
        return LayerPlace(PROJECTIONS[weight], transposed=True)
    if match := _QUERY.fullmatch(weight):
        return LayerPlace(f"{_renamed(match[1] + '.')}attn.in_proj_weight", "qkv".index(match[2]))
    return LayerPlace(_renamed(weight))


def _renamed(name: str) -> str:
    for pattern, ours in NAMES:
        name = re.sub(pattern, ours, name)
    return name


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ConfigError: if the file cannot be read or is not a JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"backbone: {path}: not valid JSON ({error}).") from error
    except OSError as error:
        raise ConfigError(f"backbone: {path}: cannot be read ({error.strerror}).") from error
    if not isinstance(document, dict):
        raise ConfigError(f"backbone: {path}: expected a mapping, found {type(document).__name__}.")
    return document


def is_clip_folder(folder: Path) -> bool:
    """Return whether a folder holds the configuration of a `CLIPModel`."""
    path = folder / CONFIG
    return path.is_file() and read_json(path).get("model_type") == "clip"


def model_config(folder: Path) -> dict[str, Any]:
    """Return open_clip's configuration of the `CLIPModel` in a folder.

    Raises:
        ConfigError: if the file is not JSON, or open_clip cannot build the model; names file and key.
    """
    path = folder / CONFIG
    document = read_json(path)
    text = {**_TEXT, **_part(document, "text_config", path)}
    vision = {**_VISION, **_part(document, "vision_config", path)}
    embed_dim = document.get("projection_dim", 512)
    for key, value in (("projection_dim", embed_dim), *text.items(), *vision.items()):
        if key in _NUMBERS and not _is_number(value):
            raise ConfigError(f"backbone: {path}: {key}: expected a positive number, found {value!r}.")
    if text["hidden_act"] != vision["hidden_act"] or text["hidden_act"] not in _ACTIVATIONS:
        raise ConfigError(
            f"backbone: {path}: hidden_act is {text['hidden_act']!r} for texts and {vision['hidden_act']!r} for "
            "images; expected quick_gelu or gelu for both."
        )
    end = int(text["eos_token_id"])
    last = end in (_LEGACY_END, int(text["vocab_size"]) - 1)
    pool = {} if last else {"pool_type": "eos", "eos_id": end}
    return {
        "embed_dim": int(embed_dim),
        "quick_gelu": _ACTIVATIONS[text["hidden_act"]],
        "vision_cfg": {
            "image_size": int(vision["image_size"]),
            "patch_size": int(vision["patch_size"]),
            "head_width": int(vision["hidden_size"]) // int(vision["num_attention_heads"]),
            **_shape(vision),
        },
        "text_cfg": {
            "context_length": int(text["max_position_embeddings"]),
            "vocab_size": int(text["vocab_size"]),
            "heads": int(text["num_attention_heads"]),
            **_shape(text),
            **pool,
        },
    }


def _part(document: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    # Old files hold the same settings under `text_config_dict`, which takes precedence.
    for name in (key, f"{key}_dict"):
        stored = document.get(name) or {}
        if not isinstance(stored, Mapping):
            raise ConfigError(f"backbone: {path}: {name}: expected settings by name, found {stored!r:.80}.")
        settings |= stored
    return settings


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def _shape(part: Mapping[str, Any]) -> dict[str, Any]:
    shape = {
        "width": int(part["hidden_size"]),
        "layers": int(part["num_hidden_layers"]),
        "mlp_ratio": part["intermediate_size"] / part["hidden_size"],
    }
    return (
        shape if part["layer_norm_eps"] == 1e-5 else {**shape, "norm_kwargs": {"eps": part["layer_norm_eps"]}}
    )


def preprocessing(folder: Path) -> dict[str, Any] | None:
    """Return the settings of `preprocessor_config.json` in open_clip's form; `None` if there is no such file.

    Raises:
        ConfigError: if it resizes in a way that open_clip does not.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        return None
    document = read_json(path)
    settings: dict[str, Any] = {}
    for theirs, ours in (("image_mean", "mean"), ("image_std", "std")):
        if document.get(theirs) is not None:
            settings[ours] = document[theirs]
    if document.get("resample") is not None:
        filters = [name for number, name in _RESAMPLE.items() if number == document["resample"]]
        if not filters:
            raise ConfigError(
                f"backbone: {path}: resample: expected 2 (bilinear) or 3 (bicubic), found "
                f"{document['resample']!r}."
            )
        settings["interpolation"] = filters[0]
    size, crop = document.get("size"), document.get("crop_size")
    if size is not None:
        whole = isinstance(size, dict) and {"height", "width"} <= size.keys()
        settings["resize_mode"] = "squash" if whole else "shortest"
        settings["size"] = _side(size, path)
        if crop is not None and document.get("do_center_crop", True):
            cropped = _side(crop, path)
            if cropped != settings["size"]:
                raise ConfigError(
                    f"backbone: {path}: images are resized to {settings['size']} and cropped to {cropped}; open_clip "
                    "resizes and crops to one size, so both must be equal."
                )
    check_preprocess(settings, str(path))
    return settings


def _side(size: Any, path: Path) -> int:
    values = list(size.values()) if isinstance(size, dict) else [size]
    if not values or not _is_number(values[0]) or any(value != values[0] for value in values):
        raise ConfigError(f"backbone: {path}: size: expected one side in pixels, found {size!r}.")
    return int(values[0])
