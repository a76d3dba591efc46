"""CoLeCLIP's vocabulary: one unit embedding per learned class, shared by all tasks of the class.

Li et al. 2024, arXiv 2403.10245, section 3.3 (stable momentum update).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from everclip.contracts import ClassEntry


class Vocabulary(nn.Module):
    """Class embeddings, the tasks of each class, and the classes of the current task.

    Args:
        width: size of an embedding, D.

    Buffers:
        rows: `(V, D)` unit embeddings, in the order in which classes first appeared.
        start: `(C, D)`, the rows of the current task's classes at the start of the task; `None` between tasks.
        place: `(C,)` int64, the indices of these rows; `None` between tasks.
    """

    rows: torch.Tensor
    start: torch.Tensor | None
    place: torch.Tensor | None

    def __init__(self, width: int) -> None:
        super().__init__()
        self.keys: list[str] = []
        self.names: list[str] = []
        self.owners: list[list[int]] = []
        self.register_buffer("rows", torch.zeros(0, width))
        self.register_buffer("start", None)
        self.register_buffer("place", None)

    def __len__(self) -> int:
        return len(self.keys)

    # -- learning ---------------------------------------------------------------------------------------------

    def missing(self, entries: Sequence[ClassEntry]) -> list[ClassEntry]:
        """Return the classes that have no row yet."""
        known = set(self.keys)
        return [entry for entry in entries if entry.key not in known]

    def begin(self, entries: Sequence[ClassEntry], task: int, new: torch.Tensor) -> None:
        """Begin a task: its new classes start from `new`, the others from their learned rows.

        Args:
            entries: the task's classes, in the order of its labels.
            task: the index of its prompt.
            new: unit embeddings of `missing(entries)`, in their order.
        """
        for entry in self.missing(entries):
            self.keys.append(entry.key)
            self.names.append(entry.name)
            self.owners.append([])
        self.rows = torch.cat([self.rows, new.to(self.rows)])
        row_of = {key: row for row, key in enumerate(self.keys)}
        chosen = [row_of[entry.key] for entry in entries]
        for row in chosen:
            self.owners[row] = sorted({*self.owners[row], task})
        self.place = torch.tensor(chosen, dtype=torch.int64, device=self.rows.device)
        self.start = self.rows[self.place].clone()

    def combined(self, text: torch.Tensor, from_start: bool = False) -> torch.Tensor:
        """Return `e = norm(V + f)` of the current classes `(C, D)`; only the unit texts f receive gradients.

        Args:
            text: f, `(C, D)`.
            from_start: use the rows from the start of the task instead of V.
        """
        rows = self.start if from_start and self.start is not None else self.rows[self.place]
        return F.normalize(rows + text, dim=1)

    def update(self, combined: torch.Tensor, momentum: float) -> None:
        """Move the current rows: `V <- norm(a e + (1 - a) V)`."""
        moved = momentum * combined.detach() + (1 - momentum) * self.rows[self.place]
        self.rows[self.place] = F.normalize(moved, dim=1)

    def replace(self, text: torch.Tensor) -> None:
        """Replace the current rows by `norm(V0 + f)` (the ablation without momentum)."""
        assert self.start is not None
        self.rows[self.place] = F.normalize(self.start + text.to(self.rows), dim=1)

    def normalise(self) -> None:
        """Normalise all rows, after an interpolation."""
        self.rows.copy_(F.normalize(self.rows, dim=1))

    def end(self) -> None:
        """End the task."""
        self.start = self.place = None

    def earlier(self) -> torch.Tensor:
        """Return the indices `(M,)` of the rows that do not belong to the current task."""
        kept = torch.ones(len(self), dtype=torch.bool, device=self.rows.device)
        kept[self.place] = False
        return kept.nonzero()[:, 0]

    # -- looking up -------------------------------------------------------------------------------------------

    def find(self, entries: Sequence[ClassEntry]) -> list[int | None]:
        """Return the row of each class; `None` for a class that was never learned.

        The key identifies a class of the stream, because the scenario decided whether equal names are one class.
        Classes of no task (a user's own names, the retention suite) are found by name; of several, the latest counts.
        """
        by_key = {key: row for row, key in enumerate(self.keys)}
        by_name = {name: row for row, name in enumerate(self.names)}
        return [by_key.get(e.key) if e.tasks else by_name.get(e.name) for e in entries]

    def membership(self, rows: Sequence[int | None], tasks: int) -> torch.Tensor:
        """Return `(C, T)` bool, whether a class belongs to a task; a class without a row belongs to none."""
        table = torch.zeros(len(rows), tasks, dtype=torch.bool)
        for column, row in enumerate(rows):
            for task in () if row is None else self.owners[row]:
                table[column, task] = True
        return table

    # -- state ------------------------------------------------------------------------------------------------

    def structure(self) -> dict[str, Any]:
        """Return everything but the embeddings as JSON."""
        current = None if self.place is None else self.place.tolist()
        classes = [list(row) for row in zip(self.keys, self.names, self.owners, strict=True)]
        return {"classes": classes, "current": current}

    def grow(self, structure: Mapping[str, Any]) -> None:
        """Make room for what `structure` described, before the embeddings are loaded."""
        self.keys = [str(key) for key, _, _ in structure["classes"]]
        self.names = [str(name) for _, name, _ in structure["classes"]]
        self.owners = [[int(task) for task in tasks] for _, _, tasks in structure["classes"]]
        self.rows = self.rows.new_zeros(len(self.keys), self.rows.shape[1])
        self.end()
        if structure["current"] is not None:
            self.place = torch.tensor(structure["current"], dtype=torch.int64, device=self.rows.device)
            self.start = self.rows[self.place].clone()
