"""Stop a run at the next safe point on SIGTERM or SIGINT; a second SIGINT stops it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeAlias

from everclip.errors import Interrupted

_Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None
"""The type of handlers in Python's `signal`."""


class StopRequest:
    """A flag that signals set inside the context.

    Outside the main thread, signals cannot be caught; the flag is then never set.
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
        """Raise `Interrupted` if this process or (`anyway`) another one got a signal. Call it only after saving."""
        if self.name is not None or anyway:
            signal_name = self.name or "a signal to another process"
            raise Interrupted(
                f"stopped by {signal_name}; all finished work is saved. The same command continues."
            )
