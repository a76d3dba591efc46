"""Mixture of experts beside the MLP of transformer blocks (MoE-Adapters, Yu et al. 2024, arXiv 2403.11549, section 3).

    h = x + MHSA(LN(x)),  y = h + MLP(LN(h)) + sum_e g_e expert_e(h)

One gate per sample, read from token 0 of h, serves all its tokens. Experts act only inside `routing.passing`: without
it, and on route 0, the model computes the same as without experts, bit for bit. Nothing here synchronises with the
device. Every expert that learns has a gradient, which is zero if no sample chose it.
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
from everclip.models.modules.routing import Logits, Pass, Router, current_pass, imbalance, mixed_logits
from everclip.models.modules.settings import ExpertsSettings, blocks_in
from everclip.models.modules.towers import Side, Tower

NAME = "experts"
"""The name of the experts' submodule in a block."""


class Experts(Hooked):
    """The experts and routers of one block.

    Buffers:
        counts: the number of training samples that each expert received `(E,)` int64, since `reset_counts`.

    Attributes:
        new_counts: the same `(E,)` since the last synchronisation of processes; `None` if there were no samples.
        fixed_pass: the pass to use always (in a teacher); `None`: the pass of the surrounding `routing.passing`.

    Args:
        tower: the tower in which it grows.
        number: of the block.
        first: whether it is the first block with experts, where routes are decided.
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
        self.new_counts: torch.Tensor | None = None
        self.fixed_pass: Pass | None = None

    # -- shape ------------------------------------------------------------------------------------------------

    def add_router(self, name: str) -> None:
        """Add a router over the current experts."""
        like = self.bank.down
        self.routers[name] = Router(self.bank.width, self.bank.count, self.settings.noise, like)

    def reset_counts(self) -> None:
        """Set the count of every expert to zero."""
        self.counts = self.counts.new_zeros(self.bank.count)

    def most_used(self, count: int) -> list[int]:
        """Return up to `count` experts with the most samples; the first in a tie, and none without samples."""
        order = torch.argsort(self.counts.cpu(), descending=True, stable=True)[:count]
        return [int(e) for e in order if int(self.counts[e]) > 0]

    def structure(self) -> dict[str, Any]:
        """Return the shape as JSON."""
        routers = {name: router.count for name, router in self.routers.items()}
        return {"count": self.bank.count, "frozen": list(self.bank.frozen), "routers": routers}

    def reshape(self, structure: dict[str, Any]) -> None:
        """Take the shape that `structure` described."""
        self.bank.reshape(structure["count"], structure["frozen"])
        self.reset_counts()
        self.routers = nn.ModuleDict()
        for name, count in structure["routers"].items():
            self.routers[name] = Router(self.bank.width, count, self.settings.noise, self.bank.down)

    # -- computing --------------------------------------------------------------------------------------------

    def forward(self, tokens: torch.Tensor, routing: Pass) -> torch.Tensor:
        """Return the experts' contribution to `tokens` `(N, L, W)`, same shape, in float32 or higher precision."""
        chosen, gates, logits = self._gate(tokens, routing)
        if self.training:
            self._count(chosen, gates, logits, routing)
        elif routing.counts:
            routing.chosen.append(self._chosen_of_samples(chosen, routing, len(tokens)))
        if isinstance(routing.route, torch.Tensor):
            gates = gates * (routing.route > 0)[:, None]
        if self.bank.count == self.settings.active:
            return self.bank.dense(tokens, logits.scatter(chosen, gates))
        return self.bank.grouped(tokens, chosen, gates)

    def _gate(self, tokens: torch.Tensor, routing: Pass) -> tuple[torch.Tensor, torch.Tensor, Logits]:
        """Return the chosen experts `(N, k)`, their gates `(N, k)`, and the router's logits."""
        routers = [cast("Router", self.routers[name]) for name in routing.routers]
        # Outside autocast, so that a gate does not depend on the precision of a run.
        with torch.autocast(tokens.device.type, enabled=False):
            token = tokens[:1, 0] if routing.same else tokens[:, 0]
            token = token.to(self.bank.down.dtype)
            if isinstance(routing.route, torch.Tensor):
                logits = mixed_logits(routers, token, routing.route)
            else:
                noise = routing.noise[:, self.number] if routing.noise is not None and self.training else None
                logits = routers[routing.route - 1](token, noise)
            return *logits.top(self.settings.active), logits

    def _count(self, chosen: torch.Tensor, gates: torch.Tensor, logits: Logits, routing: Pass) -> None:
        """Count the samples that each expert received, and collect the imbalance."""
        if routing.counts:
            every = torch.arange(self.bank.count, device=chosen.device)
            received = (chosen[..., None] == every).sum(dim=(0, 1))
            self.new_counts = received if self.new_counts is None else self.new_counts + received
        if routing.balance:
            spread = logits.scatter(chosen, gates)
            routing.imbalances.append(imbalance(logits, spread, self.settings.active, routing.shared))

    def _chosen_of_samples(self, chosen: torch.Tensor, routing: Pass, samples: int) -> torch.Tensor:
        """Return the chosen experts of each sample `(N, k)`, -1 on route 0."""
        if isinstance(routing.route, torch.Tensor):
            return torch.where((routing.route > 0)[:, None], chosen, -1)
        return chosen.expand(samples, -1)

    # -- hooks ------------------------------------------------------------------------------------------------

    def attach(self, block: nn.Module) -> None:
        """Add hooks to an open_clip block: read the tokens at its second norm, and add to the output of its MLP."""
        if self.first:
            self._handles.append(block.register_forward_pre_hook(self._decide_route))
        for name, hook in (("ln_2", self._read), ("ls_2", self._add)):
            self._handles.append(block.get_submodule(name).register_forward_hook(hook))

    def _samples_first(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens if self.batch_first else tokens.transpose(0, 1)

    def _pass(self) -> Pass | None:
        return self.fixed_pass or current_pass(self.side)

    def _decide_route(self, block: nn.Module, inputs: Any) -> None:
        routing = self._pass()
        if routing is not None and routing.decide is not None:
            routing.route = routing.decide(self._samples_first(inputs[0]))

    def _read(self, norm: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        routing = self._pass()
        if routing is not None and not (isinstance(routing.route, int) and routing.route == 0):
            routing.inputs[self.number] = inputs[0] if self.settings.input == "raw" else output

    def _add(self, scale: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        routing = self._pass()
        tokens = None if routing is None else routing.inputs.pop(self.number, None)
        if routing is None or tokens is None:
            return None
        added = self._samples_first(self.forward(self._samples_first(tokens), routing))
        return (output + added).to(output.dtype)


def insert(tower: Tower, settings: ExpertsSettings, context: Context) -> None:
    """Insert experts without routers into the blocks that the settings name.

    Raises:
        ConfigError: if the tower already has experts.
    """
    chosen = blocks_in(settings.blocks, len(tower.blocks), f"method.trainable.experts.blocks ({tower.side})")
    if any(isinstance(getattr(block, NAME, None), Experts) for block in tower.blocks):
        raise ConfigError(
            f"method.trainable: two entries `experts` for the {tower.side} tower; it can hold only one."
        )
    for number in chosen:
        block = tower.blocks[number]
        like = next(block.parameters())
        experts = Experts(tower, number, number == chosen[0], settings, context.seed, like)
        block.add_module(NAME, experts.train(block.training))
        experts.attach(block)


def experts_in(clip: Clip, side: Side | None = None) -> Iterator[tuple[str, Experts]]:
    """Yield name and experts of every block with experts, in order, for one tower or both."""
    for name, module in clip.named_modules():
        if isinstance(module, Experts) and side in (None, module.side):
            yield name, module


def cost(clip: Clip) -> str:
    """Describe the cost of experts per image."""
    blocks = [m for _, m in experts_in(clip, "image")]
    size = sum(m.settings.active * 2 * m.settings.width * m.bank.width for m in blocks)
    return f"experts: {size:,} multiplications per image token" if size else ""


def remove(clip: Clip) -> None:
    """Remove all experts and routers."""
    for block in list(clip.modules()):
        experts = getattr(block, NAME, None)
        if isinstance(experts, Experts):
            experts.unhook()
            delattr(block, NAME)
