"""Search with the version whose vectors the index holds, also after an update has let another one serve."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from anyio import to_thread

from everclip.serve.asked import SearchAsked
from everclip.serve.loaded import Loaded
from everclip.serve.refusal import Refusal
from everclip.serve.searching import (
    UNUSABLE,
    Counted,
    Found,
    IndexFacts,
    KeyOf,
    Marked,
    Opener,
    SearchIndex,
    Vectors,
    asking,
    required,
)
from everclip.serve.service import Service

log = logging.getLogger("everclip.serve")


@dataclass(frozen=True)
class Results:
    """What a search found, and what a shadow version needs to search too."""

    version: Loaded
    asked: SearchAsked
    pixels: Sequence[torch.Tensor]
    results: list[list[Found]]


class SearchService:
    """The search of a service.

    Args:
        service: the store in service.
        opener, key_of, marked: see `everclip.serve.searching`.
        counted: of the items that are found; `None`: they are not counted.
    """

    def __init__(
        self,
        service: Service,
        opener: Opener,
        key_of: KeyOf,
        marked: Marked,
        counted: Counted | None = None,
    ) -> None:
        self.service, self._opener, self._key_of, self._marked = service, opener, key_of, marked
        self._counted = counted
        if counted is not None:
            service.live.at_end = counted.flush
        self._mark: object = None
        self._opened: tuple[object, SearchIndex | None] = (None, None)
        service.live.needed = self.needed
        service.live.each_poll = self.look
        self.look()

    def needed(self, current: Loaded) -> str | None:
        """Return the version whose vectors answer, if the one that serves has another image space; else `None`."""
        try:
            spaces = {} if (index := self._open()) is None else index.spaces()
        except Refusal as error:
            log.warning("search cannot answer: %s", error)
            return None
        if not spaces or current.space(self._key_of) == next(iter(spaces)):
            return None
        return next(iter(spaces.values()))

    def look(self) -> None:
        """Follow the index: when another space answers, load its version. Writes counts now and then."""
        mark = self._marked(self.service.store)
        if mark != self._mark:
            self._mark = mark
            self.service.live.tend()
        if self._counted is not None:
            self._counted.flush_if_due()

    def _open(self) -> SearchIndex | None:
        """Return the index as it is now.

        Opening its tables costs more than a search, so they stay open until the index changes.
        """
        mark = self._marked(self.service.store)  # before opening: a change in between is seen the next time
        opened = self._opened  # once: another thread may replace it
        if mark is None or mark != opened[0]:
            self._opened = opened = mark, self._opener(self.service.store)
        return opened[1]

    async def search(self, asked: SearchAsked, images: Sequence[bytes]) -> Results:
        """Answer a request.

        Raises:
            Refusal: if there is no index, or no version in memory that may ask it.
        """
        service = self.service
        with service.batcher.admitting(len(asked.texts) + len(images)):
            index = required(await to_thread.run_sync(self._open))
            version = await to_thread.run_sync(asking, service.live, index, self._key_of, asked.version)
            pixels = await service.pixels(version, images)
            queries = _queries(await service.encoded(version, asked.texts, pixels))
            results = await to_thread.run_sync(
                self._searched, index, version.space(self._key_of), queries, asked
            )
        if self._counted is not None:
            self._counted.add(hit.id for hits in results for hit in hits)
        return Results(version, asked, pixels, results)

    def _searched(
        self, index: SearchIndex, key: str, queries: Vectors, asked: SearchAsked
    ) -> list[list[Found]]:
        """Search; once more with the index as it is now if its tables were cleaned or replaced meanwhile."""
        try:
            return index.search(key, queries, asked.top, asked.where, asked.exact)
        except Refusal as error:
            if error.code != UNUSABLE:
                raise
            self._opened = (None, None)
            return required(self._open()).search(key, queries, asked.top, asked.where, asked.exact)

    async def shadow(self, sent: Results) -> None:
        """Let the shadow version search too, if the index holds its vectors, and compare the answers."""
        shadow = self.service.shadow
        if (candidate := shadow.candidate()) is None or candidate.id == sent.version.id:
            return
        index = await to_thread.run_sync(self._open)
        if index is None or candidate.space(self._key_of) not in index.spaces():
            shadow.left_out("search")
            return
        found = await shadow.embedded("search", candidate, sent.asked.texts, sent.pixels)
        if found is None:
            return
        key, asked = candidate.space(self._key_of), sent.asked
        results = await to_thread.run_sync(self._searched, index, key, _queries(found), asked)
        for old, new in zip(sent.results, results, strict=True):
            shadow.compare("search", sent.version.id, [hit.id for hit in old], [hit.id for hit in new])

    def facts(self) -> IndexFacts:
        """Return the state of the index.

        Raises:
            Refusal: if there is none (404).
        """
        return required(self._open()).facts()

    def image(self, id: str) -> bytes | None:
        """Return the encoded image of an item; `None` if there is no such item."""
        return required(self._open()).image(id)


def _queries(embeddings: tuple[torch.Tensor | None, torch.Tensor | None]) -> Vectors:
    """Return the embeddings of texts and images as unit vectors `(N, D)`."""
    rows = torch.cat([part for part in embeddings if part is not None])
    found: Vectors = torch.nn.functional.normalize(rows.double(), dim=1).float().numpy()
    return found
