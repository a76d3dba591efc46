"""Compare a model with its export: the probes, and the differences of what both make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from everclip.data.builtin.emoji import drawings
from everclip.models.backbone import Backbone

HALF_LIMIT = 0.01
"""Largest difference in a number of a unit embedding that half precision may cause."""

ROUNDING_LIMIT = 1e-6
"""Largest difference in a number of a unit embedding from rounding: threads and memory decide the order of sums."""

LORA_LIMIT = 1e-5
"""Largest difference in a number of a unit embedding from adding `scaling * B A` in another order."""

TEXTS = ("a photo of a dog", "Two red squares, one blue circle!", "", "naïve 東京 🎈", "word " * 200)

DRAWINGS = 3
"""Drawings among the probes."""


@dataclass(frozen=True)
class Parity:
    """Largest absolute differences between a model and its export as another program loads it.

    Attributes:
        pixels: of preprocessed images.
        images, texts: of unit embeddings.
        logit_scale: of the factor on cosines.
        tokens: whether the tokens of every text are equal.
        head: of the scores of a class head; `None` without a head.
        correction: of corrected unit embeddings of texts; `None` without a correction.
    """

    pixels: float
    images: float
    texts: float
    logit_scale: float
    tokens: bool
    head: float | None = None
    correction: float | None = None

    def within(self, limit: float, pixels: float = 0.0) -> bool:
        """Return whether tokens and scale are equal, pixels differ by at most `pixels`, and embeddings by `limit`.

        The scores of a class head and corrected texts may differ by ten times as much, because they amplify differences
        of embeddings.
        """
        same = self.tokens and self.pixels <= pixels and self.logit_scale == 0
        amplified = max(self.head or 0, self.correction or 0)
        return same and max(self.images, self.texts) <= limit and amplified <= 10 * limit


def probes() -> list[Image.Image]:
    """Return images of several shapes: noise, a ramp, a flat colour; and some drawings that come with everclip."""
    draw = np.random.default_rng(0)
    noise = [draw.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((97, 160), (300, 211), (64, 64))]
    ramp = np.linspace(0, 255, 256 * 192 * 3).reshape(192, 256, 3).astype(np.uint8)
    flat = np.full((50, 50, 3), 255, np.uint8)
    return [Image.fromarray(a) for a in (*noise, ramp, flat, *_drawn())]


@cache
def _drawn() -> tuple[NDArray[np.uint8], ...]:
    held = drawings("en", ["noto"], named_only=True)["image"]
    step = len(held) // DRAWINGS
    found = (Image.open(BytesIO(held[n * step].as_py())).convert("RGB") for n in range(DRAWINGS))
    return tuple(np.asarray(image) for image in found)


def describe(parity: Parity) -> str:
    """Describe a parity in one line."""
    tokens = "equal tokens" if parity.tokens else "different tokens"
    head = "" if parity.head is None else f", class scores {parity.head:g}"
    corrected = "" if parity.correction is None else f", corrected text embeddings {parity.correction:g}"
    return (
        f"{tokens}, largest difference of pixels {parity.pixels:g}, image embeddings {parity.images:g}, text "
        f"embeddings {parity.texts:g}, logit scale {parity.logit_scale:g}{head}{corrected}"
    )


def distance(one: torch.Tensor, two: torch.Tensor) -> float:
    """Return the largest absolute difference; the largest number if the shapes differ."""
    if one.shape != two.shape:
        return float(torch.finfo(torch.float32).max)
    return float((one.double() - two.double()).abs().max())


@dataclass(frozen=True)
class Expected:
    """What a model makes of the probes.

    Attributes:
        pixels: of `probes()`, `(N, 3, S, S)`.
        tokens: of `TEXTS`, `(M, L)` int64.
        images, texts: unit embeddings `(N, D)` and `(M, D)`.
    """

    pixels: torch.Tensor
    tokens: torch.Tensor
    images: torch.Tensor
    texts: torch.Tensor


@dataclass(frozen=True)
class ExportLayout:
    """A layout in which a model can be exported.

    Attributes:
        name: as `--format` takes it.
        program: what loads the folder for the comparison.
        check: raises `ConfigError` if the layout cannot hold a model.
        write: writes a merged model into a folder, in half precision if the last argument says so.
        compare: loads the folder without the model, and compares.
        usage: the lines of Python that load the folder.
        limit: the largest difference in a number of a unit embedding, in float32.
        pixel_limit: the largest difference of preprocessed pixels.
        notes: limits of the layout, for the model card.
    """

    name: str
    program: str
    check: Callable[[Backbone], None]
    write: Callable[[Backbone, Path, bool], None]
    compare: Callable[[Backbone, Path, Expected], Parity]
    usage: Callable[[Path, Backbone], list[str]]
    limit: float = ROUNDING_LIMIT
    pixel_limit: float = 0.0
    notes: tuple[str, ...] = ()
