"""Which side a sample is on: by a mark, or by a hash of its id, so that adding data never moves a sample."""

from __future__ import annotations

from typing import Any, Literal

from everclip.data.order import unit_hash
from everclip.data.table import Table

Side = Literal["train", "val", "test"]

_MARKS: dict[str, Side] = {
    "test": "test",
    "testing": "test",
    "true": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "holdout": "test",
    "hold-out": "test",
    "hold_out": "test",
    "heldout": "test",
    "held-out": "test",
    "held_out": "test",
    "eval": "test",
    "evaluation": "test",
}


def side_of(mark: Any) -> Side:
    """Return which side a mark of a split column stands for: whatever is no other side is for training."""
    return _MARKS.get(str(mark).strip().lower(), "train")


def carve(table: Table, share: float, salt: str = "everclip-validation-v1") -> tuple[Table, Table]:
    """Split a table into `(rest, carved)`; a sample is carved if the hash of its picture's id falls below `share`.

    Rows that share an `image_id` go to the same side: a picture is never trained on by one caption and tested by
    another.
    """
    carved = [unit_hash(salt, name) < share for name in table.identities()]
    rest = table.select([i for i, out in enumerate(carved) if not out])
    return rest, table.select([i for i, out in enumerate(carved) if out])
