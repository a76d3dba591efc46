"""Folders that everclip writes to or reads models from: can it, and is there room?"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from everclip.files import cache_folder
from everclip.models import hub
from everclip.prepare.doctor.finding import Finding

LITTLE, NOTHING = 2 * 2**30, 100 * 2**20
"""Bytes below which room is noted, and below which it is a failure."""


def check_folders() -> list[Finding]:
    """Write a byte into every folder that runs write to, and look at the room left."""
    return [
        _writable("runs", Path("runs"), "start everclip in another folder, or set output=FOLDER"),
        _writable("everclip's cache", cache_folder(), "set EVERCLIP_CACHE to a folder that can be written"),
        _writable("temporary files", _temporary(), "set TMPDIR to a folder that can be written"),
        _hub(),
    ]


def _temporary() -> Path:
    # tempfile.gettempdir() silently falls back to other folders where TMPDIR cannot be used.
    return Path(os.environ.get("TMPDIR") or tempfile.gettempdir())


def _writable(name: str, folder: Path, remedy: str) -> Finding:
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    text = f"{folder.absolute()}" + ("" if place == folder.absolute() else " (not there yet)")
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Finding(name, "fail", f"{text}: cannot be written ({error.strerror or error})", remedy)
    text += f", {free / 2**30:.1f} GiB free"
    if free < NOTHING:
        return Finding(name, "fail", text, f"make room, or {remedy}")
    if free < LITTLE:
        return Finding(
            name, "note", text, "checkpoint.keep and checkpoint.disk_budget_mb bound what a run takes"
        )
    return Finding(name, "ok", text)


def _hub() -> Finding:
    """The hub's cache is only read; that it is not there is no fault."""
    folder = hub.cache_folder()
    if not folder.exists():
        return Finding(
            "hub cache", "ok", f"{folder} is not there; only models named hf-hub: or by a tag need it"
        )
    try:
        models = sum(1 for entry in folder.iterdir() if entry.name.startswith("models--"))
    except OSError as error:
        remedy = "set HF_HUB_CACHE to a folder that can be read"
        return Finding("hub cache", "fail", f"{folder}: cannot be read ({error.strerror or error})", remedy)
    return Finding("hub cache", "ok", f"{folder}: {models} models")
