"""Checks the folders that everclip writes to or reads models from: permissions and free space."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from everclip.files import cache_folder
from everclip.models import hub
from everclip.prepare.doctor.finding import Finding

LOW_SPACE, NO_SPACE = 2 * 2**30, 100 * 2**20
"""Free bytes below which a note is made, and below which it is a failure."""


def check_folders() -> list[Finding]:
    """Write a byte into every folder that runs write to, and check its free space."""
    return [
        _writable("runs", Path("runs"), "run everclip in another folder, or set output=FOLDER"),
        _writable("everclip's cache", cache_folder(), "set EVERCLIP_CACHE to a writable folder"),
        _writable("temporary files", _temporary_folder(), "set TMPDIR to a writable folder"),
        _hub(),
    ]


def _temporary_folder() -> Path:
    # tempfile.gettempdir() silently uses other folders if TMPDIR is not usable.
    return Path(os.environ.get("TMPDIR") or tempfile.gettempdir())


def _writable(name: str, folder: Path, remedy: str) -> Finding:
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    text = f"{folder.absolute()}" + ("" if existing == folder.absolute() else " (does not exist yet)")
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"x")
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return Finding(name, "fail", f"{text}: cannot be written ({error.strerror or error})", remedy)
    text += f", {free / 2**30:.1f} GiB free"
    if free < NO_SPACE:
        return Finding(name, "fail", text, f"free some space, or {remedy}")
    if free < LOW_SPACE:
        return Finding(
            name, "note", text, "checkpoint.keep and checkpoint.disk_budget_mb limit the space of a run"
        )
    return Finding(name, "ok", text)


def _hub() -> Finding:
    """Check the hub's cache, which is only read; it may be missing."""
    folder = hub.cache_folder()
    if not folder.exists():
        return Finding(
            "hub cache", "ok", f"{folder} does not exist; only models named hf-hub: or by a tag need it"
        )
    try:
        models = sum(1 for entry in folder.iterdir() if entry.name.startswith("models--"))
    except OSError as error:
        remedy = "set HF_HUB_CACHE to a readable folder"
        return Finding("hub cache", "fail", f"{folder}: cannot be read ({error.strerror or error})", remedy)
    return Finding("hub cache", "ok", f"{folder}: {models} models")
