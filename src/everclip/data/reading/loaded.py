"""The result of reading a data block."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from everclip.data.reading.quarantine import Quarantine
from everclip.data.table import Table


@dataclass(frozen=True)
class Loaded:
    """The result of reading.

    Attributes:
        table: the usable samples in canonical columns.
        quarantine: the unusable rows, with reasons.
        columns: canonical names to columns of the source, as given or guessed.
        guesses: one line per guess, for people.
        facts: per row of `table`: `width`, `height` (upright, in pixels), `bytes`, `mode`, `format`, `frames`, `dhash`
            (64-bit difference hash), `sha256`, `span`, `background` and `blank`.
    """

    table: Table
    quarantine: Quarantine
    columns: dict[str, str]
    guesses: tuple[str, ...]
    facts: pa.Table
