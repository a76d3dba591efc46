"""Encode every distinct evaluation picture once per row; nothing is encoded twice by a tower that did not change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from everclip.contracts import EvalSet, Features, LabelSpace
from everclip.data.pictures.images import RULES, ImageStore
from everclip.data.sampling.order import key_of
from everclip.data.table import Table
from everclip.distributed import from_first, gather_objects
from everclip.errors import CheckpointError
from everclip.evaluation.banks import Reduce, decoded, encode_pictures, encode_prompts, joined, measuring
from everclip.files import write_bytes_atomic
from everclip.interfaces import Predictor, Preprocess

Tick = Callable[[int, int], None]
_OF = "\0"
"""Between the name of a set and that of a feature; no name holds it."""


class Encoder:
    """Encodes the union of all evaluation sets, and remembers by fingerprint what it encoded.

    Args:
        sets: the evaluation sets; a picture that occurs in several rows or sets is encoded once.
        preprocess: the backbone's evaluation transform.
        store: decoded pictures.
        batch_size: pictures at a time.
        cache: folder shared between runs, or `None`.
        rank, world: which share of the pictures this process encodes.
        workers: threads that decode.
    """

    def __init__(
        self,
        sets: Sequence[EvalSet],
        preprocess: Preprocess,
        store: ImageStore,
        batch_size: int,
        cache: Path | None = None,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ) -> None:
        self._preprocess, self._store, self._batch, self._cache = preprocess, store, batch_size, cache
        self._rank, self._world, self._workers = rank, world, workers
        index: dict[str, int] = {}
        self._places: list[tuple[Table, int]] = []
        self._rows: dict[str, torch.Tensor] = {}
        for s in sets:
            contents = s.data.contents()
            for position, content in enumerate(contents):
                if content not in index:
                    index[content] = len(self._places)
                    self._places.append((s.data, position))
            self._rows[s.name] = torch.tensor([index[content] for content in contents], dtype=torch.int64)
        # How many pictures are encoded belongs to the key: what is kept is one row for each.
        prints = [s.data.fingerprint for s in sets]
        self._data_key = f"{key_of(*prints, str(len(self._places))):032x}"[:16]
        self.encoded = 0
        """How many pictures this process has run through an image tower."""
        self._keeps = True
        self.damaged: list[str] = []
        """What was found damaged in the cache, and what was done about it."""
        self._tasks = {s.name: s.task for s in sets}
        self._kept: dict[str, Features] = {}
        self._under = ""
        self._texts: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
        self._banks: dict[tuple[str, LabelSpace], Features] = {}
        self._asked: set[tuple[str, LabelSpace]] = set()

    def begin_row(self) -> None:
        """Forget the class banks that the row before did not ask for: what was seen then is no space of today's."""
        self._banks = {key: bank for key, bank in self._banks.items() if key in self._asked}
        self._asked.clear()

    def images(
        self,
        method: Predictor,
        keys: Mapping[str, str],
        tick: Tick,
        known_task: int | None = None,
        reduce: Mapping[str, Reduce] | None = None,
    ) -> dict[str, Features]:
        """Return the features of evaluation sets under the method as it is now.

        Args:
            method: encodes; in evaluation mode.
            keys: what its encodings depend on (`method.encoder_keys()`), taken once per row.
            tick: called with (done, total); may raise to stop.
            known_task: the task that the method is told; then only the sets of that task are encoded.
            reduce: name of a set -> what is kept of its pictures in a batch, for features too wide to be held; then
                nothing is remembered.

        Returns:
            Name of a set -> features, one per picture, in the order of the set.
        """
        # Weights alone do not decide an embedding: architecture, transform, method and decoding do too.
        transform = repr(self._preprocess), f"decoded by rules {RULES}"
        setting = key_of(type(method).__qualname__, str(method.backbone.clip), *transform)
        key = f"{keys['image']}-{self._data_key}-{setting:032x}"
        if method.batch_dependent is not None:
            key += f"-{self._size(method)}"
        if key != self._under:
            # Only what the current weights made is kept, so memory does not grow with rows.
            self._kept.clear()
            self._under = key
        names = [name for name in self._rows if known_task is None or self._tasks[name] == known_task]
        # What depends on its batch is encoded set by set, so that no set changes another's scores.
        groups = [[name] for name in names] if method.batch_dependent is not None else [names]
        found: dict[str, Features] = {}
        for group in groups if names else []:
            if reduce is not None:
                found |= self._reduced(method, known_task, {name: reduce[name] for name in group}, tick)
            else:
                found |= self._whole(method, key, known_task, group, tick)
        return found

    def _whole(
        self, method: Predictor, key: str, known_task: int | None, names: Sequence[str], tick: Tick
    ) -> dict[str, Features]:
        """Return the features of sets that are encoded together, each picture once."""
        rows = self._union(names)
        if known_task is not None or len(names) < len(self._rows):
            key += f"-{key_of(known_task, *names):032x}"[:17]
        if key not in self._kept:
            self._kept[key] = self._cached(key, lambda: self._encode(method, rows.numpy(), known_task, tick))
        return {name: self._placed(self._kept[key], rows, name) for name in names}

    def _union(self, names: Iterable[str]) -> torch.Tensor:
        found: torch.Tensor = torch.unique(torch.cat([self._rows[name] for name in names]))
        return found

    def _placed(self, whole: Features, rows: torch.Tensor, name: str) -> Features:
        """Return the features of a set, from those of the pictures at `rows`."""
        where = torch.searchsorted(rows, self._rows[name])
        return {k: v[where] for k, v in whole.items()}

    def _reduced(
        self, method: Predictor, known_task: int | None, reduce: Mapping[str, Reduce], tick: Tick
    ) -> dict[str, Features]:
        """Return what is kept of sets that are encoded together, each picture once for all sets that it is in."""
        rows = self._union(reduce)
        inside = {name: np.isin(np.arange(len(self._places)), self._rows[name].numpy()) for name in reduce}

        def keep(found: Features, batch: Sequence[int]) -> Features:
            kept: Features = {}
            for name, mask in inside.items():
                if (own := torch.from_numpy(mask[batch])).any():
                    part = reduce[name]({k: v[own] for k, v in found.items()})
                    kept |= {name + _OF + k: v for k, v in part.items()}
            return kept

        whole = self._encode(method, rows.numpy(), known_task, tick, keep)
        found: dict[str, Features] = {}
        for name in reduce:
            own = {k.removeprefix(name + _OF): v for k, v in whole.items() if k.startswith(name + _OF)}
            found[name] = self._placed(own, torch.unique(self._rows[name]), name)
        return found

    def _cached(self, key: str, make: Callable[[], Features]) -> Features:
        if self._cache is None:
            return make()
        path = self._cache / f"{key}.safetensors"
        # As the first process sees it: if one read the cache while another encoded, both would wait for ever.
        held = self._read(path) if self._rank == 0 else None
        if from_first(held is not None):
            return load_file(path) if held is None else held
        features = make()
        if self._rank == 0 and self._keeps:
            try:
                write_bytes_atomic(path, save({k: v.contiguous() for k, v in features.items()}))
            except CheckpointError as error:
                # A cache only saves time. Reading goes on, for all processes alike.
                self._keeps = False
                why = error.__cause__ or error
                self.damaged.append(f"{path.parent} cannot be written ({why}): embeddings are not kept")
        return features

    def _read(self, path: Path) -> Features | None:
        try:
            return load_file(path) if path.is_file() else None
        except (OSError, SafetensorError) as error:
            self.damaged.append(f"{path}: {error}; its pictures are encoded again")
            return None

    def _encode(
        self,
        method: Predictor,
        rows: NDArray[np.int64],
        known_task: int | None,
        tick: Tick,
        keep: Callable[[Features, Sequence[int]], Features] = lambda found, batch: found,
    ) -> Features:
        """Encode the pictures at `rows`, shared between processes where a batch does not decide anything.

        `keep` is told the features of a batch and which of `rows` it is.
        """
        split = self._world > 1 and len(rows) >= self._world and method.batch_dependent is None
        mine = np.array_split(rows, self._world)[self._rank] if split else rows
        size = self._size(method)
        batches = [mine[start : start + size].tolist() for start in range(0, len(mine), size)]
        left, done = iter(batches), 0

        def count(pictures: int) -> None:
            nonlocal done
            done += pictures
            self.encoded += pictures
            tick(done, len(mine))

        pixels = decoded(batches, self._pixels, self._workers)
        local = encode_pictures(method, pixels, known_task, count, lambda found: keep(found, next(left)))
        return local if not split else joined(gather_objects(local))

    def _size(self, method: Predictor) -> int:
        """Return how many pictures are encoded at a time: the method's own number where that decides anything."""
        own: int | None = None if method.batch_dependent is None else method.prediction_batch
        return own or self._batch

    def _pixels(self, row: int) -> torch.Tensor:
        table, position = self._places[row]
        return self._preprocess(self._store.get(table, position))

    def texts(self, method: Predictor, keys: Mapping[str, str], texts: Sequence[str]) -> Features:
        """Return the features of texts; those known under the current text tower are not encoded again."""
        key = keys["text"]
        if any(known != key for known, _ in self._texts):
            self._texts.clear()
        new = [t for t in dict.fromkeys(texts) if (key, t) not in self._texts]
        if new:
            encoded = encode_prompts(method, new)
            for i, text in enumerate(new):
                self._texts[key, text] = {k: v[i] for k, v in encoded.items()}
        found = [self._texts[key, text] for text in texts]
        return {k: torch.stack([f[k] for f in found]) for k in found[0]}

    def bank(self, method: Predictor, keys: Mapping[str, str], space: LabelSpace) -> Features:
        """Return the method's class bank; encoded once per text tower and label space."""
        if any(known != keys["text"] for known, _ in self._banks):
            self._banks.clear()
        key = (keys["text"], space)
        self._asked.add(key)
        if key not in self._banks:
            with measuring(method):
                self._banks[key] = method.class_bank(space)
        return self._banks[key]
