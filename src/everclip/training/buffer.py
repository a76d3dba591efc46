"""The buffer of replay: references to samples, chosen by hash, so that all processes and reruns agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

from everclip.data.sampling.order import generator, unit_hash
from everclip.data.table import Table
from everclip.distributed import from_first, is_first
from everclip.errors import CheckpointError
from everclip.training.herding import herd
from everclip.training.step_shares import kept_volumes

if TYPE_CHECKING:
    import torch

Item = tuple[str, str, str]
"""Origin, id, group."""
Embed = Callable[[Table], "torch.Tensor"]
"""A table to unit embeddings `(N, D)`."""


class Buffer:
    """A bounded store of earlier samples.

    It stores the origin and id of each sample; origins are names of tables (`task 0`, `base`...). `rows` finds the
    samples again.

    Args:
        kind: `reservoir`, `balanced`, `herding`, `exponential`, `equal` or `all`.
        size: largest number of stored samples (ignored by `all`).
        seed: decides which samples are stored.
        candidates: largest number of samples of a table that `herding` considers, chosen by hash.
        times: for `exponential` and `equal`: the size as a multiple of the last table's rows, in place of `size`.
    """

    def __init__(
        self, kind: str, size: int, seed: int, candidates: int = 30_000, times: float | None = None
    ) -> None:
        self.kind, self.size, self.seed, self.candidates, self.times = kind, size, seed, candidates, times
        self.seen = 0
        self.items: list[Item] = []
        self.origins: list[str] = []

    def __len__(self) -> int:
        return len(self.items)

    @property
    def growth(self) -> str:
        """Describe what each further task adds without bound."""
        return "the task's samples (replay.kind=all)" if self.kind == "all" else "none"

    def offer(self, origin: str, table: Table, embed: Embed | None = None) -> None:
        """Offer every sample of a table once, in order.

        Args:
            origin: the name of the table.
            table: the samples.
            embed: embeds a table with the current model, for `herding`; without it, hashes decide the order.
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
        elif self.kind in ("exponential", "equal"):
            self._keep_shares(origin, offered)
        else:
            self.items = self._balance([*self.items, *offered])
        self.seen += len(offered)

    _by_class = False

    def by_class(self) -> Buffer:
        """Balance over classes instead of over origins (for streams with class labels)."""
        self._by_class = True
        return self

    def _reservoir(self, offered: Sequence[Item]) -> None:
        """Run algorithm R (Vitter 1985): after n samples, each is stored with probability size / n."""
        for offset, item in enumerate(offered):
            number = self.seen + offset
            if len(self.items) < self.size:
                self.items.append(item)
                continue
            slot = int(generator("reservoir", self.seed, number).integers(number + 1))
            if slot < self.size:
                self.items[slot] = item

    def _keep_shares(self, origin: str, offered: Sequence[Item]) -> None:
        """Keep of each origin as many samples as the rule says; the kept ones of a step are a part of those before."""
        of_origin: dict[str, list[Item]] = {earlier: [] for earlier in self.origins}
        for item in self.items:
            of_origin[item[0]].append(item)
        of_origin[origin] = sorted(offered, key=lambda item: unit_hash("shares", self.seed, item[0], item[1]))
        capacity = self.size if self.times is None else self.times * len(offered)
        volumes = kept_volumes(self.kind, [len(members) for members in of_origin.values()], capacity)
        self.items = [
            item
            for members, volume in zip(of_origin.values(), volumes, strict=True)
            for item in members[: int(volume + 1e-9)]
        ]
        self.origins = list(of_origin)  # also those of which nothing is left: the rules count them

    def _balance(self, items: Sequence[Item]) -> list[Item]:
        """Give each group an equal quota; the other groups share what small groups do not use (water filling)."""
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
                more = min(each, len(groups[group]) - quota[group], left)
                quota[group] += more
                left -= more
        return [item for group, members in groups.items() for item in members[: quota[group]]]

    def _ranked(self, table: Table, offered: Sequence[Item], embed: Embed | None) -> dict[str, list[Item]]:
        """Return the candidates of each group, the best first, up to the quota."""
        by_hash = sorted(
            range(len(table)), key=lambda i: unit_hash("herding", self.seed, offered[i][0], offered[i][1])
        )
        rows = sorted(by_hash[: self.candidates])
        members: dict[str, list[int]] = {}
        for row in rows if embed is not None else by_hash[: self.candidates]:
            members.setdefault(offered[row][2], []).append(row)
        if embed is None or not rows:
            return {group: [offered[i] for i in of_group] for group, of_group in members.items()}
        features = embed(table.select(rows))
        # Embeddings may differ by rounding between processes; the stored samples must not.
        ranked = _herded(features, rows, members, self._quota(members)) if is_first() else {}
        return {group: [offered[i] for i in of_group] for group, of_group in from_first(ranked).items()}

    def _quota(self, more: Mapping[str, object]) -> int:
        """Return the number of samples per group, including the groups in `more`: K // t, as published."""
        return max(1, self.size // max(1, len({*(item[2] for item in self.items), *more})))

    def _herd(self, ranked: Mapping[str, list[Item]]) -> None:
        """Cut every group to its quota; in a recurring group, old and new samples alternate."""
        quota = self._quota(ranked)
        groups: dict[str, list[Item]] = {}
        for item in self.items:
            groups.setdefault(item[2], []).append(item)
        for group, new in ranked.items():
            turns = zip_longest(groups.get(group, []), new)
            groups[group] = [item for item in chain.from_iterable(turns) if item is not None]
        # With more groups than `size`, hashes decide which groups have a sample.
        kept = set(sorted(groups, key=lambda g: unit_hash("herding", self.seed, g))[: self.size])
        self.items = [item for g, members in groups.items() if g in kept for item in members[:quota]]

    def rows(self, tables: Mapping[str, Table]) -> Table | None:
        """Return the stored samples as a table; `None` if there are none.

        Raises:
            CheckpointError: if an origin or a sample no longer exists.
        """
        parts = self.parts(tables)
        return Table.concat(parts, "replay") if parts else None

    def parts(self, tables: Mapping[str, Table]) -> list[Table]:
        """Return the stored samples of each origin as a table of its own, oldest origin first.

        Raises:
            CheckpointError: if an origin or a sample no longer exists.
        """
        parts = []
        for origin in dict.fromkeys(item[0] for item in self.items):
            if origin not in tables:
                raise CheckpointError(
                    f"replay: the data of {origin!r} are missing, but the buffer refers to them."
                )
            table = tables[origin]
            row_of = {name: i for i, name in enumerate(table.ids)}
            stored = [item[1] for item in self.items if item[0] == origin]
            missing = [name for name in stored if name not in row_of]
            if missing:
                raise CheckpointError(
                    f"replay: {len(missing)} stored samples are no longer in {origin!r} ({missing[0]}...)."
                )
            parts.append(table.select([row_of[name] for name in stored]))
        return parts

    def state(self) -> dict[str, Any]:
        """Return the content as JSON."""
        # Include `by_class`: a run that is resumed inside a task does not call `begin_task` again.
        return {
            "seen": self.seen,
            "items": [list(item) for item in self.items],
            "by_class": self._by_class,
            "origins": list(self.origins),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the content that `state` returned."""
        self.seen = int(state["seen"])
        self._by_class = bool(state.get("by_class", False))
        self.items = [(str(o), str(i), str(g)) for o, i, g in state["items"]]
        self.origins = [str(origin) for origin in state.get("origins", ())]


def _herded(
    features: torch.Tensor, rows: Sequence[int], members: Mapping[str, Sequence[int]], quota: int
) -> dict[str, list[int]]:
    """Herd each group separately; `features` belong to `rows` of the table."""
    index = {row: i for i, row in enumerate(rows)}
    return {
        group: [of_group[i] for i in herd(features[[index[row] for row in of_group]], quota)]
        for group, of_group in members.items()
    }
