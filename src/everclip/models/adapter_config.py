"""The configuration of a LoRA in PEFT's layout: what it says, and what of PEFT everclip does not compute.

A layer is the linear layer, convolution or embedding of a `CLIPModel` of transformers, by its name there. Its update
is `scaling * B A` (LoRA, arXiv 2106.09685), with `scaling = alpha / r`, or `alpha / sqrt(r)` (arXiv 2312.03732).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everclip.errors import ConfigError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT writes before the name of a layer."""

_NO_MEANING = {
    *("task_type", "base_model_name_or_path", "revision", "auto_mapping", "inference_mode", "peft_version"),
    *("lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("megatron_config", "megatron_core", "eva_config", "loftq_config", "corda_config", "lora_ga_config"),
    *("runtime_config", "qalora_group_size", "ensure_weight_tying"),
}
"""Settings on which the update of a stored layer does not depend: what was adapted is known from the tensors."""

_READ = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights"}
_KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the weights of the start model as they are."""

_MOST_PATTERN, _MOST_REPEATS = 200, 3


@dataclass(frozen=True)
class AdapterConfig:
    """What the configuration of a LoRA says about its layers.

    Attributes:
        base: the start model's name, as the program that wrote it knew it; `None` if unknown.
        rank, alpha: of every layer that no pattern names.
        ranks, alphas: of layers by pattern; a pattern is a regular expression of the end of a layer's name.
        root: whether the scaling is `alpha / sqrt(rank)`.
    """

    base: str | None
    rank: int
    alpha: float
    ranks: Mapping[str, float]
    alphas: Mapping[str, float]
    root: bool

    def rank_of(self, layer: str) -> int:
        """Return the rank of a layer."""
        return int(_of_pattern(self.ranks, layer, self.rank))

    def scaling(self, layer: str) -> float:
        """Return the factor on `B A` of a layer."""
        rank = self.rank_of(layer)
        return _of_pattern(self.alphas, layer, self.alpha) / (math.sqrt(rank) if self.root else rank)


def _of_pattern(values: Mapping[str, float], layer: str, default: float) -> float:
    """Return the value of the first pattern that fits, as PEFT chooses it."""
    return next((v for key, v in values.items() if re.match(rf"(.*\.)?({key})$", layer)), default)


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read `adapter_config.json`.

    Raises:
        ConfigError: if there is none, it is damaged, or the adapter is of a kind that is not read; names the key.
    """
    path = folder / CONFIG
    if not path.is_file():
        inside = f" Name the folder: backbone.adapter={folder.parent}" if folder.is_file() else ""
        raise ConfigError(
            f"backbone.adapter: {folder}: expected a folder with {CONFIG} (LoRA in PEFT's layout); there is none."
            f"{inside}"
        )
    document = _document(path)
    if document is None:
        raise ConfigError(f"backbone.adapter: {path}: not a JSON object.")
    _require_lora(document, path)
    rank, alpha = document.get("r"), document.get("lora_alpha")
    if not _is_count(rank):
        raise ConfigError(f"backbone.adapter: {path}: r: expected a positive whole number, found {rank!r}.")
    if not _is_number(alpha):
        raise ConfigError(f"backbone.adapter: {path}: lora_alpha: expected a number, found {alpha!r}.")
    base = document.get("base_model_name_or_path")
    return AdapterConfig(
        base=base if isinstance(base, str) and base else None,
        rank=int(rank or 0),
        alpha=float(alpha or 0),
        ranks=_patterns(document, "rank_pattern", path),
        alphas=_patterns(document, "alpha_pattern", path),
        root=bool(document.get("use_rslora")),
    )


def _document(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _require_lora(document: Mapping[str, Any], path: Path) -> None:
    """Refuse what changes a model in another way than `scaling * B A`."""
    kind = document.get("peft_type")
    if kind != "LORA":
        raise ConfigError(f"backbone.adapter: {path}: peft_type: only LORA is read, found {kind!r}.{_MERGE}")
    start = document.get("init_lora_weights", True)
    if start not in _KEEPS_BASE:
        raise ConfigError(
            f"backbone.adapter: {path}: init_lora_weights={start!r} also changes the start model.{_MERGE}"
        )
    for key, value in document.items():
        if key == "bias" and value == "none":
            continue
        if value and key not in _NO_MEANING and key not in _READ:
            raise ConfigError(
                f"backbone.adapter: {path}: {key}={str(value)[:60]} is not read: only LoRA without bias, DoRA "
                f"and whole modules is.{_MERGE}"
            )


_MERGE = (
    " Merge it with the library that made it (with peft: model.merge_and_unload()), save the whole CLIPModel, and use "
    "that folder as backbone.name."
)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _patterns(document: Mapping[str, Any], key: str, path: Path) -> dict[str, float]:
    found = document.get(key) or {}
    is_right = _is_count if key == "rank_pattern" else _is_number
    if not isinstance(found, dict) or not all(is_right(value) for value in found.values()):
        raise ConfigError(
            f"backbone.adapter: {path}: {key}: expected numbers by name of a layer, found {str(found)[:80]}."
        )
    for pattern in found:
        _require_simple(pattern, f"{path}: {key}")
    return found


def _require_simple(pattern: str, where: str) -> None:
    """Refuse an expression that is none, or that could take very long: a file of others decides it."""
    slow = len(pattern) > _MOST_PATTERN or len(re.findall(r"[*+?{]", pattern)) > _MOST_REPEATS
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        slow = True
    if slow or re.search(r"\)\s*[*+?{]", pattern):
        raise ConfigError(f"backbone.adapter: {where}: {pattern[:80]!r} is no simple regular expression.")


def adapter_hint(folder: Path) -> str:
    """Return a sentence for an error where a folder with an adapter stands in the place of a model."""
    document = _document(folder / CONFIG) or {}
    base = document.get("base_model_name_or_path")
    known = isinstance(base, str) and (base.startswith("builtin:") or (bool(base) and Path(base).is_dir()))
    start = base if known else "START"
    made_for = (
        f" (START: the model it was made for; its configuration says {base!r})" if base and not known else ""
    )
    return (
        " It holds an adapter (LoRA), which only changes a model. Name both: "
        f"backbone.name={start} backbone.adapter={folder}{made_for}. An adapter of another kind: merge it with the "
        "library that made it (with peft: model.merge_and_unload()), save the whole model, and use that."
    )
