"""Files that are there whole or not at all: written aside, synced, renamed."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from everclip.errors import CheckpointError, ConfigError, EverclipError

log = logging.getLogger(__name__)
_warned: set[str] = set()


def crash_point(name: str) -> None:
    """A place where tests kill the process; does nothing."""


def cache_folder() -> Path:
    """Return the folder of what can be made again: `$EVERCLIP_CACHE`, else `everclip` in the user's cache folder."""
    chosen = os.environ.get("EVERCLIP_CACHE")
    if chosen:
        return Path(os.path.expanduser(chosen))
    shared = os.environ.get("XDG_CACHE_HOME")
    if shared:
        return Path(shared) / "everclip"
    try:
        return Path.home() / ".cache" / "everclip"
    except RuntimeError:  # a container's user without a home
        return Path(tempfile.gettempdir()) / f"everclip-{os.getuid()}"


def user_path(given: object, where: str) -> Path:
    """Return a path that a user gave, `~` expanded.

    Raises:
        ConfigError: for what is no path, or one that the system refuses (too long, a NUL, a loop of links).
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
        pass  # to be made, or said by who opens it
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{where}: {text!a}: the path is not UTF-8; rename its folders and files."
        ) from error
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise ConfigError(f"{where}: {text[:200]!r}: {said}.") from error
    return path


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the system says while `path` is written into one clear error.

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
                "then give the same command again."
            ) from error
        raise CheckpointError(
            f"{path}: cannot be written ({error.strerror or error}). What was saved before is intact."
        ) from error


@contextlib.contextmanager
def optional_write(path: Path, consequence: str) -> Iterator[None]:
    """Let the work go on where `path` cannot be written; said once for its folder.

    Args:
        path: the file, which nobody needs to go on.
        consequence: what is missing then, in words.
    """
    try:
        yield
    except (OSError, CheckpointError) as error:
        why = error.__cause__ or error  # what the system said, without what else a `CheckpointError` says
        warn_once(str(path.parent), f"{path.parent}: cannot be written ({why}); {consequence}")


def warn_once(key: str, message: str) -> None:
    """Log a warning, but only the first of a key."""
    if key not in _warned:
        _warned.add(key)
        log.warning("%s", message)


def require_writable(folder: Path, setting: str, kind: type[EverclipError] = ConfigError) -> None:
    """Check before the work starts that its result can be written; makes nothing.

    Args:
        folder: where it will be; the nearest folder above it that exists is tried.
        setting: what named it.
        kind: of the error.

    Raises:
        EverclipError: if it cannot be.
    """
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        what = "is no folder" if not place.is_dir() else f"cannot be written to ({error.strerror or error})"
        raise kind(f"{setting}: {place} {what}. Choose another {setting}; nothing was started.") from error


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old or the new content, also after a crash.

    Raises:
        CheckpointError: if it cannot be written; the old file is untouched.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb") as file:
                file.write(data)
            sync_and_rename(aside, path)
        finally:
            with contextlib.suppress(OSError):  # the error that led here is the one to tell
                aside.unlink(missing_ok=True)


def sync_and_rename(aside: Path, path: Path) -> None:
    """Sync a file that was written aside and rename it to `path`."""
    with open(aside, "rb") as file:
        os.fsync(file.fileno())
    crash_point(f"before renaming {path.name}")
    os.replace(aside, path)
    crash_point(f"after renaming {path.name}")
    sync_folder(path.parent)


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed process left half written in `folder`; call it only where no other process writes."""
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
    """Yield a temporary folder that becomes `path` when the block ends without an error.

    Raises:
        CheckpointError: if the disk is full; `path` is untouched and the temporary folder is removed.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    with disk_errors(path):
        try:
            aside.mkdir(parents=True)
            yield aside
            crash_point(f"before syncing {path.name}")
            for file in sorted(aside.iterdir()):
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
            sync_folder(aside)
            crash_point(f"before renaming {path.name}")
            os.replace(aside, path)
            crash_point(f"after renaming {path.name}")
            sync_folder(path.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
