"""What embeds the items of an index: this process, or others (`ray_engine`). All embed the same blocks of items.

The last bits of a vector depend on the images that it was encoded with, so a block goes through the model as a whole,
whoever embeds it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Protocol

import pyarrow as pa

from everclip.search import tables
from everclip.search.embedding import Embedded, SearchModel, Source, embedded
from everclip.search.index import View

PLACE = ("path", "offset", "size", "bytes")
IMAGE = ("id", *PLACE, "rendering", "sha256")
"""The columns of items that say which image to read."""

Blocks = Iterable[Sequence[int]]
"""Positions of rows in the table of items."""

Done = Generator[tuple[pa.Table, Embedded], None, None]
"""The rows of the items of each block (`id`, `sha256`, metadata), and what was made of them."""


class Engine(Protocol):
    """Embeds blocks of items."""

    name: str

    def embedded(self, model: SearchModel, view: View, blocks: Blocks, rate: float | None = None) -> Done:
        """Embed blocks of items, in any order. Closing what is returned ends the work.

        Args:
            model: the version that embeds.
            view: of the index; holds the items.
            blocks: what to embed.
            rate: images per second that the caller wants at most.

        Raises:
            ProcessLostError: if another process embeds and fails.
        """


class Local:
    """Embeds in this process."""

    name = "local"

    def embedded(self, model: SearchModel, view: View, blocks: Blocks, rate: float | None = None) -> Done:
        """See `Engine`. The caller takes its time between two blocks, so the rate needs nothing here."""
        wanted = [*IMAGE, *tables.metadata_of(view.items.schema)]
        read: list[pa.Table] = []  # one block ahead of what was embedded

        def sources() -> Iterator[Sequence[Source]]:
            for block in blocks:
                read.append(tables.taken(view.items, block, wanted))
                yield sources_of(read[-1])

        for found in embedded(model, sources()):
            yield read.pop(0), found


LOCAL = Local()


def sources_of(items: pa.Table) -> list[Source]:
    """Return rows of items as sources of images."""
    return [
        Source(row["id"], {name: row[name] for name in PLACE}, row["rendering"], row["sha256"])
        for row in items.select(list(IMAGE)).to_pylist()
    ]
