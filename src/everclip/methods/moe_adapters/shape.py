"""The experts of both towers as one thing: routers, counting, freezing, growing, their shape and their size."""

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


def open_task(clip: Clip, router: str, grow: bool) -> None:
    """Make room for a task: a router of its own name if there is none, and enough experts that still learn."""
    for _, experts in experts_in(clip):
        active = experts.settings.active
        if grow and experts.bank.free < active:
            experts.bank.grow(experts.bank.count + active - experts.bank.free)
        if router not in experts.routers:
            experts.add_router(router)
        experts.start_counting()


def close_task(clip: Clip, freeze: int) -> dict[str, Any]:
    """Freeze what the task took most often; return, per tower, how many experts are frozen and how many there are."""
    for _, experts in experts_in(clip):
        experts.bank.freeze(experts.most_taken(freeze))
    found = {side: [e.bank for _, e in experts_in(clip, side)] for side in SIDES}
    return {
        side: {"frozen": [len(bank.frozen) for bank in banks], "experts": [bank.count for bank in banks]}
        for side, banks in found.items()
        if banks
    }


def reduce_counts(clip: Clip, shared_texts: bool) -> None:
    """Add what a step's samples took, on all processes, to the counts, which are the same on each.

    Args:
        clip: the model.
        shared_texts: whether every process had the same texts, which count once. Dropout may have sent them elsewhere
            on each: their mean counts.
    """
    for side in SIDES:
        picked = [e for _, e in experts_in(clip, side) if e.picked is not None]
        if not picked:
            continue
        taken = torch.cat([e.picked for e in picked if e.picked is not None])
        times = 1 if side == "text" and shared_texts else world()
        taken = (mean(taken.double()) * times).round().long()
        for experts, own in zip(picked, torch.split(taken, [len(e.counts) for e in picked]), strict=True):
            experts.counts += own
            experts.picked = None


def trainable(clip: Clip, router: str | None, texts: bool) -> list[str]:
    """Return the names of what trains: experts that are not frozen and one router, in one tower or both."""
    names = []
    for place, experts in experts_in(clip):
        if experts.side == "text" and not texts:
            continue
        for name, parameter in experts.named_parameters():
            other = _ROUTER.search(f".experts.{name}")
            if parameter.numel() and (other is None or other["name"] == router):
                names.append(f"{place}.{name}")
    return names


def learning(clip: Clip) -> dict[str, list[int]]:
    """Return which experts the rows of each bank's parameters belong to: name of the bank -> experts that learn."""
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
    """Return what the model was at first, in the shape that it has now; what grew since was what it is now.

    Args:
        old, now: parameters at first and now; those of a bank have a row per expert that learns.
        before, after: name of a bank -> the experts of its rows, in `old` and in `now`.
    """
    found = dict(now)
    for name, tensor in now.items():
        bank = name.rpartition(".")[0]
        if name in old and bank in after:
            # By number: after freezing and growing, rows of equal count are those of other experts.
            stay = [e for e in after[bank] if e in before[bank]]
            found[name] = tensor.clone()
            found[name][[after[bank].index(e) for e in stay]] = old[name][
                [before[bank].index(e) for e in stay]
            ]
        elif name in old and old[name].shape == tensor.shape:
            found[name] = old[name]
    return found


def fix_route(clip: Clip, router: str | None, same: bool) -> None:
    """Let a copy of the model take one router for good, whatever a pass through it is told; `None`: no experts.

    Args:
        clip: the copy.
        router: which.
        same: whether all texts have one gate; see `Pass`.
    """
    if router is None:
        return remove(clip)
    passes = {side: Pass((router,), same=same and side == "text", counts=False) for side in SIDES}
    for _, experts in experts_in(clip):
        experts.always = passes[experts.side]
    return None


def structure(clip: Clip) -> dict[str, Any]:
    """Return the shape of all experts as JSON."""
    return {name: experts.structure() for name, experts in experts_in(clip)}


def reshape(clip: Clip, described: Mapping[str, Any]) -> None:
    """Take the shape that `structure` described."""
    for name, experts in experts_in(clip):
        experts.reshape(described[name])


def stored(clip: Clip) -> int:
    """Return how many values experts and routers hold, frozen ones included."""
    return sum(_size(e) for _, e in experts_in(clip))


def frozen(clip: Clip) -> int:
    """Return how many of them are frozen, and no parameters any more."""
    return sum(
        t.numel() for _, e in experts_in(clip) for n, t in e.bank.named_buffers() if n.startswith(KEPT)
    )


def active(clip: Clip) -> int:
    """Return how many of them one picture with one text makes use of."""
    found = [e for _, e in experts_in(clip)]
    return sum(e.settings.active * one_expert(e) + one_router(e) for e in found)


def one_expert(experts: Experts) -> int:
    """Return the size of one expert of a block."""
    width, rank = experts.bank.width, experts.settings.width
    return 2 * rank * width + rank + width


def one_router(experts: Experts) -> int:
    """Return the size of a router that is added to a block now."""
    return (1 + experts.settings.noise) * experts.bank.width * experts.bank.count


def _size(experts: Experts) -> int:
    routers = sum(p.numel() for p in experts.routers.parameters())
    return experts.bank.count * one_expert(experts) + routers
