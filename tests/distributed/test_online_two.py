"""Two processes learn a stream that is seen once as one does: the classes of the whole batch, every sample once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pair
import pytest

SETTINGS = (
    "method=sit",
    "method.trainable=[{adapter: {shared: true, width: 3}}]",
    # Three stored samples beside four new ones: the two processes have three and four.
    "method.replay={kind: reservoir, size: 3}",
    "training.optimiser=sgd",
    "training.momentum=0",
    "training.lr=0.1",
    "training.clip_norm=null",
    "training.weight_decay=0",
    "scenario.online.every=null",
    "scenario.online.parts=2",
    "evaluation.examples=0",
)


@pytest.mark.slow
def test_two_processes_learn_a_stream_as_one_does(micro_config: Callable[..., Any]) -> None:
    alone = pair.whole_run(micro_config("online", *SETTINGS, output="one"))
    two = pair.Pair((pair.whole_run, (micro_config("online", *SETTINGS, output="two"),)))
    ((first, second),) = two.results()
    moved = 0.0
    for name, weights in alone["weights"].items():
        assert np.array_equal(first["weights"][name], second["weights"][name])
        assert np.allclose(first["weights"][name], weights, atol=2e-5), name
        moved = max(moved, float(np.abs(weights).max()) if ".up." in name else 0.0)
    assert moved > 1e-3  # the adapters, which start at 0, learned
    assert first["buffer"] == second["buffer"] == alone["buffer"]
    for row, of_pair in zip(alone["values"], first["values"], strict=True):
        assert [value is None for value in row] == [value is None for value in of_pair]
        assert of_pair[-1] == pytest.approx(row[-1], abs=0.2)
