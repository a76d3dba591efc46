"""Encoding without gradient, always the same way, whatever trains."""

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
_Place = TypeVar("_Place")
Reduce = Callable[[Features], Features]


def device_of(module: HasParameters) -> torch.device:
    """Return where a module's parameters are."""
    return next(module.parameters()).device


@contextmanager
def measuring(method: Encodes) -> Iterator[None]:
    """Encode without gradient, with nothing marked as trainable (whose mode it is is the caller's).

    Torch chooses kernels by what requires a gradient, also where none is computed; without this the same weights
    would give other low bits under another method.
    """
    marked = [p for p in method.parameters() if p.requires_grad]
    for parameter in marked:
        parameter.requires_grad_(False)
    try:
        with torch.inference_mode():
            yield
    finally:
        for parameter in marked:
            parameter.requires_grad_(True)


def decoded(
    batches: Iterable[Sequence[_Place]], decode: Callable[[_Place], torch.Tensor], workers: int
) -> Iterator[torch.Tensor]:
    """Yield batches of pixels `(N, 3, S, S)`, decoded one batch ahead of who takes them.

    Args:
        batches: where the pictures of each batch are.
        decode: makes pixels `(3, S, S)` of one; may be called from several threads.
        workers: threads; 0 decodes when a batch is asked for.
    """
    if workers == 0:
        yield from (torch.stack([decode(place) for place in batch]) for batch in batches)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="everclip-decode")
    waiting: deque[list[Future[torch.Tensor]]] = deque()
    try:
        for batch in batches:
            waiting.append([pool.submit(decode, place) for place in batch])
            if len(waiting) > 1:
                yield torch.stack([one.result() for one in waiting.popleft()])
        while waiting:
            yield torch.stack([one.result() for one in waiting.popleft()])
    finally:  # who stops waits for no more than what is being decoded
        pool.shutdown(cancel_futures=True)


def joined(parts: Sequence[Features]) -> Features:
    """Return features of several parts as one, in their order; a part may lack some."""
    keys = dict.fromkeys(key for part in parts for key in part)
    return {key: torch.cat([part[key] for part in parts if key in part]) for key in keys}


def encode_images(method: Encodes, pixels: torch.Tensor, known_task: int | None = None) -> Features:
    """Return a method's features of pixels `(N, 3, S, S)`, float32 on the CPU."""
    # A method of one's own need not know of tasks that nobody tells it.
    told = {} if known_task is None else {"known_task": known_task}
    with measuring(method):
        found = method.encode_images(pixels.to(device_of(method)), **told)
        return {name: values.float().cpu() for name, values in found.items()}


def encode_texts(method: Encodes, tokens: torch.Tensor) -> Features:
    """Return a method's features of token ids `(N, L)`, float32 on the CPU."""
    with measuring(method):
        found = method.encode_texts(tokens.to(device_of(method)))
        return {name: values.float().cpu() for name, values in found.items()}


def encode_prompts(method: Encodes, texts: Sequence[str], block: int = BLOCK) -> Features:
    """Encode texts with a method, equal texts once.

    Returns:
        Features with leading dimension `len(texts)`, float32 on the CPU.
    """
    unique = list(dict.fromkeys(texts))
    starts = range(0, len(unique), block)
    parts = [encode_texts(method, method.backbone.tokenise(unique[i : i + block])) for i in starts]
    index = {text: i for i, text in enumerate(unique)}
    where = torch.tensor([index[text] for text in texts], dtype=torch.int64)
    return {key: values[where] for key, values in joined(parts).items()}
