"""When a run writes a checkpoint in the middle of a task."""

from __future__ import annotations

import time

import torch

from everclip.config import CheckpointConfig
from everclip.distributed import any_up

AGREE_EVERY = 8
"""Steps between agreements of several processes on stopping and saving: each makes the devices wait."""


class CheckpointTimes:
    """Decides after each step whether a checkpoint is due; processes agree, since a signal may reach them apart.

    Args:
        config: how often.
        processes: how many share the work.
        device: where they agree.
    """

    def __init__(self, config: CheckpointConfig, processes: int, device: torch.device) -> None:
        self._config, self._processes, self._device = config, processes, device
        self._written_at = time.monotonic()

    def written(self) -> None:
        """Note that a checkpoint was written now."""
        self._written_at = time.monotonic()

    def due(self, step: int, cost: float, stopping: bool) -> bool:
        """Return whether to write one.

        Args:
            step: of the run.
            cost: seconds that the slowest one took.
            stopping: whether this process was asked to stop.
        """
        every = self._config.every_steps
        if every is not None and step % every == 0:
            return True
        if self._processes > 1 and step % AGREE_EVERY:
            return False
        # Rare enough that writing stays below `max_share` of the time, however slow the disk or large the model.
        wait = max(self._config.every_seconds, cost / self._config.max_share)
        late = every is None and time.monotonic() - self._written_at > wait
        return any_up(stopping or late, self._device)
