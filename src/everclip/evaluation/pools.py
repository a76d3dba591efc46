"""Rank images and captions in a retrieval pool: its distinct images and captions, and which of them match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from everclip.contracts import EvalSet
from everclip.data.sampling.same_texts import TextKeys
from everclip.evaluation.retrieval import Positives, Ranks, positive_ranks


def captions(s: EvalSet) -> list[str]:
    """Return the captions of a set, row by row."""
    return [str(value) for value in s.data.column("caption")]


def _first_rows(values: Sequence[str]) -> dict[str, int]:
    first: dict[str, int] = {}
    for row, value in enumerate(values):
        first.setdefault(value, row)
    return first


@dataclass(frozen=True)
class DistinctItems:
    """The distinct images and captions of some rows: value -> first row, in order of appearance."""

    images: dict[str, int]
    texts: dict[str, int]

    @classmethod
    def of(cls, sets: Sequence[EvalSet], canonical: Mapping[str, str] | None = None) -> DistinctItems:
        """Collect the items of several sets; rows are numbered through. `canonical` maps equal captions to one."""
        mapping = canonical or {}
        return cls(
            _first_rows([i for s in sets for i in s.data.identities()]),
            _first_rows([mapping.get(c, c) for s in sets for c in captions(s)]),
        )


def _canonical_captions(sets: Sequence[EvalSet], keys_of: TextKeys | None) -> dict[str, str]:
    """Map captions to the first caption with equal tokens; leave out those that are the first."""
    if keys_of is None:
        return {}
    keys = keys_of.of(c for s in sets for c in captions(s))
    first: dict[bytes, str] = {}
    canonical = {text: first.setdefault(key, text) for text, key in keys.items()}
    return {text: other for text, other in canonical.items() if text != other}


@dataclass(frozen=True)
class Ranked:
    """Ranks of one set in both directions, with their queries.

    Attributes:
        text_to_image: ranks of the right images per distinct caption of the set.
        image_to_text: ranks of the right captions per distinct image of the set.
        texts, images: the queries, in order.
        texts_of: per image, the positions of its captions in `texts`.
        text_of_row: per row of the set, the position of its caption in `texts`.
        candidates: the distinct captions of the pool, in gallery order.
        gallery: the embeddings of those captions `(G, D)`.
    """

    text_to_image: Ranks
    image_to_text: Ranks
    texts: list[str]
    images: list[str]
    texts_of: list[list[int]]
    text_of_row: list[int]
    candidates: list[str]
    gallery: torch.Tensor


def rank(
    s: EvalSet,
    embeddings: tuple[torch.Tensor, torch.Tensor],
    pool: Sequence[EvalSet],
    pool_images: torch.Tensor,
    pool_texts: torch.Tensor,
    keys_of: TextKeys | None = None,
) -> Ranked:
    """Rank the pool for every distinct caption and image of a set.

    Captions with equal tokens count as one caption, the first of them.

    Args:
        s: the set whose captions and images are the queries.
        embeddings: its image and text embeddings, `(N, D)` each, row by row.
        pool: the sets whose images and captions are ranked.
        pool_images, pool_texts: their embeddings `(M, D)`, row by row.
        keys_of: the token keys of texts; without it, captions are compared as strings.
    """
    canonical = _canonical_captions([s, *pool], keys_of)
    queries, gallery = DistinctItems.of([s], canonical), DistinctItems.of(pool, canonical)
    image_index = {name: i for i, name in enumerate(gallery.images)}
    text_index = {name: i for i, name in enumerate(gallery.texts)}
    images_of: dict[str, set[int]] = {}
    texts_of: dict[str, set[int]] = {}
    for p in pool:
        for identity, written in zip(p.data.identities(), captions(p), strict=True):
            caption = canonical.get(written, written)
            images_of.setdefault(caption, set()).add(image_index[identity])
            texts_of.setdefault(identity, set()).add(text_index[caption])
    gallery_texts = pool_texts[list(gallery.texts.values())]
    text_to_image = positive_ranks(
        embeddings[1][list(queries.texts.values())],
        pool_images[list(gallery.images.values())],
        Positives.from_lists([sorted(images_of[c]) for c in queries.texts]),
    )
    image_to_text = positive_ranks(
        embeddings[0][list(queries.images.values())],
        gallery_texts,
        Positives.from_lists([sorted(texts_of[i]) for i in queries.images]),
    )
    text_query = {caption: i for i, caption in enumerate(queries.texts)}
    captions_of: dict[str, list[int]] = {identity: [] for identity in queries.images}
    text_of_row = [text_query[canonical.get(written, written)] for written in captions(s)]
    for identity, query in zip(s.data.identities(), text_of_row, strict=True):
        if query not in captions_of[identity]:
            captions_of[identity].append(query)
    return Ranked(
        text_to_image,
        image_to_text,
        list(queries.texts),
        list(queries.images),
        list(captions_of.values()),
        text_of_row,
        list(gallery.texts),
        gallery_texts,
    )


def mean_of_directions(ranked: Ranked, text_hits: torch.Tensor, image_hits: torch.Tensor) -> torch.Tensor:
    """Return `(I,)`, per image the mean of its own hit and of the mean hit of its captions.

    If all images have the same number of captions, the mean of these values is the average of both directions. The
    values are per image, so that paired intervals can resample images.
    """
    counts = torch.tensor([len(texts) for texts in ranked.texts_of])
    captions = torch.tensor([text for texts in ranked.texts_of for text in texts], dtype=torch.int64)
    images = torch.repeat_interleave(torch.arange(len(counts)), counts)
    hits = torch.bincount(images, weights=text_hits[captions].double(), minlength=len(counts)).float()
    return (image_hits.float() + hits / counts) / 2
