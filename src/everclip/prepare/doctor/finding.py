"""A finding of `everclip doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "fail"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: what was checked.
        state: `ok`, `note` (works, but could be better) or `fail`.
        found: what was found, in words.
        remedy: what to do; never empty for a failure.
    """

    name: str
    state: State
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.state == "fail" and not self.remedy:
            raise ValueError(f"{self.name}: a failure needs a remedy")
