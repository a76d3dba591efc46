"""What a server does, apart from HTTP: embed and classify with the version that serves, and change it."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from anyio import CapacityLimiter, to_thread
from PIL import Image

from everclip.contracts import LabelSpace
from everclip.data.pictures.images import BROKEN, FORMATS
from everclip.errors import CheckpointError, ConfigError, RunFolderError
from everclip.serve.asked import Format
from everclip.serve.batching import Batcher, Kind
from everclip.serve.live import Live
from everclip.serve.loaded import Answer, Loaded
from everclip.serve.measured import Measured
from everclip.serve.refusal import Refusal
from everclip.serve.settings import ServeSettings
from everclip.serve.shadow import Shadow
from everclip.store.records import Current
from everclip.store.versions import Action, Store

T = TypeVar("T")


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a request, and the version that gave them."""

    version: Loaded
    texts: list[Any]
    images: list[Any]


@dataclass(frozen=True)
class Classification:
    """The answers about a request's images, and what a shadow version needs to answer too."""

    version: Loaded
    space: LabelSpace
    pixels: Sequence[torch.Tensor]
    answers: list[Answer]


class Service:
    """A store in service.

    Args:
        store: the store.
        settings: limits, batches, versions.

    Raises:
        CheckpointError: if the version that should serve is damaged.
        ConfigError: if a version of `shadow` or `beside` does not exist.
    """

    def __init__(self, store: Store, settings: ServeSettings) -> None:
        self.store, self.settings = store, settings
        self.started = time.monotonic()
        self.measured = Measured()
        beside = dict.fromkeys([*([settings.shadow] if settings.shadow else []), *settings.beside])
        if len(beside) >= settings.loaded:
            raise ConfigError(
                f"serve: {len(beside)} versions beside the one that serves; loaded={len(beside) + 1} lets them in."
            )
        self.live = Live(
            store,
            partial(Loaded.of, store),
            beside,
            settings.loaded,
            self.measured.switched,
            self.measured.failures.inc,
        )
        self.batcher = Batcher(settings.batch, settings.wait_ms / 1000, settings.queue, self.measured.batch)
        self.shadow = Shadow(settings.shadow, self.live, self.batcher, self.measured)
        self.measured.watch(lambda: self.batcher.admitted, lambda: float(self.live.trouble is not None))
        self._limiter: CapacityLimiter | None = None

    def start(self) -> None:
        """Begin to watch which version the store points to."""
        self.live.watch(self.settings.poll_seconds)

    def stop(self) -> None:
        """End the threads; what waits is answered first."""
        self.live.stop()
        self.batcher.stop()

    # -- encoding ---------------------------------------------------------------------------------------------

    async def pixels(self, version: Loaded, images: Sequence[bytes]) -> list[torch.Tensor]:
        """Decode images, outside the thread that encodes.

        Raises:
            Refusal: if one has too many pixels.
            PictureError: if one cannot be read.
        """
        if self._limiter is None:  # made in the event loop, which did not run yet when the service was made
            self._limiter = CapacityLimiter(max(2, os.cpu_count() or 1))
        decode = partial(_pixels, version, self.settings.image_pixels)
        jobs = [
            to_thread.run_sync(decode, image, f"images.{place}", limiter=self._limiter)
            for place, image in enumerate(images)
        ]
        return list(await asyncio.gather(*jobs))

    async def encoded(
        self, version: Loaded, texts: Sequence[str], pixels: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the embeddings of texts `(N, D)` and images `(M, D)`; `None` for none."""
        wanted: tuple[tuple[Kind, Sequence[Any]], ...] = (("text", texts), ("image", pixels))
        jobs = [
            asyncio.wrap_future(self.batcher.submit(version, kind, items, lambda found: found["embedding"]))
            for kind, items in wanted
            if len(items)
        ]
        found = iter(await asyncio.gather(*jobs))
        return next(found) if len(texts) else None, next(found) if len(pixels) else None

    async def embed(
        self, version: str | None, texts: Sequence[str], images: Sequence[bytes], form: Format
    ) -> Embeddings:
        """Embed texts and images with one version."""
        with self.batcher.admitting(len(texts) + len(images)):
            chosen = self.live.get(version)
            words, pictures = await self.encoded(chosen, texts, await self.pixels(chosen, images))
        return Embeddings(chosen, written(words, form), written(pictures, form))

    async def classify(
        self, version: str | None, space: LabelSpace, images: Sequence[bytes], top: int
    ) -> Classification:
        """Name images with one version."""
        chosen = self.live.get(version)
        bank = chosen.bank(space)
        prompts = [] if bank is not None else chosen.bank_prompts(space)
        with self.batcher.admitting(len(prompts) + len(images)):
            pixels = await self.pixels(chosen, images)
            if bank is None:
                bank = await asyncio.wrap_future(
                    self.batcher.submit(chosen, "text", prompts, chosen.bank_from(space))
                )
            answers = await asyncio.wrap_future(
                self.batcher.submit(chosen, "image", pixels, chosen.answers(space, bank, top))
            )
        return Classification(chosen, space, pixels, answers)

    # -- changing what serves ---------------------------------------------------------------------------------

    async def promote(self, version: str) -> Current:
        """Let a version serve, and switch to it.

        Raises:
            Refusal: if there is none of this id (404), it is damaged or another process changes the store (409), or
                it cannot be loaded (409: the store points to it, the old one goes on).
        """
        self._require_version(version)
        return await self._change("promote", version, partial(self.store.promote, version))

    async def rollback(self) -> Current:
        """Let the version serve that served before, and switch to it; refusals as `promote`."""
        return await self._change("rollback", "", self.store.rollback)

    async def load(self, version: str) -> list[str]:
        """Load a version beside the one that serves; return those in memory."""
        self._require_version(version)
        try:
            await to_thread.run_sync(self.live.keep, version)
        except CheckpointError as error:
            raise _damaged(error) from error
        return self.live.ids()

    def _require_version(self, version: str) -> None:
        if version not in self.store.ids():
            raise Refusal(404, "no-version", f"There is no version {version[:40]!r}; see /versions.")

    async def _change(self, verb: str, version: str, act: Callable[[Action], Current]) -> Current:
        def change() -> Current:
            with self.store.changing(verb, detail=f"{version} over HTTP".strip()) as action:
                pointer = act(action)
            self.live.look()
            return pointer

        try:
            pointer = await to_thread.run_sync(change)
        except RunFolderError as error:
            raise Refusal(
                409,
                "store-in-use",
                "Another process changes the store, or it cannot be written. Try again later.",
            ) from error
        except ConfigError as error:
            raise Refusal(409, "nothing-before", "No version served before this one.") from error
        except CheckpointError as error:
            raise _damaged(error) from error
        if (trouble := self.live.trouble) is not None:
            raise Refusal(409, "cannot-serve", f"{trouble.reason} {self.live.current.id} goes on serving.")
        return pointer


def _damaged(error: CheckpointError) -> Refusal:
    return Refusal(
        409, "damaged", "The version is damaged, so it cannot serve; `everclip status` says where."
    )


def _pixels(version: Loaded, most: int, image: bytes, name: str) -> torch.Tensor:
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as header:
            width, height = header.size
    except BROKEN:
        pass  # decoding says what is wrong
    else:
        if width * height > most:
            raise Refusal(
                413, "image-too-large", f"{name}: {width} x {height} pixels; at most {most:,} are read."
            )
    return version.pixels(image, name)


def written(embeddings: torch.Tensor | None, form: Format) -> list[Any]:
    """Return embeddings `(N, D)` as an answer holds them.

    Floats have 8 decimals: less than half of float32's spacing at 1 is lost.
    """
    if embeddings is None:
        return []
    if form == "base64":
        return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in embeddings.numpy()]
    return [[round(value, 8) for value in row] for row in embeddings.tolist()]


def plain(answers: Sequence[Answer]) -> list[Mapping[str, Any]]:
    """Return answers as JSON."""
    return [
        {
            "names": [{"name": name, "score": round(score, 6)} for name, score in answer.names],
            "route": answer.route,
            "experts": answer.experts,
        }
        for answer in answers
    ]
