"""Which versions are in memory, and the switch to another one: load it beside the old one, then exchange a reference.

A request holds the version that it began with, so it ends with it; a version that no request holds is freed.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from everclip.errors import EverclipError
from everclip.serve.loaded import Loaded
from everclip.serve.refusal import Refusal
from everclip.store.paths import CURRENT
from everclip.store.versions import Store

log = logging.getLogger("everclip.serve")
RETRY_SECONDS = 30.0
"""Seconds after which a version that could not be loaded is tried again."""

Load = Callable[[str], Loaded]
Switched = Callable[[str | None, str, float], None]
"""Called with the old version (`None` at the start), the new one, and the seconds of loading it."""

Needed = Callable[[Loaded], str | None]
"""Returns the version that must stay in memory beside one that serves: that of the search index's vectors."""


@dataclass(frozen=True)
class Trouble:
    """Why the version that should serve does not."""

    version: str | None
    reason: str
    since: float


def told(store: Store, error: BaseException) -> str:
    """Return an error's message without the place of the store on this machine."""
    text = str(error)
    for place in sorted({str(store.path.absolute()), str(store.path), store.place}, key=len, reverse=True):
        text = text.replace(place, "STORE")
    return text


class Live:
    """The versions in memory.

    Args:
        store: the store.
        load: loads a version.
        beside: versions that are loaded beside the current one.
        most: versions in memory at most.
        switched, failed: called after a switch, and after one that failed.
    """

    def __init__(
        self,
        store: Store,
        load: Load,
        beside: Iterable[str] = (),
        most: int = 4,
        switched: Switched = lambda old, new, seconds: None,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        self.store, self._load, self._most = store, load, most
        self._switched, self._failed = switched, failed
        self.trouble: Trouble | None = None
        self.needed: Needed = lambda current: None
        self._for_search: Loaded | None = None
        self.each_poll: Callable[[], None] = lambda: None
        self.at_end: Callable[[], object] = lambda: None
        self._loading = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._beside: dict[str, Loaded] = {}
        self._seen: object = self._mark()
        self.current = self._first()
        for version in beside:
            self.keep(version)

    def _first(self) -> Loaded:
        started = time.monotonic()
        loaded = self._load(self.store.current.version)
        self._switched(None, loaded.id, time.monotonic() - started)
        return loaded

    def get(self, version: str | None) -> Loaded:
        """Return a version in memory; default: the one that serves.

        Raises:
            Refusal: if it is not in memory (404).
        """
        current = self.current
        if version is None or version == current.id:
            return current
        if (found := self._in_memory().get(version)) is not None:
            return found
        raise Refusal(
            404,
            "not-loaded",
            f"version {version!r} is not in memory; there are {', '.join(self.ids())}. `--beside VERSION` or "
            "POST /load adds one.",
        )

    def ids(self) -> list[str]:
        """Return the versions in memory, the one that serves first."""
        return list(self._in_memory())

    def _in_memory(self) -> dict[str, Loaded]:
        current, kept = self.current, self._for_search
        both = {} if kept is None else {kept.id: kept}
        return {current.id: current, **both, **self._beside, current.id: current}

    def others(self) -> list[Loaded]:
        """Return the versions in memory beside the one that serves."""
        return list(self._in_memory().values())[1:]

    def keep(self, version: str) -> Loaded:
        """Load a version beside the current one; one that is in memory already is returned.

        Raises:
            Refusal: if there are as many as may be (409).
            ConfigError, CheckpointError: if there is no such version, or it is damaged.
        """
        with self._loading:
            if version in self.ids():
                return self.get(version)
            if len(self.ids()) >= self._most:
                raise Refusal(
                    409,
                    "too-many-versions",
                    f"{len(self.ids())} versions are in memory, as many as may be (loaded={self._most}).",
                )
            self._beside[version] = loaded = self._load(version)
            return loaded

    # -- the switch -------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Switch to the version that the store points to, if it is another one and can be loaded.

        If it cannot, the old one goes on serving and `trouble` says why.
        """
        with self._loading:
            self._look()
            self._tend()

    def tend(self) -> None:
        """Load what search needs, and free what it needed before. A request of search thus meets its version."""
        with self._loading:
            self._tend()

    def _tend(self) -> None:
        try:
            need = self.needed(self.current)
            if need is None or need in self._beside or need == self.current.id:
                self._for_search = None
            elif self._for_search is None or self._for_search.id != need:
                self._for_search = self._load(need)
        except Exception as error:  # noqa: BLE001  # search then says what is missing; everything else goes on
            log.error("the version that search needs cannot be loaded: %s", told(self.store, error))

    def _look(self) -> None:
        self._seen = self._mark()
        wanted: str | None = None
        started = time.monotonic()
        try:
            self.store.refresh()
            wanted = self.store.current.version
            if wanted == self.current.id:
                self.trouble = None
                return
            new = self._in_memory().get(wanted) or self._load(wanted)
            old = self.current
            if self.needed(new) == old.id:  # before the switch, so that no search misses it
                self._for_search = old
        except Exception as error:  # noqa: BLE001  # whatever is wrong with it, the version in memory goes on
            self.trouble = Trouble(wanted, told(self.store, error), time.time())
            self._failed()
            log.error("%s cannot serve, %s goes on: %s", wanted or "the store", self.current.id, error)
            return
        self.current, self.trouble = new, None
        self._switched(old.id, wanted, time.monotonic() - started)
        log.info("%s serves now, after %s", wanted, old.id)

    def _mark(self) -> object:
        """Return what differs whenever the pointer was written, or a store far away cannot be followed any more."""
        try:
            self.store.refresh()
        except EverclipError as error:
            return type(error)
        try:
            found = os.stat(self.store.path / CURRENT)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def watch(self, seconds: float) -> None:
        """Look at the store's pointer every so many seconds, in a thread."""
        self._thread = threading.Thread(
            target=self._watch, args=(seconds,), name="everclip-watch", daemon=True
        )
        self._thread.start()

    def _watch(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            try:
                again = self.trouble is not None and time.time() - self.trouble.since > RETRY_SECONDS
                if again or self._mark() != self._seen:
                    self.look()
                self.each_poll()
            except Exception:  # if this thread ended, the server would never follow the store again
                log.exception("the store cannot be followed now; tried again in %g s", seconds)

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=60)
        self.at_end()
