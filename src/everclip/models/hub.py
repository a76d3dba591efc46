"""Models in the Hugging Face hub's cache folder, found without a network.

The layout is the hub's own: `models--ORG--NAME/refs/REVISION` holds a commit, `snapshots/COMMIT/` its files.
Nothing is ever downloaded: what is missing is said together with the command that fetches it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_REVISION = re.compile(r"[\w-][\w./-]*", re.ASCII)


@dataclass(frozen=True)
class Snapshot:
    """The files of one commit of a repository; `notes` say what was assumed to find it."""

    repository: str
    commit: str
    folder: Path
    notes: tuple[str, ...] = ()


def cache_folder() -> Path:
    """Return the hub's cache folder, from the variables that the hub's own library reads."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    try:
        return Path(home).expanduser() / "hub"
    except RuntimeError:  # a container's user without a home has no cache
        return Path("/nonexistent") / "hub"


def fetch_command(repository: str, revision: str | None = None, file: str = "") -> str:
    """Return the command that puts a model into the cache, to be run where there is a network.

    Args:
        repository: `ORG/NAME`.
        revision: a branch, tag or commit.
        file: weights of another name than open_clip's own.
    """
    # Without patterns the same weights would come four times, in the layouts of four libraries.
    patterns = ("open_clip*", *([file] if file else []), "*.json", "*.txt", "*.model")
    includes = " ".join(f'--include "{pattern}"' for pattern in patterns)
    return f"hf download {repository}" + (f" --revision {revision}" if revision else "") + f" {includes}"


def repository_folder(repository: str) -> Path:
    """Return where the cache keeps a repository."""
    return cache_folder() / f"models--{repository.replace('/', '--')}"


def is_repository(name: str) -> bool:
    """Return whether `name` could be a repository: `NAME` or `ORG/NAME`."""
    return _REPOSITORY.fullmatch(name) is not None and ".." not in name


def find_snapshot(repository: str, revision: str | None = None) -> Snapshot | str:
    """Find a repository in the cache.

    Args:
        repository: `ORG/NAME`.
        revision: a branch, tag, commit or unique beginning of a commit; default `main`.

    Returns:
        The snapshot, or in words what is missing and where it was looked for.
    """
    folder = repository_folder(repository)
    if not folder.is_dir():
        return f"there is no folder {folder}"
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        return f"{revision!r} is no revision's name"
    there = sorted(p.name for p in (folder / "snapshots").glob("*") if p.is_dir())
    commit, note = _commit(folder, revision, there)
    if commit is None or commit not in there:
        wanted = commit or revision or "main"
        return f"{folder} has no snapshot of {wanted} (it has {', '.join(there) or 'none'})"
    notes = (note,) if note else ()
    return Snapshot(repository, commit, folder / "snapshots" / commit, notes)


def _commit(folder: Path, revision: str | None, there: list[str]) -> tuple[str | None, str | None]:
    reference = folder / "refs" / (revision or "main")
    if reference.is_file():
        commit = reference.read_text(encoding="utf-8").strip()
        pin = f"{reference.name} of {folder.name.removeprefix('models--').replace('--', '/')} is {commit}"
        return commit, f"revision: {pin}; it is not pinned (add @{commit[:12]} to the name)"
    if revision is None:
        if len(there) != 1:
            return None, None
        return there[0], f"revision: the cache names no main branch; its only snapshot {there[0]} is used"
    matches = [c for c in there if c == revision or (len(revision) >= 7 and c.startswith(revision))]
    return (matches[0] if len(matches) == 1 else None), None
