"""Embed every item again with another version: exact, and as slow as the encoder."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice

import numpy as np
import pyarrow as pa

from everclip.files import crash_point
from everclip.search import tables
from everclip.search.embedding import BLOCK, Embedded, Group, Pace, SearchModel, Source, embedded
from everclip.search.engines import IMAGE, sources_of
from everclip.search.index import Index, View
from everclip.search.ways import Estimate, Filled, Job

PROBED = 64
"""Images of a probe of the speed; the first batch warms up."""

ROW_BYTES = 100
"""Bytes of a row beside its vector: id, hash, bookkeeping."""

MAPPED = "mapped"


class Reembed:
    """The way `reembed`. What is to do follows from the tables: nothing is embedded twice, and nothing is left out."""

    name = "reembed"

    def estimate(self, job: Job) -> Estimate:
        """Time a few images; write nothing."""
        view = job.index.view()
        rows = view.missing(job.new.key) | _mapped(view, job.new.key)
        return estimate_of(view, job.new, list(rows.values()), job.rate)

    def fill(
        self,
        job: Job,
        first: Sequence[str] = (),
        only: Collection[str] | None = None,
        mapped: bool = True,
    ) -> Filled:
        """Embed the items that have no vector of their present content, or a mapped one, as far as the budget goes.

        Args:
            job: index and model.
            first: ids that come first.
            only: ids; no others are embedded.
            mapped: whether mapped vectors are replaced.
        """
        with job.index.changing("reindex") as change:
            storage = "float32" if change.state.space is None else change.state.space.storage
            new = job.new
            if new.key not in change.state.spaces:
                change.new_space(new.key, new.version, new.tower, new.width, storage, self.name)
        done, started = Filled(), time.monotonic()
        while True:
            view = job.index.view()
            rows = view.missing(job.new.key)
            rows |= _mapped(view, job.new.key) if mapped else {}
            order = dict.fromkeys([*(i for i in first if i in rows), *rows])
            todo = {i: rows[i] for i in order if i not in done.failed and (only is None or i in only)}
            if not todo or not _round(job, view, todo, done, started):
                break
        done.left, done.seconds = len(todo), time.monotonic() - started
        with job.index.changing("reindex") as change:
            space = change.state.spaces[job.new.key]
            change.set_space(space.model_copy(update={"set_aside": done.failed}))
        return done

    def follow(self, job: Job) -> Filled | None:
        """Do nothing after the switch."""
        return None


REEMBED = Reembed()


def ids_by_way(view: View, key: str, how: str) -> list[str]:
    """Return the ids whose vectors of a space are `embedded` or `mapped`."""
    rows = tables.all_rows(view.vectors(key), ["id", "how"])
    pairs = zip(rows.column("id").to_pylist(), rows.column("how").to_pylist(), strict=True)
    return [i for i, own in pairs if own == how]


def _mapped(view: View, key: str) -> dict[str, int]:
    """Return the items whose vector of a space is a mapped one: id -> position of its row in the table of items."""
    mapped = set(ids_by_way(view, key, MAPPED)) if key in view.state.spaces else set()
    return {i: row for row, i in enumerate(view.contents()) if i in mapped} if mapped else {}


def estimate_of(view: View, model: SearchModel, rows: Sequence[int], rate: float | None = None) -> Estimate:
    """Return what embedding some rows of the table of items takes, from a probe of a few of them.

    Args:
        view: of the index.
        model: embeds them, or is as fast as the one that will.
        rows: their positions.
        rate: images per second at most.
    """
    each = max(seconds_per_image(view, model, rows), 0.0 if rate is None else 1 / rate)
    storage = "float32" if view.state.space is None else view.state.space.storage
    disk = len(rows) * (model.width * (4 if storage == "float32" else 2) + ROW_BYTES)
    return Estimate(Reembed.name, len(rows), len(rows) * each, disk, 1.0)


def _round(job: Job, view: View, todo: dict[str, int], done: Filled, started: float) -> bool:
    """Embed `todo`, removing from it what is done; return whether the budget allows more."""
    allowed = None if job.budget.images is None else max(0, job.budget.images - done.images)
    rows = list(islice(todo.values(), allowed))
    key, total = job.new.key, len(rows)
    stale = view.held(key).keys() & todo.keys()
    blocks = (rows[start : start + BLOCK] for start in range(0, total, BLOCK))
    pace, group = Pace(), Group[tuple[pa.Table, Embedded]]()

    def write() -> None:
        parts = group.taken()
        if parts:
            items = pa.concat_tables([rows for rows, _ in parts])
            _commit(job.index, key, view, items, Embedded.joined([found for _, found in parts]), stale)
            crash_point("in index: batch embedded again")

    within, ready = True, 0
    with closing(job.engine.embedded(job.new, view, blocks, job.rate)) as stream:
        for items, found in stream:
            group.add((items, found), len(found.ids))
            if group.full:
                write()
            for i in [*found.ids, *found.failed]:
                todo.pop(i)
            ready += len(found.ids) + len(found.failed)
            done.images += len(found.ids)
            done.changed += found.changed
            done.failed |= found.failed
            if pace.due(ready, total):
                job.tell(f"{ready:,} of {total:,} images embedded again{pace.left(ready, total)}")
            elapsed = time.monotonic() - started
            if job.budget.seconds is not None and elapsed >= job.budget.seconds:
                within = False
                break
            if job.rate is not None:
                time.sleep(max(0.0, done.images / job.rate - elapsed))
    write()
    return within and (allowed is None or done.images < (job.budget.images or 0))


def _commit(index: Index, key: str, view: View, items: pa.Table, found: Embedded, stale: set[str]) -> None:
    """Write the vectors of a batch, but for items that were removed or replaced meanwhile."""
    if not found.ids:
        return
    position = {i: n for n, i in enumerate(items.column("id").to_pylist())}
    rows = items.take([position[i] for i in found.ids])
    with index.changing("reindex") as change:
        if change.state.items != view.state.items:
            rows = present(change.table(tables.ITEMS), rows)
        contents = dict(zip(found.ids, found.contents, strict=True))
        fresh = [contents[i] for i in rows.column("id").to_pylist()]
        change.set_contents(_differing(rows, fresh))
        rows = rows.set_column(rows.column_names.index("sha256"), "sha256", pa.array(fresh, pa.string()))
        at = {i: n for n, i in enumerate(found.ids)}
        ids = rows.column("id").to_pylist()
        if ids:
            vectors = found.vectors[[at[i] for i in ids]]
            change.put_vectors(key, rows, vectors, known=[i for i in ids if i in stale])


def _differing(rows: pa.Table, fresh: Sequence[str]) -> Mapping[str, str]:
    held = zip(rows.column("id").to_pylist(), rows.column("sha256").to_pylist(), fresh, strict=True)
    return {i: now for i, then, now in held if then != now}


def present(table: object, rows: pa.Table) -> pa.Table:
    """Return those rows that are still items of the same content, with their present metadata."""
    ids = rows.column("id").to_pylist()
    wanted = dict(zip(ids, rows.column("sha256").to_pylist(), strict=True))
    here = tables.rows_with(table, ids, ["id", "sha256", *tables.metadata_of(rows)])
    pairs = zip(here.column("id").to_pylist(), here.column("sha256").to_pylist(), strict=True)
    return here.take([n for n, (i, content) in enumerate(pairs) if wanted[i] == content])


def seconds_per_image(view: View, model: SearchModel, rows: Sequence[int]) -> float:
    """Return how long an image takes, from a probe of some rows of the table of items."""
    step = max(1, len(rows) // PROBED)
    chosen = list(rows[::step][:PROBED])
    if not chosen:
        return 0.0
    batches = list(_batches_of(view, chosen, max(1, len(chosen) // 4)))
    times, sizes = [], []
    start = time.perf_counter()
    for batch in embedded(model, batches):
        now = time.perf_counter()
        times.append(now - start)
        sizes.append(len(batch.ids) + len(batch.failed))
        start = now
    warm = slice(1, None) if len(times) > 1 else slice(None)
    return float(np.sum(times[warm]) / np.sum(sizes[warm]))


def _batches_of(view: View, rows: Sequence[int], size: int) -> Iterator[list[Source]]:
    for start in range(0, len(rows), size):
        yield sources_of(tables.taken(view.items, rows[start : start + size], IMAGE))
