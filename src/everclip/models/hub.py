"""Models in the Hugging Face hub's cache folder, found without a network.

The layout is the hub's own: `models--ORG--NAME/refs/REVISION` holds a commit, `snapshots/COMMIT/` its files.
Nothing is ever downloaded. If a model is missing, the error gives the command that fetches it.
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
    """The files of one commit of a repository; `notes` lists assumptions."""

    repository: str
    commit: str
    folder: Path
    notes: tuple[str, ...] = ()


def cache_folder() -> Path:
    """Return the hub's cache folder, from the environment variables that the hub's own library reads."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    try:
        return Path(home).expanduser() / "hub"
    except RuntimeError:  # a user without a home folder (in a container) has no cache
        return Path("/nonexistent") / "hub"


def fetch_command(repository: str, revision: str | None = None, file: str = "") -> str:
    """Return the command that downloads a model into the cache, on a machine with a network.

    Args:
        repository: `ORG/NAME`.
        revision: a branch, tag or commit.
        file: the weights file, if its name is not one of open_clip's.
    """
    # Without patterns, the same weights would be downloaded four times, in the layouts of four libraries.
    patterns = ("open_clip*", *([file] if file else []), "*.json", "*.txt", "*.model")
    includes = " ".join(f'--include "{pattern}"' for pattern in patterns)
    return f"hf download {repository}" + (f" --revision {revision}" if revision else "") + f" {includes}"


def repository_folder(repository: str) -> Path:
    """Return the folder of a repository in the cache."""
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
        The snapshot, or a description of what is missing and where the search was.
    """
    folder = repository_folder(repository)
    if not folder.is_dir():
        return f"there is no folder {folder}"
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        return f"{revision!r} is not a valid name of a revision"
    commits = sorted(p.name for p in (folder / "snapshots").glob("*") if p.is_dir())
    commit, note = _commit(folder, revision, commits)
    if commit is None or commit not in commits:
        wanted = commit or revision or "main"
        return f"{folder} has no snapshot of {wanted} (it has {', '.join(commits) or 'none'})"
    notes = (note,) if note else ()
    return Snapshot(repository, commit, folder / "snapshots" / commit, notes)


def _commit(folder: Path, revision: str | None, commits: list[str]) -> tuple[str | None, str | None]:
    """Return the commit of a revision, and a note on what was assumed."""
    reference = folder / "refs" / (revision or "main")
    if reference.is_file():
        commit = reference.read_text(encoding="utf-8").strip()
        pin = f"{reference.name} of {folder.name.removeprefix('models--').replace('--', '/')} is {commit}"
        return commit, f"revision: {pin}; it is not pinned (add @{commit[:12]} to the name)"
    if revision is None:
        if len(commits) != 1:
            return None, None
        return commits[0], f"revision: the cache names no main branch; its only snapshot {commits[0]} is used"
    matches = [c for c in commits if c == revision or (len(revision) >= 7 and c.startswith(revision))]
    return (matches[0] if len(matches) == 1 else None), None
