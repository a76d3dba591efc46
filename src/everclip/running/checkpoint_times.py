"""When a run writes a checkpoint in the middle of a task."""

from __future__ import annotations

import time

import torch

from everclip.config import CheckpointConfig
from everclip.distributed import any_process

AGREE_EVERY = 8
"""Steps after which several processes agree on stopping and saving; agreeing more often would slow training."""


class CheckpointTimes:
    """Decides after each step whether a checkpoint is due. Processes agree, since a signal may not reach all at once.

    Args:
        config: how often checkpoints are written.
        processes: the number of processes.
        device: the device of their collective operations.
    """

    def __init__(self, config: CheckpointConfig, processes: int, device: torch.device) -> None:
        self._config, self._processes, self._device = config, processes, device
        self._written_at = time.monotonic()

    def written(self) -> None:
        """Record that a checkpoint was just written."""
        self._written_at = time.monotonic()

    def due(self, step: int, cost: float, stopping: bool) -> bool:
        """Return whether to write a checkpoint.

        Args:
            step: the step of the run.
            cost: seconds that the slowest checkpoint took.
            stopping: whether this process was asked to stop.
        """
        every = self._config.every_steps
        if every is not None and step % every == 0:
            return True
        if self._processes > 1 and step % AGREE_EVERY:
            return False
        # Long enough that writing takes at most `max_share` of the time, even on a slow disk.
        wait = max(self._config.every_seconds, cost / self._config.max_share)
        late = every is None and time.monotonic() - self._written_at > wait
        return any_process(stopping or late, self._device)
