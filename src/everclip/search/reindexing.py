"""Move an index to the vector space of another version, while the old one answers; then one switch, or back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from everclip.errors import ConfigError, DataError
from everclip.search import tables
from everclip.search.ann import keep_ann
from everclip.search.comparing import compared_line, side_by_side
from everclip.search.index import REINDEX_LOCK, Index
from everclip.search.mapping import CHOOSE, MAP, MIXED
from everclip.search.records import SideBySide, Space
from everclip.search.reembedding import REEMBED
from everclip.search.ways import Filled, Job, Way

WAYS: dict[str, Way] = {way.name: way for way in (REEMBED, MAP, MIXED)}
"""The ways, by name."""


@dataclass(frozen=True)
class Reindexed:
    """The result of moving an index.

    Attributes:
        filled: what was done now.
        compared: both spaces side by side; `None` before the new one is complete.
        switched: whether the new space answers now, and did not before.
    """

    filled: Filled
    compared: SideBySide | None
    switched: bool


def way_of(name: str) -> Way:
    """Return a way by its name.

    Raises:
        ConfigError: if there is none.
    """
    known: dict[str, Way] = {**WAYS, CHOOSE.name: CHOOSE}
    if name not in known:
        raise ConfigError(f"--how: {name!r}: expected one of {', '.join(known)}.")
    return known[name]


def reindex(job: Job, how: str = REEMBED.name, queries: Sequence[str] = (), switch: bool = True) -> Reindexed:
    """Fill the space of a version and, once it is complete, let it answer.

    Args:
        job: index and models.
        how: the way.
        queries: texts that compare both spaces; default: captions or class names of the items.
        switch: whether to switch once it is complete.

    Raises:
        RunFolderError: if another process moves the index.
        DataError: if too many images cannot be read; nothing is switched then.
        LimitError: if a map does not pass its gate; nothing is switched then.
    """
    way = way_of(how)
    with job.index.alone(REINDEX_LOCK, "reindex"):
        filled = way.fill(job)
        if filled.left:
            return Reindexed(filled, None, False)
        _require_readable(job, filled)
        if job.new.key == job.index.state.serving:
            filled = _followed(job, way, filled)
            _same_space(job, filled)
            return Reindexed(filled, None, False)
        keep_ann(job.index, job.new, job.tell, job.new.key)
        compared = _compare(job, queries)
        if switch:
            _switch(job.index, job.new.key)
            filled = _followed(job, way, filled)
    job.index.clean()
    return Reindexed(filled, compared, switch)


def _followed(job: Job, way: Way, filled: Filled) -> Filled:
    """Return what a way did until its space answers, and what it does afterwards."""
    more = way.follow(job)
    if more is None:
        return filled
    if more.images:
        keep_ann(job.index, job.new, job.tell, job.new.key)
    return filled.joined(more)


def _same_space(job: Job, filled: Filled) -> None:
    """Note that a version encodes images as the index was encoded: it answers, and older ones may be pruned."""
    with job.index.changing("reindex") as change:
        space = change.state.spaces[job.new.key]
        change.set_space(space.model_copy(update={"version": job.new.version}))
    filled.lines.append(f"{job.new.version} encodes images as the index was encoded: its vectors are valid")


def _require_readable(job: Job, filled: Filled) -> None:
    count = job.index.view().items.count_rows()
    if len(filled.failed) > job.limit * count:
        first = "; ".join(f"{i}: {why}" for i, why in list(filled.failed.items())[:3])
        raise DataError(
            f"{len(filled.failed):,} of {count:,} images cannot be read ({first}). The index is not switched. Mend "
            f"them (is a disk missing?) and repeat the command, or allow more: --quarantine-limit (now {job.limit:g})."
        )


def _compare(job: Job, queries: Sequence[str]) -> SideBySide | None:
    view = job.index.view()
    old, new = view.state.space, view.state.spaces[job.new.key]
    if old is None or old.key == new.key:
        return None
    compared = side_by_side(view, old, new, (job.old, job.new), queries)
    if compared is not None:
        job.tell(compared_line(compared, new.version))
        with job.index.changing("reindex") as change:
            space = change.state.spaces[new.key]
            change.set_space(space.model_copy(update={"compared": compared}))
    return compared


def _switch(index: Index, key: str) -> None:
    with index.changing("reindex --switch") as change:
        change.serve(key)


def switch(index: Index, version: str | None = None) -> Space:
    """Let a complete space answer.

    Args:
        index: the index.
        version: whose space; default: the one that was begun last.

    Raises:
        ConfigError: if there is none, or it is not complete.
    """
    with index.alone(REINDEX_LOCK, "reindex --switch"):
        view = index.view()
        others = [s for s in view.state.spaces.values() if s.key != view.state.serving]
        chosen = [s for s in others if version in (None, s.version)]
        if not chosen:
            of = f" of {version}" if version else ""
            raise ConfigError(f"there is no other space to switch to{of}; `everclip reindex` fills one.")
        space = max(chosen, key=lambda s: s.made)
        left = set(view.missing(space.key)) - set(space.set_aside)
        if left:
            raise ConfigError(
                f"{len(left):,} items have no vector of {space.version} yet; `everclip reindex` continues."
            )
        _switch(index, space.key)
        return space


def rollback(index: Index) -> tuple[Space, int]:
    """Let the space answer that answered before; return it, and how many items have no vector in it.

    Raises:
        ConfigError: if there is none.
    """
    with index.alone(REINDEX_LOCK, "reindex --rollback"):
        state = index.state
        if not state.before:
            raise ConfigError("no other space answered before.")
        key = state.before[-1]
        with index.changing("reindex --rollback") as change:
            change.state = change.state.model_copy(
                update={"serving": key, "before": change.state.before[:-1]}
            )
        return state.spaces[key], len(index.view().missing(key))


def tidy(index: Index) -> list[Space]:
    """Remove the spaces that are of no use any more; return them.

    The one that answers stays, the one that answered before it, and those that were begun after it.
    """
    with index.alone(REINDEX_LOCK, "reindex --tidy"):
        with index.changing("reindex --tidy") as change:
            state = change.state
            now = "" if state.space is None else state.space.made
            kept = {state.serving, *state.before[-1:]}
            kept |= {
                key for key, space in state.spaces.items() if key not in state.before and space.made > now
            }
            gone = [space for key, space in state.spaces.items() if key not in kept]
            change.state = state.model_copy(
                update={
                    "spaces": {key: space for key, space in state.spaces.items() if key in kept},
                    "before": [key for key in state.before if key in kept],
                }
            )
        # After the commit: if the process is killed here, nothing names these tables, and the next call removes them.
        with index.changing("reindex --tidy") as change:
            named = {tables.ITEMS, *(space.table for space in change.state.spaces.values())}
            for name in tables.names(index.database):
                if name not in named:
                    index.database.drop_table(name)
        return gone
