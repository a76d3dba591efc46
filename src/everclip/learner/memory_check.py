"""Compare the memory that a task needs with that of the device, before its first step."""

from __future__ import annotations

import os
from collections.abc import Sequence

from everclip.contracts import Phase
from everclip.distributed import gather_objects
from everclip.methods.base import Method
from everclip.methods.settings import SlotsWithoutReplay
from everclip.training.engine import Engine
from everclip.training.memory_need import (
    MemoryNeed,
    memory_need,
    memory_of_process,
    require_memory,
    surely_fits,
)


def need_of(
    engine: Engine,
    method: Method,
    phases: Sequence[Phase],
    samples: int | None = None,
    processes: int | None = None,
) -> MemoryNeed | None:
    """Estimate what the phases of a task need (`everclip.training.memory_need`); the task has begun."""
    return memory_need(engine, method, phases, stored_bytes(method), samples, processes, is_sigmoid(method))


def is_sigmoid(method: Method) -> bool:
    """Return whether a method compares captions by the sigmoid loss."""
    settings = method.settings
    return isinstance(settings, SlotsWithoutReplay) and settings.contrast == "sigmoid"


def stored_bytes(method: Method) -> float:
    """Return the bytes of weights, frozen copies and stored tensors."""
    cost = method.describe()
    return cost.bytes + 4.0 * cost.task_parameters


def check_memory(engine: Engine, method: Method, phases: Sequence[Phase]) -> None:
    """Note or refuse a task that needs more memory than the device has (`training.memory_check`).

    Measures only where it may be too little. All processes must call it: the steps that are measured communicate, so
    that all measure or none, and the process with the least memory decides for all.

    Raises:
        ConfigError: if the memory is too small; says what would fit.
    """
    setting = engine.config.memory_check
    if setting == "none" or not any(phase.optimiser is not None for phase in phases):
        return
    processes = engine.accelerator.num_processes
    # Processes of one machine share its memory, but each has a GPU of its own.
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if engine.accelerator.device.type == "cpu" else 1
    if all(gather_objects(surely_fits(method, engine.config, stored_bytes(method), processes, sharing))):
        return
    own = need_of(engine, method, phases)
    if own is None:
        return
    # Batches of processes differ a little, their machines may differ much.
    found = gather_objects((own, memory_of_process(own, engine.accelerator.device, sharing)))
    need = max((need for need, _ in found), key=lambda need: need.total)
    memory = min((memory for _, memory in found if memory is not None), default=None)
    note = require_memory(need, memory, processes, refuses=setting == "refuse")
    if note is not None:
        engine.say(note)
