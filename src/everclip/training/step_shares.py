"""How many samples of each earlier time step a buffer keeps (TiC-CLIP, arXiv 2310.16226, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Rule = Literal["exponential", "equal"]


def kept_volumes(rule: str, sizes: Sequence[int], capacity: float) -> list[float]:
    """Return the number of samples that a buffer keeps of each earlier step; not yet rounded to whole samples.

    With p earlier steps and capacity C: `exponential` gives the i-th `C * 2^-(p - i + 1)` for i >= 2, and the first as
    much as the second (C if it is the only one); so the newest has half of the buffer, and older steps are halved at
    each further step. `equal` gives each `C / p`. No step gets more than it has: what small steps leave stays empty,
    as published. The rules are cited from memory of the paper in the project's specification; the authors' code
    release does not include them.

    Args:
        rule: `exponential` or `equal`.
        sizes: samples that each step has, oldest first.
        capacity: C, in samples.
    """
    steps = len(sizes)
    if rule == "equal":
        wanted = [capacity / steps] * steps
    else:
        halvings = [max(1, steps - max(i, 1)) for i in range(steps)] if steps > 1 else [0]
        wanted = [capacity * 0.5**n for n in halvings]
    return [min(float(size), volume) for size, volume in zip(sizes, wanted, strict=True)]
