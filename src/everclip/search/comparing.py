"""Two vector spaces of the same items side by side: how far do their answers to the same queries agree?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from everclip.evaluation.statistics import wilson
from everclip.search import tables
from everclip.search.ann import AT, texts_of
from everclip.search.embedding import SearchModel
from everclip.search.index import View
from everclip.search.records import SideBySide, Space

QUERIES = 500


def side_by_side(
    view: View,
    old: Space,
    new: Space,
    models: tuple[Callable[[], SearchModel], SearchModel],
    queries: Sequence[str] = (),
) -> SideBySide | None:
    """Compare the answers of two spaces, each asked by its own model.

    Args:
        view: of the index.
        old, new: the spaces.
        models: that encode texts for the old and for the new one.
        queries: texts; without any, captions or class names of the items; without those, images of the index.

    Returns:
        The comparison; `None` without items in both.
    """
    texts = list(queries) or texts_of(view, QUERIES)
    tables_ = view.vectors(old.key), view.vectors(new.key)
    if not tables_[0].count_rows() or not tables_[1].count_rows():
        return None
    if texts:
        asked = [models[0]().of_texts(texts), models[1].of_texts(texts)]
        found = [tables.nearest_of_many(t, rows, AT) for t, rows in zip(tables_, asked, strict=True)]
    else:
        found = _of_images(tables_)
    pairs = list(zip(*found, strict=True))
    if not pairs:
        return None
    overlaps = [len(set(a) & set(b)) / max(1, len(a), len(b)) for a, b in pairs]
    return SideBySide(
        against=old.version,
        queries=len(pairs),
        by="text" if texts else "image",
        at=AT,
        overlap=float(np.mean(overlaps)),
        flips=sum(a[:1] != b[:1] for a, b in pairs),
    )


def _of_images(both: tuple[object, object]) -> list[list[list[str]]]:
    """Ask both spaces for the neighbours of the same images; an image is not its own neighbour."""
    ids = tables.sample_ids(both[0], QUERIES)
    held = [tables.vectors_of(table, ids) for table in both]
    shared = [i for i in ids if i in held[0] and i in held[1]]
    if not shared:
        return [[], []]
    found = []
    for table, rows in zip(both, held, strict=True):
        near = tables.nearest_of_many(table, np.stack([rows[i] for i in shared]), AT + 1)
        found.append(
            [[other for other in row if other != i][:AT] for i, row in zip(shared, near, strict=True)]
        )
    return found


def compared_line(of: SideBySide, version: str) -> str:
    """Return a comparison as a line."""
    span = wilson(of.flips, of.queries)
    return (
        f"{version} against {of.against} on {of.queries:,} queries by {of.by}: overlap@{of.at} {of.overlap:.3f}, first "
        f"result differs for {of.flips:,} ({of.flips / of.queries:.1%} [{span.low:.1%}, {span.high:.1%}])"
    )
