"""Mixture of experts beside the MLP of transformer blocks (MoE-Adapters, Yu et al. 2024, arXiv 2403.11549, section 3).

    h = x + MHSA(LN(x)),  y = h + MLP(LN(h)) + sum_e g_e expert_e(h)

One gate per sample, read from token 0 of h, is shared by all its tokens. Experts act inside `routing.passing` alone:
without it, and on route 0, the model is the one they were grown in, bit for bit. Nothing here waits for a device, and
every expert that learns has a gradient, zero where no sample chose it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from everclip.errors import ConfigError
from everclip.models.clip import Clip
from everclip.models.modules.base import Context, Hooked, generator
from everclip.models.modules.expert_bank import Bank
from everclip.models.modules.routing import Logits, Pass, Router, current, imbalance, mixed_logits
from everclip.models.modules.settings import ExpertsSettings, blocks_in
from everclip.models.modules.towers import Side, Tower

NAME = "experts"
"""What the experts of a block are called inside it."""


class Experts(Hooked):
    """The experts and routers of one block.

    Buffers:
        counts: how many samples of training took each expert `(E,)` int64, since `start_counting`.

    Attributes:
        always: what they are told at every pass, if that is settled (in a teacher); else each pass tells them.

    Args:
        tower: the tower it grows in.
        number: of the block.
        first: whether it is the first block with experts, which decides about routes.
        settings: of experts and routers.
        seed: decides initial values.
        like: decides device and type.
    """

    counts: torch.Tensor

    def __init__(
        self, tower: Tower, number: int, first: bool, settings: ExpertsSettings, seed: int, like: torch.Tensor
    ) -> None:
        super().__init__()
        self.side: Side = tower.side
        self.number, self.first, self.batch_first, self.settings = number, first, tower.batch_first, settings
        side = tower.side

        def draw(expert: int) -> torch.Generator:
            return generator(seed, NAME, side, number, expert)

        self.bank = Bank(tower.width, settings, draw, like)
        self.routers = nn.ModuleDict()
        self.register_buffer("counts", torch.zeros(settings.count, dtype=torch.int64, device=like.device))
        self.picked: torch.Tensor | None = None
        self.always: Pass | None = None

    # -- shape ------------------------------------------------------------------------------------------------

    def add_router(self, name: str) -> None:
        """Add a router for the experts that there are now."""
        like = self.bank.down
        self.routers[name] = Router(self.bank.width, self.bank.count, self.settings.noise, like)

    def start_counting(self) -> None:
        """Forget who was taken."""
        self.counts = self.counts.new_zeros(self.bank.count)

    def most_taken(self, count: int) -> list[int]:
        """Return the experts taken most often, at the most `count`; of equals the first, and none that nobody took."""
        order = torch.argsort(self.counts.cpu(), descending=True, stable=True)[:count]
        return [int(e) for e in order if int(self.counts[e]) > 0]

    def structure(self) -> dict[str, Any]:
        """Return the shape as JSON."""
        routers = {name: router.count for name, router in self.routers.items()}
        return {"count": self.bank.count, "frozen": list(self.bank.frozen), "routers": routers}

    def reshape(self, structure: dict[str, Any]) -> None:
        """Take the shape that `structure` described."""
        self.bank.reshape(structure["count"], structure["frozen"])
        self.start_counting()
        self.routers = nn.ModuleDict()
        for name, count in structure["routers"].items():
            self.routers[name] = Router(self.bank.width, count, self.settings.noise, self.bank.down)

    # -- computing --------------------------------------------------------------------------------------------

    def forward(self, tokens: torch.Tensor, told: Pass) -> torch.Tensor:
        """Return what the experts add to `tokens` `(N, L, W)`, same shape, float32 or finer."""
        chosen, gates, logits = self._gate(tokens, told)
        if self.training:
            self._count(chosen, gates, logits, told)
        elif told.counts:
            told.chosen.append(self._shown(chosen, told, len(tokens)))
        if isinstance(told.route, torch.Tensor):
            gates = gates * (told.route > 0)[:, None]
        if self.bank.count == self.settings.active:
            return self.bank.dense(tokens, logits.scatter(chosen, gates))
        return self.bank.grouped(tokens, chosen, gates)

    def _gate(self, tokens: torch.Tensor, told: Pass) -> tuple[torch.Tensor, torch.Tensor, Logits]:
        routers = [cast("Router", self.routers[name]) for name in told.routers]
        # Outside of autocast, so that a gate does not depend on the precision of a run.
        with torch.autocast(tokens.device.type, enabled=False):
            token = tokens[:1, 0] if told.same else tokens[:, 0]
            token = token.to(self.bank.down.dtype)
            if isinstance(told.route, torch.Tensor):
                logits = mixed_logits(routers, token, told.route)
            else:
                noise = told.noise[:, self.number] if told.noise is not None and self.training else None
                logits = routers[told.route - 1](token, noise)
            return *logits.top(self.settings.active), logits

    def _count(self, chosen: torch.Tensor, gates: torch.Tensor, logits: Logits, told: Pass) -> None:
        if told.counts:
            every = torch.arange(self.bank.count, device=chosen.device)
            taken = (chosen[..., None] == every).sum(dim=(0, 1))
            self.picked = taken if self.picked is None else self.picked + taken
        if told.balance:
            spread = logits.scatter(chosen, gates)
            told.imbalances.append(imbalance(logits, spread, self.settings.active, told.shared))

    def _shown(self, chosen: torch.Tensor, told: Pass, samples: int) -> torch.Tensor:
        if isinstance(told.route, torch.Tensor):
            return torch.where((told.route > 0)[:, None], chosen, -1)
        return chosen.expand(samples, -1)

    # -- hooks ------------------------------------------------------------------------------------------------

    def attach(self, block: nn.Module) -> None:
        """Hook into an open_clip block: what enters its second norm is read, and what its MLP adds is added to."""
        if self.first:
            self._handles.append(block.register_forward_pre_hook(self._enter))
        for name, hook in (("ln_2", self._read), ("ls_2", self._add)):
            self._handles.append(block.get_submodule(name).register_forward_hook(hook))

    def _samples_first(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens if self.batch_first else tokens.transpose(0, 1)

    def _told(self) -> Pass | None:
        return self.always or current(self.side)

    def _enter(self, block: nn.Module, inputs: Any) -> None:
        told = self._told()
        if told is not None and told.decide is not None:
            told.route = told.decide(self._samples_first(inputs[0]))

    def _read(self, norm: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        told = self._told()
        if told is not None and not (isinstance(told.route, int) and told.route == 0):
            told.held[self.number] = inputs[0] if self.settings.input == "raw" else output

    def _add(self, scale: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        told = self._told()
        tokens = None if told is None else told.held.pop(self.number, None)
        if told is None or tokens is None:
            return None
        added = self._samples_first(self.forward(self._samples_first(tokens), told))
        return (output + added).to(output.dtype)


def insert(tower: Tower, settings: ExpertsSettings, context: Context) -> None:
    """Put experts without any router into the blocks that the settings name.

    Raises:
        ConfigError: if a block has some already.
    """
    chosen = blocks_in(settings.blocks, len(tower.blocks), f"method.trainable.experts.blocks ({tower.side})")
    if any(isinstance(getattr(block, NAME, None), Experts) for block in tower.blocks):
        raise ConfigError(
            f"method.trainable: two `experts` in the {tower.side} tower; one is what it can hold."
        )
    for number in chosen:
        block = tower.blocks[number]
        like = next(block.parameters())
        experts = Experts(tower, number, number == chosen[0], settings, context.seed, like)
        block.add_module(NAME, experts.train(block.training))
        experts.attach(block)


def experts_in(clip: Clip, side: Side | None = None) -> Iterator[tuple[str, Experts]]:
    """Yield the name and the experts of every block that has some, in order; those of one tower or of both."""
    for name, module in clip.named_modules():
        if isinstance(module, Experts) and side in (None, module.side):
            yield name, module


def cost(clip: Clip) -> str:
    """Say what experts cost for each image."""
    found = [m for _, m in experts_in(clip, "image")]
    size = sum(m.settings.active * 2 * m.settings.width * m.bank.width for m in found)
    return f"experts: {size:,} multiplications per image token" if size else ""


def remove(clip: Clip) -> None:
    """Take all experts and routers out again."""
    for block in list(clip.modules()):
        experts = getattr(block, NAME, None)
        if isinstance(experts, Experts):
            experts.unhook()
            delattr(block, NAME)
