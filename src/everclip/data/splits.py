"""Splits by hash of the sample id, so that adding data never moves a sample from one side to the other."""

from __future__ import annotations

from everclip.data.order import unit_hash
from everclip.data.table import Table


def carve(table: Table, share: float, salt: str = "everclip-validation-v1") -> tuple[Table, Table]:
    """Split a table into `(rest, carved)`; a sample is carved if the hash of its picture's id falls below `share`.

    Rows that share an `image_id` go to the same side: a picture is never trained on by one caption and tested by
    another.
    """
    carved = [unit_hash(salt, name) < share for name in table.identities()]
    rest = table.select([i for i, out in enumerate(carved) if not out])
    return rest, table.select([i for i, out in enumerate(carved) if out])
