"""Encoders: a tower as a function, with a key of everything that its features depend on."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from everclip.contracts import Features
from everclip.data.pictures.images import RULES
from everclip.data.sampling.order import key_of
from everclip.features import encoding
from everclip.interfaces import Predictor
from everclip.models.backbone import Backbone

Side = Literal["image", "text"]


@dataclass(frozen=True)
class Encoder:
    """A tower as a function.

    Attributes:
        side: image or text.
        name: the name of the model, such as `method`. New features of a name replace older ones of the same inputs.
        key: a hash of the weights, the architecture, the transform and everything else that features depend on.
        prepare: an image to pixels `(3, S, S)`, or a list of texts to token ids `(N, L)`.
        encode: pixels `(N, 3, S, S)` or token ids `(N, L)` to features `(N, ...)`, float32 on the CPU, no gradient.
        lasting: whether the shared folder keeps its features; no other run has the weights in the middle of learning.
    """

    side: Side
    name: str
    key: str
    prepare: Callable[[Any], torch.Tensor]
    encode: Callable[[torch.Tensor], Features]
    lasting: bool = True


def image_encoder(method: Predictor, keys: Mapping[str, str], known_task: int | None = None) -> Encoder:
    """Return the image encoder of a method in evaluation mode.

    Args:
        method: encodes; its backbone has the transform.
        keys: the result of `method.encoder_keys()` for the current weights.
        known_task: the known task of the protocol.
    """
    transform = method.backbone.preprocess
    key = _key(method, keys["image"], repr(transform), f"decoded by rules {RULES}", known_task)
    return Encoder(
        "image", "method", key, transform, lambda pixels: encoding.encode_images(method, pixels, known_task)
    )


def text_encoder(method: Predictor, keys: Mapping[str, str]) -> Encoder:
    """Return the text encoder of a method in evaluation mode; see `image_encoder`."""
    key = _key(method, keys["text"])
    return Encoder(
        "text", "method", key, method.backbone.tokenise, lambda tokens: encoding.encode_texts(method, tokens)
    )


def tower_encoders(
    backbone: Backbone,
    name: str,
    device: torch.device,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    unit: bool = True,
) -> dict[Side, Encoder]:
    """Return both towers of a backbone as encoders; their only feature is `embedding` `(N, D)`.

    Args:
        backbone: with its transform and tokenizer.
        name: the name of the encoders.
        device: the device of the backbone.
        context: entered around each block, such as the precision of training.
        unit: whether embeddings have unit length; otherwise they are as the projections give them.
    """

    def encode_images(pixels: torch.Tensor) -> torch.Tensor:
        return backbone.encode_image(pixels.to(device, next(backbone.parameters()).dtype), unit)

    def encode_texts(tokens: torch.Tensor) -> torch.Tensor:
        return backbone.encode_text(tokens.to(device), unit)

    def in_context(encode: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> Features:
        with torch.no_grad(), context():
            return {"embedding": encode(inputs).float().cpu()}

    fingerprints = backbone.fingerprints()
    with context():
        autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
        kernels: tuple[object, ...] = (torch.backends.mha.get_fastpath_enabled(),)
        if not torch.backends.cuda.flash_sdp_enabled():  # type: ignore[no-untyped-call]
            kernels = *kernels, "unfused attention"  # bf16 on a CPU
        setting = *_numerics(device), str(backbone.clip), autocast, *kernels
        setting = setting if unit else (*setting, "not unit")
    transform = repr(backbone.preprocess), f"decoded by rules {RULES}"
    return {
        "image": Encoder(
            "image",
            name,
            f"{key_of('image', fingerprints['image'], *setting, *transform):032x}",
            backbone.preprocess,
            lambda pixels: in_context(encode_images, pixels),
        ),
        "text": Encoder(
            "text",
            name,
            f"{key_of('text', fingerprints['text'], *setting):032x}",
            backbone.tokenise,
            lambda tokens: in_context(encode_texts, tokens),
        ),
    }


def _key(method: Predictor, weights: str, *more: object) -> str:
    # Embeddings depend not only on weights, but also on architecture, transform, method and decoding.
    device = next(method.parameters()).device
    code = type(method).__qualname__, *own_code(type(method))
    return f"{key_of(*code, str(method.backbone.clip), weights, *_numerics(device), *more):032x}"


@cache
def own_code(method: type) -> tuple[str, ...]:
    """Return hashes of the files that define a user's own method: two classes may have one name, or change."""
    found = []
    for base in method.__mro__:
        if base.__module__.partition(".")[0] in ("everclip", "torch", "builtins", "typing", "abc"):
            continue
        try:
            found.append(hashlib.sha256(Path(inspect.getfile(base)).read_bytes()).hexdigest())
        except (OSError, TypeError):  # typed into a console
            found.append(base.__module__)
    return tuple(found)


def _numerics(device: torch.device) -> tuple[str, str]:
    """Return what decides the low bits of features that other machines read: a cache must not change a result."""
    return device.type, str(torch.__version__)
