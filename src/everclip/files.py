"""Writes files atomically: to a temporary name, synced, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from everclip.errors import CheckpointError, ConfigError, EverclipError

log = logging.getLogger(__name__)
_warned: set[str] = set()


def found_in(path: Path, directory: str | None) -> Path:
    """Return a path of a run's settings as this process finds it.

    Args:
        path: relative paths start from the working directory or, if nothing is there, from `directory`.
        directory: the working directory in which the run began; `None`: not known.
    """
    if directory is None or path.is_absolute() or os.path.lexists(path):
        return path
    there = Path(directory) / path
    return there if os.path.lexists(there) else path


def crash_point(name: str) -> None:
    """Mark a point at which tests kill the process. Does nothing else."""


def cache_folder() -> Path:
    """Return the cache folder: `$EVERCLIP_CACHE`, else `everclip` in the user's cache folder."""
    chosen = os.environ.get("EVERCLIP_CACHE")
    if chosen:
        return Path(os.path.expanduser(chosen))
    shared = os.environ.get("XDG_CACHE_HOME")
    if shared:
        return Path(shared) / "everclip"
    try:
        return Path.home() / ".cache" / "everclip"
    except RuntimeError:  # a user without a home folder, as in some containers
        return Path(tempfile.gettempdir()) / f"everclip-{os.getuid()}"


def user_path(given: object, where: str) -> Path:
    """Return a user's path, with `~` expanded.

    Raises:
        ConfigError: for another type, or a path that the system refuses (too long, a NUL, a loop of links).
    """
    if not isinstance(given, str | os.PathLike):
        raise ConfigError(f"{where}: expected a path, found {type(given).__name__}.")
    text = os.fspath(given)
    if not isinstance(text, str) or not text:
        raise ConfigError(f"{where}: expected a path as text, found {text!r}.")
    path = Path(os.path.expanduser(text))  # Path.expanduser raises for a user who does not exist
    try:
        text.encode()
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass  # it may be created later; whoever opens it reports the error
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{where}: {text!a}: the path is not UTF-8; rename its folders and files."
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{where}: {text[:200]!r}: {reason}.") from error
    return path


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that a rename in it survives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn system errors while `path` is written into one clear error.

    Raises:
        CheckpointError: if the disk is full, or the file cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
            raise CheckpointError(
                f"{path}: the disk is full ({free / 1e6:.0f} MB free). What was saved before is intact: make room, "
                "then repeat the command."
            ) from error
        raise CheckpointError(
            f"{path}: cannot be written ({error.strerror or error}). What was saved before is intact."
        ) from error


@contextlib.contextmanager
def optional_write(path: Path, consequence: str) -> Iterator[None]:
    """Continue if `path` cannot be written, with one warning per folder.

    Args:
        path: the file, which is not essential.
        consequence: what is missing without it, in words.
    """
    try:
        yield
    except (OSError, CheckpointError) as error:
        why = error.__cause__ or error  # the system's message, without the rest of a `CheckpointError`
        warn_once(str(path.parent), f"{path.parent}: cannot be written ({why}); {consequence}")


def warn_once(key: str, message: str) -> None:
    """Log a warning, but only the first one of each key."""
    if key not in _warned:
        _warned.add(key)
        log.warning("%s", message)


def require_writable(folder: Path, setting: str, kind: type[EverclipError] = ConfigError) -> None:
    """Check, before the work starts, that a result can be written. Creates nothing.

    Args:
        folder: its folder; if it does not exist, the nearest existing folder above it is tested.
        setting: the setting that named the folder.
        kind: the class of the error.

    Raises:
        EverclipError: if the folder cannot be written to.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        problem = (
            "is no folder" if not existing.is_dir() else f"cannot be written to ({error.strerror or error})"
        )
        raise kind(
            f"{setting}: {existing} {problem}. Choose another {setting}; nothing was started."
        ) from error


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file atomically: readers see the old or the new content, even after a crash.

    Raises:
        CheckpointError: if it cannot be written; the old file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
            sync_and_rename(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # report the first error, not this one
                temporary.unlink(missing_ok=True)


def sync_and_rename(temporary: Path, path: Path) -> None:
    """Sync a temporary file and rename it to `path`."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    crash_point(f"before renaming {path.name}")
    os.replace(temporary, path)
    crash_point(f"after renaming {path.name}")
    sync_folder(path.parent)


def clear_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes from `folder`. Call it only if no other process writes there."""
    for left in folder.glob(".*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """`write_bytes_atomic` for UTF-8 text."""
    write_bytes_atomic(path, text.encode())


@contextlib.contextmanager
def folder_atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` if the block ends without an error.

    Raises:
        CheckpointError: if the disk is full; `path` is unchanged and the temporary folder is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with disk_errors(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            crash_point(f"before syncing {path.name}")
            for inside in sorted(temporary.rglob("*")):
                if inside.is_dir():
                    sync_folder(inside)
                    continue
                with open(inside, "rb") as handle:
                    os.fsync(handle.fileno())
            sync_folder(temporary)
            crash_point(f"before renaming {path.name}")
            os.replace(temporary, path)
            crash_point(f"after renaming {path.name}")
            sync_folder(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
