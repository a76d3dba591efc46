"""Embed images for an index: a model with the key of its vector space, and a stream of images of which some fail."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from everclip.data.pictures.images import RULES, decode
from everclip.data.pictures.location import bytes_at
from everclip.data.pictures.picture_error import PictureError
from everclip.data.pictures.rendering import DEFAULT, Rendering
from everclip.data.sampling.order import key_of
from everclip.features.encoder import Encoder, image_encoder, own_code, text_encoder
from everclip.features.encoding import decoded
from everclip.interfaces import Predictor
from everclip.learner.core import Learner
from everclip.report.formats import seconds

T = TypeVar("T")
BLOCK = 256
"""Images that are embedded together."""

TOGETHER, LONGEST = 2048, 20.0
"""Images that are written together at most, and seconds between two commits: so much work a kill can lose."""

PACE = 5.0
"""Seconds between two lines about the progress."""

_KEY_RULES = 1  # increase it if the key of a space covers something else


def space_key(method: Predictor, image_weights: str) -> str:
    """Return the key of a method's image space: equal keys mean that cosines between the vectors mean something.

    Unlike the key of the cache of features, it covers neither the device nor the version of torch: these change the
    last bits of a vector, not the space.

    Args:
        method: encodes images.
        image_weights: `method.encoder_keys()["image"]`.
    """
    backbone = method.backbone
    if backbone.layout is None:
        shape = str(backbone.clip.visual)
    else:
        config = backbone.layout.model_cfg
        shape = json.dumps(
            [config.get(part) for part in ("embed_dim", "vision_cfg", "quick_gelu")], sort_keys=True
        )
    parts = type(method).__qualname__, *own_code(type(method)), image_weights, shape
    return f"{key_of('space', _KEY_RULES, *parts, repr(backbone.pixels), RULES):032x}"


@dataclass(frozen=True, eq=False)
class SearchModel:
    """A version of the model, as an index sees it.

    Attributes:
        learner: encodes.
        version: its name in the store.
    """

    learner: Learner
    version: str

    def __post_init__(self) -> None:
        self.learner.method.eval()

    @cached_property
    def keys(self) -> dict[str, str]:
        """The keys of both towers."""
        return self.learner.method.encoder_keys()

    @cached_property
    def key(self) -> str:
        """The key of its image space."""
        return space_key(self.learner.method, self.keys["image"])

    @property
    def tower(self) -> str:
        """The fingerprint of its image tower."""
        return self.learner.method.backbone.fingerprints()["image"]

    @property
    def width(self) -> int:
        """The width of an embedding."""
        return self.learner.method.backbone.embedding_width()

    @cached_property
    def images(self) -> Encoder:
        """Its image encoder."""
        return image_encoder(self.learner.method, self.keys)

    def of_pixels(self, pixels: torch.Tensor) -> NDArray[np.float32]:
        """Return unit embeddings `(N, D)` of pixels `(N, 3, S, S)`."""
        return _unit(self.learner.features.now(self.images, [pixels])["embedding"])

    def of_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit embeddings `(N, D)` of texts."""
        encoder = text_encoder(self.learner.method, self.keys)
        unique = list(dict.fromkeys(texts))
        blocks = (encoder.prepare(unique[i : i + BLOCK]) for i in range(0, len(unique), BLOCK))
        rows = _unit(self.learner.features.now(encoder, blocks)["embedding"])
        index = {text: row for row, text in enumerate(unique)}
        return rows[[index[text] for text in texts]]

    def of_image(self, data: bytes, name: str) -> NDArray[np.float32]:
        """Return the unit embedding `(1, D)` of one encoded image.

        Raises:
            PictureError: if it cannot be used.
        """
        return self.of_pixels(self.images.prepare(decode(data, name))[None])


def _unit(rows: torch.Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = torch.nn.functional.normalize(rows.double(), dim=1).float().numpy()
    return found


@dataclass(frozen=True)
class Source:
    """An image to embed.

    Attributes:
        id: of the item.
        place: where it lies, of type `everclip.data.pictures.location.LOCATION`, but for `sha256`.
        rendering: how values become colours, if the file alone does not decide it.
        sha256: of the content that is expected; `None`: any.
    """

    id: str
    place: dict[str, Any]
    rendering: str | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """For people: the id, and the file if its name is another."""
        path = self.place["path"]
        return self.id if path is None or path == self.id else f"{self.id} ({path})"


@dataclass
class Embedded:
    """A batch of embedded images.

    Attributes:
        ids: of those that could be read.
        vectors: unit vectors `(N, D)`.
        contents: SHA-256 of each.
        changed: ids whose content is not the expected one.
        failed: id -> why it could not be read.
    """

    ids: list[str]
    vectors: NDArray[np.float32]
    contents: list[str]
    changed: list[str]
    failed: dict[str, str]

    @classmethod
    def joined(cls, parts: Sequence[Embedded]) -> Embedded:
        """Return several batches as one."""
        return cls(
            [i for part in parts for i in part.ids],
            np.concatenate([part.vectors for part in parts]) if parts else np.empty((0, 0), np.float32),
            [c for part in parts for c in part.contents],
            [i for part in parts for i in part.changed],
            {i: why for part in parts for i, why in part.failed.items()},
        )


def embedded(
    model: SearchModel, batches: Iterable[Sequence[Source]], workers: int | None = None
) -> Iterator[Embedded]:
    """Embed batches of images, read and decoded one batch ahead. An image that cannot be read stops nothing.

    Args:
        model: encodes.
        batches: the images.
        workers: threads that read and decode; default: those of the learner.
    """
    prepare = model.images.prepare
    blank = torch.zeros_like(prepare(Image.new("RGB", (8, 8))))
    contents: dict[str, str] = {}
    failed: dict[str, str] = {}

    def pixels_of(source: Source) -> torch.Tensor:
        try:
            data = bytes_at({**source.place, "sha256": None})
            contents[source.id] = hashlib.sha256(data).hexdigest()
            rendering = Rendering.parse(source.rendering) if source.rendering else DEFAULT
            pixels: torch.Tensor = prepare(decode(data, source.name, rendering))
            return pixels
        except PictureError as error:
            failed[source.id] = f"{error.reason}: {error.detail}"
            return blank  # its vector is dropped

    waiting: list[Sequence[Source]] = []

    def noted() -> Iterator[Sequence[Source]]:
        for batch in batches:
            if batch:
                waiting.append(batch)
                yield batch

    for pixels in decoded(noted(), pixels_of, model.learner.features.workers if workers is None else workers):
        batch = waiting.pop(0)
        vectors = model.of_pixels(pixels)
        good = [i for i, source in enumerate(batch) if source.id not in failed]
        found = [contents.pop(batch[i].id) for i in good]
        expected = [batch[i].sha256 for i in good]
        ids = [batch[i].id for i in good]
        yield Embedded(
            ids,
            vectors[good],
            found,
            [i for i, now, then in zip(ids, found, expected, strict=True) if then not in (None, now)],
            {source.id: failed.pop(source.id) for source in batch if source.id in failed},
        )


class Group(Generic[T]):
    """Batches that are written together: a commit costs time and leaves a small part of a table."""

    def __init__(self) -> None:
        self._parts: list[T] = []
        self._images, self._began = 0, time.monotonic()

    def add(self, part: T, images: int) -> None:
        """Add a batch of so many images."""
        self._parts.append(part)
        self._images += images

    @property
    def full(self) -> bool:
        """Whether it is time to write them."""
        return self._images >= TOGETHER or time.monotonic() - self._began >= LONGEST

    def taken(self) -> list[T]:
        """Return the batches, and begin anew."""
        parts, self._parts = self._parts, []
        self._images, self._began = 0, time.monotonic()
        return parts


class Pace:
    """Says when a line about the progress is due, and how long the rest takes.

    It is due from time to time, and at the end of work that had such lines.
    """

    def __init__(self) -> None:
        self._last, self._told = time.monotonic(), False
        self._first: tuple[float, int] | None = None

    def due(self, done: int, total: int) -> bool:
        """Whether to print a line now."""
        now = time.monotonic()
        self._first = self._first or (now, done)  # loading a model or starting processes is not the work
        if now - self._last < PACE and not (done == total and self._told):
            return False
        self._last, self._told = now, True
        return True

    def left(self, done: int, total: int) -> str:
        """Return `, 52.0 per second, about 8 min 10 s left`; empty if it is not known or nothing is left."""
        if self._first is None or done >= total or done <= self._first[1]:
            return ""
        each = (time.monotonic() - self._first[0]) / (done - self._first[1])
        return f", {1 / max(each, 1e-9):,.1f} per second, about {seconds((total - done) * each)} left"
