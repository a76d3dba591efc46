"""The side of a sample: by its mark, or by a hash of its id, so that adding data never moves a sample."""

from __future__ import annotations

import math
from typing import Any

from everclip.data.sampling.order import unit_hash
from everclip.data.side_words import Side, side_in
from everclip.data.table import Table


def side_of(mark: Any) -> Side:
    """Return the side that a value of a split column names; unknown values mean `train`."""
    return side_in(mark) or "train"


VALIDATION_SALT = "everclip-validation-v1"
"""Salt of the hash that chooses the validation samples."""


def carve(
    table: Table, share: float, salt: str = VALIDATION_SALT, by: str | None = None
) -> tuple[Table, Table]:
    """Split a table into `(rest, carved)`; a sample is carved if the hash of its image's id falls below `share`.

    Rows that share an `image_id` go to the same side: an image is never trained with one caption and tested with
    another.

    Args:
        table: the samples.
        share: of the images to carve.
        salt: another salt carves other images.
        by: a column whose values decide in place of the image; rows without a value go by their image.
    """
    names = table.identities()
    if by is not None:
        values = table.column(by)
        names = [
            name if value is None or value != value else str(value)
            for name, value in zip(names, values, strict=True)
        ]
    carved = [unit_hash(salt, name) < share for name in names]
    rest = table.select([i for i, out in enumerate(carved) if not out])
    return rest, table.select([i for i, out in enumerate(carved) if out])


def least_share(table: Table, salt: str) -> float | None:
    """Return the smallest round share that carves one image and leaves one; `None` for fewer than two images."""
    hashes = sorted({unit_hash(salt, name) for name in table.identities()})
    if len(hashes) < 2:
        return None
    for digits in range(2, 16):
        scale = math.pow(10, digits)
        share = (math.floor(hashes[0] * scale) + 1) / scale
        if hashes[0] < share <= hashes[-1]:
            return share
    return None
