"""`--dry-run --processes N`: what each of N processes would hold, send and spend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import typer

from everclip.contracts import Phase
from everclip.learner.memory_check import is_sigmoid
from everclip.running.prepare import Prepared
from everclip.training.memory_need import MemoryNeed, device_memory, memory_of_process
from everclip.training.progress import clock
from everclip.training.traffic import Traffic, traffic

GIGABIT = 1e9 / 8
"""Bytes per second of a network of 1 Gbit/s."""

NETWORKS = (10.0, 100.0)
"""Networks between machines for which the time is given, in Gbit/s."""


def memory_of(need: MemoryNeed, device: torch.device) -> dict[str, Any]:
    """Return the memory of a step on this machine, for the plan."""
    free, memory = device_memory(device), memory_of_process(need, device)
    sentence = (
        f"a step needs about {need.total / 1e9:.2g} GB"
        if memory is None
        else f"a step {need.sentence(memory)}, weights included"
    )
    return {
        "need_mb": round(need.total / 1e6, 1),
        "free_mb": None if free is None else round(free / 1e6),
        "largest_batch": None if memory is None else need.largest(memory),
        "refused": memory is not None and need.total > memory,
        "sentence": sentence,
    }


def over_processes(
    run: Prepared,
    planned: Sequence[Sequence[Phase]],
    need: MemoryNeed | None,
    seconds: float,
    steps: int,
    processes: int,
) -> dict[str, Any]:
    """Return what each process holds, sends per step and spends on training.

    Computing time is that of one process on this machine, divided by the number of processes. Networks are taken to
    send at their full speed while nothing computes: both make the true time differ.

    Args:
        run: the prepared run.
        planned: the phases of each task.
        need: memory of a step of each process; `None` if nothing trains.
        seconds: of a step of one process with the whole batch.
        steps: of the run.
        processes: their number.
    """
    batch = run.config.training.batch_size
    sent = _traffic(run, planned, processes)
    computing = steps * seconds / processes
    networks = {f"{speed:g}": steps * sent.total / (speed * GIGABIT) for speed in NETWORKS}
    return {
        "count": processes,
        "samples_each": batch // processes,
        "batch": batch,
        "held_mb": None if need is None else round(need.total / 1e6, 1),
        "sent_mb_per_step": round(sent.total / 1e6, 3),
        "gradients_mb": round(sent.gradients / 1e6, 3),
        "embeddings_mb": round(sent.embeddings / 1e6, 3),
        "weights_mb": round(sent.weights / 1e6, 3),
        "computing_seconds": round(computing, 1),
        "network_seconds": {speed: round(spent, 1) for speed, spent in networks.items()},
    }


def _traffic(run: Prepared, planned: Sequence[Sequence[Phase]], processes: int) -> Traffic:
    method = run.learner.method
    trained = [phase for phases in planned for phase in phases if phase.optimiser is not None]
    if not trained:
        return Traffic(0.0, 0.0)
    first = trained[0]
    values = sum(method.get_parameter(name).numel() for group in first.param_groups for name in group.names)
    gathered = None
    if run.config.training.shard:
        passes = _gathering_passes(run.config.training.batch_size // processes, method.backbone.chunk)
        gathered = float(passes * sum(p.numel() for p in method.backbone.clip.parameters()))
    return traffic(first, values, method.backbone.embedding_width(), is_sigmoid(method), processes, gathered)


def _gathering_passes(samples: int, chunk: int | None) -> int:
    """Return how often a step gathers the weights: for a pass forwards and one backwards; for one more per chunk."""
    return 2 if chunk is None or samples <= chunk else 3 * math.ceil(samples / chunk)


def print_processes(shared: dict[str, Any]) -> None:
    """Print the part of a plan about several processes."""
    count = shared["count"]
    typer.echo(f"  on {count} processes, each with {shared['samples_each']} of {shared['batch']} samples:")
    if shared["held_mb"] is not None:
        typer.echo(f"    each holds about {shared['held_mb']} MB")
    typer.echo(
        f"    each sends {shared['sent_mb_per_step']} MB per step: gradients {shared['gradients_mb']} MB, "
        f"embeddings {shared['embeddings_mb']} MB"
        + (f", sharded weights {shared['weights_mb']} MB" if shared["weights_mb"] else "")
    )
    networks = "; ".join(f"{clock(s)} at {speed} Gbit/s" for speed, s in shared["network_seconds"].items())
    typer.echo(
        f"    training: {clock(shared['computing_seconds'])} of computing on machines like this one, "
        f"{clock(count * shared['computing_seconds'])} over all processes"
    )
    typer.echo(f"    sending, if it does not overlap with computing: {networks}")
