"""Ways `map`, `mixed` and `choose`: map the old vectors into the new space, if a sample shows that recall is kept."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch

from everclip.data.sampling.order import generator
from everclip.errors import CheckpointError, DataError, LimitError
from everclip.files import crash_point
from everclip.report.formats import seconds
from everclip.search import hits, tables
from everclip.search.ann import texts_of
from everclip.search.index import View
from everclip.search.map_choosing import AT, Chosen, Judged, choose_map, judge, measure
from everclip.search.map_fitting import Pairs
from everclip.search.reembedding import MAPPED, REEMBED, estimate_of, ids_by_way, present
from everclip.search.vector_map import VectorMap
from everclip.search.ways import Budget, Estimate, Filled, Job

SAMPLE = 2000
"""Items that are embedded with the new version: three in four fit the map, the others judge it."""

LEAST = 60
"""With fewer pairs, nothing is fitted."""

JUDGING = 0.25
QUERIES = 500
BATCH = 4096
MAPS = "maps"


@dataclass(frozen=True)
class Fitted:
    """A map of the old vectors and what was measured of it: by image, and by text if the items have captions."""

    map: VectorMap
    judged: tuple[Judged, ...]
    chosen: Chosen

    @property
    def least(self) -> Judged:
        """The worse of both judgements."""
        order = ("fail", "cannot tell", "pass")
        return min(self.judged, key=lambda one: (order.index(one.state), one.kept.value))


class Map:
    """The way `map`: fit on a sample, and map the rest, if its gate passes."""

    name = "map"

    def estimate(self, job: Job) -> Estimate:
        """Time a few images of the sample; write nothing. The recall is not known before a map is fitted."""
        view = job.index.view()
        missing = view.missing(job.new.key)
        sample = [missing[i] for i in _sample(view) if i in missing]
        found = estimate_of(view, job.new, sample, job.rate)
        each = found.disk / max(1, len(sample))
        return Estimate(self.name, len(sample), found.seconds, round(each * len(missing)), None)

    def fill(self, job: Job) -> Filled:
        """Embed a sample, fit and judge a map, and map the other vectors.

        Raises:
            LimitError: if the map does not pass; nothing was mapped, and what was embedded stays.
            DataError: if there are too few items.
        """
        if job.index.state.serving == job.new.key:  # what is missing has no old vector
            return REEMBED.fill(job, mapped=False)
        done, started = _of_sample(job), time.monotonic()
        fitted = fit_on_sample(job)
        done.lines += lines_of(fitted)
        if fitted.least.state != "pass":
            raise LimitError(
                f"the map is not used (--recall): {fitted.least.reason}. The old vectors answer on; `everclip reindex "
                "--how reembed` embeds every image again."
            )
        _write(job, fitted)
        # Items without an old vector, such as those that were added meanwhile.
        rest = REEMBED.fill(job, mapped=False)
        done.images += rest.images
        done.changed += rest.changed
        done.failed |= rest.failed
        done.left, done.seconds = rest.left, done.seconds + time.monotonic() - started
        return done

    def follow(self, job: Job) -> Filled | None:
        """Do nothing after the switch."""
        return None


class Mixed(Map):
    """The way `mixed`: map and switch, then embed the mapped items again, those first that searches return most."""

    name = "mixed"

    def follow(self, job: Job) -> Filled | None:
        """Embed mapped items again, as far as the budget goes; a repeated call continues."""
        found = REEMBED.fill(job, hottest(job))
        if found.left:
            found.lines.append(
                f"{found.left:,} vectors are mapped ones; the same command continues to embed them"
            )
        return found


class Choose(Mixed):
    """The way `choose`: fit a map, print the three ways side by side, and take `mixed` if its gate passes."""

    name = "choose"

    def fill(self, job: Job) -> Filled:
        """Embed a sample, judge a map, and fill by the better way."""
        if job.index.state.serving == job.new.key:
            return super().fill(job)
        done = _of_sample(job)
        fitted = fit_on_sample(job)
        least = fitted.least
        whole = REEMBED.estimate(job)
        job.tell(
            f"reembed: {whole.images:,} more images, about {seconds(whole.seconds)} before the switch, recall 1.000"
        )
        job.tell(f"map: 0 more images, seconds before the switch; {least.reason}: {least.state}")
        job.tell(f"mixed: as map, then {whole.images:,} images in the background, the hottest first")
        passed = least.state == "pass"
        job.tell(f"taken: {'mixed' if passed else 'reembed'}")
        found = super().fill(job) if passed else REEMBED.fill(job)
        found.images += done.images
        return found


def _sample(view: View) -> list[str]:
    """Return the ids of the sample: the same ones each time, and also after some of them were embedded."""
    space = view.state.space
    if space is None:
        return []
    old, now = view.held(space.key), view.contents()
    ids = sorted(i for i, content in old.items() if now.get(i) == content)
    order = generator("sample of a map", 0).permutation(len(ids))[:SAMPLE]
    return [ids[n] for n in sorted(order.tolist())]


def _of_sample(job: Job) -> Filled:
    """Embed the items of the sample that have no vector in the new space; their number is limited by no budget."""
    view = job.index.view()
    ids = _sample(view)
    if len(ids) < LEAST:
        raise DataError(
            f"--how map: {len(ids)} items have a vector to map; a map needs at least {LEAST}. `--how reembed` embeds "
            "them all."
        )
    return REEMBED.fill(replace(job, budget=Budget()), only=frozenset(ids), mapped=False)


def fit_on_sample(job: Job) -> Fitted:
    """Fit and judge a map on the sample, which both models have embedded."""
    view = job.index.view()
    old, new = view.state.space, job.new.key
    assert old is not None
    ids = _sample(view)
    embedded = set(ids_by_way(view, new, "embedded"))
    ids = [i for i in ids if i in embedded]
    held = [tables.vectors_of(view.vectors(key), ids) for key in (old.key, new)]
    source, target = (torch.from_numpy(np.stack([rows[i] for i in ids])) for rows in held)
    pairs = Pairs(source, target, old.key, new)
    fit, test = pairs.parted(JUDGING, 1)
    chosen = choose_map(pairs.select(fit))
    texts = texts_of(view, QUERIES)
    at = min(AT, (len(test) - 1) // 2)
    asked = [None, *([torch.from_numpy(job.new.of_texts(texts))] if texts else [])]
    judged = [judge(measure(chosen.map, pairs.select(test), queries, at=at), job.recall) for queries in asked]
    return Fitted(chosen.map, tuple(judged), chosen)


def lines_of(fitted: Fitted) -> list[str]:
    """Return what was measured of each kind, and the judgements, as lines."""
    tried = ", ".join(f"{one.kind} {one.kept.value:.3f}" for one in fitted.chosen.tried)
    lines = [f"recall kept by each kind of map: {tried}"]
    for name, one in zip(("image", "text"), fitted.judged, strict=False):
        lines.append(f"map {fitted.map.kind}, queries by {name}: {one.reason}: {one.state}")
    return lines


def _write(job: Job, fitted: Fitted) -> None:
    """Map the vectors that the new space lacks, a batch at a time; a repeated call continues with the same map."""
    key, found = job.new.key, fitted.map
    found.save(job.index.folder / MAPS / f"{key}.safetensors")
    with job.index.changing("reindex") as change:
        note = {"map": found.kind, "recall": f"{fitted.least.kept.value:.4f}"}
        change.set_space(change.state.spaces[key].model_copy(update={"how": "map", "note": note}))
    crash_point("in index: map written")
    view = job.index.view()
    old = view.state.space
    assert old is not None
    now, held = view.contents(), view.held(old.key)
    todo = [(i, row) for i, row in view.missing(key).items() if held.get(i) == now[i]]
    for start in range(0, len(todo), BATCH):
        part = todo[start : start + BATCH]
        wanted = ["id", "sha256", *tables.metadata_of(view.items.schema)]
        rows = tables.taken(view.items, [row for _, row in part], wanted)
        vectors = tables.vectors_of(view.vectors(old.key), [i for i, _ in part])
        with job.index.changing("reindex") as change:
            if change.state.items != view.state.items:
                rows = present(change.table(tables.ITEMS), rows)
            ids = rows.column("id").to_pylist()
            if ids:
                mapped = found(torch.from_numpy(np.stack([vectors[i] for i in ids])))
                change.put_vectors(key, rows, mapped.numpy(), MAPPED)
        crash_point("in index: batch mapped")
        job.tell(f"{min(start + BATCH, len(todo)):,} of {len(todo):,} vectors mapped")


def hottest(job: Job) -> list[str]:
    """Return ids of items, those first that searches returned most often, then those that captions find; says which.

    Captions (else class names) are those of the items. Searches are counted in `hits`.
    """
    view = job.index.view()
    try:
        counted = hits.held(job.index.folder)
    except CheckpointError as error:
        job.tell(f"note: {error}")
        counted = {}
    now = view.contents()
    used = [i for i in counted if i in now]
    captioned = _found_by_captions(job, view)
    if used:
        job.tell(f"order: {len(used):,} items that searches returned, most often first; then by captions")
    else:
        job.tell(
            f"order: {len(captioned):,} items that captions find, most often first (no search was counted)"
        )
    return list(dict.fromkeys([*used, *captioned]))


def _found_by_captions(job: Job, view: View) -> list[str]:
    texts = texts_of(view, QUERIES)
    if not texts:
        return []
    found = Counter[str]()
    for ids in tables.nearest_of_many(view.vectors(job.new.key), job.new.of_texts(texts), AT):
        found.update(ids)
    return [i for i, _ in sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))]


MAP, MIXED, CHOOSE = Map(), Mixed(), Choose()
