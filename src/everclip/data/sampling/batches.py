"""Make batches from streams: choose the samples of a step, decode and tokenise them ahead in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from everclip.config import AugmentConfig, CaptionConfig
from everclip.contracts import Stream
from everclip.data.pictures.images import ImageStore, PixelFormat
from everclip.data.sampling.augmentation import augment
from everclip.data.sampling.captions import draw_caption, own_caption
from everclip.data.sampling.class_texts import ClassTexts
from everclip.data.sampling.order import generator, key_of, sample_index, share
from everclip.data.sampling.read_ahead import REMEMBERED, ReadAhead
from everclip.data.sampling.same_texts import Tokenise
from everclip.data.table import Table
from everclip.errors import ConfigError


@dataclass(frozen=True)
class BatchMaker:
    """Turns (stream, step) into tensors. A pure function of its settings: any step can be made at any time.

    Attributes:
        pixels: the input of the image tower.
        preprocess: the backbone's own transform, for the view `eval`.
        tokenise: texts to token ids `(N, L)`.
        augment, captions: settings of the view `train`; `augment=None` uses the evaluation transform.
        seed: the run's seed.
        store: cache of decoded images.
        rank, world: number of this process, and of all; each takes its slice of the same global batch.
        needed: how many tokens of texts `(C, L)` the model reads before it pools; `None`: all. Computed here, since
            the ids are on the CPU: in a step it would wait for the device.
        window: number of samples of a source that are shuffled at a time; `None`: all.
    """

    pixels: PixelFormat
    preprocess: Callable[[Any], torch.Tensor]
    tokenise: Tokenise
    augment: AugmentConfig | None
    captions: CaptionConfig
    seed: int
    store: ImageStore
    rank: int = 0
    world: int = 1
    needed: Callable[[torch.Tensor], int | None] = lambda tokens: None
    window: int | None = None
    _classes: ClassTexts = field(default_factory=ClassTexts)

    def samples_of_step(self, stream: Stream, scope: str, step: int) -> list[tuple[Table, int]]:
        """Return this process's samples of one step as (table, position) pairs."""
        if stream.order == "once":
            # The last batch may be smaller: its samples are shared as equally as possible, in the same order.
            rows = self._all_samples(stream, scope, step)
            start, stop = (len(rows) * rank // self.world for rank in (self.rank, self.rank + 1))
            return rows[start:stop]
        local = share_of(stream.batch_size, self.world)
        start = step * stream.batch_size + self.rank * local
        return [self._one(stream, scope, position) for position in range(start, start + local)]

    def _all_samples(self, stream: Stream, scope: str, step: int) -> list[tuple[Table, int]]:
        """Return the samples of one step of all processes."""
        share_of(stream.batch_size, self.world)
        batch = step // stream.times if stream.order == "once" else step
        start = (batch - (stream.first if stream.order == "once" else 0)) * stream.batch_size
        stop = start + stream.batch_size
        if stream.order == "once":
            stop = min(stop, stream_size(stream))
        rows = [self._one(stream, scope, position) for position in range(start, stop)]
        return rows if stream.memory is None else [*rows, *stream.memory.drawn(batch)]

    def weight(self, stream: Stream, scope: str, step: int) -> float | None:
        """Return the factor that makes a mean over this process's samples count by their number; `None`: 1.

        Processes average their gradients with equal weights, though the last batch of a stream seen once may not
        divide equally.
        """
        if stream.order != "once" or self.world == 1:
            return None
        total = len(self._all_samples(stream, scope, step))
        if total % self.world == 0:
            return None
        return len(self.samples_of_step(stream, scope, step)) * self.world / total

    def _one(self, stream: Stream, scope: str, position: int) -> tuple[Table, int]:
        which, inner = (
            (0, position)
            if len(stream.sources) == 1
            else share(position, [source.weight for source in stream.sources])
        )
        table = stream.sources[which].table
        key = f"{self.seed}/{scope}/{which}"
        return table, sample_index(inner, len(table), stream.order, key, self.window)

    def batch(self, stream: Stream, scope: str, step: int) -> dict[str, Any]:
        """Return the columns of one step.

        Args:
            stream: what to read.
            scope: names task, phase and stream; part of the key of every random draw.
            step: 0-based step within the phase.

        Returns:
            `image` `(N, 3, S, S)`, `tokens` `(N, L)` with `caption` (list of N) and `text_key`/`image_key`
            `(N,)` int64 (equal keys mark captions of the same tokens, or the same image), `label` `(N,)` with
            `class_tokens` `(C, L)` (first template of each class) and `class_length` (`needed` of them), `id`
            (list of N), as far as `stream.columns` asks. `image_id` (list of N) and `text_id` (captions as in the
            data, list of N, or names of classes, list of C) are keys of feature tables. `text_length` is what `needed`
            returns for the tokens. Where classes have the same tokens, `class_same` `(C,)` int64 holds for each the
            position of the first of them. The classes are those that the step knows (`Stream.space`). `weight` is set
            if processes have different numbers of samples.
        """
        rows = self.samples_of_step(stream, scope, step)
        draws = [generator(self.seed, scope, step, table.ids[i]) for table, i in rows]
        batch: dict[str, Any] = {"id": [table.ids[i] for table, i in rows]}
        if "image" in stream.columns:
            batch["image"] = self._pixels(stream, rows, scope, draws)
        if {"tokens", "text_embedding"} & set(stream.columns):
            texts = [self._text(stream, t, i, d) for (t, i), d in zip(rows, draws, strict=True)]
            batch["caption"] = texts
            tokens = self.tokenise(texts) if texts else self.tokenise([""])[:0]
            if "text_length" in stream.columns:
                batch["text_length"] = self.needed(tokens) if texts else None
            if "tokens" in stream.columns:
                batch["tokens"] = tokens
            batch["text_key"] = _keys([row.tobytes().hex() for row in tokens.numpy()])
            batch["image_key"] = _keys([_identity(t, i) for t, i in rows])
        if "image_id" in stream.columns:
            batch["image_id"] = [table.identity(i) for table, i in rows]
        if "text_id" in stream.columns and "label" in stream.columns:
            chosen, entries = self.known_classes(stream, scope, step), stream.classes or ()
            batch["text_id"] = (
                [e.name for e in entries] if chosen is None else [entries[i].name for i in chosen]
            )
        elif "text_id" in stream.columns:
            batch["text_id"] = [own_caption(table, i) for table, i in rows]
        if "label" in stream.columns:
            self._add_labels(batch, stream, rows, scope, step)
        return batch

    def _add_labels(
        self, batch: dict[str, Any], stream: Stream, rows: list[tuple[Table, int]], scope: str, step: int
    ) -> None:
        """Add labels, and the texts of the classes that the step knows."""
        chosen = self.known_classes(stream, scope, step)
        labels = self._classes.labels(stream, rows)
        batch["label"] = labels if chosen is None else torch.searchsorted(chosen, labels)
        if (same := self._classes.same(stream, self.tokenise, chosen)) is not None:
            batch["class_same"] = same
        if "class_embedding" not in stream.columns:
            tokens = self._classes.tokens(stream, self.tokenise)
            batch["class_tokens"] = tokens if chosen is None else tokens[chosen]
            batch["class_length"] = self.needed(batch["class_tokens"])
        if (weight := self.weight(stream, scope, step)) is not None:
            batch["weight"] = weight

    def known_classes(self, stream: Stream, scope: str, step: int) -> torch.Tensor | None:
        """Return the sorted positions `(K,)` of the classes that a step knows (`Stream.space`); `None`: all."""
        if stream.space == "all":
            return None
        if stream.space == "batch":
            present: torch.Tensor = self._classes.labels(stream, self._all_samples(stream, scope, step))
            return torch.tensor(sorted(set(present.tolist())), dtype=torch.int64)
        batch = step // stream.times - stream.first
        stop = min((batch + 1) * stream.batch_size, stream_size(stream))
        return torch.arange(self._classes.seen(stream, stop))

    def forget_tokens(self) -> None:
        """Forget the tokens of classes: the tokenizer may have grown."""
        self._classes.forget()

    def class_tokens(self, stream: Stream) -> torch.Tensor:
        """Return token ids `(C, L)` of a stream's classes, each in its first template."""
        return self._classes.tokens(stream, self.tokenise)

    def class_same(self, stream: Stream) -> torch.Tensor | None:
        """Return for each class the first that has the same tokens `(C,)`; `None` where all differ."""
        return self._classes.same(stream, self.tokenise, None)

    def _fixed_draws(self, rows: list[tuple[Table, int]], scope: str) -> list[np.random.Generator]:
        """Return generators that are the same at every step of a phase."""
        return [generator(self.seed, scope, "fixed", table.ids[i]) for table, i in rows]

    def _pixels(
        self, stream: Stream, rows: list[tuple[Table, int]], scope: str, draws: list[np.random.Generator]
    ) -> torch.Tensor:
        """Return the images of one step `(N, 3, S, S)`; `N` is 0 if the end of a pass leaves a process without any."""
        form, config, get = self.pixels, self.augment, self.store.get
        if stream.view == "train" and config is not None:
            own = zip(rows, self._fixed_draws(rows, scope) if config.fixed else draws, strict=True)
            return form.tensors([augment(get(*row), form.size, config, d, form.resizing) for row, d in own])
        ready = [self.preprocess(get(*row)) for row in rows]
        return torch.stack(ready) if ready else torch.zeros(0, 3, form.size, form.size)

    def caption(self, table: Table, position: int) -> str:
        """Return a sample's caption, or its class name if it has no caption.

        Raises:
            DataError: if it has none.
        """
        return own_caption(table, position)

    def _text(self, stream: Stream, table: Table, position: int, draw: Any) -> str:
        caption = self.caption(table, position)
        if stream.view != "train":
            return caption
        words = table.value("keywords", position) if table.has("keywords") else None
        return draw_caption(caption, words, self.captions, draw)

    def batches(
        self, stream_of: dict[str, Stream], scope: str, start: int, stop: int, workers: int
    ) -> Iterator[dict[str, dict[str, Any]]]:
        """Yield the batches of steps `start` to `stop`; workers prepare `workers + 1` steps ahead."""

        far = {
            name: s for name, s in stream_of.items() if any(source.table.is_remote for source in s.sources)
        }

        def far_rows(step: int) -> list[tuple[Table, int]]:
            return [
                row for name, s in far.items() for row in self.samples_of_step(s, f"{scope}/{name}", step)
            ]

        ahead = ReadAhead(far_rows, start, stop, self._steps_ahead(far.values(), workers)) if far else None
        if ahead is not None:
            ahead.until(start)
        try:
            for step, batch in enumerate(self._made(stream_of, scope, start, stop, workers), start):
                if ahead is not None:
                    ahead.until(step)
                yield batch
        finally:
            if ahead is not None:
                ahead.close()

    def _steps_ahead(self, streams: Iterable[Stream], workers: int) -> int:
        """Return how many steps ahead of the model blocks are fetched: the next window, or a few batches."""
        chosen = list(streams)
        windows = ((self.window or 0) // s.batch_size for s in chosen if s.order == "shuffle")
        ahead = max((2 * workers + 2, *windows))
        # What a memory adds to a batch that it has forgotten costs all batches from the first on.
        return ahead if all(s.memory is None for s in chosen) else min(ahead, REMEMBERED // 2)

    def _made(
        self, stream_of: dict[str, Stream], scope: str, start: int, stop: int, workers: int
    ) -> Iterator[dict[str, dict[str, Any]]]:
        def make(step: int) -> dict[str, dict[str, Any]]:
            return {name: self.batch(s, f"{scope}/{name}", step) for name, s in stream_of.items()}

        if workers == 0:
            yield from (make(step) for step in range(start, stop))
            return
        with ThreadPoolExecutor(workers, thread_name_prefix="everclip-batch") as pool:
            waiting: deque[Future[dict[str, dict[str, Any]]]] = deque()
            try:
                for step in range(start, stop):
                    while len(waiting) <= workers and step + len(waiting) < stop:
                        waiting.append(pool.submit(make, step + len(waiting)))
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


def share_of(batch_size: int, world: int) -> int:
    """Return how many samples of a batch each of `world` processes takes.

    Raises:
        ConfigError: if the batch cannot be divided equally.
    """
    if batch_size % world:
        raise ConfigError(
            f"training.batch_size: a batch of {batch_size} cannot be shared by {world} processes equally; take a "
            f"multiple of {world}."
        )
    return batch_size // world


def stream_size(stream: Stream) -> int:
    """Return how many samples one pass over a stream holds."""
    return sum(len(source.table) for source in stream.sources)


def _identity(table: Table, position: int) -> str:
    """Return what two samples share if they are positives of each other: the concept, else the image."""
    for column in ("concept", "image_id"):
        if table.has(column):
            value = table.value(column, position)
            if value is not None:
                return str(value)
    return table.ids[position]


def _keys(values: list[str]) -> torch.Tensor:
    # 62 bits of a keyed hash: comparable between processes, unlike Python's own hash.
    return torch.tensor([key_of(value) >> 66 for value in values], dtype=torch.int64)
