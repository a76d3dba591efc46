"""The error of an image that cannot be used, and the largest file that is read."""

from __future__ import annotations

from everclip.errors import DataError

MAX_BYTES = 256 * 1024 * 1024
"""An encoded image larger than this is not read."""


class PictureError(DataError):
    """An image that cannot be used; `reason` is a key of `everclip.data.reading.quarantine.REASONS`."""

    def __init__(self, message: str, reason: str, detail: str) -> None:
        super().__init__(message)
        self.reason, self.detail = reason, detail
