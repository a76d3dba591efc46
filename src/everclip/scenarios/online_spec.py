"""Settings of a stream that is seen once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from everclip.config import Frozen


class OnlineSpec(Frozen):
    """A stream that is seen once, with classes that leak into other parts (i-Blurry, Si-Blurry); seed: `order_seed`.

    Attributes:
        parts: number of parts, T.
        disjoint: percent of the classes that occur in one part only, N.
        leak: percent of the samples of the other classes that go to other parts, M.
        cuts: the classes are divided at `random` positions (Si-Blurry) or in `equal` groups (i-Blurry).
        every: number of samples between two rows of the result, rounded up to a batch; `null`: only ends of parts.
        borders: whether methods are told where a part begins (`visible`), or see one stream (`hidden`).
        draws: `keyed` depends on ids and seed only; `published` draws as the reference code does, by the order of rows.
        remainder: `spread` keeps every class; `drop` leaves out what does not divide equally, as the reference code.
    """

    parts: int = Field(5, ge=1)
    disjoint: float = Field(50.0, ge=0, le=100)
    leak: float = Field(10.0, ge=0, le=100)
    cuts: Literal["random", "equal"] = "random"
    every: int | None = Field(1000, ge=1)
    borders: Literal["hidden", "visible"] = "hidden"
    draws: Literal["keyed", "published"] = "keyed"
    remainder: Literal["spread", "drop"] = "spread"
