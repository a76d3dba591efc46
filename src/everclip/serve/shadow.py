"""The shadow version: it answers too, after the reply was sent; what it would have said otherwise is counted."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Sequence
from concurrent.futures import Future
from typing import Any

import torch

from everclip.contracts import LabelSpace
from everclip.serve.answered import ShadowFacts
from everclip.serve.batching import Batcher, Kind
from everclip.serve.live import Live
from everclip.serve.loaded import Answer, Loaded
from everclip.serve.measured import Measured

log = logging.getLogger("everclip.serve")
_RECENT = 50


class Shadow:
    """Compares the answers of a candidate with those that were sent.

    Args:
        version: the candidate's id; `None`: there is none.
        live: holds the versions in memory.
        batcher: encodes, in the background.
        measured: counts.
    """

    def __init__(self, version: str | None, live: Live, batcher: Batcher, measured: Measured) -> None:
        self.version, self._live, self._batcher, self._measured = version, live, batcher, measured
        self._counts: dict[str, dict[str, float]] = {}
        self.recent: deque[dict[str, Any]] = deque(maxlen=_RECENT)

    def candidate(self) -> Loaded | None:
        """Return the version that answers too; `None` if there is none, or it serves already."""
        if self.version is None or self._live.current.id == self.version:
            return None
        return self._live.get(self.version)

    async def classify(
        self, served: str, space: LabelSpace, pixels: Sequence[torch.Tensor], sent: Sequence[Answer]
    ) -> None:
        """Let the candidate name the same images, and compare.

        Args:
            served: the version that answered.
            space: the names.
            pixels: of the images; all versions of a store take the same, since they have one base.
            sent: the answers that the user got.
        """
        if (candidate := self.candidate()) is None or candidate.id == served:
            return
        bank = candidate.bank(space)
        if bank is None:
            prompts = candidate.bank_prompts(space)
            bank = await self._done(
                "classify",
                self._batcher.submit_in_background(candidate, "text", prompts, candidate.bank_from(space)),
            )
        if bank is None:
            return
        top = max(len(answer.names) for answer in sent)
        score = candidate.answers(space, bank, top)
        found = await self._done(
            "classify", self._batcher.submit_in_background(candidate, "image", pixels, score)
        )
        for old, new in zip(sent, found or (), strict=False):
            self.compare("classify", served, [n for n, _ in old.names], [n for n, _ in new.names])

    async def embedded(
        self, kind: str, candidate: Loaded, texts: Sequence[str], pixels: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None] | None:
        """Let the candidate embed texts and images; `None` if much waits, which is counted."""
        found: list[torch.Tensor | None] = []
        wanted: tuple[tuple[Kind, Sequence[Any]], ...] = (("text", texts), ("image", pixels))
        for sort, items in wanted:
            if not len(items):
                found.append(None)
                continue
            future = self._batcher.submit_in_background(candidate, sort, items, lambda of: of["embedding"])
            if (rows := await self._done(kind, future)) is None:
                return None
            found.append(rows)
        return found[0], found[1]

    def left_out(self, kind: str) -> None:
        """Count a comparison that could not be made."""
        self._count(kind, "dropped")

    async def _done(self, kind: str, future: Future[Any] | None) -> Any:
        if future is None:
            self._count(kind, "dropped")
            return None
        return await _result(future)

    def compare(self, kind: str, served: str, old: Sequence[str], new: Sequence[str]) -> None:
        """Count one pair of answers, each with the best first."""
        assert self.version is not None
        size = max(len(old), len(new), 1)
        overlap = len(set(old) & set(new)) / size if old or new else 1.0
        changed = list(old[:1]) != list(new[:1])
        self._count(kind, "compared")
        counts = self._counts[kind]
        counts["overlap"] = counts.get("overlap", 0.0) + overlap
        self._measured.shadow_overlap.labels(kind).observe(overlap)
        if changed:
            self._count(kind, "top1_changed")
        if changed or overlap < 1:
            what = {
                "kind": kind,
                "served": served,
                "shadow": self.version,
                "top1": [*old[:1], *new[:1]],
                "overlap": round(overlap, 3),
            }
            self.recent.append(what)
            log.info("shadow differs: %s", json.dumps(what))  # JSON: a name cannot begin a line of its own

    def _count(self, kind: str, outcome: str) -> None:
        counts = self._counts.setdefault(kind, {})
        counts[outcome] = counts.get(outcome, 0) + 1
        self._measured.shadow.labels(kind, outcome).inc()

    def facts(self, with_recent: bool) -> ShadowFacts:
        """Return the counts; the last differences hold names that users gave."""
        kinds = {}
        for kind, counts in self._counts.items():
            found = {name: counts.get(name, 0.0) for name in ("compared", "top1_changed", "dropped")}
            found["overlap"] = counts.get("overlap", 0.0) / max(1.0, found["compared"])
            kinds[kind] = found
        recent = list(self.recent)[::-1] if with_recent else []
        return ShadowFacts(shadow=self.version, serves=self._live.current.id, kinds=kinds, recent=recent)


async def _result(future: Future[Any]) -> Any:
    waiting: Awaitable[Any] = asyncio.wrap_future(future)
    return await waiting
