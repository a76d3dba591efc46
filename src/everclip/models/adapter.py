"""Merge a LoRA in PEFT's layout into the weights of its start model.

PEFT names the layers of a `CLIPModel` of transformers, which has three weights for query, key and value where open_clip
has one, and the transposed projections.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from everclip.errors import ConfigError
from everclip.files import found_in
from everclip.models.adapter_config import CONFIG, PREFIX, WEIGHTS, AdapterConfig, read_adapter_config
from everclip.models.clip import Clip
from everclip.models.transformers_layout import place_of
from everclip.models.weights import check_size, limit_of, load_safetensors

CARD = "card.json"
"""In an adapter that everclip wrote: which start model it changes, and the logit scale that was learned."""

LOG_SCALE = "log_logit_scale"
_NAME = re.compile(r"(?P<layer>.+)\.lora_(?:(?P<table>embedding_)?(?P<letter>[AB]))(?P<weight>\.weight)?")


@dataclass
class _Layer:
    """A and B of a layer; `table` if it is an embedding, whose B A is transposed."""

    factors: dict[str, torch.Tensor] = field(default_factory=dict)
    table: bool = False


def merge_adapter(
    clip: Clip, adapter: str, name: str, towers: Mapping[str, str], directory: str | None = None
) -> list[str]:
    """Merge an adapter into a model, in place, in float32.

    Args:
        clip: the start model.
        adapter: the folder, with `adapter_config.json` and `adapter_model.safetensors`.
        name: that of the start model, for errors.
        towers: fingerprints of the start model, compared with those that an adapter of everclip's states.
        directory: where to look for a relative path that is not found from the working directory.

    Returns:
        Notes: what was merged, and whether its start model was checked.

    Raises:
        ConfigError: if the adapter is of another kind, damaged, or does not fit the model; names file and layer.
    """
    folder = found_in(Path(os.path.expanduser(os.path.expandvars(adapter))), directory)
    config = read_adapter_config(folder)
    card = _card(folder)
    _require_start(card, config, folder, name, towers)
    layers = _layers(_tensors(folder, clip), folder)
    state = clip.state_dict()
    updates = [_update(layer, parts, config, state, folder) for layer, parts in layers.items()]
    with torch.no_grad():
        for target, change in updates:
            target.copy_(target + change)
        scale = card.get(LOG_SCALE)
        if scale is not None:
            clip.logit_scale.fill_(_log_scale(scale, folder))
    learned = "" if scale is None else " and the logit scale that it learned"
    ranks = sorted({config.rank_of(layer) for layer in layers})
    rank = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    return [
        f"adapter: {folder} merged (LoRA of rank {rank} in {len(layers)} layers{learned}){_made_for(card, config)}"
    ]


def _made_for(card: Mapping[str, Any], config: AdapterConfig) -> str:
    if "base_towers" in card:
        return ""
    said = (
        "nothing names its start model" if config.base is None else f"its configuration names {config.base}"
    )
    return f"; {said}, and nothing says whether these weights are that model's"


def _card(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    if not path.is_file():
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"backbone.adapter: {path}: not valid JSON ({error}).") from error
    return card if isinstance(card, dict) else {}


def _require_start(
    card: Mapping[str, Any], config: AdapterConfig, folder: Path, name: str, towers: Mapping[str, str]
) -> None:
    """Check that a model is the one for which an adapter of everclip's was made."""
    stated = card.get("base_towers")
    if stated is None or stated == towers:
        return
    shown = stated if isinstance(stated, dict) else {}
    both = [f"image {t.get('image')}, text {t.get('text')}" for t in (shown, towers)]
    raise ConfigError(
        f"backbone.adapter: {folder} changes the start model {config.base} (towers: {both[0]}), and no other; "
        f"backbone.name={name} is another (towers: {both[1]})."
    )


def _log_scale(value: Any, folder: Path) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(
            f"backbone.adapter: {folder / CARD}: {LOG_SCALE}: expected a number, found {value!r}."
        )
    return float(value)


def _tensors(folder: Path, clip: Clip) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        others = sorted(p.name for p in folder.glob("adapter_model.*"))
        found = f"; {others[0]} is not read" if others else ""
        raise ConfigError(
            f"backbone.adapter: {path} is missing{found}. Save it again as safetensors (peft: "
            "model.save_pretrained(FOLDER))."
        )
    check_size([path], limit_of(4 * sum(tensor.numel() for tensor in clip.state_dict().values())))
    return load_safetensors(path)


def _layers(tensors: Mapping[str, torch.Tensor], folder: Path) -> dict[str, _Layer]:
    """Return the factors of each layer."""
    layers: dict[str, _Layer] = {}
    for full, tensor in tensors.items():
        match = _NAME.fullmatch(full.removeprefix(PREFIX))
        if match is None or not full.startswith(PREFIX) or bool(match["table"]) == bool(match["weight"]):
            raise ConfigError(
                f"backbone.adapter: {folder / WEIGHTS}: {full!r} is no LoRA of a layer (expected "
                f"{PREFIX}LAYER.lora_A.weight and lora_B.weight), and nothing else is read."
            )
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"backbone.adapter: {folder / WEIGHTS}: {full!r} holds {_wrong(tensor)}.")
        layer = layers.setdefault(match["layer"], _Layer())
        layer.factors[match["letter"]] = tensor.float()
        layer.table = bool(match["table"])
    for name, layer in layers.items():
        if layer.factors.keys() != {"A", "B"}:
            raise ConfigError(
                f"backbone.adapter: {folder / WEIGHTS}: {name}: expected both lora_A and lora_B."
            )
    if not layers:
        raise ConfigError(f"backbone.adapter: {folder / WEIGHTS} holds no tensors.")
    return layers


def _wrong(tensor: torch.Tensor) -> str:
    return (
        "NaN or infinity; the file is damaged" if tensor.is_floating_point() else f"numbers of {tensor.dtype}"
    )


def _update(
    name: str, layer: _Layer, config: AdapterConfig, state: Mapping[str, torch.Tensor], folder: Path
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights that a layer changes (a view of the model's) and what is added to them."""
    place = place_of(name)
    own = next((n for n in (place.name, f"text.{place.name}") if n in state), None)
    if own is None or state[own].ndim < 2:
        raise ConfigError(
            f"backbone.adapter: {folder / WEIGHTS}: the model has no layer {name} (looked for {place.name})."
        )
    target = state[own]
    if place.third is not None:
        target = target.chunk(3)[place.third]
    target = target.T if place.transposed else target
    down, up = (layer.factors[letter].flatten(1) for letter in "AB")
    rank = config.rank_of(name)
    expected = target.T.shape if layer.table else target.flatten(1).shape
    if len(down) != rank or up.shape[1] != rank or (len(up), down.shape[1]) != tuple(expected):
        raise ConfigError(
            f"backbone.adapter: {folder / WEIGHTS}: {name}: A {tuple(down.shape)} and B {tuple(up.shape)} do not fit "
            f"the rank {rank} of {CONFIG} and weights {tuple(expected)}."
        )
    product = up @ down
    change = (product.T if layer.table else product) * config.scaling(name)
    return target, change.reshape(target.shape)
