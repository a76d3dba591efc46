"""Embed the items of an index on Ray Data: actors on one or many machines read, decode and encode; this one writes.

Only positions of items go to an actor, and only vectors, hashes and reasons come back, as Arrow tables. Each actor
opens the store itself, so every machine must reach it, and the images, by the same paths.
"""

from __future__ import annotations

import inspect
import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from everclip.errors import ConfigError, EverclipError, ProcessLostError
from everclip.features.encoding import device_of
from everclip.search import tables
from everclip.search.embedding import Embedded, SearchModel, embedded
from everclip.search.engines import IMAGE, Blocks, Done, sources_of
from everclip.search.index import Index, View

TOGETHER = 8
"""Blocks that an actor is given at a time, at most; it decodes one while it encodes another."""

AT_ONCE = 8192
"""Blocks of one pipeline: Ray keeps a few objects for each of them, and actors start anew for the next ones."""

OBJECTS = 256 * 1024 * 1024
"""Bytes of the object store of a cluster that is started here: it holds vectors and no images."""

TRIES = 3
"""Starts of a cluster: Ray gives up after seconds if a machine is busy."""

RESTARTS = 3
"""How often an actor whose process ended is started again, and how often it is given the same blocks again. By default
Ray never gives up: an image that ends the process (out of memory, a fault in a library) would stop the work for good
without a word.
"""

TEXTS = pa.list_(pa.string())

FAILED = -1
"""The number of a block that tells why an actor cannot work."""


def ray_data() -> Any:
    """Return the module `ray`, with `ray.data`.

    Raises:
        ConfigError: if it is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before the import: Ray would report its use
    try:
        import ray
        import ray.data
        import ray.data.exceptions
    except ImportError as error:
        raise ConfigError(
            "--engine ray needs Ray Data, which is not installed: pip install 'everclip[scale]'"
        ) from error
    return ray


@dataclass(frozen=True)
class Setup:
    """What an actor needs to know.

    Attributes:
        store: the folder of the store.
        load: loads the model; Ray sends it to the actors by the name of its function.
        key: of the space that the model must have.
        items: the version of the table of items.
        threads: of torch.
        rate: images per second of this actor at most.
    """

    store: Path
    load: Callable[[], SearchModel]
    key: str
    items: int
    threads: int
    rate: float | None


class Actor:
    """Embeds blocks in a process of its own; loads the model once."""

    def __init__(self, setup: Setup) -> None:
        self.rate, self.images, self.began = setup.rate, 0, 0.0
        self.problem = ""
        try:
            torch.set_num_threads(setup.threads)
            self.model = setup.load()
            if self.model.key != setup.key:
                raise ConfigError(
                    f"{setup.store}: the version encodes images in another way there than here. Install the same "
                    "release of everclip on every machine."
                )
            self.items = tables.at_version(Index(setup.store).database, tables.ITEMS, setup.items)
        except EverclipError as error:  # told with the first block; Ray would start the actor again and again
            self.problem = f"on {socket.gethostname()}: {error}"

    def __call__(self, given: pa.Table) -> Iterator[pa.Table]:
        """Embed blocks: `block` (its number) and `rows` (positions); yields what `as_table` returns, for each."""
        if self.problem:
            yield problem_table(self.problem)
            return
        # From the first block on: the rate is not to be exceeded to make up for the time in which the model was loaded.
        self.began = self.began or time.monotonic()
        rows = given.column("rows").to_pylist()
        sources = (sources_of(tables.taken(self.items, block, IMAGE)) for block in rows)
        for number, found in zip(
            given.column("block").to_pylist(), embedded(self.model, sources), strict=True
        ):
            yield as_table(number, found, self.model.width)
            self.images += len(found.ids) + len(found.failed)
            if self.rate is not None:
                time.sleep(max(0.0, self.images / self.rate - (time.monotonic() - self.began)))


def as_table(number: int, found: Embedded, width: int) -> pa.Table:
    """Return an embedded block as it comes back: one row, so that Ray cannot part it."""
    changed, failed = list(found.changed), found.failed
    numbers = np.ascontiguousarray(found.vectors, np.float32)
    return pa.table(
        {
            "block": pa.array([number], pa.int64()),
            "width": pa.array([width], pa.int64()),
            "ids": pa.array([found.ids], TEXTS),
            "vectors": pa.array([numbers.tobytes()], pa.large_binary()),
            "contents": pa.array([found.contents], TEXTS),
            "changed": pa.array([changed], TEXTS),
            "failed": pa.array([list(failed)], TEXTS),
            "reasons": pa.array([list(failed.values())], TEXTS),
        }
    )


def problem_table(problem: str) -> pa.Table:
    """Return why an actor cannot work."""
    return as_table(FAILED, Embedded([], np.zeros((0, 1), np.float32), [], [], {"": problem}), 1)


def from_table(rows: pa.Table) -> Iterator[tuple[int, Embedded]]:
    """Yield the number of each block of a table, and what was made of it.

    Raises:
        ConfigError: if the actor cannot work.
    """
    for row in rows.to_pylist():
        if row["block"] == FAILED:
            raise ConfigError(
                f"--engine ray: an actor cannot work {row['reasons'][0]} Every machine of the cluster must reach the "
                "store and the images by the same paths as this one."
            )
        vectors = np.frombuffer(row["vectors"], np.float32).reshape(len(row["ids"]), row["width"])
        failed = dict(zip(row["failed"], row["reasons"], strict=True))
        yield row["block"], Embedded(row["ids"], vectors, row["contents"], row["changed"], failed)


class RayEngine:
    """Embeds on a cluster: the one that `RAY_ADDRESS` names, else one on this machine, which ends with this process.

    Args:
        store: the folder of the store.
        load: loads the model that embeds.
        actors: processes that embed; default: one per GPU if the model runs on GPUs here, else one per machine.
        gpus: GPUs of an actor; default: 1 if the model runs on one here, else 0.
        tell: called with lines for the user.

    Raises:
        ConfigError: if Ray is not installed.
    """

    name = "ray"

    def __init__(
        self,
        store: Path,
        load: Callable[[], SearchModel],
        actors: int | None = None,
        gpus: float | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._ray = ray_data()
        self._store, self._load, self._tell = store.absolute(), load, tell
        self._actors, self._gpus = actors, gpus
        self._ours = False

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ours:
            self._ray.shutdown()
            self._ours = False

    def embedded(self, model: SearchModel, view: View, blocks: Blocks, rate: float | None = None) -> Done:
        """See `Engine`: blocks come in the order in which they are finished."""
        self._ours = joined(self._ray) or self._ours
        gpus = self._gpus
        if gpus is None:
            gpus = 1.0 if device_of(model.learner.method).type == "cuda" else 0.0
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        machines = [(int(of.get("CPU", 0)), of.get("GPU", 0.0)) for of in alive]
        actors, threads = shares(machines, self._actors, gpus)
        self._tell(f"ray: {actors} actors, {threads} threads and {gpus:g} GPUs each")
        each = None if rate is None else rate / actors
        setup = Setup(self._store, self._load, model.key, view.state.items, threads, each)
        wanted = ["id", "sha256", *tables.metadata_of(view.items.schema)]
        waiting = iter(blocks)
        while chosen := list(islice(waiting, AT_ONCE)):
            for number, found in self._piped(setup, chosen, actors, gpus):
                yield tables.taken(view.items, chosen[number], wanted), found

    def _piped(
        self, setup: Setup, blocks: Sequence[Sequence[int]], actors: int, gpus: float
    ) -> Iterator[tuple[int, Embedded]]:
        """Embed blocks by one pipeline; a block has its place in the list as its number."""
        ray = self._ray
        together = max(1, min(TOGETHER, len(blocks) // actors))
        starts = range(0, len(blocks), together)
        given = [_given(first, blocks[first : first + together]) for first in starts]
        context = ray.data.DataContext.get_current()
        kept = context.target_max_block_size, context.enable_progress_bars, context.print_on_execution_start
        # With blocks of Ray so small, every block of ours, a row, comes back as soon as it is done.
        context.target_max_block_size, context.enable_progress_bars = 1, False
        context.print_on_execution_start = False
        try:
            data = ray.data.from_arrow(given)
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                data = data.map_batches(
                    Actor,
                    fn_constructor_args=[setup],
                    batch_size=together,  # with GPUs, Ray refuses `None`
                    batch_format="pyarrow",
                    compute=ray.data.ActorPoolStrategy(size=actors),
                    num_cpus=setup.threads,
                    num_gpus=gpus,
                    **_limits(data.map_batches),
                )
        finally:
            (
                context.target_max_block_size,
                context.enable_progress_bars,
                context.print_on_execution_start,
            ) = kept
        try:
            for found in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from from_table(found)
        except (ray.exceptions.RayError, ray.data.exceptions.SystemException) as error:
            raise ProcessLostError(
                f"--engine ray: an actor failed ({_line(error, -1)}). What was written holds: repeat the command to "
                "continue. If it fails again: fewer actors need less memory, and `--engine local` embeds here."
            ) from error


def _given(first: int, blocks: Sequence[Sequence[int]]) -> pa.Table:
    """Return blocks as an actor gets them: their numbers, from `first` on, and the positions of their rows."""
    numbers = pa.array(range(first, first + len(blocks)), pa.int64())
    return pa.table({"block": numbers, "rows": pa.array(map(list, blocks), pa.list_(pa.int64()))})


def _limits(map_batches: Callable[..., Any]) -> dict[str, int]:
    """Return arguments that bound how often an actor is started again; Ray plans to take them away in 2.64."""
    taken = inspect.signature(map_batches).parameters.values()
    if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken):
        return {}
    return {"max_restarts": RESTARTS, "max_task_retries": RESTARTS}


def joined(ray: Any, cores: int | None = None, objects: int = OBJECTS, gpus: float | None = None) -> bool:
    """Join the cluster that `RAY_ADDRESS` names, else start one on this machine; return whether there was none yet.

    Args:
        ray: the module.
        cores: of a cluster that is started; default: those of this machine.
        objects: bytes of its object store.
        gpus: that it counts; default: those of this machine.

    Raises:
        ProcessLostError: if it does not start.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if not os.environ.get("RAY_ADDRESS"):
        options |= {"address": "local", "include_dashboard": False}
        options |= {"num_cpus": cores, "num_gpus": gpus, "object_store_memory": objects}
    for left in reversed(range(TRIES)):
        try:
            ray.init(**options)
            break
        except Exception as error:  # Ray raises bare `Exception` if one of its processes does not start
            ray.shutdown()
            if not left:
                raise ProcessLostError(_not_joined(error)) from error
    return True


def shares(machines: Sequence[tuple[int, float]], actors: int | None, gpus: float) -> tuple[int, int]:
    """Return how many actors there are, and how many threads each has: as many as let all of them run at a time.

    Args:
        machines: cores and GPUs of each machine of a cluster.
        actors: that were asked for.
        gpus: of an actor.

    Raises:
        ConfigError: if the cluster has no room for them.
    """

    def room(threads: int) -> int:
        by_cores = [cores // threads for cores, _ in machines]
        if not gpus:
            return sum(by_cores)
        by_gpus = (int(chips / gpus + 1e-9) for _, chips in machines)
        return sum(map(min, by_cores, by_gpus))

    count = actors or (room(1) if gpus else sum(cores > 0 for cores, _ in machines))
    if not 0 < count <= room(1):
        raise ConfigError(
            f"--engine ray: {max(1, count)} actors with {gpus:g} GPUs each: the cluster has "
            f"{sum(cores for cores, _ in machines)} cores and {sum(chips for _, chips in machines):g} GPUs. Change "
            "--actors or --gpus-per-actor, or set RAY_ADDRESS to another cluster."
        )
    most = max(cores for cores, _ in machines)
    return count, max(threads for threads in range(1, most + 1) if room(threads) >= count)


def _not_joined(error: BaseException) -> str:
    address, line = os.environ.get("RAY_ADDRESS"), _line(error, 0)
    if address:
        return (
            f"--engine ray: the cluster of RAY_ADDRESS={address} cannot be joined ({line}). Nothing was changed: start "
            "it (`ray start --head`) with the releases of Ray and of Python that are installed here, or unset "
            "RAY_ADDRESS to start one on this machine."
        )
    return (
        f"--engine ray: Ray did not start ({line}). Nothing was changed: repeat the command, or start a cluster "
        "(`ray start --head`) and set RAY_ADDRESS."
    )


def _line(error: BaseException, place: int) -> str:
    """Return the first line (0) or the last one (-1) of an error of Ray, which may have many or none."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[place].strip()[:300] if lines else type(error).__name__
