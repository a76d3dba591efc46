"""Pictures are decoded ahead by threads: in order, no more than one batch ahead, and errors reach who asked."""

from __future__ import annotations

import threading

import pytest
import torch

from everclip.features.encoding import decoded

BATCHES = [range(3), range(3, 4), range(4, 9)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order_whatever_the_threads(workers: int) -> None:
    found = list(decoded(BATCHES, lambda i: torch.full((2,), float(i)), workers))
    assert [batch[:, 0].tolist() for batch in found] == [[float(i) for i in batch] for batch in BATCHES]
    assert list(decoded([], torch.tensor, workers)) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_than_one_batch_is_decoded_ahead(workers: int) -> None:
    seen: set[int] = set()
    lock = threading.Lock()

    def decode(number: int) -> torch.Tensor:
        with lock:
            seen.add(number)
        return torch.tensor(float(number))

    batches = decoded([range(i, i + 2) for i in range(0, 20, 2)], decode, workers)
    next(batches)
    assert max(seen) <= 3
    next(batches)
    assert max(seen) <= 5
    batches.close()
    assert max(seen) <= 5
    assert not [t for t in threading.enumerate() if t.name.startswith("everclip-decode")]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_picture_that_cannot_be_decoded_stops_who_asked_for_its_batch(workers: int) -> None:
    def decode(number: int) -> torch.Tensor:
        if number == 3:
            raise ValueError("picture 3")
        return torch.tensor(float(number))

    batches = decoded(BATCHES, decode, workers)
    assert next(batches).tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(ValueError, match="picture 3"):
        next(batches)
