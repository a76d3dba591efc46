"""What changed on one evaluation set between two models. Pure functions of what both answered."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import comb

import numpy as np
import torch

from everclip.diagnosis.neighbours import NEAREST, Hubness, hubness, nearest, results_kept
from everclip.diagnosis.records import (
    Answer,
    Calibration,
    FlipCounts,
    FlippedImage,
    HubPair,
    HubValues,
    PartChange,
    Queries,
    QueryChange,
    ReliabilityBins,
    SpaceValue,
)
from everclip.diagnosis.seen import Array, ClassAnswers, Embedded, SeenSet
from everclip.evaluation import disorder, representation
from everclip.evaluation.statistics import flips, wilson
from everclip.metrics import metrics
from everclip.report.estimates import Estimate

SHOWN_FLIPS = 24
"""Lost and gained images, each, that the record names."""

SHOWN_QUERIES = 20
"""Queries with the most changed results that the record names."""

PAIRWISE = 2000
"""Items that metrics over pairs of items use at most."""

SPACE_ITEMS = 5000
"""Items that other metrics of the space use at most, and queries that are searched for."""

_HITS = (0.0, 1.0)


def flip_counts(old: SeenSet, new: SeenSet, confidence: float) -> list[FlipCounts]:
    """Count lost and gained items for each metric whose outcomes are hits: of retrieval, both directions at rank 1."""
    events = {
        "classification": ("accuracy",),
        "retrieval": ("text_to_image_r1", "image_to_text_r1"),
        "pairs": ("pair_text_to_image", "pair_image_to_text"),
        "multi-image": ("multi_image_accuracy",),
    }[old.s.kind]
    counted = []
    for event in events:
        was, now = old.outcomes.get(event), new.outcomes.get(event)
        if was is None or now is None or not len(was):
            continue
        rates = flips(was, now)
        lost, gained = int((was > now).sum()), int((now > was).sum())
        counted.append(
            FlipCounts(
                event=event,
                items=len(was),
                negative=_share(lost, len(was), confidence),
                positive=_share(gained, len(was), confidence),
                relative_negative=rates.relative_negative,
            )
        )
    return counted


def _share(hits: int, n: int, confidence: float) -> Estimate:
    interval = wilson(hits, n, confidence)
    return Estimate(value=hits / n, low=interval.low, high=interval.high, how="Wilson")


def class_changes(old: SeenSet, new: SeenSet, confidence: float) -> list[PartChange]:
    """Return old and new accuracy of each class with images, the largest loss first."""
    if old.classes is None or new.classes is None:
        return []
    names = dict(zip(old.classes.keys, old.classes.truth, strict=True))
    was, now = (one.right.astype(np.float64) for one in (old.classes, new.classes))
    return part_changes([names[key] for key in old.classes.keys], old.classes.keys, was, now, confidence)


def group_changes(
    old: SeenSet, new: SeenSet, columns: Sequence[str], confidence: float
) -> dict[str, list[PartChange]]:
    """Return old and new score of each group of rows that share a value of a column; columns not there are left out."""
    groups = {}
    for column in columns:
        if not old.s.data.has(column) or len(old.outcomes[old.metric]) != len(old.positions):
            continue
        values = old.s.data.column(column)
        labels = [str(values[position]) for position in old.positions]
        groups[column] = part_changes(
            labels, labels, old.outcomes[old.metric], new.outcomes[new.metric], confidence
        )
    return groups


def part_changes(
    names: Sequence[str], keys: Sequence[str], old: Array, new: Array, confidence: float
) -> list[PartChange]:
    """Return old and new mean outcome of each part, the largest loss first.

    Args:
        names, keys: name and key of each item's part.
        old, new: `(N,)` outcomes of both models.
        confidence: of the Benjamini-Hochberg procedure over all parts.
    """
    index: dict[str, list[int]] = {}
    for item, key in enumerate(keys):
        index.setdefault(key, []).append(item)
    hits = bool(np.isin(np.concatenate([old, new]), _HITS).all())
    found = []
    for items in index.values():
        was, now = old[items], new[items]
        lost, gained = int((was > now).sum()), int((now > was).sum())
        found.append(
            PartChange(
                name=names[items[0]],
                items=len(items),
                old=float(was.mean()),
                new=float(now.mean()),
                lost=lost,
                gained=gained,
                p=mcnemar(lost, gained) if hits else None,
                resolved=False,
            )
        )
    passed = benjamini_hochberg([part.p for part in found], 1 - confidence)
    marked = [part.model_copy(update={"resolved": ok}) for part, ok in zip(found, passed, strict=True)]
    return sorted(marked, key=lambda part: (part.new - part.old, part.name))


@cache
def mcnemar(lost: int, gained: int) -> float:
    """Return the two-sided p-value of the exact McNemar test: are losses and gains equally likely?

    `min(1, 2 P(X <= min(lost, gained)))` for `X ~ Binomial(lost + gained, 1/2)`. In whole numbers: scipy's `binomtest`
    gives the same, but loading it takes longer than a diagnosis.
    """
    n = lost + gained
    tail = sum(comb(n, i) for i in range(min(lost, gained) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**n)))


def benjamini_hochberg(p_values: Sequence[float | None], level: float) -> list[bool]:
    """Return which tests pass at a false discovery rate (Benjamini and Hochberg 1995); `None` never does."""
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    last = max(
        (rank for rank, (p, _) in enumerate(order, start=1) if p <= level * rank / len(order)), default=0
    )
    passed = {i for _, i in order[:last]}
    return [i in passed for i in range(len(p_values))]


def flipped_images(old: SeenSet, new: SeenSet, lost: bool) -> list[FlippedImage]:
    """Return images that were lost (or gained), those whose right answer changed most in probability first."""
    was, now = old.classes, new.classes
    if was is None or now is None:
        return []
    changed = was.right & ~now.right if lost else now.right & ~was.right
    items = np.flatnonzero(changed)
    fall = (now.right_probability - was.right_probability)[items] * (1 if lost else -1)
    data = old.s.data
    return [
        FlippedImage(
            id=data.ids[old.positions[item]],
            position=old.positions[item],
            truth=was.truth[item],
            lost=lost,
            old=_answer(was, item),
            new=_answer(now, item),
        )
        for item in items[np.argsort(fall, kind="stable")][:SHOWN_FLIPS].tolist()
    ]


def _answer(answers: ClassAnswers, item: int) -> Answer:
    return Answer(
        answer=answers.answer[item],
        probability=float(answers.probability[item]),
        right_probability=float(answers.right_probability[item]),
    )


def calibration(old: SeenSet, new: SeenSet) -> Calibration | None:
    """Return the calibration of both models; `None` for a set without classes."""
    if old.classes is None or new.classes is None:
        return None
    return Calibration(old=_bins(old.classes), new=_bins(new.classes))


def _bins(answers: ClassAnswers) -> ReliabilityBins:
    bins = answers.bins
    counts = [int(n) for n in bins.counts.tolist()]

    def means(sums: torch.Tensor) -> list[float | None]:
        return [total / n if n else None for total, n in zip(sums.tolist(), counts, strict=True)]

    return ReliabilityBins(
        error=bins.error or 0.0,
        confidence=float(answers.probability.mean()),
        accuracy=float(answers.right.mean()),
        logit_scale=answers.scale,
        counts=counts,
        accuracies=means(bins.right),
        confidences=means(bins.confidence),
    )


@dataclass(frozen=True, eq=False)
class SearchResults:
    """The nearest images of each text `(Q, k)` and the nearest texts of each distinct image; `None` with too few."""

    images: torch.Tensor | None
    texts: torch.Tensor | None

    @classmethod
    def of(cls, side: Embedded) -> SearchResults:
        """Search both ways."""
        images, texts = side.images[side.gallery], side.query_features
        found = [
            nearest(queries[:: _stride(len(queries))], items, k)
            if len(queries) and (k := results_per_query(len(items)))
            else None
            for queries, items in ((texts, images), (images, texts))
        ]
        return cls(*found)


def _stride(items: int) -> int:
    """Return the step that takes at most `SPACE_ITEMS` of some items, evenly."""
    return max(1, -(-items // SPACE_ITEMS))


def results_per_query(items: int) -> int:
    """Return how many results are compared: 10, or fewer of a small gallery; 0 if it has one item."""
    return 0 if items < 2 else min(NEAREST, max(1, items // 10))


def query_changes(of: Embedded, old: SearchResults, new: SearchResults) -> Queries | None:
    """Compare the best images of each text; `None` with too few images for the results to differ.

    Args:
        of: the items; both models have the same.
        old, new: what both models find.
    """
    before, after = old.images, new.images
    if before is None or after is None:
        return None
    kept = results_kept(before, after)
    order = torch.argsort(kept, stable=True)[:SHOWN_QUERIES].tolist()
    rows = [of.rows[place] for place in of.gallery.tolist()]
    return Queries(
        k=before.shape[1],
        count=len(kept),
        kept=float(kept.mean()),
        first_changed=float((before[:, 0] != after[:, 0]).double().mean()),
        most_changed=[
            QueryChange(
                text=of.queries[i * _stride(len(of.queries))],
                kept=float(kept[i]),
                old=[rows[j] for j in before[i].tolist()],
                new=[rows[j] for j in after[i].tolist()],
            )
            for i in order
            if kept[i] < 1
        ],
    )


def hub_pairs(of: Embedded, old: SearchResults, new: SearchResults) -> list[HubPair]:
    """Return the hubness of both models: images found by texts, and texts found by images."""
    pairs = []
    for direction, before, after, items in (
        ("text to image", old.images, new.images, len(of.gallery)),
        ("image to text", old.texts, new.texts, len(of.queries)),
    ):
        values = [None if found is None else hubness(found, items) for found in (before, after)]
        if values[0] is not None and values[1] is not None:
            pairs.append(HubPair(direction=direction, old=_hub_values(values[0]), new=_hub_values(values[1])))
    return pairs


def _hub_values(of: Hubness) -> HubValues:
    return HubValues(k=of.k, skewness=of.skewness, never=of.never, largest=of.largest)


def space_changes(
    old: Embedded, new: Embedded, seed: int = 0
) -> tuple[list[SpaceValue], dict[str, list[int]]]:
    """Return every registered metric of the space for both models, and how far images and texts turned.

    Comparisons of the two models are left out if their embeddings differ in width: such spaces share no directions.
    """
    step = _stride(len(old.images))
    old_images, old_texts, new_images, new_texts = (
        rows[::step] for rows in (old.images, old.texts, new.images, new.texts)
    )
    comparable = old.images.shape[1] == new.images.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # `None` says that a metric is undefined
        before = representation.measure(old_images, old_texts, sample=PAIRWISE, seed=seed)
        after = representation.measure(
            new_images,
            new_texts,
            (old_images, old_texts) if comparable else None,
            sample=PAIRWISE,
            seed=seed,
        )
        turned = (
            {
                "images": disorder.rotation_histogram(old_images, new_images),
                "texts": disorder.rotation_histogram(old_texts, new_texts),
            }
            if comparable
            else {}
        )
    labels = _labels()
    values = [
        SpaceValue(name=name, label=labels[name], old=before[name], new=after[name])
        for name in labels
        if after.get(name) is not None
    ]
    return values, turned


def _labels() -> Mapping[str, str]:
    """Return the label of every metric of a space that compares with row 0 or with nothing."""
    both = {n: e for n, e in metrics("spaces").items() if "since_last" not in n}
    each = {n: e for n, e in metrics("space").items() if "since_last" not in n}
    return {name: entry.label for name, entry in both.items()} | {
        f"{side}_{name}": f"{entry.label}, {side}s"
        for name, entry in each.items()
        for side in ("image", "text")
    }
