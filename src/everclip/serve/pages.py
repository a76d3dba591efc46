"""The pages that a version's folder holds: its diagnosis, and its blind pairs if somebody wrote them there."""

from __future__ import annotations

from pathlib import Path

from everclip.errors import ConfigError
from everclip.store.versions import Store

PAGES = {"diagnosis": "diagnosis.html", "blind-pairs": "blind-pairs.html"}
"""Name in the path -> file in the version's folder."""

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'"
)
"""These pages have styles and images inside and no script; none would run."""


def page_names(store: Store, version: str) -> list[str]:
    """Return the names of the pages that a version has."""
    return [name for name in PAGES if page_file(store, version, name) is not None]


def page_file(store: Store, version: str, name: str) -> Path | None:
    """Return the file of a page; `None` if there is none. A link that leads out of the folder is none."""
    if name not in PAGES:
        return None
    try:
        folder = store.folder(version)
    except ConfigError:
        return None
    path = folder / PAGES[name]
    inside = path.resolve().is_relative_to(folder.resolve())
    return path if inside and path.is_file() else None
