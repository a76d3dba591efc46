"""A version of a store in memory: it decodes, encodes and classifies."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from everclip.contracts import ClassEntry, Features, LabelSpace
from everclip.errors import CheckpointError
from everclip.evaluation.routes import EXPERTS, ROUTE
from everclip.features.encoding import encode_images, encode_prompts, measuring
from everclip.learner.inputs import open_image
from everclip.methods.base import Method
from everclip.serve.batching import Kind
from everclip.store.versions import Store

_BANKS = 32
"""Class banks that a version keeps: users classify among the same names again and again."""


@dataclass(frozen=True)
class Answer:
    """The best names of one image, best first, with their scores, and the way it took through the model.

    Attributes:
        names: (name, score); scores are cosines, or a method's own on the same scale.
        route: the name of the task whose router it took; `None` if the method has no routes.
        experts: place -> the experts that were chosen there; empty if the method has none.
    """

    names: list[tuple[str, float]]
    route: str | None
    experts: dict[str, list[int]]


class Loaded:
    """A version in memory.

    Args:
        id: of the version.
        method: encodes and scores; never trained here.
        towers: the fingerprint of each tower.
    """

    def __init__(self, id: str, method: Method, towers: dict[str, str]) -> None:
        self.id, self.towers = id, towers
        self._method = method.eval().requires_grad_(False)
        self._banks: OrderedDict[LabelSpace, Features] = OrderedDict()
        self._lock = threading.Lock()
        self._space: str | None = None
        self.width = method.backbone.embedding_width()

    @classmethod
    def of(cls, store: Store, version: str) -> Loaded:
        """Load a version of a store, and encode once, so that no request meets a model that cannot.

        Raises:
            CheckpointError: if it is damaged, or its embeddings are not finite.
        """
        written = store.version(version)
        loaded = cls(written.id, store.load(version).method, dict(written.towers))
        side = loaded._method.backbone.pixels.size
        tries: dict[Kind, object] = {"image": torch.zeros(3, side, side), "text": "a text"}
        for kind, item in tries.items():
            found = loaded.encode(kind, [item])["embedding"]
            if not torch.isfinite(found).all():
                raise CheckpointError(f"version {version}: its {kind} embeddings are not finite.")
        return loaded

    def space(self, key_of: Callable[[Method], str]) -> str:
        """Return the key of its image space, computed once: it covers all weights of the image tower."""
        if self._space is None:
            self._space = key_of(self._method)
        return self._space

    @property
    def one_by_one(self) -> bool:
        """Whether an image's features would depend on the others of its batch, so that it is encoded alone."""
        return self._method.batch_dependent is not None

    def pixels(self, image: bytes, name: str) -> torch.Tensor:
        """Return the pixels `(3, S, S)` of an encoded image. Any thread may call it.

        Raises:
            PictureError: if it cannot be read.
        """
        pixels: torch.Tensor = self._method.backbone.preprocess(open_image(image, name))
        return pixels

    def encode(self, kind: Kind, items: Sequence[Any]) -> Features:
        """Return features of pixels or texts. Only the encoding thread calls it once the version serves."""
        if kind == "image":
            return encode_images(self._method, torch.stack(list(items)))
        return encode_prompts(self._method, items)

    # -- classes ----------------------------------------------------------------------------------------------

    def bank(self, space: LabelSpace) -> Features | None:
        """Return the class bank of names that were used before; else `None`."""
        with self._lock:
            if space in self._banks:
                self._banks.move_to_end(space)
            return self._banks.get(space)

    def bank_prompts(self, space: LabelSpace) -> Sequence[str]:
        """Return the texts whose features `bank_from` needs; a method that makes banks in its own way needs none."""
        return space.prompts()[:1] if self._method.own_bank else space.prompts()

    def bank_from(self, space: LabelSpace) -> Callable[[Features], Features]:
        """Return what makes the class bank from the features of `bank_prompts`, and keeps it."""

        def make(prompts: Features) -> Features:
            with measuring(self._method):
                own = self._method.own_bank
                bank = self._method.class_bank(space) if own else self._method.bank_from(space, prompts)
            with self._lock:
                self._banks[space] = bank
                while len(self._banks) > _BANKS:
                    self._banks.popitem(last=False)
            return bank

        return make

    def answers(self, space: LabelSpace, bank: Features, top: int) -> Callable[[Features], list[Answer]]:
        """Return what turns features of images into their answers."""

        def score(images: Features) -> list[Answer]:
            with measuring(self._method):
                best = self._method.class_scores(images, space, bank).topk(min(top, len(space.entries)))
            names = [entry.name for entry in space.entries]
            ranked = [
                [(names[place], value) for value, place in zip(values, places, strict=True)]
                for values, places in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
            ways = self._ways(images, len(ranked))
            return [Answer(found, *way) for found, way in zip(ranked, ways, strict=True)]

        return score

    def _ways(self, images: Features, count: int) -> list[tuple[str | None, dict[str, list[int]]]]:
        names, places = self._method.routes(), self._method.expert_places()
        routes: list[str | None] = [None] * count
        if ROUTE in images and names:
            routes = [names[int(route)] for route in images[ROUTE].flatten().tolist()]
        experts: list[dict[str, list[int]]] = [{} for _ in range(count)]
        if EXPERTS in images and places:
            chosen = images[EXPERTS].flatten(1).to(torch.int64).reshape(count, len(places), -1)
            experts = [
                {place: [e for e in row if e >= 0] for place, row in zip(places, of, strict=True)}
                for of in chosen.tolist()
            ]
        return list(zip(routes, experts, strict=True))


def space_of(names: Sequence[str], templates: tuple[str, ...]) -> LabelSpace:
    """Return the label space of distinct names."""
    return LabelSpace(tuple(ClassEntry(name, name, templates) for name in dict.fromkeys(names)))
