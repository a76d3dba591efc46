"""Pictures of tables, in an order, with a key of their contents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from everclip.data.sampling.order import key_of
from everclip.data.table import Table


@dataclass(frozen=True)
class Pictures:
    """Pictures in an order.

    Attributes:
        places: table and row of each.
        key: equal keys, equal contents in the same order.
    """

    places: Sequence[tuple[Table, int]]
    key: str

    def __len__(self) -> int:
        return len(self.places)

    @classmethod
    def of(cls, table: Table) -> Pictures:
        """Return all pictures of a table, in its order."""
        return cls([(table, row) for row in range(len(table))], table.fingerprint)

    @classmethod
    def distinct(cls, tables: Sequence[Table]) -> tuple[Pictures, list[torch.Tensor]]:
        """Return the different pictures of several tables, by content, in order of first appearance.

        Returns:
            The pictures, and for each table the positions `(N,)` int64 of its pictures among them.
        """
        index: dict[str, int] = {}
        places: list[tuple[Table, int]] = []
        rows = []
        for table in tables:
            contents = table.contents()
            for position, content in enumerate(contents):
                if content not in index:
                    index[content] = len(places)
                    places.append((table, position))
            rows.append(torch.tensor([index[content] for content in contents], dtype=torch.int64))
        return cls(places, f"{key_of(*index):032x}"), rows

    def select(self, rows: torch.Tensor) -> Pictures:
        """Return the pictures at `rows`."""
        chosen = rows.tolist()
        if chosen == list(range(len(self))):
            return self
        return Pictures([self.places[row] for row in chosen], f"{key_of(self.key, *chosen):032x}")
