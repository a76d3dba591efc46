"""The slot `trainable`: find parameters by names of parts, and grow modules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from everclip.contracts import ParamGroup
from everclip.errors import ConfigError
from everclip.methods.settings import BLOCKS, SlotsWithoutReplay
from everclip.models.backbone import Backbone
from everclip.models.clip import Clip
from everclip.models.modules.grow import grown_parameters, insert
from everclip.models.modules.settings import MODULES, blocks_in
from everclip.models.modules.towers import Side, plain_name, side_of, tower_root

_BLOCK = re.compile(
    r"(?P<stage>(?:trunk\.)?layer)(?P<of_resnet>\d+)\.|"
    r"(?:transformer\.(?:resblocks|encoder\.layer|layers|block)|trunk\.(?:blocks|stages|layers))\.(?P<number>\d+)\."
)
_PROJECTION = re.compile(r"(proj|text_projection|attnpool\.c_proj\.\w+|(head|proj|text_projection)\..+)$")
_EMBEDDING = re.compile(
    r"(conv1\.weight|class_embedding|positional_embedding|token_embedding\.weight|cls_emb|"
    r"trunk\.(patch_embed\..+|cls_token|reg_token|pos_embed|stem\..+)|transformer\.embeddings\..+)$"
)
_NORMS = (
    (nn.LayerNorm, "layernorm"),
    (nn.modules.batchnorm._BatchNorm, "batchnorm"),
)


def grow(backbone: Backbone, settings: SlotsWithoutReplay, seed: int) -> None:
    """Grow the modules of the slot inside a backbone.

    Raises:
        ConfigError: if one does not fit.
    """
    for name, module in settings.modules:
        insert(backbone.clip, name, module, seed=seed, tokenise=backbone.tokenise)


def part_of(name: str, clip: Clip) -> set[str]:
    """Return the parts that a parameter of open_clip's model belongs to; blocks have a number (`image-blocks:3`)."""
    plain = plain_name(name)
    side = side_of(plain)
    if side is None:
        return {"logit-scale" if plain == "logit_scale" else "logit-bias"}
    leaf = plain.removeprefix("visual.").removeprefix("text.")
    parts: set[str] = {side}
    if (block := _BLOCK.match(leaf)) is not None:
        # The numbers of ResNet stages start at 1.
        number = int(block["number"]) if block["stage"] is None else int(block["of_resnet"]) - 1
        parts.add(f"{side}-blocks:{number}")
    if _PROJECTION.match(leaf):
        parts.add(f"{side}-projection")
    # The stem of a ResNet has three convolutions; `conv1` of a ViT makes the patches.
    if _EMBEDDING.match(leaf) or (_is_resnet(clip, side) and re.match(r"(conv|bn)\d\.", leaf)):
        parts.add(f"{side}-embeddings")
    if plain.endswith("bias"):
        parts.add(f"{side}-bias")
    owner = clip.get_submodule(plain.rpartition(".")[0]) if "." in plain else clip
    return parts | {f"{side}-{norm}" for kind, norm in _NORMS if isinstance(owner, kind)}


def _is_resnet(clip: Clip, side: Side) -> bool:
    return side == "image" and hasattr(tower_root(clip, "image"), "layer4")


def parts_of(clip: Clip) -> dict[str, set[str]]:
    """Return the parts of every parameter; parameters of a grown module only belong to its kind (`lora`)."""
    kinds = grown_parameters(clip)
    return {n: {kinds[n]} if n in kinds else part_of(n, clip) for n, _ in clip.named_parameters()}


def choose(clip: Clip, wanted: Iterable[str]) -> list[str]:
    """Return the names of parameters that belong to any of the wanted parts.

    Args:
        clip: the model, with its grown modules.
        wanted: parts, block ranges, and names of grown modules.

    Raises:
        ConfigError: if the model does not have a part; lists those that it has.
    """
    parts = parts_of(clip)
    known = set().union(*parts.values())
    chosen: set[str] = set()
    for part in wanted:
        expanded = _blocks(part, known) if part.partition(":")[0] in BLOCKS else {part}
        if not expanded <= known:
            raise ConfigError(
                f"method.trainable: this backbone has no {part!r}; it has {', '.join(_listed(known))}."
            )
        chosen |= expanded
    return [name for name, of_name in parts.items() if of_name & chosen]


def _blocks(part: str, known: set[str]) -> set[str]:
    head, _, text = part.partition(":")
    count = sum(name.startswith(f"{head}:") for name in known)
    if not count:
        return {part}
    return {f"{head}:{n}" for n in blocks_in(text, count, f"method.trainable ({part})")}


def _listed(known: Iterable[str]) -> Sequence[str]:
    """Return parts for an error, with numbered blocks as one range."""
    names = sorted(part for part in known if ":" not in part and part not in MODULES)
    for head in BLOCKS:
        count = sum(part.startswith(f"{head}:") for part in known)
        names += [f"{head}:0-{count - 1}"] if count else []
    return names


def trains(names: Iterable[str], side: Side, prefix: str = "backbone.clip.") -> bool:
    """Return whether any of the named parameters belongs to a tower of the backbone."""
    return any(n.startswith(prefix) and side_of(n.removeprefix(prefix)) == side for n in names)


def decay_groups(names: Iterable[str], module: nn.Module) -> tuple[ParamGroup, ...]:
    """Split parameters into those with weight decay and those without (vectors, biases, norms, embeddings, scales)."""
    decayed: list[str] = []
    plain: list[str] = []
    for name in names:
        parameter = module.get_parameter(name)
        lookup = name.endswith(
            ("positional_embedding", "class_embedding", "token_embedding.weight", "prompt.tokens")
        )
        lookup = lookup or ".task_prompts." in name
        # Recognise biases by name: those of experts are stacked in matrices.
        (plain if parameter.dim() < 2 or name.endswith("bias") or lookup else decayed).append(name)
    groups = []
    if decayed:
        groups.append(ParamGroup(tuple(decayed)))
    if plain:
        groups.append(ParamGroup(tuple(plain), weight_decay=0.0))
    return tuple(groups)
