"""The draws of a key."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from everclip.data.sampling.order import generator, key_of, share


@pytest.mark.parametrize("parts", [(), (0,), ("run", 3, "sample"), ("order", "0/train", 7)])
def test_draws_are_those_of_philox_with_this_key(parts: tuple[object, ...]) -> None:
    expected = np.random.Generator(np.random.Philox(key=key_of(*parts)))
    for found in (generator(*parts), copy.deepcopy(generator(*parts))):
        one, two = found.bit_generator.state, copy.deepcopy(expected).bit_generator.state
        for name in ("key", "counter"):
            assert np.array_equal(one["state"][name], two["state"][name])
        assert (one["buffer_pos"], one["has_uint32"]) == (two["buffer_pos"], two["has_uint32"])
        assert np.array_equal(found.random(12), copy.deepcopy(expected).random(12))
    assert np.array_equal(generator(*parts).permutation(1000), expected.permutation(1000))


def test_a_source_with_a_tiny_share_is_read() -> None:
    """A hundred samples beside some hundred millions: rounded to millionths, their share was nothing."""
    weights = [1 - 2e-7, 2e-7]
    assert [share(p, weights) for p in (0, 1, 5_000_000, 5_000_001)] == [
        (1, 0),
        (0, 0),
        (0, 4_999_999),
        (1, 1),
    ]
