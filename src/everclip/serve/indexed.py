"""The search index of a store, bound to what the server needs of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from everclip.data.pictures.location import bytes_at
from everclip.errors import CheckpointError, ConfigError, DataError
from everclip.methods.base import Method
from everclip.search import tables
from everclip.search.embedding import space_key
from everclip.search.engines import sources_of
from everclip.search.filters import conditions
from everclip.search.hits import Hits
from everclip.search.in_memory import HeldVectors, held_vectors
from everclip.search.index import Index, View
from everclip.search.records import FOLDER, SERVING
from everclip.serve.refusal import Refusal
from everclip.serve.searching import UNUSABLE, Found, IndexFacts, SpaceFacts, Vectors
from everclip.store.indexed import has_index
from everclip.store.versions import Store

log = logging.getLogger("everclip.serve")


def key_of(method: Method) -> str:
    """Return the key of a method's image space."""
    return space_key(method, method.encoder_keys()["image"])


def marked(store: Store) -> object:
    """Return what differs whenever the state of the index was written; `None` without an index."""
    try:
        found = os.stat(store.path / FOLDER / SERVING)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def hits_of(store: Store) -> Hits | None:
    """Return what counts the items that searches of a store return; the index may be made later.

    A store far away has none: its working copy belongs to this machine alone.
    """
    return Hits(store.path / FOLDER) if store.copy is None else None


def open_index(store: Store) -> StoreIndex | None:
    """Open the index of a store as it is now; `None` if it has none.

    Raises:
        Refusal: if it is damaged, or its package is not installed (503).
    """
    if not has_index(store.path):
        return None
    with _using():
        return StoreIndex(Index(store.path).view())


@contextmanager
def _using() -> Iterator[None]:
    """Refuse a request that needs an index that is damaged; the log says what, the answer names no file."""
    try:
        yield
    except (ConfigError, CheckpointError) as error:
        log.error("the search index cannot be used: %s", error)
        raise Refusal(
            503, UNUSABLE, "The search index cannot be used now; the server's log says why."
        ) from error


class StoreIndex:
    """An index at one moment; see `everclip.serve.searching.SearchIndex`.

    Args:
        view: of the index.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._spaces: dict[str, str] | None = None
        self._held: dict[str, HeldVectors | None] = {}

    def spaces(self) -> dict[str, str]:
        """Return key -> version of the spaces that may be asked: the one that answers, those before it, then others.

        A space that is being filled would miss images without a word, so it is none of them.
        """
        if self._spaces is None:
            self._spaces = self._complete()
        return self._spaces

    def _complete(self) -> dict[str, str]:
        state = self._view.state
        if state.serving is None:
            return {}
        with _using():
            items = self._view.items.count_rows()
            whole = [
                key
                for key, space in state.spaces.items()
                if self._view.vectors(key).count_rows() + len(space.set_aside) >= items
            ]
        keys = dict.fromkeys([state.serving, *reversed(state.before), *whole])
        return {key: state.spaces[key].version for key in keys if key in state.spaces}

    def search(
        self, key: str, queries: Vectors, top: int, where: Sequence[str], exact: bool
    ) -> list[list[Found]]:
        """Return the nearest items of each query; conditions become typed expressions, never text of a query."""
        try:
            wanted = conditions(where, self._view.state.columns)
        except ConfigError as error:
            raise Refusal(422, "wrong-condition", str(error).replace("--where", "where")) from error
        with _using():
            held = None if wanted else self._in_memory(key, exact)
            found = (
                held.search(queries, top)
                if held is not None
                else self._view.search(key, queries, top, wanted, exact, paths=False)
            )
        return [[Found(hit.id, hit.cosine, hit.metadata) for hit in hits] for hits in found]

    def _in_memory(self, key: str, exact: bool) -> HeldVectors | None:
        """Return the vectors of a space that is searched exactly, if they are few: one product finds the nearest."""
        space = self._view.state.spaces.get(key)
        if space is None or (space.ann is not None and not exact):
            return None
        if key not in self._held:
            self._held[key] = held_vectors(self._view, key)
        return self._held[key]

    def image(self, id: str) -> bytes | None:
        """Return the encoded image of an item; `None` if there is none, or its file cannot be read any more."""
        with _using():
            rows = tables.rows_with(self._view.items, [id])
        if not len(rows):
            return None
        try:
            return bytes_at({**sources_of(rows)[0].place, "sha256": None})
        except DataError:
            return None

    def facts(self) -> IndexFacts:
        """Return the state of the index."""
        view, state = self._view, self._view.state
        with _using():
            return IndexFacts(
                items=view.items.count_rows(),
                spaces=[
                    SpaceFacts(
                        key, space.version, view.vectors(key).count_rows(), key == state.serving, space.how
                    )
                    for key, space in state.spaces.items()
                ],
            )
