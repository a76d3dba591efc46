"""Columns of embeddings: encode a phase's data once with frozen towers and frozen teachers, not at every step.

A phase requests them by the columns of its streams: `image_embedding` in place of `image`, `text_embedding` in place of
`tokens`, `class_embedding` in place of `class_tokens`. With the name of a teacher at the end
(`image_embedding@initial`), a column holds the embeddings of this frozen copy of the method.

Only for teachers: `image_raw@initial` and `source_raw@initial` are embeddings `(N, D)` as projections give them, not
of unit length, of images and of source captions (what a caption is a translation of); NaN where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from everclip.contracts import Stream
from everclip.data.sampling.batches import BatchMaker
from everclip.data.sampling.captions import source_caption
from everclip.data.table import Table
from everclip.features.encoder import Encoder, Side, tower_encoders
from everclip.features.encoding import BLOCK, device_of
from everclip.features.pictures import Pictures
from everclip.features.service import FeatureService
from everclip.interfaces import Teaches
from everclip.models.same_kernels import same_kernels_as_training

IMAGE, TEXT, CLASS = "image_embedding", "text_embedding", "class_embedding"
IMAGE_RAW, SOURCE_RAW = "image_raw", "source_raw"
KEPT = "teacher initial"
"""The name of the encoder that does not change during a run; its embeddings are kept."""
OWN = "frozen tower"
"""The encoder name of a method's own towers, in the precision of training."""


@dataclass(frozen=True)
class _Column:
    """A column of embeddings: its full `name`, the `base` name without teacher, and the `teacher` ("": the method)."""

    name: str
    base: str
    teacher: str


def _columns(stream: Stream) -> list[_Column]:
    parts = ((column, *column.partition("@")[::2]) for column in stream.columns)
    return [_Column(*part) for part in parts if part[1] in (IMAGE, TEXT, CLASS, IMAGE_RAW, SOURCE_RAW)]


class EmbeddingColumns:
    """Embeddings of frozen towers and frozen teachers for the streams of a phase.

    Args:
        maker: has the tokenizer and the order of samples.
        features: encodes.

    Attributes:
        tick: called with the number of encoded samples of a table, and the number of all.
    """

    def __init__(self, maker: BatchMaker, features: FeatureService) -> None:
        self._maker, self._features = maker, features
        self.tick: Callable[[int, int], None] = lambda done, total: None
        self._tables: dict[tuple[str, int], _TableEmbeddings] = {}
        self._classes: dict[tuple[str, int], tuple[object, str, torch.Tensor]] = {}
        self._own_keys = ("", "")

    def prepare(
        self,
        method: Teaches,
        streams: Mapping[str, Stream],
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> bool:
        """Encode the embeddings that the streams of a phase request, as far as they are missing.

        Args:
            method: its backbone encodes; it is in evaluation mode afterwards if embeddings were requested.
            streams: the streams of a phase; their columns request embeddings.
            autocast: the precision of training, so that the embeddings equal those of a training step; those of
                teachers are computed as in a step, too.

        Returns:
            Whether any stream requests embeddings.
        """
        requested = [(stream, column) for stream in streams.values() for column in _columns(stream)]
        if not requested:
            return False
        method.eval()
        encoders = _Encoders(method, autocast)
        if any(not column.teacher for _, column in requested):
            self._discard_changed(encoders)
        for stream, column in requested:
            self._prepare(encoders, stream, column)
        return True

    def _discard_changed(self, encoders: _Encoders) -> None:
        """Discard embeddings of the method's own towers if a phase in between trained them."""
        keys = encoders.of("", "image").key, encoders.of("", "text").key
        if keys != self._own_keys:
            self._tables = {key: held for key, held in self._tables.items() if held.encoder != OWN}
            self._classes = {key: bank for key, bank in self._classes.items() if bank[1] != OWN}
            self._own_keys = keys

    def _prepare(self, encoders: _Encoders, stream: Stream, column: _Column) -> None:
        if column.base == CLASS:
            if (column.name, id(stream.classes)) not in self._classes:
                encoder = encoders.of(column.teacher, "text")
                bank = self._bank(encoders, encoder, stream)
                self._classes[column.name, id(stream.classes)] = (stream.classes, encoder.name, bank)
            return
        for table in [source.table for source in stream.sources if len(source.table)]:
            if (column.name, id(table)) not in self._tables:
                self._tables[column.name, id(table)] = self._encode(encoders, column, table)

    def _encode(self, encoders: _Encoders, column: _Column, table: Table) -> _TableEmbeddings:
        if column.base in (IMAGE_RAW, SOURCE_RAW):
            return self._encode_raw(encoders, column, table)
        if column.base == IMAGE:
            encoder = encoders.of(column.teacher, "image")
            features = self._features.images(encoder, Pictures.of(table), tick=self.tick, pinned=True)
            return _TableEmbeddings(table, encoder.name, features["embedding"])
        encoder = encoders.of(column.teacher, "text")
        texts = [self._maker.caption(table, i) for i in range(len(table))]
        features, rows = self._features.texts(encoder, texts, tick=self.tick, pinned=True)
        return _TableEmbeddings(table, encoder.name, features["embedding"], rows)

    def _encode_raw(self, encoders: _Encoders, column: _Column, table: Table) -> _TableEmbeddings:
        """Encode distinct images, or source captions, in their own order: the next language mostly has the same."""
        if column.base == IMAGE_RAW:
            encoder = encoders.of(column.teacher, "image", unit=False)
            pictures, rows = Pictures.sorted(table)
            features = self._features.images(encoder, pictures, tick=self.tick)
            return _TableEmbeddings(table, encoder.name, features["embedding"], rows)
        encoder = encoders.of(column.teacher, "text", unit=False)
        sources = [source_caption(table, i) for i in range(len(table))]
        order = sorted({source for source in sources if source is not None})
        features, _ = self._features.texts(encoder, order or [""], tick=self.tick)
        index = {source: row for row, source in enumerate(order)}
        rows = torch.tensor([-1 if s is None else index[s] for s in sources], dtype=torch.int64)
        return _TableEmbeddings(table, encoder.name, features["embedding"], rows)

    def add(
        self, batch: dict[str, dict[str, Any]], streams: Mapping[str, Stream], scope: str, step: int
    ) -> None:
        """Add the embeddings of one step to its batch, in place."""
        for name, stream in streams.items():
            for column in _columns(stream):
                if column.base == CLASS:
                    bank = self._classes[column.name, id(stream.classes)][2]
                    chosen = self._maker.known_classes(stream, f"{scope}/{name}", step)
                    batch[name][column.name] = bank if chosen is None else bank[chosen.to(bank.device)]
                    continue
                rows = self._maker.samples_of_step(stream, f"{scope}/{name}", step)
                values = [self._tables[column.name, id(table)].row(i) for table, i in rows]
                # In the last batch of a pass, a process may have no samples.
                batch[name][column.name] = torch.stack(values) if values else torch.zeros(0, 0)

    def add_once(
        self, method: Teaches, batch: dict[str, dict[str, Any]], streams: Mapping[str, Stream], scope: str
    ) -> None:
        """Add the embeddings of step 0, encoding only this batch and storing nothing: to measure the time of a step.

        Of a long bank, only the first texts are encoded and then repeated, because only its size matters for the time.
        """
        method.eval()
        encoders = _Encoders(method, nullcontext)
        for name, stream in streams.items():
            rows = self._maker.samples_of_step(stream, scope, 0)
            for column in _columns(stream):
                side: Side = "image" if column.base in (IMAGE, IMAGE_RAW) else "text"
                encoder = encoders.of(column.teacher, side, column.base not in (IMAGE_RAW, SOURCE_RAW))
                if column.base == CLASS:
                    batch[name][column.name] = self._bank(encoders, encoder, stream, BLOCK)
                    continue
                if side == "image":
                    store = self._features.store
                    inputs = torch.stack([encoder.prepare(store.get(*row)) for row in rows])
                else:
                    caption = self._maker.caption if column.base == TEXT else _source
                    inputs = encoder.prepare([caption(table, i) for table, i in rows])
                batch[name][column.name] = encoder.encode(inputs)["embedding"]

    def release(self) -> None:
        """Discard embeddings that the next task cannot use because its data or towers differ.

        The start model's embeddings of reference data stay.
        """
        self._tables = {key: table for key, table in self._tables.items() if table.encoder == KEPT}
        self._classes = {key: bank for key, bank in self._classes.items() if bank[1] == KEPT}
        self._features.release(keep=lambda name: name == KEPT)

    def _bank(
        self, encoders: _Encoders, encoder: Encoder, stream: Stream, most: int | None = None
    ) -> torch.Tensor:
        """Return the embeddings of a stream's classes on the method's device, so that steps need not move them."""
        tokens = self._maker.class_tokens(stream)
        some = tokens[:most]
        blocks = (some[i : i + BLOCK] for i in range(0, len(some), BLOCK))
        bank = self._features.now(encoder, blocks)["embedding"]
        return bank[torch.arange(len(tokens)) % len(some)].to(encoders.device)


def _source(table: Table, position: int) -> str:
    return source_caption(table, position) or ""


@dataclass(frozen=True)
class _TableEmbeddings:
    """The embeddings of a table, which this keeps alive; `index` is the row of `values` of each sample, -1: none."""

    table: Table
    encoder: str
    values: torch.Tensor
    index: torch.Tensor | None = None

    def row(self, position: int) -> torch.Tensor:
        row = position if self.index is None else int(self.index[position])
        return torch.full_like(self.values[0], torch.nan) if row < 0 else self.values[row]


class _Encoders:
    """The encoders of the method's own towers and of its teachers, created on first use."""

    def __init__(self, method: Teaches, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        self._method, self._autocast, self.device = method, autocast, device_of(method)
        self._made: dict[tuple[str, bool], dict[Side, Encoder]] = {}

    def of(self, teacher: str, side: Side, unit: bool = True) -> Encoder:
        """Return one side of a teacher, or of the method itself for an empty name."""
        if (teacher, unit) not in self._made:
            backbone = self._method.teacher_of(teacher) if teacher else self._method.backbone
            name = f"teacher {teacher}" if teacher else OWN
            name = name if unit else f"{name}, not unit"
            context = same_kernels_as_training if teacher else self._autocast
            self._made[teacher, unit] = tower_encoders(backbone, name, self.device, context, unit)
        return self._made[teacher, unit][side]
