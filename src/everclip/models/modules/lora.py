"""Low-rank adaptation: `W + s B A` with a frozen W and trained A, B (LoRA, Hu et al. 2021, arXiv 2106.09685).

Weights are parametrised in place, since attention reads its projection's weights without calling the projection:
another module put there would have no effect. It starts as the identity (B = 0) and merges exactly. There is no
dropout on the low-rank path: it would act on the path's input, which a parametrised weight does not see.
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


class LowRank(nn.Module):
    """The parametrisation of one weight `(rows, columns)`: adds `scaling * up @ down` to some slices of its rows.

    Args:
        weight: the weight that will be parametrised; decides shapes, device and type.
        slices: names of the equally high slices of the weight's rows, in order.
        targets: the slices that get an update of their own.
        settings: rank and scaling.
        draw: initialises `down`.

    Parameters:
        down: `target` -> `(rank, columns)`, A in the paper.
        up: `target` -> `(rows / number of slices, rank)`, B in the paper; zero at the start.
        scale: `target` -> scalar, the factor on the update where it trains (`learned_scale`); else empty.
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
        self.asleep = False
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        self.scale = nn.ParameterDict()
        for target in sorted(targets, key=self.slices.index):
            values = first_projection(settings.rank, columns, draw)
            self.down[target] = nn.Parameter(values.to(weight.device, weight.dtype))
            self.up[target] = nn.Parameter(weight.new_zeros(rows, settings.rank))
            if settings.learned_scale:
                self.scale[target] = nn.Parameter(weight.new_tensor(settings.scaling))

    def extra_repr(self) -> str:
        """Say what `str` must tell apart."""
        return f"slices={self.slices}, scaling={self.scaling:g}"

    def delta(self, target: str) -> torch.Tensor:
        """Return the update of one slice, `(rows / number of slices, columns)`."""
        # Outside of autocast, so that the merged weight of an evaluation is the one that trained.
        with torch.autocast(self.up[target].device.type, enabled=False):
            factor = self.scale.get(target, self.scaling)
            update: torch.Tensor = (self.up[target] @ self.down[target]) * factor
            return update

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the adapted weight, same shape; the weight itself while asleep."""
        if self.asleep:
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
class Place:
    """A weight that may be adapted: `owner.name`, and the targets that lie in it."""

    owner: nn.Module
    name: str
    slices: tuple[str, ...]
    targets: tuple[str, ...]


def places(tower: Tower, settings: LoraSettings) -> list[Place]:
    """Return the weights of a tower that the settings name."""
    wanted = set(settings.targets)
    if "mlp" in wanted:
        wanted |= {"c_fc", "c_proj"}
    found = []
    for number in blocks_in(
        settings.blocks, len(tower.blocks), f"method.trainable.lora.blocks ({tower.side})"
    ):
        block = tower.blocks[number]
        attention = block.attn
        sliced = tuple(name for name in _SLICES if name in wanted)
        if sliced:
            found.append(Place(attention, "in_proj_weight", _SLICES, sliced))
        if "out" in wanted:
            found.append(Place(attention.out_proj, "weight", ("out",), ("out",)))
        for name in ("c_fc", "c_proj"):
            if name in wanted:
                linear = block.mlp.get_submodule(name)
                found.append(Place(linear, "weight", (name,), (name,)))
    return found


def insert(tower: Tower, settings: LoraSettings, context: Context) -> None:
    """Parametrise the weights that the settings name; the tower computes what it did, bit for bit.

    Raises:
        ConfigError: if one of them is adapted already, or the rank is larger than a weight.
    """
    wanted = places(tower, settings)
    for place in wanted:
        weight: torch.Tensor = getattr(place.owner, place.name)
        if parametrize.is_parametrized(place.owner, place.name):
            raise ConfigError(
                f"method.trainable: two `lora` adapt the same weight ({', '.join(place.targets)} of the "
                f"{tower.side} tower); give them different blocks or towers, or name all targets in one."
            )
        smallest = min(weight.shape[0] // len(place.slices), weight.shape[1])
        if settings.rank > smallest:
            raise ConfigError(
                f"method.trainable.lora.rank: {settings.rank} is more than the {smallest} rows or columns of "
                f"{', '.join(place.targets)} in the {tower.side} tower."
            )
    for number, place in enumerate(wanted):
        weight = getattr(place.owner, place.name)
        draw = generator(context.seed, "lora", tower.side, settings.blocks, number)
        grown = LowRank(weight, place.slices, place.targets, settings, draw)
        parametrize.register_parametrization(place.owner, place.name, grown)


def _parametrised(owner: nn.Module) -> dict[str, parametrize.ParametrizationList]:
    """Return the chain of parametrisations of each weight of a module that has some."""
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
def asleep(module: nn.Module) -> Iterator[None]:
    """Let a model compute as if it had no LoRA."""
    updates = [update for _, _, update in adapted(module)]
    for update in updates:
        update.asleep = True
    try:
        yield
    finally:
        for update in updates:
            update.asleep = False


def size(tower: Tower, settings: LoraSettings) -> int:
    """Return how many parameters `insert` would add."""
    count = 0
    for place in places(tower, settings):
        weight: torch.Tensor = getattr(place.owner, place.name)
        one = settings.rank * (weight.shape[0] // len(place.slices) + weight.shape[1])
        count += len(place.targets) * (one + settings.learned_scale)
    return count


def _take_out(owner: nn.Module, name: str, merged: bool) -> None:
    # Torch keeps the parametrised attribute on a class that a deep copy shares with its original, and deletes it
    # there: without a class of its own, taking LoRA out of a copy would break the model it was copied from.
    shared = type(owner)
    owner.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    parametrize.remove_parametrizations(owner, name, leave_parametrized=merged)


def remove(module: nn.Module) -> None:
    """Take LoRA out again: every weight is the tensor it was before."""
    for owner, name, _ in list(adapted(module)):
        _take_out(owner, name, merged=False)


@dataclass(frozen=True)
class Merged:
    """What `unmerge` needs: the weight before and its parametrisation."""

    owner: nn.Module
    name: str
    original: torch.Tensor
    update: LowRank


@torch.no_grad()
def merge(module: nn.Module) -> list[Merged]:
    """Put the adapted weights in place of the original ones; outputs stay the same, bit for bit.

    Returns:
        What `unmerge` needs. The difference could not be subtracted again exactly, so the weights are kept.
    """
    records = []
    for owner, name, update in list(adapted(module)):
        original = _parametrised(owner)[name].original
        records.append(Merged(owner, name, original.detach().clone(), update))
        _take_out(owner, name, merged=True)
    return records


@torch.no_grad()
def unmerge(records: Sequence[Merged]) -> None:
    """Undo `merge`: the original weights are back bit for bit, adapted as before."""
    for record in records:
        getattr(record.owner, record.name).copy_(record.original)
        parametrize.register_parametrization(record.owner, record.name, record.update)
