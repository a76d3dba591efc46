"""Encode without gradients, with the same kernels whatever trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from everclip.contracts import Features
from everclip.interfaces import Encodes, HasParameters

BLOCK = 256
_Image = TypeVar("_Image")
Reduce = Callable[[Features], Features]


def device_of(module: HasParameters) -> torch.device:
    """Return the device of a module's parameters."""
    return next(module.parameters()).device


@contextmanager
def measuring(method: Encodes) -> Iterator[None]:
    """Turn off gradients, and mark no parameter as trainable inside the context; the mode stays as it is.

    torch chooses kernels by `requires_grad`, even if no gradient is computed; without this, the same weights would
    round differently under another method.
    """
    trainable = [p for p in method.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with torch.inference_mode():
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def decoded(
    batches: Iterable[Sequence[_Image]], decode: Callable[[_Image], torch.Tensor], workers: int
) -> Iterator[torch.Tensor]:
    """Yield batches of pixels `(N, 3, S, S)`, decoded one batch ahead.

    Args:
        batches: references to the images of each batch.
        decode: returns pixels `(3, S, S)` of one; may be called from several threads.
        workers: threads; 0 decodes each batch when it is needed.
    """
    if workers == 0:
        yield from (torch.stack([decode(image) for image in batch]) for batch in batches)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="everclip-decode")
    waiting: deque[list[Future[torch.Tensor]]] = deque()
    try:
        for batch in batches:
            waiting.append([pool.submit(decode, image) for image in batch])
            if len(waiting) > 1:
                yield torch.stack([one.result() for one in waiting.popleft()])
        while waiting:
            yield torch.stack([one.result() for one in waiting.popleft()])
    finally:  # a consumer that stops early only waits for images that are already being decoded
        pool.shutdown(cancel_futures=True)


def joined(parts: Sequence[Features]) -> Features:
    """Concatenate the features of several parts in their order; a part may lack some features."""
    keys = dict.fromkeys(key for part in parts for key in part)
    return {key: torch.cat([part[key] for part in parts if key in part]) for key in keys}


def encode_images(method: Encodes, pixels: torch.Tensor, known_task: int | None = None) -> Features:
    """Return a method's features of pixels `(N, 3, S, S)`, float32 on the CPU."""
    # A user's own method may lack the argument `known_task`.
    options = {} if known_task is None else {"known_task": known_task}
    with measuring(method):
        features = method.encode_images(pixels.to(device_of(method)), **options)
        return {name: values.float().cpu() for name, values in features.items()}


def encode_texts(method: Encodes, tokens: torch.Tensor) -> Features:
    """Return a method's features of token ids `(N, L)`, float32 on the CPU."""
    with measuring(method):
        features = method.encode_texts(tokens.to(device_of(method)))
        return {name: values.float().cpu() for name, values in features.items()}


def encode_prompts(method: Encodes, texts: Sequence[str], block: int = BLOCK) -> Features:
    """Encode texts with a method, each distinct text once.

    Returns:
        Features with leading dimension `len(texts)`, float32 on the CPU.
    """
    unique = list(dict.fromkeys(texts))
    starts = range(0, len(unique), block)
    parts = [encode_texts(method, method.backbone.tokenise(unique[i : i + block])) for i in starts]
    index = {text: i for i, text in enumerate(unique)}
    rows = torch.tensor([index[text] for text in texts], dtype=torch.int64)
    return {key: values[rows] for key, values in joined(parts).items()}
