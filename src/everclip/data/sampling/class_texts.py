"""Labels and texts of a stream's classes; every class is tokenised once, whatever the number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from everclip.contracts import ClassEntry, Stream
from everclip.data.sampling.same_texts import Tokenise, first_equal, token_keys
from everclip.data.table import Table
from everclip.errors import DataError

KEPT = 8
"""Label spaces that are remembered; a phase needs one or two."""


@dataclass
class _Space:
    """What is computed once of a label space; holds `classes`, whose identity is its key."""

    classes: tuple[ClassEntry, ...]
    index: dict[str, int]
    tokens: torch.Tensor | None = None
    same: list[int] | None = None
    differ: bool = True
    seen: tuple[Table, npt.NDArray[np.int64]] | None = None


@dataclass(frozen=True)
class ClassTexts:
    """Labels, tokens and equal texts of the classes of streams; shared by the threads that make batches."""

    _spaces: dict[int, _Space] = field(default_factory=dict)
    _rows: dict[str, torch.Tensor] = field(default_factory=dict)

    def forget(self) -> None:
        """Forget everything, because the tokenizer has changed."""
        self._spaces.clear()
        self._rows.clear()

    def labels(self, stream: Stream, rows: Sequence[tuple[Table, int]]) -> torch.Tensor:
        """Return the position of each sample's class among the stream's classes, `(N,)` int64.

        Raises:
            DataError: for a class that the stream does not have.
        """
        index = self._space(stream).index
        return torch.tensor([_label(index, table, position) for table, position in rows], dtype=torch.int64)

    def tokens(self, stream: Stream, tokenise: Tokenise) -> torch.Tensor:
        """Return token ids `(C, L)` of a stream's classes, each in its first template."""
        space = self._space(stream)
        if space.tokens is None:
            prompts = [entry.prompts()[0] for entry in space.classes]
            new = [text for text in dict.fromkeys(prompts) if text not in self._rows]
            if new:
                self._rows.update(zip(new, tokenise(new), strict=True))
            space.tokens = (
                torch.stack([self._rows[text] for text in prompts]) if prompts else tokenise([""])[:0]
            )
        return space.tokens

    def same(self, stream: Stream, tokenise: Tokenise, chosen: torch.Tensor | None) -> torch.Tensor | None:
        """Return for each (chosen) class the first that has the same tokens; `None` where all differ."""
        space = self._space(stream)
        if space.same is None:
            tokens = self.tokens(stream, tokenise)
            same = first_equal(token_keys(lambda texts: tokens, [e.key for e in space.classes]))
            space.differ, space.same = same == list(range(len(same))), same
        if space.differ:
            return None
        same = space.same if chosen is None else first_equal([space.same[i] for i in chosen])
        return None if same == list(range(len(same))) else torch.tensor(same, dtype=torch.int64)

    def seen(self, stream: Stream, stop: int) -> int:
        """Return how many classes a stream has shown after its first `stop` samples.

        Its classes are in the order in which they appear, so these are the first ones.
        """
        space, table = self._space(stream), stream.sources[0].table
        if space.seen is None or space.seen[0] is not table:
            labels = [_label(space.index, table, position) for position in range(len(table))]
            space.seen = (table, np.maximum.accumulate(np.array(labels, dtype=np.int64)))
        shown = int(space.seen[1][stop - 1]) + 1 if stop else 0
        return max(stream.known, shown)

    def _space(self, stream: Stream) -> _Space:
        classes = stream.classes or ()
        space = self._spaces.get(id(classes))
        if space is None or space.classes is not classes:
            if len(self._spaces) >= KEPT:
                self._spaces.clear()
            space = _Space(classes, {entry.key: i for i, entry in enumerate(classes)})
            self._spaces[id(classes)] = space
        return space


def _label(index: dict[str, int], table: Table, position: int) -> int:
    key = table.value("class_key", position) if table.has("class_key") else None
    if key not in index:
        raise DataError(f"{table.name}, id {table.ids[position]}: class {key!r} is not one of the stream's.")
    return index[str(key)]
