"""Columns of embeddings: what frozen towers and frozen teachers say of a phase's data, encoded once, not at every step.

A phase asks for them by the columns of its streams: `image_embedding` in place of `image`, `text_embedding` in place of
`tokens`, `class_embedding` in place of `class_tokens`. With the name of a teacher behind it (`image_embedding@initial`)
a column holds what that frozen copy of the method says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from everclip.contracts import Stream
from everclip.data.sampling.batches import BatchMaker
from everclip.data.table import Table
from everclip.features.encoder import Encoder, Side, tower_encoders
from everclip.features.encoding import BLOCK, device_of
from everclip.features.pictures import Pictures
from everclip.features.service import FeatureService
from everclip.interfaces import Teaches
from everclip.models.exact import exactly

IMAGE, TEXT, CLASS = "image_embedding", "text_embedding", "class_embedding"
KEPT = "teacher initial"
"""The encoder that stays the same for the whole run, and its embeddings with it."""
OWN = "frozen tower"
"""The name of a method's own towers as encoders, in the precision of training."""


@dataclass(frozen=True)
class _Column:
    """A column of embeddings: its `name`, of which `base` kind it is, and by which `teacher` ("": the method)."""

    name: str
    base: str
    teacher: str


def _columns(stream: Stream) -> list[_Column]:
    parts = ((column, *column.partition("@")[::2]) for column in stream.columns)
    return [_Column(*part) for part in parts if part[1] in (IMAGE, TEXT, CLASS)]


class EmbeddingColumns:
    """Serves embeddings of frozen towers, and of frozen teachers, to the streams of a phase.

    Args:
        maker: knows tokeniser and the order of samples.
        features: encodes.

    Attributes:
        tick: is told how many samples of a table are encoded, and how many there are.
    """

    def __init__(self, maker: BatchMaker, features: FeatureService) -> None:
        self._maker, self._features = maker, features
        self.tick: Callable[[int, int], None] = lambda done, total: None
        self._held: dict[tuple[str, int], _Held] = {}
        self._classes: dict[tuple[str, int], tuple[object, str, torch.Tensor]] = {}

    def prepare(
        self,
        method: Teaches,
        streams: Mapping[str, Stream],
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> bool:
        """Encode what the streams of a phase ask for and is not there yet.

        Args:
            method: whose backbone encodes; it is left in evaluation mode if anything was asked for.
            streams: those of a phase; their columns say what they want.
            autocast: the precision of training, so that the numbers are those it would have had; a teacher's are those
                that it says when a step asks it.

        Returns:
            Whether any stream asks for embeddings.
        """
        asked = [(stream, column) for stream in streams.values() for column in _columns(stream)]
        if not asked:
            return False
        method.eval()
        encoders = _Encoders(method, autocast)
        for stream, column in asked:
            self._prepare(encoders, stream, column)
        return True

    def _prepare(self, encoders: _Encoders, stream: Stream, column: _Column) -> None:
        if column.base == CLASS:
            if (column.name, id(stream.classes)) not in self._classes:
                encoder = encoders.of(column.teacher, "text")
                bank = self._bank(encoders, encoder, stream)
                self._classes[column.name, id(stream.classes)] = (stream.classes, encoder.name, bank)
            return
        for table in [source.table for source in stream.sources if len(source.table)]:
            if (column.name, id(table)) not in self._held:
                self._held[column.name, id(table)] = self._encoded(encoders, column, table)

    def _encoded(self, encoders: _Encoders, column: _Column, table: Table) -> _Held:
        if column.base == IMAGE:
            encoder = encoders.of(column.teacher, "image")
            found = self._features.images(encoder, Pictures.of(table), tick=self.tick, pinned=True)
            return _Held(table, encoder.name, found["embedding"])
        encoder = encoders.of(column.teacher, "text")
        texts = [self._maker.caption(table, i) for i in range(len(table))]
        found, rows = self._features.texts(encoder, texts, tick=self.tick, pinned=True)
        return _Held(table, encoder.name, found["embedding"], rows)

    def add(
        self, batch: dict[str, dict[str, Any]], streams: Mapping[str, Stream], scope: str, step: int
    ) -> None:
        """Put the embeddings of one step into its batch, in place."""
        for name, stream in streams.items():
            for column in _columns(stream):
                if column.base == CLASS:
                    batch[name][column.name] = self._classes[column.name, id(stream.classes)][2]
                    continue
                rows = self._maker.places(stream, f"{scope}/{name}", step)
                found = [self._held[column.name, id(table)].row(i) for table, i in rows]
                # The last batch of a pass may leave a process without samples.
                batch[name][column.name] = torch.stack(found) if found else torch.zeros(0, 0)

    def add_once(
        self, method: Teaches, batch: dict[str, dict[str, Any]], streams: Mapping[str, Stream], scope: str
    ) -> None:
        """Do as `add` for step 0, but encode that batch alone and keep nothing: to measure a step.

        Of a long bank only the first texts are encoded and then repeated: how long a step takes depends on its size.
        """
        method.eval()
        encoders = _Encoders(method, nullcontext)
        for name, stream in streams.items():
            rows = self._maker.places(stream, scope, 0)
            for column in _columns(stream):
                encoder = encoders.of(column.teacher, "image" if column.base == IMAGE else "text")
                if column.base == CLASS:
                    batch[name][column.name] = self._bank(encoders, encoder, stream, BLOCK)
                    continue
                if column.base == IMAGE:
                    store = self._features.store
                    inputs = torch.stack([encoder.prepare(store.get(*row)) for row in rows])
                else:
                    inputs = encoder.prepare([self._maker.caption(table, i) for table, i in rows])
                batch[name][column.name] = encoder.encode(inputs)["embedding"]

    def release(self) -> None:
        """Forget what the next task cannot use: it has other data or another tower.

        What the start model says of data that belong to no task stays.
        """
        self._held = {key: held for key, held in self._held.items() if held.encoder == KEPT}
        self._classes = {key: bank for key, bank in self._classes.items() if bank[1] == KEPT}
        self._features.release(keep=lambda name: name == KEPT)

    def _bank(
        self, encoders: _Encoders, encoder: Encoder, stream: Stream, most: int | None = None
    ) -> torch.Tensor:
        """Return the embeddings of a stream's classes on the method's device, so that no step has to move them."""
        tokens = self._maker.class_tokens(stream)
        some = tokens[:most]
        blocks = (some[i : i + BLOCK] for i in range(0, len(some), BLOCK))
        bank = self._features.now(encoder, blocks)["embedding"]
        return bank[torch.arange(len(tokens)) % len(some)].to(encoders.device)


@dataclass(frozen=True)
class _Held:
    """The embeddings of a table, which it keeps alive; `index` says which row of `values` each sample has."""

    table: Table
    encoder: str
    values: torch.Tensor
    index: torch.Tensor | None = None

    def row(self, position: int) -> torch.Tensor:
        return self.values[position if self.index is None else int(self.index[position])]


class _Encoders:
    """The method's own towers and those of its teachers, each made when first asked for."""

    def __init__(self, method: Teaches, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        self._method, self._autocast, self.device = method, autocast, device_of(method)
        self._made: dict[str, dict[Side, Encoder]] = {}

    def of(self, teacher: str, side: Side) -> Encoder:
        """Return one side of a teacher, or of the method itself for an empty name."""
        if teacher not in self._made:
            backbone = self._method.teacher_of(teacher) if teacher else self._method.backbone
            name = f"teacher {teacher}" if teacher else OWN
            context = exactly if teacher else self._autocast
            self._made[teacher] = tower_encoders(backbone, name, self.device, context)
        return self._made[teacher][side]
