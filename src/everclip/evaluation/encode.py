"""Encode every evaluation picture once per row; nothing is encoded twice by a tower that did not change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from everclip.contracts import EvalSet, Features, LabelSpace
from everclip.data.images import ImageStore
from everclip.data.order import key_of
from everclip.data.table import Table
from everclip.distributed import from_first, gather_objects
from everclip.evaluation.banks import device_of, encode_prompts, measuring
from everclip.files import write_bytes_atomic

Tick = Callable[[int, int], None]


class Encoder:
    """Encodes the union of all evaluation sets, and remembers by fingerprint what it encoded.

    Args:
        sets: the evaluation sets; a sample that occurs in several is encoded once.
        preprocess: the backbone's evaluation transform.
        store: decoded pictures.
        batch_size: pictures at a time.
        cache: folder shared between runs, or `None`.
        rank, world: which share of the pictures this process encodes.
    """

    def __init__(
        self,
        sets: Sequence[EvalSet],
        preprocess: Callable[[Any], torch.Tensor],
        store: ImageStore,
        batch_size: int,
        cache: Path | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._preprocess, self._store, self._batch, self._cache = preprocess, store, batch_size, cache
        self._rank, self._world = rank, world
        places: dict[tuple[int, int], tuple[Table, int]] = {}
        for s in sets:
            for position in range(len(s.data)):
                places.setdefault(s.data.picture(position), (s.data, position))
        self._places = list(places.values())
        index = {place: i for i, place in enumerate(places)}
        self._rows = {
            s.name: torch.tensor([index[s.data.picture(i)] for i in range(len(s.data))], dtype=torch.int64)
            for s in sets
        }
        self._data_key = f"{key_of(*[s.data.fingerprint for s in sets]):032x}"[:16]
        self.encoded = 0
        """How many pictures this process has run through an image tower."""
        self._kept: dict[str, Features] = {}
        self._texts: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
        self._banks: dict[tuple[str, LabelSpace], Features] = {}

    def images(self, method: Any, keys: Mapping[str, str], tick: Tick) -> dict[str, Features]:
        """Return the features of every evaluation set under the method as it is now.

        Args:
            method: encodes; in evaluation mode.
            keys: what its encodings depend on (`method.encoder_keys()`), taken once per row.
            tick: called with (done, total); may raise to stop.
        """
        # Weights alone do not decide an embedding: architecture, transform and method do too.
        setting = key_of(type(method).__qualname__, str(method.backbone.clip), repr(self._preprocess))
        key = f"{keys['image']}-{self._data_key}-{setting:032x}"
        if key not in self._kept:
            # Only what the current weights made is kept, so memory does not grow with rows.
            self._kept = {key: self._cached(key, lambda: self._encode(method, tick))}
        whole = self._kept[key]
        return {name: {k: v[rows] for k, v in whole.items()} for name, rows in self._rows.items()}

    def _cached(self, key: str, make: Callable[[], Features]) -> Features:
        if self._cache is None:
            return make()
        path = self._cache / f"{key}.safetensors"
        # As the first process sees it: if one read the cache while another encoded, both would wait for ever.
        if from_first(path.is_file()):
            return load_file(path)
        features = make()
        if self._rank == 0:
            write_bytes_atomic(path, save({k: v.contiguous() for k, v in features.items()}))
        return features

    def _encode(self, method: Any, tick: Tick) -> Features:
        device = device_of(method)
        # With fewer pictures than processes every process encodes them all.
        split = self._world > 1 and len(self._places) >= self._world
        mine = np.arange(len(self._places))
        if split:
            mine = np.array_split(mine, self._world)[self._rank]
        parts: list[Features] = []
        with measuring(method):
            for start in range(0, len(mine), self._batch):
                chosen = [self._places[int(i)] for i in mine[start : start + self._batch]]
                pixels = torch.stack([self._preprocess(self._store.get(t, i)) for t, i in chosen])
                found = method.encode_images(pixels.to(device))
                parts.append({k: v.float().cpu() for k, v in found.items()})
                self.encoded += len(chosen)
                tick(start + len(chosen), len(mine))
        local = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        return local if not split else _joined(gather_objects(local))

    def texts(self, method: Any, keys: Mapping[str, str], texts: Sequence[str]) -> Features:
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

    def bank(self, method: Any, keys: Mapping[str, str], space: LabelSpace) -> Features:
        """Return the method's class bank; encoded once per text tower and label space."""
        if any(known != keys["text"] for known, _ in self._banks):
            self._banks.clear()
        if (keys["text"], space) not in self._banks:
            with measuring(method):
                self._banks[keys["text"], space] = method.class_bank(space)
        return self._banks[keys["text"], space]


def _joined(parts: Sequence[Features]) -> Features:
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
