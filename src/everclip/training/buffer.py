"""What replay stores: references to samples, chosen by hash, so that every process and every rerun agrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from everclip.data.order import generator, unit_hash
from everclip.data.table import Table
from everclip.errors import CheckpointError


class Buffer:
    """A bounded memory of past samples.

    Samples are held as (origin, id); origins are names of tables (`task 0`, `base`...). `rows` finds them again.

    Args:
        kind: `reservoir`, `balanced` or `all`.
        size: most samples held (ignored by `all`).
        seed: decides what is kept.
    """

    def __init__(self, kind: str, size: int, seed: int) -> None:
        self.kind, self.size, self.seed = kind, size, seed
        self.seen = 0
        self.items: list[tuple[str, str, str]] = []  # (origin, id, group)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def growth(self) -> str:
        """What each further task adds to it, beyond a bound."""
        return "the task's samples (replay.kind=all)" if self.kind == "all" else "none"

    def offer(self, origin: str, table: Table) -> None:
        """Show the buffer every sample of a table once, in order."""
        groups = (
            table.column("class_key") if table.has("class_key") and self._by_class else [origin] * len(table)
        )
        offered = [(origin, name, str(group)) for name, group in zip(table.ids, groups, strict=True)]
        if self.kind == "all":
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

    def _reservoir(self, offered: Sequence[tuple[str, str, str]]) -> None:
        """Algorithm R (Vitter 1985): after n samples each is held with probability size / n."""
        for offset, item in enumerate(offered):
            number = self.seen + offset
            if len(self.items) < self.size:
                self.items.append(item)
                continue
            slot = int(generator("reservoir", self.seed, number).integers(number + 1))
            if slot < self.size:
                self.items[slot] = item

    def _balance(self, items: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
        """Give each group an equal quota; what small groups leave is shared by the others (water filling)."""
        groups: dict[str, list[tuple[str, str, str]]] = {}
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
