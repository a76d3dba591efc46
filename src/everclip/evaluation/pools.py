"""Who competes with whom in retrieval: the distinct pictures and captions of a pool, and which belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from everclip.contracts import EvalSet
from everclip.data.sampling.same_texts import TextKeys
from everclip.evaluation.retrieval import Positives, Ranks, positive_ranks


def captions(s: EvalSet) -> list[str]:
    """The captions of a set, row by row."""
    return [str(value) for value in s.data.column("caption")]


def _first_rows(values: Sequence[str]) -> dict[str, int]:
    first: dict[str, int] = {}
    for row, value in enumerate(values):
        first.setdefault(value, row)
    return first


@dataclass(frozen=True)
class Side:
    """The distinct pictures and captions of some rows: value -> first row, in order of appearance."""

    images: dict[str, int]
    texts: dict[str, int]

    @classmethod
    def of(cls, sets: Sequence[EvalSet], called: Mapping[str, str] | None = None) -> Side:
        """Collect them over several sets, whose rows are counted through; `called` names captions that are another."""
        known = called or {}
        return cls(
            _first_rows([i for s in sets for i in s.data.identities()]),
            _first_rows([known.get(c, c) for s in sets for c in captions(s)]),
        )


def _called(sets: Sequence[EvalSet], keys_of: TextKeys | None) -> dict[str, str]:
    """Return for every caption whose tokens another has, too, the first of these."""
    if keys_of is None:
        return {}
    keys = keys_of.of(c for s in sets for c in captions(s))
    first: dict[bytes, str] = {}
    called = {text: first.setdefault(key, text) for text, key in keys.items()}
    return {text: name for text, name in called.items() if text != name}


@dataclass(frozen=True)
class Ranked:
    """Ranks of one set in both directions, with the queries they belong to.

    Attributes:
        text_to_image: ranks of the right pictures per distinct caption of the set.
        image_to_text: ranks of the right captions per distinct picture of the set.
        texts, images: those queries, in order.
        texts_of: per picture, the positions of its captions among `texts`.
        candidates: the distinct captions of the pool, in gallery order.
        gallery: the embeddings of those captions `(G, D)`.
    """

    text_to_image: Ranks
    image_to_text: Ranks
    texts: list[str]
    images: list[str]
    texts_of: list[list[int]]
    candidates: list[str]
    gallery: torch.Tensor


def rank(
    s: EvalSet,
    own: tuple[torch.Tensor, torch.Tensor],
    pool: Sequence[EvalSet],
    pool_images: torch.Tensor,
    pool_texts: torch.Tensor,
    keys_of: TextKeys | None = None,
) -> Ranked:
    """Rank the pool for every distinct caption and picture of a set.

    Captions with equal tokens are one caption, called by the first of them: either is right.

    Args:
        s: the set whose captions and pictures ask.
        own: its image and text embeddings, `(N, D)` each, row by row.
        pool: the sets whose captions and pictures may be answers.
        pool_images, pool_texts: their embeddings `(M, D)`, row by row.
        keys_of: what the model reads of texts; without it captions are told apart as they are written.
    """
    called = _called([s, *pool], keys_of)
    queries, gallery = Side.of([s], called), Side.of(pool, called)
    image_place = {name: i for i, name in enumerate(gallery.images)}
    text_place = {name: i for i, name in enumerate(gallery.texts)}
    images_of: dict[str, set[int]] = {}
    texts_of: dict[str, set[int]] = {}
    for p in pool:
        for identity, written in zip(p.data.identities(), captions(p), strict=True):
            caption = called.get(written, written)
            images_of.setdefault(caption, set()).add(image_place[identity])
            texts_of.setdefault(identity, set()).add(text_place[caption])
    gallery_texts = pool_texts[list(gallery.texts.values())]
    text_to_image = positive_ranks(
        own[1][list(queries.texts.values())],
        pool_images[list(gallery.images.values())],
        Positives.from_lists([sorted(images_of[c]) for c in queries.texts]),
    )
    image_to_text = positive_ranks(
        own[0][list(queries.images.values())],
        gallery_texts,
        Positives.from_lists([sorted(texts_of[i]) for i in queries.images]),
    )
    text_query = {caption: i for i, caption in enumerate(queries.texts)}
    asked: dict[str, list[int]] = {identity: [] for identity in queries.images}
    for identity, written in zip(s.data.identities(), captions(s), strict=True):
        query = text_query[called.get(written, written)]
        if query not in asked[identity]:
            asked[identity].append(query)
    return Ranked(
        text_to_image,
        image_to_text,
        list(queries.texts),
        list(queries.images),
        list(asked.values()),
        list(gallery.texts),
        gallery_texts,
    )


def both_ways(ranked: Ranked, text_hits: torch.Tensor, image_hits: torch.Tensor) -> torch.Tensor:
    """Return `(I,)` per picture: the mean of its own hit and of the mean hit of its captions.

    Its mean is the average of both directions when every picture has equally many captions; per picture, so that
    paired intervals can resample pictures.
    """
    by_caption = torch.stack([text_hits[rows].float().mean() for rows in map(list, ranked.texts_of)])
    return (image_hits.float() + by_caption) / 2
