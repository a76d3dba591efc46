"""The order of samples in a stream: pure functions of (seed, position).

Nothing here has a state, so a stream can start at any step. This makes resume exact, and gives several processes the
same order as one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt


def key_of(*parts: object) -> int:
    """Return a 128-bit integer that depends on every part and on nothing else."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(*parts: object) -> np.random.Generator:
    """Return a generator whose draws are a function of `parts`; same parts, same draws, on every machine."""
    seed: Any = _Key(key_of(*parts))  # numpy's types know only one kind of seed
    return np.random.Generator(np.random.Philox(seed))


class _Key(np.random.bit_generator.ISeedSequence):
    """The key of a Philox generator, in the form of a seed.

    The draws are those of `Philox(key=...)`, which also asks the system for randomness that it does not use; this takes
    three times as long, and every sample of a batch needs a generator.
    """

    def __init__(self, key: int) -> None:
        self._key = key

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> npt.NDArray[np.uint64]:
        """Return the two words of the key."""
        return np.frombuffer(self._key.to_bytes(16, "little"), "<u8").astype(np.uint64)


def unit_hash(*parts: object) -> float:
    """Return a hash of `parts` in [0, 1); it assigns samples to sides."""
    return (key_of(*parts) >> 75) / float(1 << 53)


@lru_cache(maxsize=64)
def _permutation(size: int, key: str, epoch: int) -> npt.NDArray[np.int64]:
    return generator("order", key, epoch).permutation(size).astype(np.int64)


PLACES = 64
"""Number of places in the data that the samples of one window come from."""


def sample_index(position: int, size: int, order: str, key: str, window: int | None = None) -> int:
    """Return the index of the sample at `position` of an endless stream over `size` samples.

    With a `window`, the table is cut into pieces of `window // PLACES` neighbouring rows. In each epoch the pieces are
    permuted, and then the samples of every `window` positions. The order is as exact as that of a full permutation, but
    the samples of a window lie in `PLACES` places of the files, and memory holds only the last windows and the numbers
    of the pieces.

    Args:
        position: 0-based position in the stream.
        size: number of samples, at least 1.
        order: `shuffle` (a new permutation each epoch), `cycle` or `once` (the order of the table).
        key: of the stream, with the seed.
        window: number of samples that are shuffled at a time; `None`: all.
    """
    epoch, offset = divmod(position, size)
    if order != "shuffle":
        return offset
    if window is None or window >= size:
        return int(_permutation(size, key, epoch)[offset])
    number, inner = divmod(offset, window)
    return int(_window(size, key, epoch, window, number)[inner])


@lru_cache(maxsize=16)  # of each source that is read, the present window and the next
def _window(size: int, key: str, epoch: int, window: int, number: int) -> npt.NDArray[np.int64]:
    """Return the rows of the `number`-th window of an epoch, in order."""
    piece = max(1, window // PLACES)
    pieces = _permutation(-(-size // piece), f"{key}/pieces/{window}", epoch)
    last = piece * len(pieces) - size  # rows that the last piece lacks
    short = int(np.flatnonzero(pieces == len(pieces) - 1)[0])
    at = np.arange(number * window, min((number + 1) * window, size), dtype=np.int64)
    at += np.where(at >= (short + 1) * piece - last, last, 0)  # as if every piece were whole
    which, inner = np.divmod(at, piece)
    return generator("window", key, epoch, window, number).permutation(pieces[which] * piece + inner)


def share(position: int, weights: Sequence[float]) -> tuple[int, int]:
    """Return `(source, position within that source)` for a position in a mixed stream.

    The sources are halved again and again; of two halves, the first takes the positions at which floor(position *
    weight) increases. Fractions keep this exact: after any number of positions each of two sources has had its exact
    share, rounded up or down. With k sources the roundings add up: the share is exact up to less than ceil(log2 k)
    positions.
    """
    sums = _sums(tuple(weights))
    low, high = 0, len(weights)
    while high - low > 1:
        middle = (low + high) // 2
        quota = (sums[middle] - sums[low]) / (sums[high] - sums[low])
        taken = int(position * quota)
        if int((position + 1) * quota) > taken:
            position, high = taken, middle
        else:
            position, low = position - taken, middle
    return low, position


@lru_cache(maxsize=64)
def _sums(weights: tuple[float, ...]) -> tuple[Fraction, ...]:
    """Return the sums of the first 0, 1, 2... weights."""
    # A small weight would be rounded to 0, and its source would never be read.
    exact = (Fraction(weight).limit_denominator(10**6 if weight > 1e-3 else 10**12) for weight in weights)
    return tuple(accumulate(exact, initial=Fraction(0)))
