"""Remove the versions of a store that nobody needs any more."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from itertools import pairwise

from everclip.errors import CheckpointError
from everclip.files import crash_point, write_text_atomic
from everclip.search.records import versions_needed
from everclip.store.paths import CURRENT, VERSIONS
from everclip.store.records import Current
from everclip.store.versions import Action, Store


@dataclass(frozen=True)
class Removed:
    """What `prune` removed: versions, and bytes of files."""

    versions: list[str]
    bytes: int


def prune(store: Store, keep: int, rejected: bool, action: Action) -> Removed:
    """Remove old versions and the contents that no version needs.

    The current version and those that served before it, up to `keep`, stay, and those whose vectors the search
    index holds.

    Args:
        store: the store, changed by this process (`Store.changing`).
        keep: accepted versions that stay beside the current one.
        rejected: whether to remove all rejected versions.
        action: of the journal.
    """
    now = store.current
    staying = {now.version, *now.before[-keep:]} if keep else {now.version}
    staying &= set(store.ids())
    staying |= versions_needed(store.path)  # by the search index
    damaged = _damaged(store) - {now.version}
    if damaged and not rejected:
        raise CheckpointError(
            f"{store.place}: {', '.join(sorted(damaged))} cannot be read, so what it needs is not known. --rejected "
            "removes it."
        )
    staying -= damaged
    bad = damaged | {i for i in store.ids() if i not in damaged and store.version(i).state == "rejected"}
    others = [i for i in store.ids() if i not in staying | bad]
    more = keep - len(staying - bad - {now.version})  # beside those that served before
    going = others[: len(others) - max(0, more)]
    going += sorted(bad - staying) if rejected else []
    size = 0
    for version in going:
        folder = store.path / VERSIONS / version
        size += sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        aside = folder.with_name(f".{version}.pruned.tmp")
        folder.rename(aside)  # first out of sight, so that a version is never half there
        crash_point("in store: pruned one")
        shutil.rmtree(aside)
    turns = [*(v for v in now.before if v in store.ids()), now.version]
    # Where what served between two turns of a version is gone, they are one: a way back leads to another version.
    before = [version for version, after in pairwise(turns) if version != after]
    pointer = Current(version=now.version, before=before)
    write_text_atomic(store.path / CURRENT, pointer.model_dump_json())
    size += _sweep(store)
    action.detail = f"removed {', '.join(going) or 'no version'}, {size:,} bytes"
    return Removed(going, size)


def _damaged(store: Store) -> set[str]:
    """Return the versions whose manifest cannot be read: nothing can be done with them."""
    found = set()
    for version in store.ids():
        try:
            store.version(version)
        except CheckpointError:
            found.add(version)
    return found


def _sweep(store: Store) -> int:
    """Remove contents that no version needs; return their size in bytes."""
    needed: set[str] = set()
    for version in store.ids():
        of = store.version(version)
        needed |= {of.learner, *of.tensors.values()}
    return sum(store.objects.remove(name) for name in list(store.objects.names()) if name not in needed)
