"""Search, as the server uses it: the index of a store behind a small protocol, and which version asks it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from everclip.methods.base import Method
from everclip.serve.live import Live
from everclip.serve.loaded import Loaded
from everclip.serve.refusal import Refusal
from everclip.store.versions import Store

Vectors = NDArray[np.float32]
UNUSABLE = "index-unusable"
"""The code of a refusal because the index is damaged, or its files were removed meanwhile."""


@dataclass(frozen=True)
class Found:
    """An item that a search found; `score` is the cosine of query and image."""

    id: str
    score: float
    metadata: dict[str, Any]


@dataclass(frozen=True)
class SpaceFacts:
    """The vectors of one image encoder in the index.

    Attributes:
        key: of the encoder.
        version: the version that encodes its queries.
        vectors: number of them; fewer than items while it is being filled.
        answers: whether searches that name no version may ask it.
        how: the way its vectors were made.
    """

    key: str
    version: str
    vectors: int
    answers: bool
    how: str


@dataclass(frozen=True)
class IndexFacts:
    """The state of an index."""

    items: int
    spaces: list[SpaceFacts]


class SearchIndex(Protocol):
    """An index at one moment."""

    def spaces(self) -> dict[str, str]:
        """Return key -> version of the spaces that may be asked, the one that answers first."""

    def search(
        self, key: str, queries: Vectors, top: int, where: Sequence[str], exact: bool
    ) -> list[list[Found]]:
        """Return the nearest items of each query `(N, D)`, the nearest first.

        Raises:
            Refusal: if a condition does not fit the index (422).
        """

    def image(self, id: str) -> bytes | None:
        """Return the encoded image of an item; `None` if there is no such item."""

    def facts(self) -> IndexFacts:
        """Return the state of the index."""


class Counted(Protocol):
    """Counts the items that searches return; neither waits nor fails."""

    def add(self, ids: Iterable[str]) -> None:
        """Count items, in memory."""

    def flush_if_due(self) -> None:
        """Write the counts, if that is long ago."""

    def flush(self) -> object:
        """Write the counts."""


Opener = Callable[[Store], SearchIndex | None]
"""Opens the index of a store as it is now; `None` if it has none."""
KeyOf = Callable[[Method], str]
"""Returns the key of a method's image space."""

Marked = Callable[[Store], object]
"""Returns something that differs whenever the state of the index was written; `None` without an index."""


def required(index: SearchIndex | None) -> SearchIndex:
    """Return the index.

    Raises:
        Refusal: if the store has none (404).
    """
    if index is None:
        raise Refusal(
            404, "no-index", "This store has no search index; `everclip index STORE IMAGES...` makes one."
        )
    return index


def asking(live: Live, index: SearchIndex, key_of: KeyOf, version: str | None) -> Loaded:
    """Return the version that asks an index: its vectors and the queries must be of one space.

    Args:
        live: the versions in memory.
        index: the index.
        key_of: see `KeyOf`.
        version: that a request names; default: the one that serves if the index has its space, else the one whose
            vectors answer.

    Raises:
        Refusal: if the index has no vectors of the version (409), or the version is not in memory (404).
    """
    spaces = index.spaces()
    if not spaces:
        raise Refusal(409, "empty-index", "The search index holds no images yet.")
    if version is not None:
        named = live.get(version)
        if named.space(key_of) not in spaces:
            raise Refusal(
                409,
                "other-space",
                f"The search index holds no vectors of {named.id}: cosines between two vector spaces mean nothing. "
                f"There are those of {', '.join(spaces.values())}; `everclip reindex STORE` moves the index.",
            )
        return named
    for key in spaces:  # one that answered before rather than no answer, while its version is being loaded
        for candidate in [live.current, *live.others()]:
            if candidate.space(key_of) == key:
                return candidate
    raise Refusal(
        409,
        "version-missing",
        f"{next(iter(spaces.values()))}, whose vectors the search index holds, is not in memory; POST /load loads it.",
    )
