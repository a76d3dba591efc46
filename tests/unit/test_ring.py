"""The sigmoid loss around a ring of processes (threads here) is that of one process, with its gradients."""

from __future__ import annotations

import threading
from queue import Queue

import pytest
import torch
import torch.nn.functional as F

from everclip.methods import ring
from everclip.methods.losses import sigmoid_contrastive

ROWS, WIDTH = 3, 5
Leaves = list[torch.Tensor]


def leaves(world: int) -> tuple[Leaves, Leaves]:
    """Unit embeddings of all processes, scale and bias, with gradient; keys with repeats across processes."""
    draw, rows = torch.Generator().manual_seed(world), world * ROWS
    image, text = (F.normalize(torch.randn(rows, WIDTH, generator=draw).double(), dim=1) for _ in range(2))
    given = [image, text, torch.tensor(7.0).double(), torch.tensor(-2.0).double()]
    keys = [torch.randint(0, rows, (rows,), generator=draw) for _ in range(2)]
    return [values.requires_grad_() for values in given], keys


class Threads:
    """What the processes of a ring would do to each other, by threads."""

    def __init__(self, world: int) -> None:
        self.world, self.own = world, threading.local()
        self.queues: list[Queue[torch.Tensor]] = [Queue() for _ in range(world)]
        self.gathered: list[list[torch.Tensor]] = [[] for _ in range(world)]
        self.barrier = threading.Barrier(world)

    def pass_on(self, values: torch.Tensor) -> torch.Tensor:
        self.queues[(self.own.rank + 1) % self.world].put(values.clone())
        return self.queues[self.own.rank].get(timeout=10)

    def concatenate(self, values: torch.Tensor) -> torch.Tensor:
        place = len(self.gathered[self.own.rank])
        self.gathered[self.own.rank].append(values)
        self.barrier.wait(10)
        return torch.cat([parts[place] for parts in self.gathered])

    def run(self, given: list[Leaves], keys: list[Leaves]) -> list[torch.Tensor]:
        found: list[torch.Tensor] = [torch.empty(0)] * self.world

        def work(rank: int) -> None:
            self.own.rank = rank
            image, text, scale, bias = given[rank]
            found[rank] = ring.sigmoid_in_ring(image, text, scale, bias, *keys[rank])
            (3 * found[rank]).backward()  # type: ignore[no-untyped-call]  # a factor, as a loss scale

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return found


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a_ring_gives_the_loss_and_the_gradients_of_one_process(
    world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, keys = leaves(world)
    expected = sigmoid_contrastive(whole[0], whole[1], whole[2], whole[3], *keys)
    (3 * expected).backward()  # type: ignore[no-untyped-call]
    threads = Threads(world)
    monkeypatch.setattr(ring, "world", lambda: world)
    monkeypatch.setattr(ring, "rank", lambda: threads.own.rank)
    monkeypatch.setattr(ring, "pass_on", threads.pass_on)
    monkeypatch.setattr(ring, "concatenate", threads.concatenate)
    parts = [slice(rank * ROWS, (rank + 1) * ROWS) for rank in range(world)]
    scalars = [[whole[i].detach().clone().requires_grad_() for i in (2, 3)] for _ in parts]
    given = [
        [*(whole[i].detach()[part].requires_grad_() for i in (0, 1)), *own]
        for part, own in zip(parts, scalars, strict=True)
    ]
    losses = threads.run(given, [[key[p] for key in keys] for p in parts])
    # Averaged over processes, as DDP averages; float32 inside the loss of one process, hence the tolerance.
    assert torch.stack(losses).mean().item() == pytest.approx(expected.item(), rel=1e-6)
    for i in (0, 1):
        both = torch.cat([own[i].grad / world for own in given if own[i].grad is not None])
        assert torch.allclose(both, whole[i].grad, atol=1e-7)
    for i in (2, 3):
        mean = torch.stack([own[i].grad for own in given if own[i].grad is not None]).mean()
        assert torch.allclose(mean, whole[i].grad, rtol=1e-6)
