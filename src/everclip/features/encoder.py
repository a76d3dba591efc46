"""Encoders: one side of a model as a function, with the key of everything that its answers depend on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from everclip.contracts import Features
from everclip.data.pictures.images import RULES
from everclip.data.sampling.order import key_of
from everclip.features.encoding import encode_images, encode_texts
from everclip.interfaces import Predictor
from everclip.models.backbone import Backbone

Side = Literal["image", "text"]


@dataclass(frozen=True)
class Encoder:
    """One side of a model as a function.

    Attributes:
        side: what it encodes.
        name: who answers, such as `method`. Newer features of one name replace older ones of the same inputs.
        key: a hash of the weights, the architecture, the transform and all else that decides an answer.
        prepare: a picture to pixels `(3, S, S)`, or a list of texts to token ids `(N, L)`.
        encode: pixels `(N, 3, S, S)` or token ids `(N, L)` to features `(N, ...)`, float32 on the CPU, no gradient.
    """

    side: Side
    name: str
    key: str
    prepare: Callable[[Any], torch.Tensor]
    encode: Callable[[torch.Tensor], Features]


def image_encoder(method: Predictor, keys: Mapping[str, str], known_task: int | None = None) -> Encoder:
    """Return the pictures' side of a method in evaluation mode.

    Args:
        method: encodes; its backbone has the transform.
        keys: what its encodings depend on (`method.encoder_keys()`), taken once for weights that stay.
        known_task: the task that the method is told.
    """
    transform = method.backbone.preprocess
    key = _key(method, keys["image"], repr(transform), f"decoded by rules {RULES}", known_task)
    return Encoder(
        "image", "method", key, transform, lambda pixels: encode_images(method, pixels, known_task)
    )


def text_encoder(method: Predictor, keys: Mapping[str, str]) -> Encoder:
    """Return the texts' side of a method in evaluation mode; see `image_encoder`."""
    key = _key(method, keys["text"])
    return Encoder(
        "text", "method", key, method.backbone.tokenise, lambda tokens: encode_texts(method, tokens)
    )


def tower_encoders(
    backbone: Backbone,
    name: str,
    device: torch.device,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[Side, Encoder]:
    """Return both towers of a backbone as encoders; their one feature is `embedding` `(N, D)`.

    Args:
        backbone: with its transform and tokenizer.
        name: who answers.
        device: where the backbone is.
        context: entered around each block, such as the precision of training.
    """

    def pictures(pixels: torch.Tensor) -> torch.Tensor:
        return backbone.encode_image(pixels.to(device, next(backbone.parameters()).dtype))

    def texts(tokens: torch.Tensor) -> torch.Tensor:
        return backbone.encode_text(tokens.to(device))

    def within(encode: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> Features:
        with torch.no_grad(), context():
            return {"embedding": encode(inputs).float().cpu()}

    prints = backbone.fingerprints()
    with context():
        autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
        setting = str(backbone.clip), autocast, torch.backends.mha.get_fastpath_enabled()
    transform = repr(backbone.preprocess), f"decoded by rules {RULES}"
    return {
        "image": Encoder(
            "image",
            name,
            f"{key_of('image', prints['image'], *setting, *transform):032x}",
            backbone.preprocess,
            lambda pixels: within(pictures, pixels),
        ),
        "text": Encoder(
            "text",
            name,
            f"{key_of('text', prints['text'], *setting):032x}",
            backbone.tokenise,
            lambda tokens: within(texts, tokens),
        ),
    }


def _key(method: Predictor, weights: str, *more: object) -> str:
    # Weights alone do not decide an embedding: architecture, transform, method and decoding do, too.
    return f"{key_of(type(method).__qualname__, str(method.backbone.clip), weights, *more):032x}"
