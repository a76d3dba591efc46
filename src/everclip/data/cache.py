"""Where everclip keeps what it can make again: `$EVERCLIP_CACHE`, or a folder in the user's cache."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder; it need not exist."""
    given = os.environ.get("EVERCLIP_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "everclip"
