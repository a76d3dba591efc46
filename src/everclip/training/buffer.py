"""What replay stores: references to samples, chosen by hash, so that every process and every rerun agrees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

from everclip.data.sampling.order import generator, unit_hash
from everclip.data.table import Table
from everclip.distributed import from_first, is_first
from everclip.errors import CheckpointError
from everclip.training.herding import herd

if TYPE_CHECKING:
    import torch

Item = tuple[str, str, str]
"""Origin, id, group."""
Embed = Callable[[Table], "torch.Tensor"]
"""A table to unit embeddings `(N, D)`."""


class Buffer:
    """A bounded memory of past samples.

    Samples are held as (origin, id); origins are names of tables (`task 0`, `base`...). `rows` finds them again.

    Args:
        kind: `reservoir`, `balanced`, `herding` or `all`.
        size: most samples held (ignored by `all`).
        seed: decides what is kept.
        candidates: most samples of one table that `herding` looks at, chosen by hash.
    """

    def __init__(self, kind: str, size: int, seed: int, candidates: int = 30_000) -> None:
        self.kind, self.size, self.seed, self.candidates = kind, size, seed, candidates
        self.seen = 0
        self.items: list[Item] = []

    def __len__(self) -> int:
        return len(self.items)

    @property
    def growth(self) -> str:
        """What each further task adds to it, beyond a bound."""
        return "the task's samples (replay.kind=all)" if self.kind == "all" else "none"

    def offer(self, origin: str, table: Table, embed: Embed | None = None) -> None:
        """Show the buffer every sample of a table once, in order.

        Args:
            origin: what the table is called.
            table: the samples.
            embed: embeds a table for `herding`, with the model as it is now; without it samples rank by hash.
        """
        groups = (
            table.column("class_key") if table.has("class_key") and self._by_class else [origin] * len(table)
        )
        offered = [(origin, name, str(group)) for name, group in zip(table.ids, groups, strict=True)]
        if self.kind == "herding":
            self._herd(self._ranked(table, offered, embed))
        elif self.kind == "all":
            self.items.extend(offered)
        elif self.kind == "reservoir":
            self._reservoir(offered)
        else:
            self.items = self._balance([*self.items, *offered])
        self.seen += len(offered)

    _by_class = False

    def by_class(self) -> Buffer:
        """Balance over classes instead of over origins (for streams with class labels)."""
        self._by_class = True
        return self

    def _reservoir(self, offered: Sequence[Item]) -> None:
        """Algorithm R (Vitter 1985): after n samples each is held with probability size / n."""
        for offset, item in enumerate(offered):
            number = self.seen + offset
            if len(self.items) < self.size:
                self.items.append(item)
                continue
            slot = int(generator("reservoir", self.seed, number).integers(number + 1))
            if slot < self.size:
                self.items[slot] = item

    def _balance(self, items: Sequence[Item]) -> list[Item]:
        """Give each group an equal quota; what small groups leave is shared by the others (water filling)."""
        groups: dict[str, list[Item]] = {}
        for item in items:
            groups.setdefault(item[2], []).append(item)
        for members in groups.values():
            members.sort(key=lambda item: unit_hash("balanced", self.seed, item[1]))
        quota = dict.fromkeys(groups, 0)
        left = min(self.size, len(items))
        while left:
            open_groups = [g for g, members in groups.items() if quota[g] < len(members)]
            each = max(1, left // len(open_groups))
            for group in open_groups[:left]:
                take = min(each, len(groups[group]) - quota[group], left)
                quota[group] += take
                left -= take
        return [item for group, members in groups.items() for item in members[: quota[group]]]

    def _ranked(self, table: Table, offered: Sequence[Item], embed: Embed | None) -> dict[str, list[Item]]:
        """Return the candidates of each group, the best first, as far as they could ever be kept."""
        by_hash = sorted(
            range(len(table)), key=lambda i: unit_hash("herding", self.seed, offered[i][0], offered[i][1])
        )
        places = sorted(by_hash[: self.candidates])
        members: dict[str, list[int]] = {}
        for place in places if embed is not None else by_hash[: self.candidates]:
            members.setdefault(offered[place][2], []).append(place)
        if embed is None or not places:
            return {group: [offered[i] for i in found] for group, found in members.items()}
        features = embed(table.select(places))
        # Low bits may differ between processes; what is kept may not.
        ranked = _herded(features, places, members, self._quota(members)) if is_first() else {}
        return {group: [offered[i] for i in found] for group, found in from_first(ranked).items()}

    def _quota(self, more: Mapping[str, object]) -> int:
        """Return how many samples each group may have once further groups are there: K // t, as published."""
        return max(1, self.size // max(1, len({*(item[2] for item in self.items), *more})))

    def _herd(self, ranked: Mapping[str, list[Item]]) -> None:
        """Cut every group to its quota; of a group that comes back, old and new samples take turns."""
        quota = self._quota(ranked)
        groups: dict[str, list[Item]] = {}
        for item in self.items:
            groups.setdefault(item[2], []).append(item)
        for group, found in ranked.items():
            turns = zip_longest(groups.get(group, []), found)
            groups[group] = [item for item in chain.from_iterable(turns) if item is not None]
        # With more groups than places, hashes decide which groups have one.
        kept = set(sorted(groups, key=lambda g: unit_hash("herding", self.seed, g))[: self.size])
        self.items = [item for g, found in groups.items() if g in kept for item in found[:quota]]

    def rows(self, tables: Mapping[str, Table]) -> Table | None:
        """Return the held samples as a table, `None` if there are none.

        Raises:
            CheckpointError: if an origin or a sample is no longer there.
        """
        if not self.items:
            return None
        parts = []
        for origin in dict.fromkeys(item[0] for item in self.items):
            if origin not in tables:
                raise CheckpointError(
                    f"replay: the data of {origin!r} are gone, but the buffer refers to them."
                )
            table = tables[origin]
            place = {name: i for i, name in enumerate(table.ids)}
            wanted = [item[1] for item in self.items if item[0] == origin]
            gone = [name for name in wanted if name not in place]
            if gone:
                raise CheckpointError(
                    f"replay: {len(gone)} stored samples are no longer in {origin!r} ({gone[0]}...)."
                )
            parts.append(table.select([place[name] for name in wanted]))
        return Table.concat(parts, "replay")

    def state(self) -> dict[str, Any]:
        """Return the content as JSON."""
        # What it balances over is part of it: a run resumed inside a task does not begin the task again.
        return {
            "seen": self.seen,
            "items": [list(item) for item in self.items],
            "by_class": self._by_class,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the content back from `state`."""
        self.seen = int(state["seen"])
        self._by_class = bool(state.get("by_class", False))
        self.items = [(str(o), str(i), str(g)) for o, i, g in state["items"]]


def _herded(
    features: torch.Tensor, places: Sequence[int], members: Mapping[str, Sequence[int]], quota: int
) -> dict[str, list[int]]:
    """Herd each group of a table by itself; `features` are those of `places`."""
    row = {place: i for i, place in enumerate(places)}
    return {
        group: [found[i] for i in herd(features[[row[place] for place in found]], quota)]
        for group, found in members.items()
    }
