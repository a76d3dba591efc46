"""SIGTERM and SIGINT ask a run to stop at the next safe place; a second SIGINT stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeAlias

from everclip.errors import Interrupted

_Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None
"""What Python's `signal` gives and takes."""


class StopRequest:
    """A flag that signals set while the block is entered.

    Outside the main thread signals cannot be caught; the flag then stays down.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, _Handler] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    def check(self, anyway: bool = False) -> None:
        """Raise `Interrupted` if a signal came (or came to another process); call it only where the state is saved."""
        if self.name is not None or anyway:
            who = self.name or "a signal to another process"
            raise Interrupted(
                f"stopped by {who}; what was finished before is saved. The same command continues."
            )
