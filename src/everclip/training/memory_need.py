"""How much memory training needs on one process, estimated before the run starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from everclip.config import TrainingConfig
from everclip.contracts import Phase
from everclip.errors import ConfigError
from everclip.interfaces import Learnable
from everclip.memory import available_memory
from everclip.training.engine import Engine
from everclip.training.modes import module_of
from everclip.training.trial import measure_peaks

SIZES = (4, 8)
"""Samples per stream in the steps whose memory is measured."""

PAIR_BYTES = 32.0
"""Bytes per pair that a loss over captions keeps: logits, their softmax and targets, about eight floats."""

MOMENT_BYTES = {"adamw": 8.0, "adamw-8bit": 2.1, "sgd": 4.0}
"""Bytes per trained value that an optimiser stores; `adamw-8bit` adds a float per 256 values and moment."""

ENOUGH = 0.9
"""Share of a device's memory up to which nothing is said: the estimate misses what kernels take inside."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that training needs on one process.

    Attributes:
        weights: parameters, buffers, frozen copies and stored tensors.
        moments: what the optimiser stores.
        gradients: of the parameters that train.
        step: coefficients (a, b, c) of `a + b N + c N^2`, the largest memory of a step with N samples on this process:
            inputs, activations, embeddings and logits.
        batch: N.
    """

    weights: float
    moments: float
    gradients: float
    step: tuple[float, float, float]
    batch: int

    @property
    def total(self) -> float:
        """The bytes of a step with all samples of this process."""
        return self.at(self.batch)

    def at(self, samples: int) -> float:
        """Return the bytes with another number of samples on this process."""
        constant, each, pairs = self.step
        step = constant + each * samples + pairs * samples**2
        # Activations go while gradients come, so that their sum is largest at one of both ends. The optimiser then
        # takes temporary values of about the size of the gradients.
        return self.weights + self.moments + max(step, 2 * self.gradients)

    def largest(self, memory: float) -> int:
        """Return the largest number of samples on this process that fits into `memory` bytes; 0 if none does."""
        low, high = 0, 1
        while self.at(high) <= memory and high < 2**24:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.at(middle) <= memory else (low, middle)
        return low

    def sentence(self, memory: float, processes: int = 1) -> str:
        """Return `needs about 11 GB; batch 256 would fit 8 GB` for a device with `memory` bytes."""
        need = f"needs about {_gb(self.total)}"
        if self.total <= memory:
            return f"{need} on each process of {_gb(memory)}" if processes > 1 else f"{need} of {_gb(memory)}"
        fits = self.largest(memory) * processes
        if not fits:
            return f"{need}; no batch fits {_gb(memory)}"
        return f"{need}; batch {fits} would fit {_gb(memory)}"


def memory_need(
    engine: Engine,
    method: Learnable,
    phases: Sequence[Phase],
    stored: float,
    samples: int | None = None,
    processes: int | None = None,
    sigmoid: bool = False,
) -> MemoryNeed | None:
    """Estimate the memory of the phase that needs most, from steps with few samples; the model stays as it was.

    Args:
        engine: runs the steps.
        method: the module, within a task.
        phases: the phases of the task; those without an optimiser need less, and are left out.
        stored: bytes of the method's weights, frozen copies and stored tensors.
        samples: samples on a process; default: its share of the batch.
        processes: how many would share a batch; default: those that run. Embeddings that more processes would gather
            are not counted.
        sigmoid: whether pairs are compared by the sigmoid loss, block by block.

    Returns:
        `None` if no phase trains by gradient.
    """
    world = processes or engine.accelerator.num_processes
    needs = [
        _need_of(engine, method, phase, stored, samples, world, sigmoid)
        for phase in phases
        if phase.optimiser is not None
    ]
    return max(needs, key=lambda need: need.total, default=None)


def _need_of(
    engine: Engine,
    method: Learnable,
    phase: Phase,
    stored: float,
    samples: int | None,
    processes: int,
    sigmoid: bool,
) -> MemoryNeed:
    module, config = module_of(method), engine.config
    names = [name for group in phase.param_groups for name in group.names]
    trained = 4.0 * sum(module.get_parameter(name).numel() for name in names)
    kind = config.optimiser if phase.optimiser == "default" else str(phase.optimiser)
    moments = trained / 4 * MOMENT_BYTES.get(kind, 8.0)
    share = max(1, sum(s.batch_size for s in phase.streams.values()) // processes)
    # N samples of this process with the N P of all processes; the sigmoid loss holds N x N at a time.
    step = _step_of(engine, method, phase, PAIR_BYTES * (1 if sigmoid else processes))
    parts = processes if config.shard else 1
    # Weights count whole, sharded or not: everybody gathers them between steps.
    return MemoryNeed(stored, moments / parts, trained / parts, step, samples or share)


def _step_of(
    engine: Engine, method: Learnable, phase: Phase, pair_bytes: float
) -> tuple[float, float, float]:
    """Measure the coefficients of `MemoryNeed.step` in steps with few samples; `pair_bytes` is c over captions.

    With chunks, they are measured for chunks of one sample, and once more without chunks: each further sample of a
    chunk takes what a sample takes without them.
    """
    sizes = tuple(len(phase.streams) * size for size in SIZES)
    main = phase.streams.get("main")
    captions = main is not None and main.classes is None
    # Few samples do not show what their pairs take: it is largest at another moment.
    pairs = pair_bytes if captions else 0.0
    backbone, chunk = method.backbone, method.backbone.chunk
    backbone.chunk = None
    try:
        constant, each = line(measure_peaks(engine, method, phase, sizes))
        if chunk is None:
            return constant, each, pairs
        backbone.chunk = 1
        least, slope = line(measure_peaks(engine, method, phase, sizes))
    finally:
        backbone.chunk = chunk
    return least + (chunk - 1) * max(0.0, each - slope), slope, pairs


def line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return (a, b) of the line `a + b N` through two points."""
    (x0, y0), (x1, y1) = points
    slope = (y1 - y0) / (x1 - x0)
    return y1 - slope * x1, slope


def surely_fits(
    method: Learnable, config: TrainingConfig, stored: float, processes: int, sharing: int = 1
) -> bool:
    """Return whether a rough upper bound is below the memory that is free, so that nothing needs to be measured.

    The bound stores the input and output of every weight matrix for every token, twice.

    Args:
        method: the module.
        config: the settings of training.
        stored: bytes of weights, frozen copies and stored tensors.
        processes: how many share a batch.
        sharing: how many of them share the memory of the device.
    """
    memory = device_memory(next(module_of(method).parameters()).device)
    if memory is None:
        return True
    parameters = list(module_of(method).parameters())
    # A table of tokens is read, not multiplied.
    tables = {m.weight for m in module_of(method).modules() if isinstance(m, nn.Embedding)}
    matrices = [p.shape for p in parameters if p.dim() > 1 and p not in tables]
    side = method.backbone.pixels.size
    tokens = max((side // 8) ** 2, int(getattr(method.backbone.clip, "context_length", 77)))
    each = 8.0 * tokens * sum(shape[0] + math.prod(shape[1:]) for shape in matrices)
    trained = 16.0 * sum(p.numel() for p in parameters)
    return stored + trained + each * config.batch_size / processes < ENOUGH * memory / sharing / 2


def require_memory(
    need: MemoryNeed, memory: float | None, processes: int, refuses: bool = True
) -> str | None:
    """Compare a need with the memory of a process.

    Args:
        need: of a process.
        memory: bytes that a process may hold in all (`memory_of_process`); `None` if not known.
        processes: how many share a batch.
        refuses: whether too little memory is an error, not a note.

    Returns:
        A note if the memory is nearly used up, or too small; `None` if there is enough.

    Raises:
        ConfigError: if the need is larger than the memory, and `refuses`.
    """
    if memory is None or need.total <= ENOUGH * memory:
        return None
    sentence = need.sentence(memory, processes)
    remedies = (
        "lower training.batch_size, set training.chunk (the same gradients, chunk by chunk) or "
        "training.recompute=true"
    )
    if need.total <= memory:
        return f"this run {sentence}, which is nearly all; if it fails, {remedies}"
    if refuses:
        raise ConfigError(
            f"training.batch_size: this run {sentence}; {remedies}. training.memory_check=warn starts it anyway."
        )
    return f"this run {sentence}, and may fail; then {remedies}"


def memory_of_process(need: MemoryNeed, device: torch.device, sharing: int = 1) -> float | None:
    """Return the bytes that a process may hold in all: its share of what is free, and the weights that it holds now.

    Args:
        need: of the process, whose weights and frozen copies are on the device already.
        device: the device of training.
        sharing: how many processes share the memory of the device.
    """
    free = device_memory(device)
    if free is None:
        return None
    # On a GPU, what torch holds is counted already.
    return free / sharing + (need.weights if device.type == "cpu" else 0.0)


def device_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a device, and on a GPU what torch holds of it; `None` if not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + int(torch.cuda.memory_reserved(device))
    return available_memory()


def _gb(size: float) -> str:
    gigabytes = size / 1e9
    return f"{gigabytes:.0f} GB" if gigabytes >= 10 else f"{gigabytes:.2g} GB"
