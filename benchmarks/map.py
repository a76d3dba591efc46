"""Map stored vectors into the space of an updated model, against embedding every image again.

Four updates: `builtin:tiny` after one year of emoji and after five (drawings); `builtin:photo` after five data sets of
photographs, by `wise-ft` and by `finetune` (benchmarks/mini_mtil.py; private image packs). Half of the images are the
index; their vectors are mapped. Of the other half, a sample is encoded with both models, and the map is fitted on it.

Recall@10 kept is the share of the 10 nearest images by re-embedded vectors that a search by mapped vectors finds, over
queries by text and over queries by image that are not in the index, with a 95 % bootstrap interval. R@10 is the share
of texts for which an image that they name is among the 10 best. `none` compares new queries with old vectors. The
packages `isotrieve` and `embspec` get the same vectors, if they are installed. `chosen` is what `choose_map` takes: the
kind that keeps most recall on a quarter of the sample, fitted on all of it.

Run: EVERCLIP_PACKS=... python benchmarks/map.py --output benchmarks/MAP.md
"""

from __future__ import annotations

import argparse
import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import machine
from map_vectors import vectors
from torch.nn.functional import normalize

from everclip.files import write_text_atomic
from everclip.search.map_choosing import Kept, Searched, choose_map, kept
from everclip.search.map_fitting import Pairs, fit_map
from everclip.search.vector_map import KINDS

UPDATES = {
    "emoji-year": "drawings, one year",
    "emoji:demo/finetune": "drawings, five years",
    "photo:mini-mtil/order-I/wise-ft-s0": "photographs, wise-ft",
    "photo:mini-mtil/order-I/finetune-s0": "photographs, finetune",
}
SIZES = (200, 1000)
TEXTS, IMAGES = 600, 400
Map = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Update:
    """Vectors of one update: the index, the pairs to fit on, and the queries."""

    index: Pairs
    pool: Pairs
    texts: Pairs
    images: Pairs
    more_texts: Pairs
    wanted: torch.Tensor
    groups: torch.Tensor

    def hits(self, found: Searched) -> float:
        """Return the share of texts that have an image they name among the 10 best."""
        rows = found.nearest(10, None)
        return float((self.groups[rows] == self.wanted[:, None]).any(dim=1).double().mean())

    def recall(self, mapped: Map, reverse: bool) -> tuple[Kept, Kept]:
        """Return the recall kept of queries by text and by image."""
        found = []
        for queries in (self.texts, self.images):
            truth = Searched(queries.target, self.index.target)
            asked = (
                Searched(mapped(queries.target), self.index.source)
                if reverse
                else Searched(queries.target, mapped(self.index.source))
            )
            found.append(kept(asked, truth))
        return found[0], found[1]


def update(name: str, folder: Path, runs: Path) -> Update:
    """Part the vectors of an update by a fixed seed."""
    v = vectors(name, folder, runs)
    draw = torch.Generator().manual_seed(0)
    images, texts = Pairs(v["old/images"], v["new/images"]), Pairs(v["old/texts"], v["new/texts"])
    order = torch.randperm(len(images), generator=draw)
    index, rest = order[: len(order) // 2], order[len(order) // 2 :]
    asking = torch.isin(v["text_groups"], v["image_groups"][index]).nonzero()[:, 0]
    asking = asking[torch.randperm(len(asking), generator=draw)[:TEXTS]]
    left = ~torch.isin(v["text_groups"], v["text_groups"][asking])
    return Update(
        images.select(index),
        images.select(rest[:-IMAGES]),
        texts.select(asking),
        images.select(rest[-IMAGES:]),
        texts.select(left.nonzero()[:, 0]),
        v["text_groups"][asking],
        v["image_groups"][index],
    )


def of_arrays(transform: Callable[[np.ndarray], np.ndarray]) -> Map:
    """Return a map of numpy arrays as one of tensors of unit length."""
    return lambda x: normalize(torch.from_numpy(np.asarray(transform(x.numpy()), np.float32)), dim=1)


def others(pairs: Pairs) -> Iterator[tuple[str, Callable[[], Map]]]:
    """Yield the maps of the other packages that are installed and take these pairs."""
    x, y = pairs.source.numpy(), pairs.target.numpy()
    if importlib.util.find_spec("isotrieve"):
        from isotrieve import mapping

        for name in (
            "OrthogonalProcrustesMapping",
            "ProcrustesDiagMapping",
            "RidgeMapping",
            "ResidualMLPMapping",
        ):
            of = getattr(mapping, name, None)
            if of is not None:
                yield (
                    f"isotrieve {name.removesuffix('Mapping')}",
                    lambda of=of: of_arrays(of().fit(x, y).transform),
                )
    if importlib.util.find_spec("embspec"):
        from embspec import DriftAdapter

        if len(x) >= x.shape[1]:  # it refuses fewer pairs than dimensions
            yield "embspec DriftAdapter", lambda: of_arrays(DriftAdapter.fit(x, y).transform)


def rows_of(
    name: str, of: Update, reverse: bool = False, sizes: tuple[int, ...] = SIZES
) -> list[tuple[str, ...]]:
    """Return the rows of an update's table."""
    rows = []

    def add(label: str, size: str, mapped: Map, seconds: float | None) -> None:
        text, image = of.recall(mapped, reverse)
        found = (
            Searched(mapped(of.texts.target), of.index.source)
            if reverse
            else Searched(of.texts.target, mapped(of.index.source))
        )
        words = [f"{100 * k.value:.1f} ({100 * k.low:.1f}-{100 * k.high:.1f})" for k in (text, image)]
        rows.append(
            (
                name,
                label,
                size,
                *words,
                f"{100 * of.hits(found):.1f}",
                "" if seconds is None else f"{seconds:.1f}",
            )
        )
        print(*rows[-1], sep=" | ", flush=True)

    add("none", "", lambda x: x, None)
    for size in (*sizes, len(of.pool)):
        pairs = of.pool.select(torch.arange(size))
        if reverse:
            texts = of.more_texts.select(torch.arange(min(size, len(of.more_texts))))
            pairs = Pairs(
                *(torch.cat([getattr(p, end) for p in (pairs, texts)]) for end in ("target", "source"))
            )
        ours = [(kind, lambda kind=kind, pairs=pairs: fit_map(pairs, kind)) for kind in KINDS]
        for label, fit in [*ours, *others(pairs)]:
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # isotrieve advises more pairs
                mapped = fit()
            add(label, f"{size:,}", mapped, time.perf_counter() - start)
        if not reverse:
            start = time.perf_counter()
            chosen = choose_map(pairs).map
            add(f"**chosen: {chosen.kind}**", f"{size:,}", chosen, time.perf_counter() - start)
    return rows


HEADER = (
    "map",
    "pairs",
    "recall@10 kept, by text",
    "by image",
    "text to image R@10",
    "seconds to fit",
)


def table(title: str, rows: list[tuple[str, ...]]) -> str:
    """Return rows as Markdown, without the name of the update."""
    lines = [f"**{title}**", "", "| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    return "\n".join([*lines, *("| " + " | ".join(row[1:]) + " |" for row in rows), ""])


def main() -> None:
    """Print the tables."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--updates", nargs="*", default=list(UPDATES))
    words.add_argument("--vectors", type=Path, default=Path("build/map"), help="keeps encoded vectors")
    words.add_argument("--runs", type=Path, default=Path("runs"))
    words.add_argument("--output", type=Path, help="write the page to this file")
    given = words.parse_args()
    torch.set_num_threads(1)
    assert __doc__ is not None
    parts = [f"# {__doc__.split(chr(10) * 2 + 'Run:')[0]}\n"]
    for name in given.updates:
        of = update(name, given.vectors, given.runs)
        label = UPDATES.get(name, name)
        ends = [
            of.hits(Searched(of.texts.source, of.index.source)),
            of.hits(Searched(of.texts.target, of.index.target)),
        ]
        parts.append(
            f"## {label}\n\n{len(of.index):,} images in the index, {len(of.texts):,} texts and {len(of.images):,} "
            f"images ask. Text to image R@10: old model {100 * ends[0]:.1f}, re-embedded {100 * ends[1]:.1f}.\n"
        )
        parts.append(table("Stored vectors are mapped", rows_of(label, of)))
        if name in ("emoji-year", "photo:mini-mtil/order-I/wise-ft-s0"):
            parts.append(table("Queries are mapped", rows_of(label, of, True, (1000,))))
    parts.append(f"Machine: {machine()}.\n")
    text = "\n".join(parts)
    print(text)
    if given.output is not None:
        write_text_atomic(given.output, text)


if __name__ == "__main__":
    main()
