"""Low-rank adaptation: `W + s B A` with a frozen W and trained A, B (LoRA, Hu et al. 2021, arXiv 2106.09685).

Weights are parametrised in place, because attention reads the weights of its projection without calling the module: a
replaced module would have no effect. LoRA starts as the identity (B = 0) and merges exactly. There is no dropout on the
low-rank path, because a parametrised weight does not see the input of the path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from everclip.errors import ConfigError
from everclip.models.modules.base import Context, first_projection, generator
from everclip.models.modules.settings import LoraSettings, blocks_in
from everclip.models.modules.towers import Tower

_SLICES = ("q", "k", "v")
SHARED = "shared"
"""The name of a first factor that all slices share."""


class LowRank(nn.Module):
    """The parametrisation of one weight `(rows, columns)`: adds `scaling * up @ down` to some slices of its rows.

    Args:
        weight: the weight to parametrise; decides shapes, device and type.
        slices: names of the slices of the weight's rows, equal in size, in order.
        targets: the slices that get an update.
        settings: rank and scaling.
        draw: initialises `down`.

    Parameters:
        down: `target` -> `(rank, columns)`, A in the paper; only `shared` if the slices share it.
        up: `target` -> `(rows / number of slices, rank)`, B in the paper; zero at the start.
        scale: `target` -> scalar, the factor on the update if it trains (`learned_scale`); else empty.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        slices: Sequence[str],
        targets: Sequence[str],
        settings: LoraSettings,
        draw: torch.Generator,
    ) -> None:
        super().__init__()
        self.slices, self.scaling, self.rank = tuple(slices), settings.scaling, settings.rank
        rows, columns = weight.shape[0] // len(self.slices), weight.shape[1]
        self.disabled = False
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        self.scale = nn.ParameterDict()
        shared = settings.shared and len(targets) > 1
        for target in sorted(targets, key=self.slices.index):
            first = SHARED if shared else target
            if first not in self.down:
                values = first_projection(settings.rank, columns, draw)
                self.down[first] = nn.Parameter(values.to(weight.device, weight.dtype))
            self.up[target] = nn.Parameter(weight.new_zeros(rows, settings.rank))
            if settings.learned_scale:
                self.scale[target] = nn.Parameter(weight.new_tensor(settings.scaling))

    def extra_repr(self) -> str:
        """Return what distinguishes this module in `str`."""
        return f"slices={self.slices}, scaling={self.scaling:g}"

    def delta(self, target: str) -> torch.Tensor:
        """Return the update of one slice, `(rows / number of slices, columns)`."""
        # Outside autocast, so that the merged weight equals the weight in training.
        with torch.autocast(self.up[target].device.type, enabled=False):
            factor = self.scale.get(target, self.scaling)
            first = self.down[SHARED if SHARED in self.down else target]
            update: torch.Tensor = (self.up[target] @ first) * factor
            return update

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the adapted weight, same shape; the weight itself while disabled."""
        if self.disabled:
            return weight
        if len(self.slices) == 1:
            return weight + self.delta(self.slices[0])
        parts = weight.chunk(len(self.slices))
        changed = [
            part + self.delta(name) if name in self.up else part
            for name, part in zip(self.slices, parts, strict=True)
        ]
        return torch.cat(changed)


@dataclass(frozen=True)
class TargetWeight:
    """A weight to adapt: `owner.name`, the names of its slices, and the targets among these."""

    owner: nn.Module
    name: str
    slices: tuple[str, ...]
    targets: tuple[str, ...]


def target_weights(tower: Tower, settings: LoraSettings) -> list[TargetWeight]:
    """Return the weights of a tower that the settings name."""
    wanted = set(settings.targets)
    if "mlp" in wanted:
        wanted |= {"c_fc", "c_proj"}
    weights = []
    for number in blocks_in(
        settings.blocks, len(tower.blocks), f"method.trainable.lora.blocks ({tower.side})"
    ):
        block = tower.blocks[number]
        attention = block.attn
        sliced = tuple(name for name in _SLICES if name in wanted)
        if sliced:
            weights.append(TargetWeight(attention, "in_proj_weight", _SLICES, sliced))
        if "out" in wanted:
            weights.append(TargetWeight(attention.out_proj, "weight", ("out",), ("out",)))
        for name in ("c_fc", "c_proj"):
            if name in wanted:
                linear = block.mlp.get_submodule(name)
                weights.append(TargetWeight(linear, "weight", (name,), (name,)))
    return weights


def insert(tower: Tower, settings: LoraSettings, context: Context) -> None:
    """Parametrise the weights that the settings name; the outputs of the tower do not change, bit for bit.

    Raises:
        ConfigError: if one of them is adapted already, or the rank is larger than a weight.
    """
    targets = target_weights(tower, settings)
    for target in targets:
        weight: torch.Tensor = getattr(target.owner, target.name)
        if parametrize.is_parametrized(target.owner, target.name):
            raise ConfigError(
                f"method.trainable: two entries `lora` adapt the same weight ({', '.join(target.targets)} of the "
                f"{tower.side} tower); give them different blocks or towers, or name all targets in one."
            )
        smallest = min(weight.shape[0] // len(target.slices), weight.shape[1])
        if settings.rank > smallest:
            raise ConfigError(
                f"method.trainable.lora.rank: {settings.rank} is more than the {smallest} rows or columns of "
                f"{', '.join(target.targets)} in the {tower.side} tower."
            )
    for number, target in enumerate(targets):
        weight = getattr(target.owner, target.name)
        draw = generator(context.seed, "lora", tower.side, settings.blocks, number)
        grown = LowRank(weight, target.slices, target.targets, settings, draw)
        parametrize.register_parametrization(target.owner, target.name, grown)


def _parametrised(owner: nn.Module) -> dict[str, parametrize.ParametrizationList]:
    """Return the parametrisations of each parametrised weight of a module."""
    chains = owner.get_submodule("parametrizations")
    assert isinstance(chains, nn.ModuleDict)
    return {
        name: chain for name, chain in chains.items() if isinstance(chain, parametrize.ParametrizationList)
    }


def adapted(module: nn.Module) -> Iterator[tuple[nn.Module, str, LowRank]]:
    """Yield (owner, name of the weight, its parametrisation) for every adapted weight below a module."""
    for owner in list(module.modules()):
        if not parametrize.is_parametrized(owner):
            continue
        for name, chain in _parametrised(owner).items():
            if isinstance(chain[0], LowRank):
                yield owner, name, chain[0]


@contextmanager
def disabled(module: nn.Module) -> Iterator[None]:
    """Compute a model without its LoRA inside the context."""
    updates = [update for _, _, update in adapted(module)]
    for update in updates:
        update.disabled = True
    try:
        yield
    finally:
        for update in updates:
            update.disabled = False


def size(tower: Tower, settings: LoraSettings) -> int:
    """Return the number of parameters that `insert` would add."""
    count = 0
    for target in target_weights(tower, settings):
        weight: torch.Tensor = getattr(target.owner, target.name)
        targets = len(target.targets)
        firsts = 1 if settings.shared else targets
        count += targets * settings.rank * (weight.shape[0] // len(target.slices))
        count += firsts * settings.rank * weight.shape[1] + targets * settings.learned_scale
    return count


def _take_out(owner: nn.Module, name: str, merged: bool) -> None:
    # Torch stores the parametrised attribute on a class that a deep copy shares with its original, and deletes it
    # there. Without a new class, removing LoRA from a copy would break the original model.
    shared = type(owner)
    owner.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    parametrize.remove_parametrizations(owner, name, leave_parametrized=merged)


def remove(module: nn.Module) -> None:
    """Remove LoRA; every weight is again the original tensor."""
    for owner, name, _ in list(adapted(module)):
        _take_out(owner, name, merged=False)


@dataclass(frozen=True)
class Merged:
    """A merged weight: what `unmerge` needs to restore the original and its parametrisation."""

    owner: nn.Module
    name: str
    original: torch.Tensor
    update: LowRank


@torch.no_grad()
def merge(module: nn.Module) -> list[Merged]:
    """Replace the original weights by the adapted ones; outputs stay the same, bit for bit.

    Returns:
        The records for `unmerge`. They keep the original weights, because subtracting the update would not be exact.
    """
    records = []
    for owner, name, update in list(adapted(module)):
        original = _parametrised(owner)[name].original
        records.append(Merged(owner, name, original.detach().clone(), update))
        _take_out(owner, name, merged=True)
    return records


@torch.no_grad()
def unmerge(records: Sequence[Merged]) -> None:
    """Undo `merge`: restore the original weights bit for bit, with LoRA as before."""
    for record in records:
        getattr(record.owner, record.name).copy_(record.original)
        parametrize.register_parametrization(record.owner, record.name, record.update)
