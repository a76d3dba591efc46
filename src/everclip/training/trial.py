"""Run steps of a phase without an update, to time them or to count their multiply-accumulates (MACs)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from everclip.contracts import Phase, Progress, Stream
from everclip.distributed import from_first
from everclip.interfaces import Learnable
from everclip.models.parameters import parameters_of
from everclip.models.same_kernels import without_fast_path
from everclip.training.engine import Engine
from everclip.training.modes import module_of, require_gradients, set_modes
from everclip.training.peak import peak_of
from everclip.training.timing import extrapolated

COUNTED_STEPS = 2
"""Number of steps whose multiply-accumulates are counted: batches differ in the length of their texts."""


def macs_in(act: Callable[[], object]) -> float:
    """Return the multiply-accumulates of everything that `act` computes with torch, backward passes included.

    Counts matrix products, convolutions and attention, two floating-point operations each; what works element by
    element is left out, as in published counts.
    """
    with without_fast_path(), FlopCounterMode(display=False) as counter:
        act()
    return float(counter.get_total_flops()) / 2


def count_macs(engine: Engine, method: Learnable, phases: Sequence[Phase]) -> dict[str, float]:
    """Return the multiply-accumulates of a step of each phase with gradients, over all processes: name -> count.

    Each is the mean over the first batches of the phase. The embeddings of a frozen tower, which are computed once
    before the phase, are not counted. The model stays as it was.
    """
    trained = [phase for phase in phases if phase.optimiser is not None or phase.gradients]
    return {phase.name: from_first(_macs_of_step(engine, method, phase)) for phase in trained}


def measure_peaks(
    engine: Engine, method: Learnable, phase: Phase, sizes: Sequence[int]
) -> list[tuple[int, float]]:
    """Return the largest memory of a step with few samples: pairs of their number and bytes, inputs included.

    Weights, their gradients and what the optimiser stores are not counted. The model stays as it was.

    Args:
        engine: runs the steps.
        method: the module.
        phase: the phase of the steps.
        sizes: numbers of samples on this process over all streams; streams share them as they share a batch.
    """
    streams, module = engine.streams(phase, method), module_of(method)
    full, world = sum(stream.batch_size for stream in streams.values()), engine.accelerator.num_processes
    found = []
    with _unchanged(module):
        names = [name for group in phase.param_groups for name in group.names]
        trained = [module.get_parameter(name) for name in names]
        require_gradients(module, trained)
        for size in sizes:
            smaller = {
                name: replace(s, batch_size=world * max(1, round(s.batch_size * size / full)))
                for name, s in streams.items()
            }
            batch = _batch(engine, method, smaller, 0)
            set_modes(module, training=phase.optimiser is not None)
            if size == sizes[0]:  # a teacher encodes class texts once per phase
                _forward_and_backward(engine, method, phase, batch)
            module.zero_grad(set_to_none=True)
            inputs = sum(
                v.numel() * v.element_size()
                for columns in batch.values()
                for v in columns.values()
                if isinstance(v, torch.Tensor)
            )
            peak = peak_of(partial(_forward_and_backward, engine, method, phase, batch), trained)
            taken = sum(s.batch_size for s in smaller.values()) // world
            found.append((taken, float(peak + inputs)))
    return found


def measure_seconds(engine: Engine, method: Learnable, phase: Phase, limit: float) -> float:
    """Return the seconds of one training step without its update (weights do not change).

    Args:
        engine: runs the step.
        method: the module.
        phase: the phase of the step.
        limit: approximate seconds for the measurement; for a larger batch, the time is extrapolated.
    """
    streams = engine.streams(phase, method)
    full = max(stream.batch_size for stream in streams.values())

    def seconds_of(size: int) -> float:
        smaller = {
            name: replace(s, batch_size=max(1, s.batch_size * size // full)) for name, s in streams.items()
        }
        batch = _batch(engine, method, smaller, 0)
        set_modes(module_of(method), training=phase.optimiser is not None)
        started = time.monotonic()
        total = _forward_and_backward(engine, method, phase, batch)
        float(total.detach())  # waits for the device
        return time.monotonic() - started

    seconds = extrapolated(seconds_of, full, limit)
    module_of(method).zero_grad()
    return seconds


def _macs_of_step(engine: Engine, method: Learnable, phase: Phase) -> float:
    streams, module = engine.streams(phase, method), module_of(method)
    total = 0.0
    with _unchanged(module):
        names = [name for group in phase.param_groups for name in group.names]
        require_gradients(module, parameters_of(module, names).values())
        for number in range(COUNTED_STEPS):
            batch = _batch(engine, method, streams, number)
            set_modes(module, training=phase.optimiser is not None)
            if number == 0:  # a step before the counted ones: a teacher encodes class texts once per phase
                _forward_and_backward(engine, method, phase, batch)
            total += macs_in(partial(_forward_and_backward, engine, method, phase, batch))
    return float(engine.accelerator.num_processes * total / COUNTED_STEPS)


def _batch(
    engine: Engine, method: Learnable, streams: Mapping[str, Stream], number: int
) -> dict[str, dict[str, Any]]:
    columns = {name: engine.maker.batch(stream, "measure", number) for name, stream in streams.items()}
    engine.columns.add_once(method, columns, streams, "measure")
    return engine.to_device(columns)


def _forward_and_backward(
    engine: Engine, method: Learnable, phase: Phase, batch: dict[str, dict[str, Any]]
) -> torch.Tensor:
    precision = engine.precision_of(phase)
    with precision.autocast():
        losses = module_of(method)(batch, Progress(0, phase.name, 0, 0, 1, engine.seed))
    total = torch.stack([loss.float() for loss in losses.values()]).sum()
    if total.requires_grad:
        precision.backward(total)
    return total


def _copied(value: Any) -> Any:
    """Return a copy of what a forward pass may change in place; parameters and modules are put back by their names."""
    if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().clone()
    return copy(value) if isinstance(value, dict | list | set) else value


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Put the module back as it was: counting must not change what is learned."""
    before = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    # Counts and the like that a forward pass adds to, beside parameters and buffers.
    held = [(part, {key: _copied(value) for key, value in vars(part).items()}) for part in module.modules()]
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        yield
    finally:
        for part, attributes in held:
            vars(part).clear()
            vars(part).update(attributes)
        require_gradients(module, trainable)
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                tensor.copy_(before[name])
        module.zero_grad(set_to_none=True)
