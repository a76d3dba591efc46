"""What can go wrong, in words: every error a user meets carries its own exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EverclipError(Exception):
    """Base of all errors that everclip raises on purpose; `exit_code` is what a command returns."""

    exit_code = 1


class ConfigError(EverclipError):
    """A setting, name or path that does not fit. Nothing was started."""

    exit_code = 2


class DataError(EverclipError):
    """Data that cannot be read or does not hold what was promised."""

    exit_code = 3


class RunFolderError(EverclipError):
    """The run folder belongs to another configuration, or another process is at work in it."""

    exit_code = 4


class CheckpointError(EverclipError):
    """No usable checkpoint, or one could not be written (for example: disk full)."""

    exit_code = 5


class DivergedError(EverclipError):
    """The loss became NaN, infinite or exploded; the last good checkpoint is kept."""

    exit_code = 6


class Interrupted(EverclipError):
    """SIGTERM or SIGINT: a checkpoint was written; the same command continues."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: "try again later"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean ...?` for close names, else the list of what exists."""
    name, known = str(name), sorted(set(known))
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(repr(c) for c in close)}?"
    if len(known) > 30:  # a page of names hides the message
        return (
            f" Known: {', '.join(known[:20])} and {len(known) - 20} more (everclip ls shows what has a name)."
        )
    return f" Known: {', '.join(known)}." if known else ""
