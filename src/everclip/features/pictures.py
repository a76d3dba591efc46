"""Ordered lists of images from tables, with a key of their contents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from everclip.data.sampling.order import key_of
from everclip.data.table import Table


@dataclass(frozen=True)
class Pictures:
    """An ordered list of images.

    Attributes:
        rows: table and row of each image.
        key: a hash of the contents in their order.
    """

    rows: Sequence[tuple[Table, int]]
    key: str

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, table: Table) -> Pictures:
        """Return all images of a table, in its order."""
        return cls([(table, row) for row in range(len(table))], table.fingerprint)

    @classmethod
    def distinct(cls, tables: Sequence[Table]) -> tuple[Pictures, list[torch.Tensor]]:
        """Return the images of several tables with distinct contents, in order of first appearance.

        Returns:
            The images, and for each table the positions `(N,)` int64 of its images among them.
        """
        index: dict[str, int] = {}
        rows: list[tuple[Table, int]] = []
        positions = []
        for table in tables:
            contents = table.contents()
            for row, content in enumerate(contents):
                if content not in index:
                    index[content] = len(rows)
                    rows.append((table, row))
            positions.append(torch.tensor([index[content] for content in contents], dtype=torch.int64))
        return cls(rows, f"{key_of(*index):032x}"), positions

    @classmethod
    def sorted(cls, table: Table) -> tuple[Pictures, torch.Tensor]:
        """Return the distinct images of a table in the order of their contents, whatever the order of its rows.

        Returns:
            The images, and for each row the position `(N,)` int64 of its image among them.
        """
        contents = table.contents()
        first: dict[str, int] = {}
        for row, content in enumerate(contents):
            first.setdefault(content, row)
        order = sorted(first)
        index = {content: position for position, content in enumerate(order)}
        rows = [(table, first[content]) for content in order]
        positions = torch.tensor([index[content] for content in contents], dtype=torch.int64)
        return cls(rows, f"{key_of('sorted', *order):032x}"), positions

    def select(self, positions: torch.Tensor) -> Pictures:
        """Return the images at `positions`."""
        chosen = positions.tolist()
        if chosen == list(range(len(self))):
            return self
        return Pictures([self.rows[i] for i in chosen], f"{key_of(self.key, *chosen):032x}")
