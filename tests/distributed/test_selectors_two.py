"""Two processes fit the selectors that one process fits, and both hold the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pair

METHOD = f"method={Path(__file__).parent.parent / 'unit' / 'routed.py'}:Routed"
SHORT = (METHOD, "scenario.per_task=3", "evaluation.examples=0", "evaluation.batch_size=5")
VARIANTS = {
    "autoencoder": "{kind: autoencoder, steps: 4}",
    "gaussian": "{kind: gaussian}",
    "energy": "{kind: energy}",
}


def test_two_processes_fit_the_selector_that_one_fits(micro_config: Callable[..., Any]) -> None:
    def config(name: str, output: str) -> Any:
        return micro_config("classes", *SHORT, f"method.selector={VARIANTS[name]}", output=output)

    both = pair.Pair(*[(pair.whole_run, (config(n, f"two {n}"),)) for n in VARIANTS]).results()
    for name, (first, second) in zip(VARIANTS, both, strict=True):
        one = pair.whole_run(config(name, f"one {name}"))
        assert all((second["weights"][k] == v).all() for k, v in first["weights"].items()), name
        assert first["values"] == second["values"] == one["values"], name
        for key, values in one["weights"].items():
            # Training amplifies what rounding differs by; sums do not.
            close = 2e-3 if ".networks." in key or "limits" in key else 1e-5
            assert np.allclose(first["weights"][key], values, rtol=close, atol=close), (name, key)
