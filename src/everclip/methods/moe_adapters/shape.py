"""Operations on the experts of both towers: add routers, count, freeze and grow; describe shape and size."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from everclip.distributed import mean, world
from everclip.models.clip import Clip
from everclip.models.modules.expert_bank import KEPT
from everclip.models.modules.experts import Experts, experts_in, remove
from everclip.models.modules.routing import Pass
from everclip.models.modules.towers import SIDES

_ROUTER = re.compile(r"\.experts\.routers\.(?P<name>\w+)\.")


def begin_task(clip: Clip, router: str, grow: bool) -> None:
    """Prepare for a task: add the router if it does not exist, and experts if too few still learn."""
    for _, experts in experts_in(clip):
        active = experts.settings.active
        if grow and experts.bank.free < active:
            experts.bank.grow(experts.bank.count + active - experts.bank.free)
        if router not in experts.routers:
            experts.add_router(router)
        experts.reset_counts()


def end_task(clip: Clip, freeze: int) -> dict[str, Any]:
    """Freeze the experts that the task used most; return, per tower, the number of frozen experts and of all."""
    for _, experts in experts_in(clip):
        experts.bank.freeze(experts.most_used(freeze))
    banks_of = {side: [e.bank for _, e in experts_in(clip, side)] for side in SIDES}
    return {
        side: {"frozen": [len(bank.frozen) for bank in banks], "experts": [bank.count for bank in banks]}
        for side, banks in banks_of.items()
        if banks
    }


def reduce_counts(clip: Clip, shared_texts: bool) -> None:
    """Add the samples of a step on all processes to the counts, which are then equal on all processes.

    Args:
        clip: the model.
        shared_texts: whether all processes had the same texts, which then count once. Because dropout may lead to
            different experts on each process, the mean counts.
    """
    for side in SIDES:
        updated = [e for _, e in experts_in(clip, side) if e.new_counts is not None]
        if not updated:
            continue
        received = torch.cat([e.new_counts for e in updated if e.new_counts is not None])
        times = 1 if side == "text" and shared_texts else world()
        received = (mean(received.double()) * times).round().long()
        parts = torch.split(received, [len(e.counts) for e in updated])
        for experts, part in zip(updated, parts, strict=True):
            experts.counts += part
            experts.new_counts = None


def trainable(clip: Clip, router: str | None, texts: bool) -> list[str]:
    """Return the names of the parameters that train: experts that are not frozen, and one router per block."""
    names = []
    for path, experts in experts_in(clip):
        if experts.side == "text" and not texts:
            continue
        for name, parameter in experts.named_parameters():
            other = _ROUTER.search(f".experts.{name}")
            if parameter.numel() and (other is None or other["name"] == router):
                names.append(f"{path}.{name}")
    return names


def learning(clip: Clip) -> dict[str, list[int]]:
    """Return the experts that learn in each bank, in the order of the rows of its parameters."""
    return {
        f"{name}.bank": [e for e in range(experts.bank.count) if e not in experts.bank.frozen]
        for name, experts in experts_in(clip)
    }


def reshape_anchors(
    old: Mapping[str, torch.Tensor],
    before: Mapping[str, Sequence[int]],
    now: Mapping[str, torch.Tensor],
    after: Mapping[str, Sequence[int]],
) -> dict[str, torch.Tensor]:
    """Return the initial parameters in the current shape; parameters that have grown since have their current values.

    Args:
        old, now: initial and current parameters; those of a bank have a row per expert that learns.
        before, after: name of a bank -> the experts of its rows, in `old` and in `now`.
    """
    reshaped = dict(now)
    for name, tensor in now.items():
        bank = name.rpartition(".")[0]
        if name in old and bank in after:
            # Match experts by number: after freezing and growing, the same row may belong to another expert.
            stay = [e for e in after[bank] if e in before[bank]]
            reshaped[name] = tensor.clone()
            reshaped[name][[after[bank].index(e) for e in stay]] = old[name][
                [before[bank].index(e) for e in stay]
            ]
        elif name in old and old[name].shape == tensor.shape:
            reshaped[name] = old[name]
    return reshaped


def fix_route(clip: Clip, router: str | None, same: bool) -> None:
    """Make a copy of the model use one router always, inside any `passing`; `None`: remove the experts.

    Args:
        clip: the copy.
        router: the name of the router.
        same: whether all texts have one gate; see `Pass`.
    """
    if router is None:
        return remove(clip)
    passes = {side: Pass((router,), same=same and side == "text", counts=False) for side in SIDES}
    for _, experts in experts_in(clip):
        experts.fixed_pass = passes[experts.side]
    return None


def structure(clip: Clip) -> dict[str, Any]:
    """Return the shape of all experts as JSON."""
    return {name: experts.structure() for name, experts in experts_in(clip)}


def reshape(clip: Clip, described: Mapping[str, Any]) -> None:
    """Take the shape that `structure` described."""
    for name, experts in experts_in(clip):
        experts.reshape(described[name])


def stored(clip: Clip) -> int:
    """Return the number of values in experts and routers, including frozen ones."""
    return sum(_size(e) for _, e in experts_in(clip))


def frozen(clip: Clip) -> int:
    """Return the number of values in frozen experts, which are buffers."""
    return sum(
        t.numel() for _, e in experts_in(clip) for n, t in e.bank.named_buffers() if n.startswith(KEPT)
    )


def active(clip: Clip) -> int:
    """Return the number of values that one image with one text uses."""
    blocks = [e for _, e in experts_in(clip)]
    return sum(e.settings.active * one_expert(e) + one_router(e) for e in blocks)


def one_expert(experts: Experts) -> int:
    """Return the size of one expert of a block."""
    width, rank = experts.bank.width, experts.settings.width
    return 2 * rank * width + rank + width


def one_router(experts: Experts) -> int:
    """Return the size of a new router of a block."""
    return (1 + experts.settings.noise) * experts.bank.width * experts.bank.count


def _size(experts: Experts) -> int:
    routers = sum(p.numel() for p in experts.routers.parameters())
    return experts.bank.count * one_expert(experts) + routers
