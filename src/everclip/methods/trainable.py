"""The slot `trainable`: from names of parts to parameters."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from everclip.contracts import ParamGroup
from everclip.errors import ConfigError


def part_of(name: str, clip: nn.Module) -> set[str]:
    """Return the parts that a parameter of open_clip's model belongs to."""
    if name == "logit_bias":
        return set()  # of SigLIP's loss, which nothing here trains
    if name == "logit_scale":
        return {"logit-scale"}
    tower = "image" if name.startswith("visual.") else "text"
    parts = {tower}
    leaf = name.removeprefix("visual.").removeprefix("text.")
    if leaf in ("proj", "text_projection") or leaf.startswith(("head.", "text_projection.", "proj.")):
        parts.add(f"{tower}-projection")
    owner = clip.get_submodule(name.rpartition(".")[0]) if "." in name else clip
    if isinstance(owner, nn.LayerNorm):
        parts.add(f"{tower}-layernorm")
    return parts


def choose(clip: nn.Module, wanted: Iterable[str]) -> list[str]:
    """Return the names of parameters that belong to any of the wanted parts.

    Raises:
        ConfigError: if a part is named that this model does not have.
    """
    parts = {name: part_of(name, clip) for name, _ in clip.named_parameters()}
    for part in wanted:
        if not any(part in found for found in parts.values()):
            raise ConfigError(f"method.trainable: this backbone has no {part!r}.")
    return [name for name, found in parts.items() if found & set(wanted)]


def decay_groups(names: Iterable[str], module: nn.Module) -> tuple[ParamGroup, ...]:
    """Split parameters into those with weight decay and those without (vectors, norms, embeddings, scales)."""
    decayed: list[str] = []
    plain: list[str] = []
    for name in names:
        parameter = module.get_parameter(name)
        lookup = name.endswith(("positional_embedding", "class_embedding", "token_embedding.weight"))
        (plain if parameter.dim() < 2 or lookup else decayed).append(name)
    groups = []
    if decayed:
        groups.append(ParamGroup(tuple(decayed)))
    if plain:
        groups.append(ParamGroup(tuple(plain), weight_decay=0.0))
    return tuple(groups)
