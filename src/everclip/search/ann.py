"""The approximate index of many vectors, with its recall measured against the exact search."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from everclip.data.sampling.order import generator
from everclip.files import crash_point
from everclip.search import tables
from everclip.search.change import Change
from everclip.search.embedding import SearchModel
from everclip.search.index import Index, View, nearest
from everclip.search.records import Ann, Recall, Space

KIND = "IVF_HNSW_SQ"
"""Vectors are divided among partitions; each has a graph of its vectors in 8 bits per number."""

AT, QUERIES = 10, 200
ENOUGH = 0.98
"""Recall at which no more partitions are looked into."""

GROWN = 1.5
"""If there are so many times as many vectors, the approximate index is built again."""

REFINE = 4


def keep_ann(index: Index, model: SearchModel | None, tell: Callable[[str], None], key: str = "") -> None:
    """Build the approximate index of a space if it has become large enough, or bring it up to date.

    Args:
        index: the index.
        model: encodes texts, for the recall of queries by text; `None`: only queries by image.
        tell: called with a line about the result.
        key: of the space; default: the one that answers.
    """
    view = index.view()
    space = view.state.spaces[key] if key else view.state.space
    assert space is not None
    count = view.vectors(space.key).count_rows()
    if count <= view.state.exact_below:
        _compact(index, space)
    elif space.ann is None or count > GROWN * space.ann.rows:
        ann = build_ann(index, space, count, text_queries(view, model) if model else None)
        tell(ann_line(ann))
    else:
        _compact(index, space)  # also adds the new vectors to the approximate index


def ann_line(ann: Ann) -> str:
    """Return an approximate index as a line."""
    parts = [
        f"{share:.3f} of queries by {kind}"
        for kind, share in (("image", ann.recall.images), ("text", ann.recall.texts))
        if share is not None
    ]
    return (
        f"approximate index of {ann.rows:,} vectors built in {ann.seconds:.1f} s ({ann.partitions} partitions, "
        f"{ann.probes} looked into); recall@{ann.recall.at} against exact: {', '.join(parts)}"
    )


def _compact(index: Index, space: Space) -> None:
    with index.changing("index") as change:
        for name in (tables.ITEMS, space.table):
            tables.compact(change.table(name))


def build_ann(index: Index, space: Space, count: int, texts: NDArray[np.float32] | None) -> Ann:
    """Build the approximate index of a space; as many partitions are looked into as recall needs.

    Args:
        index: the index.
        space: whose vectors.
        count: of its vectors.
        texts: unit vectors `(Q, D)` of queries by text.
    """
    partitions = max(1, round(math.sqrt(count) / 4))
    with index.changing("index") as change:
        table = change.table(space.table)
        start = time.perf_counter()
        tables.compact(table)
        tables.make_ann(table, KIND, partitions)
        seconds = time.perf_counter() - start
        crash_point("in index: approximate index built")
        images = sample_of(table, QUERIES)
        ann = _tuned(change, space, partitions, count, seconds, {"images": images, "texts": texts})
        change.set_space(change.state.spaces[space.key].model_copy(update={"ann": ann}))
    return ann


def _tuned(
    change: Change,
    space: Space,
    partitions: int,
    count: int,
    seconds: float,
    queries: dict[str, NDArray[np.float32] | None],
) -> Ann:
    table = change.table(space.table)
    asked = {kind: rows for kind, rows in queries.items() if rows is not None and len(rows)}
    # A query by image is a stored vector, and does not count as its own neighbour.
    own = {kind: int(kind == "images") for kind in asked}
    truth = {kind: tables.nearest_of_many(table, rows, AT + own[kind]) for kind, rows in asked.items()}
    probes = min(partitions, 8)
    while True:
        found = {
            kind: float(
                np.mean(
                    [_share(table, q, t, probes, own[kind]) for q, t in zip(rows, truth[kind], strict=True)]
                )
            )
            for kind, rows in asked.items()
        }
        if probes >= partitions or min(found.values(), default=1.0) >= ENOUGH:
            break
        probes = min(partitions, 2 * probes)
    recall = Recall(
        at=AT, images=found.get("images"), texts=found.get("texts"), queries=sum(map(len, asked.values()))
    )
    return Ann(
        kind=KIND,
        rows=count,
        partitions=partitions,
        probes=probes,
        refine=REFINE,
        recall=recall,
        seconds=seconds,
    )


def _share(table: object, query: NDArray[np.float32], truth: Sequence[str], probes: int, own: int) -> float:
    found = nearest(table, query, len(truth), (probes, REFINE))
    return max(0, len(set(found) & set(truth)) - own) / max(1, len(truth) - own)


def sample_of(table: object, count: int) -> NDArray[np.float32]:
    """Return some vectors of a table `(N, D)`, the same ones each time."""
    found = tables.vectors_of(table, tables.sample_ids(table, count))
    return np.stack(list(found.values())) if found else np.empty((0, 0), np.float32)


def text_queries(view: View, model: SearchModel, count: int = QUERIES) -> NDArray[np.float32] | None:
    """Return vectors `(N, D)` of captions or class names of items; `None` if they have none."""
    texts = texts_of(view, count)
    return model.of_texts(texts) if texts else None


def texts_of(view: View, count: int) -> list[str]:
    """Return some distinct captions of items, else class names; the same ones each time."""
    for name in ("caption", "class_name"):
        number = next((i for i, column in enumerate(view.state.columns) if column.name == name), None)
        if number is None:
            continue
        values = tables.all_rows(view.items, [f"m{number}"]).column(0).unique().to_pylist()
        texts = sorted(value for value in values if value)
        if texts:
            order = generator("search texts", len(texts)).permutation(len(texts))[:count]
            return [texts[i] for i in sorted(order.tolist())]
    return []
