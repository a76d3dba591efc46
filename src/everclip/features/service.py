"""The feature service: the only place that runs images and texts through a model, and the only cache of features.

Evaluation, validation, the retention guard, frozen towers, replay and `Learner.encode` use it. The keys of the cache
are the fingerprint of the tower, the encoded contents in their order, and the preprocessing. A list is always encoded
in its own order, in blocks of a fixed size, whatever was encoded before and however many processes share the work.
Therefore a resumed run gets the same bits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from everclip.contracts import Features, LabelSpace
from everclip.data.pictures.images import ImageStore
from everclip.data.sampling.order import key_of
from everclip.distributed import from_first, gather_objects, rank, world
from everclip.features.encoder import Encoder
from everclip.features.encoding import BLOCK, Reduce, decoded, joined, measuring
from everclip.features.folder import FeatureFolders
from everclip.features.pictures import Pictures
from everclip.features.storage import InFile, InMemory, Shapes, shapes_of, size_of
from everclip.interfaces import Predictor

MEMORY = 2**30
"""Bytes of features in memory; features beyond this are in a file and memory-mapped."""

BANKS = 2**28
"""Bytes of class banks in memory."""

PROBES = ("Don't <b>Stop</b> &amp; under_score, 12.5 % naïve 猫 🙂", "long " * 300)
"""Texts on which tokenizers differ that read simple captions alike."""

Tick = Callable[[int, int], None]
"""A function that is called with (done, total); may raise to stop."""

Slot = tuple[str, str, str, int]
"""Side, name of the encoder, key of the inputs, block size: new features of a slot replace older ones."""


@dataclass(frozen=True)
class _Entry:
    """Features of a slot by the encoder with the key `key`; mapped features take no memory."""

    key: str
    features: Features
    mapped: bool
    pinned: bool

    @property
    def bytes(self) -> int:
        return 0 if self.mapped else sum(v.numel() * v.element_size() for v in self.features.values())


class FeatureService:
    """Encode images and texts, each list only once until something changes that its features depend on.

    Args:
        store: decodes and caches images.
        workers: threads that decode images, one block ahead; 0 = when a block is needed.
        memory: bytes of features in memory; the least recently used are removed first, and features that do not fit
            are written to a file.

    Attributes:
        folders: the folders of features outside memory.
        encoded: the number of images that this process has encoded.
    """

    def __init__(self, store: ImageStore, workers: int = 0, memory: int = MEMORY) -> None:
        self.store, self.workers, self.memory = store, workers, memory
        self.folders = FeatureFolders()
        self.encoded = 0
        self._entries: OrderedDict[Slot, _Entry] = OrderedDict()
        self._used: set[Slot] = set()
        self._banks: OrderedDict[tuple[str, LabelSpace], Features] = OrderedDict()

    # -- features ---------------------------------------------------------------------------------------------

    def images(
        self,
        encoder: Encoder,
        pictures: Pictures,
        *,
        block: int = BLOCK,
        tick: Tick = lambda done, total: None,
        together: bool = True,
        pinned: bool = False,
    ) -> Features:
        """Return the features of images `(N, ...)`, float32 on the CPU; do not change them in place.

        Args:
            encoder: encodes images.
            images: the images.
            block: images per block.
            tick: called with the number of encoded images.
            together: whether all processes make the same call and share the work; else this one works alone.
            pinned: keep the features until `release`, even if memory is needed.
        """

        def make(mine: Sequence[range]) -> Iterator[Features]:
            return self._encode(encoder, pictures, mine)

        return self._cached(encoder, pictures.key, len(pictures), block, make, tick, together, pinned)

    def texts(
        self,
        encoder: Encoder,
        texts: Sequence[str],
        *,
        tick: Tick = lambda done, total: None,
        together: bool = True,
        pinned: bool = False,
    ) -> tuple[Features, torch.Tensor]:
        """Return the features of the distinct texts, and for each text its row among them `(N,)` int64.

        Args:
            encoder: encodes texts.
            texts: the texts; each distinct one is encoded once.
            tick, together, pinned: as in `images`.
        """
        index = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        unique = list(index)
        # Part of the key, because another tokenizer gives other tokens.
        some_tokens = encoder.prepare([*PROBES, *unique[:8]]).tolist() if unique else []

        def make(mine: Sequence[range]) -> Iterator[Features]:
            return (encoder.encode(encoder.prepare(unique[part.start : part.stop])) for part in mine)

        key = f"{key_of(some_tokens, *unique):032x}"
        features = self._cached(encoder, key, len(unique), BLOCK, make, tick, together, pinned)
        return features, torch.tensor([index[text] for text in texts], dtype=torch.int64)

    def bank(self, method: Predictor, key: str, space: LabelSpace) -> Features:
        """Return a method's class bank, computed once per label space until its text tower changes.

        Args:
            method: in evaluation mode.
            key: the key of its text tower (`method.encoder_keys()`).
            space: the classes.
        """
        if any(known != key for known, _ in self._banks):
            self._banks.clear()
        if (key, space) not in self._banks:
            with measuring(method):
                self._banks[key, space] = method.class_bank(space)
        self._banks.move_to_end((key, space))
        bank = self._banks[key, space]
        while len(self._banks) > 1 and sum(map(_bytes, self._banks.values())) > BANKS:
            self._banks.popitem(last=False)
        return bank

    def reduced(
        self,
        encoder: Encoder,
        pictures: Pictures,
        reduce: Callable[[Features, range], Features],
        *,
        block: int = BLOCK,
        tick: Tick = lambda done, total: None,
        together: bool = True,
    ) -> Features:
        """Return the reduced features of all blocks, for features that are too large to store; nothing is cached.

        Args:
            encoder, images, block, tick, together: as in `images`.
            reduce: maps the features of a block, and the range of its images, to smaller features.
        """
        parts = _Parts(len(pictures), block, together)
        blocks = self._encode(encoder, pictures, parts.mine)
        local = {}
        for done, (part, features) in enumerate(zip(parts.mine, blocks, strict=True), start=1):
            local[part.start] = reduce(features, part)
            tick(*parts.progress(done))
        every = gather_objects(local) if together else [local]
        whole = {start: features for some in every for start, features in some.items()}
        return joined([whole[start] for start in sorted(whole)])

    def now(
        self, encoder: Encoder, inputs: Iterable[torch.Tensor], reduce: Reduce = lambda features: features
    ) -> Features:
        """Return the features of blocks of pixels or token ids, computed by this process alone; nothing is cached."""
        return joined([reduce(encoder.encode(block)) for block in inputs])

    def cached(self) -> dict[Slot, int]:
        """Return the slots in the cache, the least recently used first -> bytes in memory."""
        return {slot: entry.bytes for slot, entry in self._entries.items()}

    def release(self, keep: Callable[[str], bool] = lambda name: False) -> None:
        """Discard pinned features and the run's own files, except those of encoders for whose name `keep` is true.

        Features that were not used since the last release are discarded, too: validation sets grow with every task.
        """
        for slot, entry in list(self._entries.items()):
            if not keep(slot[1]) if entry.pinned else slot not in self._used:
                del self._entries[slot]
        self._used.clear()
        in_use = {
            self.folders.file_of(*slot, entry.key) for slot, entry in self._entries.items() if entry.mapped
        }
        self.folders.clear(in_use)

    def close(self) -> None:
        """Discard everything and remove the run's own files; shared files stay."""
        self._entries.clear()
        self._used.clear()
        self._banks.clear()
        self.folders.clear(())

    # -- cache ------------------------------------------------------------------------------------------------

    def _cached(
        self,
        encoder: Encoder,
        inputs: str,
        count: int,
        block: int,
        make: Callable[[Sequence[range]], Iterator[Features]],
        tick: Tick,
        together: bool,
        pinned: bool,
    ) -> Features:
        """Return features from memory, else by `_load_or_encode`."""
        slot = (encoder.side, encoder.name, inputs, block)
        self._used.add(slot)
        # The key of the first process: running statistics of batch norms differ between processes.
        key = from_first(encoder.key) if together else encoder.key
        entry = self._entries.get(slot)
        cached = _in_all(entry is not None and entry.key == key, together)
        if entry is None or not cached:
            self._entries.pop(slot, None)
            features, mapped = self._load_or_encode(slot, key, encoder.lasting, count, make, tick, together)
            entry = self._entries[slot] = _Entry(key, features, mapped, pinned)
            self._make_room(0)
        elif pinned and not entry.pinned:
            entry = self._entries[slot] = _Entry(entry.key, entry.features, entry.mapped, pinned)
        self._entries.move_to_end(slot)
        return entry.features

    def _load_or_encode(
        self,
        slot: Slot,
        key: str,
        lasting: bool,
        count: int,
        make: Callable[[Sequence[range]], Iterator[Features]],
        tick: Tick,
        together: bool,
    ) -> tuple[Features, bool]:
        """Return features, and whether they are mapped: from the shared folder, or encoded by all processes."""
        name = self.folders.file_of(*slot, key)
        path = self.folders.shared_file(name) if lasting else None
        if path is not None and (stored := self.folders.stored(path, count, together)) is not None:
            return stored, True
        parts = _Parts(count, slot[3], together)
        mine = make(parts.mine)
        sink: InMemory | InFile | None = None
        with ExitStack() as undo:
            for done in range(1, parts.rounds + 1):
                own = next(mine) if done <= len(parts.mine) else None
                every = gather_objects(own) if together else [own]
                some = joined([part for part in every if part is not None])
                if sink is None:
                    sink = self._sink(name, path, shapes_of(some, count), together)
                    if isinstance(sink, InFile):
                        undo.callback(sink.discard)
                sink.put(some)
                tick(*parts.progress(done))
            undo.pop_all()
        if sink is None:
            return {}, False
        features = sink.finish()
        if isinstance(sink, InFile):
            self.folders.after_write(sink.path, sink.problem)
        return features, isinstance(sink, InFile)

    def _sink(self, name: str, path: Path | None, shapes: Shapes, together: bool) -> InMemory | InFile:
        """Return the collector of features: the shared file `path`, else memory, else a file of the run."""
        if path is not None and (file := self.folders.open_shared(path, shapes, together)) is not None:
            return file
        if _in_all(self._make_room(size_of(shapes)), together):
            return InMemory(shapes)
        return InFile(self.folders.own_file(name, together), shapes, together)

    def _make_room(self, more: int) -> bool:
        """Discard the least recently used features until `more` bytes fit; return whether they do."""
        left = self.memory - more - sum(entry.bytes for entry in self._entries.values())
        for slot, entry in list(self._entries.items()):
            if left >= 0:
                break
            if not entry.pinned and entry.bytes:
                left += entry.bytes
                del self._entries[slot]
        return left >= 0

    # -- encoding ---------------------------------------------------------------------------------------------

    def _encode(self, encoder: Encoder, pictures: Pictures, mine: Sequence[range]) -> Iterator[Features]:
        def pixels_of(position: int) -> torch.Tensor:
            pixels: torch.Tensor = encoder.prepare(self.store.get(*pictures.rows[position]))
            return pixels

        for block in decoded(mine, pixels_of, self.workers):
            features = encoder.encode(block)
            self.encoded += len(block)
            yield features


class _Parts:
    """The division of a list into blocks: those of this process, and the progress of all processes."""

    def __init__(self, count: int, block: int, together: bool) -> None:
        self._count, self._block = count, block
        self._world = world() if together else 1
        starts = range(0, count, block)
        my_starts = starts[(rank() if together else 0) :: self._world]
        self.mine = [range(start, min(start + block, count)) for start in my_starts]
        self.rounds = -(-len(starts) // self._world)

    def progress(self, rounds: int) -> tuple[int, int]:
        """Return the number of inputs that are encoded after some rounds, and the number of all."""
        return min(self._count, rounds * self._block * self._world), self._count


def _in_all(holds: bool, together: bool) -> bool:
    """Return whether something holds in all processes that share the work; if they differed they would deadlock."""
    return all(gather_objects(holds)) if together else holds


def _bytes(features: Features) -> int:
    return sum(values.numel() * values.element_size() for values in features.values())
