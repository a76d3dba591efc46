"""Embeddings of towers that do not train, encoded once instead of at every step.

A phase asks for them by the columns of its streams: `image_embedding` in place of `image`, `text_embedding` in place of
`tokens`, `class_embedding` in place of `class_tokens`. With the name of a teacher behind it (`image_embedding@initial`)
a column holds what that frozen copy of the method says. Every table is encoded in its own order, in blocks of a fixed
size, whatever was encoded before and however many processes share the work: a resumed run sees the same bits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from everclip.contracts import Stream
from everclip.data.pictures.images import RULES
from everclip.data.sampling.batches import BatchMaker
from everclip.data.sampling.order import key_of
from everclip.data.table import Table
from everclip.distributed import from_first, gather_objects, is_first, rank, world
from everclip.evaluation.banks import device_of
from everclip.files import clear_leftovers
from everclip.interfaces import Teaches
from everclip.models.backbone import Backbone
from everclip.models.exact import exactly
from everclip.training.mapped import Values, load_mapped, writer

IMAGE, TEXT, CLASS = "image_embedding", "text_embedding", "class_embedding"
KEPT = "initial"
"""The teacher that stays the same for the whole run, and its embeddings with it."""
BLOCK = 256
"""Samples that are encoded together."""

MEMORY = 2**30
"""Bytes of embeddings that are kept in memory; what exceeds them lies in a file and is mapped."""

Rows = list[tuple[Table, int]]


@dataclass(frozen=True)
class _Asked:
    """A column of embeddings: its `name`, of which `base` kind it is, and by which `teacher` ("": the method)."""

    name: str
    base: str
    teacher: str


def _asked(stream: Stream) -> list[_Asked]:
    parts = ((column, *column.partition("@")[::2]) for column in stream.columns)
    return [_Asked(*part) for part in parts if part[1] in (IMAGE, TEXT, CLASS)]


class FrozenFeatures:
    """Serves embeddings of frozen towers, and of frozen teachers, to the streams of a phase.

    Args:
        maker: knows transform, tokeniser and the order of samples.
        memory: how many bytes are kept in memory; default `MEMORY`.

    Attributes:
        shared: folder whose files outlive the run and serve others (`evaluation.cache`), or `None`.
        own: folder of the run for what memory cannot hold; `None` = a temporary one.
        say: where notes go.
        tick: is told how many samples of a table are encoded, and how many there are.
    """

    def __init__(self, maker: BatchMaker, memory: int | None = None) -> None:
        self._maker, self.memory = maker, MEMORY if memory is None else memory
        self.shared: Path | None = None
        self.own: Path | None = None
        self.say: Callable[[str], None] = lambda message: None
        self.tick: Callable[[int, int], None] = lambda done, total: None
        self._held: dict[tuple[str, int], _Held] = {}
        self._classes: dict[tuple[str, int], tuple[object, torch.Tensor]] = {}
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._shared = Path()
        self._said = False

    def keep_in(self, own: Path, shared: str | Path | None, tick: Callable[[int, int], None]) -> None:
        """Keep what memory cannot hold in a run's own folder, and share the rest with other runs.

        Args:
            own: folder of the run; its files go with the task.
            shared: folder whose files outlive the run, or `None`.
            tick: is told how many samples of a table are encoded, and how many there are.
        """
        self.own, self.shared, self.tick = own, None if shared is None else Path(shared), tick

    def prepare(
        self,
        method: Teaches,
        streams: Mapping[str, Stream],
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        workers: int = 0,
    ) -> bool:
        """Encode what the streams of a phase ask for and is not there yet.

        Args:
            method: whose backbone encodes; it is left in evaluation mode if anything was asked for.
            streams: those of a phase; their columns say what they want.
            autocast: the precision of training, so that the numbers are those it would have had; a teacher's are those
                that it says when a step asks it.
            workers: threads that decode pictures.

        Returns:
            Whether any stream asks for embeddings.
        """
        asked = [(stream, wanted) for stream in streams.values() for wanted in _asked(stream)]
        if not asked:
            return False
        method.eval()
        towers = _Towers(method, self._maker)
        with torch.no_grad(), autocast():
            for stream, wanted in asked:
                self._prepare(towers.of(wanted.teacher), stream, wanted, workers)
        return True

    def _prepare(self, tower: _Tower, stream: Stream, wanted: _Asked, workers: int) -> None:
        if wanted.base == CLASS:
            if (wanted.name, id(stream.classes)) not in self._classes:
                bank = self._bank(tower, stream)
                self._classes[wanted.name, id(stream.classes)] = (stream.classes, bank)
            return
        for table in [source.table for source in stream.sources if len(source.table)]:
            if (wanted.name, id(table)) not in self._held:
                pictures = wanted.base == IMAGE
                found = self._pictures(tower, table, workers) if pictures else self._captions(tower, table)
                self._held[wanted.name, id(table)] = found

    def add(
        self, batch: dict[str, dict[str, Any]], streams: Mapping[str, Stream], scope: str, step: int
    ) -> None:
        """Put the embeddings of one step into its batch, in place."""
        for name, stream in streams.items():
            for wanted in _asked(stream):
                if wanted.base == CLASS:
                    batch[name][wanted.name] = self._classes[wanted.name, id(stream.classes)][1]
                    continue
                rows = self._maker.places(stream, f"{scope}/{name}", step)
                found = [self._held[wanted.name, id(table)].row(i) for table, i in rows]
                # The last batch of a pass may leave a process without samples.
                batch[name][wanted.name] = torch.from_numpy(np.stack(found)) if found else torch.zeros(0, 0)

    @torch.no_grad()
    def add_once(
        self, method: Teaches, batch: dict[str, dict[str, Any]], streams: Mapping[str, Stream], scope: str
    ) -> None:
        """Do as `add` for step 0, but encode that batch alone and keep nothing: to measure a step.

        Of a long bank only the first texts are encoded and then repeated: how long a step takes depends on its size.
        """
        method.eval()
        towers = _Towers(method, self._maker)
        for name, stream in streams.items():
            rows = self._maker.places(stream, scope, 0)
            for wanted in _asked(stream):
                tower = towers.of(wanted.teacher)
                if wanted.base == IMAGE:
                    batch[name][wanted.name] = tower.images(rows)
                elif wanted.base == TEXT:
                    texts = [self._maker.caption(table, i) for table, i in rows]
                    batch[name][wanted.name] = tower.texts(texts)
                else:
                    batch[name][wanted.name] = self._bank(tower, stream, BLOCK)

    def release(self) -> None:
        """Forget what the next task cannot use: it has other data or another tower; and remove the run's own files.

        What the start model says of data that belong to no task stays.
        """
        kept = f"@{KEPT}"
        self._held = {key: held for key, held in self._held.items() if key[0].endswith(kept)}
        self._classes = {key: bank for key, bank in self._classes.items() if key[0].endswith(kept)}
        arrays = [held.values for held in self._held.values()]
        mapped = {Path(str(values.filename)) for values in arrays if isinstance(values, np.memmap)}
        if self._temporary is not None and not mapped:
            self._temporary.cleanup()
            self._temporary = None
        if is_first() and self.own is not None and self.own.is_dir():
            for file in set(self.own.glob("*.npy")) - mapped:
                file.unlink(missing_ok=True)
            clear_leftovers(self.own)

    # -- encoding ---------------------------------------------------------------------------------------------

    def _bank(self, tower: _Tower, stream: Stream, most: int | None = None) -> torch.Tensor:
        """Return the embeddings of a stream's classes on the method's device, so that no step has to move them."""
        tokens = self._maker.class_tokens(stream)
        some = tokens[:most]
        bank = torch.cat([tower.tokens(some[i : i + BLOCK]) for i in range(0, len(some), BLOCK)])
        return bank[torch.arange(len(tokens)) % len(some)].to(tower.device)

    def _captions(self, tower: _Tower, table: Table) -> _Held:
        texts = [self._maker.caption(table, i) for i in range(len(table))]
        unique = list(dict.fromkeys(texts))
        place = {text: i for i, text in enumerate(unique)}
        found = self._encoded(
            len(unique), lambda start, stop: tower.texts(unique[start:stop]), lambda: tower.text_key(unique)
        )
        # Equal captions are encoded once.
        return _Held(table, found, np.array([place[text] for text in texts], np.int64))

    def _pictures(self, tower: _Tower, table: Table, workers: int) -> _Held:
        with ThreadPoolExecutor(max(1, workers), thread_name_prefix="everclip-frozen") as pool:

            def block(start: int, stop: int) -> torch.Tensor:
                return tower.images([(table, i) for i in range(start, stop)], pool)

            return _Held(table, self._encoded(len(table), block, lambda: tower.image_key(table)))

    def _encoded(
        self, count: int, block: Callable[[int, int], torch.Tensor], key: Callable[[], str]
    ) -> Values:
        """Return `(count, D)`: from the shared folder, or encoded block by block by all processes together."""
        path = None
        if self.shared is not None:
            path = self.shared / f"{key()}.npy"
            if (found := self._stored(path, count)) is not None:
                return found
            if not self._can_share(self.shared):
                path = None
        starts = list(range(0, count, BLOCK))
        sink: Any = None
        for first in range(0, len(starts), world()):
            mine = starts[first + rank()] if first + rank() < len(starts) else None
            part = None if mine is None else block(mine, min(mine + BLOCK, count)).numpy()
            parts = [p for p in gather_objects(part) if p is not None]
            if sink is None:
                width = parts[0].shape[1]
                if path is None and self._bytes() + 4 * count * width > self.memory:
                    path = self._own() / f"{key()}.npy"
                    if (found := self._stored(path, count)) is not None:
                        return found
                sink = writer(path, (count, width))
            sink.put(np.concatenate(parts))
            self.tick(min(count, (first + world()) * BLOCK), count)
        done: Values = sink.finish()
        return done

    def _can_share(self, folder: Path) -> bool:
        """Whether the shared folder can be written; all processes hear what the first one found."""
        problem = ""
        if is_first():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                problem = f"{folder} cannot be written to ({error.strerror or error})"
        problem = from_first(problem)
        if problem and not self._said:
            self.say(f"embeddings are not kept for other runs: {problem}")
            self._said = True
        return not problem

    def _stored(self, path: Path, count: int) -> Values | None:
        found = load_mapped(path, count)
        if found is None and path.is_file() and is_first():
            self.say(f"{path} is damaged; its embeddings are encoded again")
        return found

    def _bytes(self) -> int:
        arrays = [held.values for held in self._held.values()]
        return sum(values.nbytes for values in arrays if not isinstance(values, np.memmap))

    def _own(self) -> Path:
        if self.own is not None:
            return self.own
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="everclip-frozen-")
            # The first process writes, all read: each in a folder of its own would find nothing.
            self._shared = Path(from_first(self._temporary.name))
        return self._shared


@dataclass(frozen=True)
class _Held:
    """The embeddings of a table, which it keeps alive; `index` says which row of `values` each sample has."""

    table: Table
    values: Values
    index: npt.NDArray[np.int64] | None = None

    def row(self, position: int) -> Values:
        found: Values = self.values[position if self.index is None else self.index[position]]
        return found


class _Towers:
    """The method's own towers and those of its teachers, each made when first asked for."""

    def __init__(self, method: Teaches, maker: BatchMaker) -> None:
        self._method, self._maker = method, maker
        self._made: dict[str, _Tower] = {}

    def of(self, teacher: str) -> _Tower:
        if teacher not in self._made:
            backbone = self._method.teacher_of(teacher) if teacher else self._method.backbone
            around = exactly if teacher else nullcontext
            self._made[teacher] = _Tower(backbone, self._maker, device_of(self._method), around)
        return self._made[teacher]


class _Tower:
    """Both towers of a backbone as encoders of samples, inside a context, and what their embeddings depend on."""

    def __init__(
        self,
        backbone: Backbone,
        maker: BatchMaker,
        device: torch.device,
        around: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._backbone, self._maker, self.device, self._around = backbone, maker, device, around
        self._prints: dict[str, str] = {}

    def images(self, rows: Rows, pool: ThreadPoolExecutor | None = None) -> torch.Tensor:
        def pixels(row: tuple[Table, int]) -> torch.Tensor:
            return self._maker.preprocess(self._maker.store.get(*row))

        stacked = torch.stack(list(map(pixels, rows) if pool is None else pool.map(pixels, rows)))
        like = next(self._backbone.parameters())
        with self._around():
            found: torch.Tensor = self._backbone.encode_image(stacked.to(self.device, like.dtype))
        return found.float().cpu()

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        return self.tokens(self._maker.tokenise(list(texts)))

    def tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        with self._around():
            found: torch.Tensor = self._backbone.encode_text(tokens.to(self.device))
        return found.float().cpu()

    def image_key(self, table: Table) -> str:
        return self._key(
            "image", table.fingerprint, repr(self._maker.preprocess), f"decoded by rules {RULES}"
        )

    def text_key(self, texts: Sequence[str]) -> str:
        return self._key("text", *texts, repr(self._maker.tokenise(list(texts[:8])).tolist()))

    def _key(self, side: str, *content: str) -> str:
        # The weights decide most of it; precision and the modules around them the rest.
        self._prints = self._prints or self._backbone.fingerprints()
        how = torch.is_autocast_enabled(self.device.type), self._around is exactly
        setting = (str(self._backbone.clip), *how, *content)
        return f"frozen-{side}-{self._prints[side]}-{key_of(*setting):032x}"
