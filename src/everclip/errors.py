"""The errors that users see; each has its own exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EverclipError(Exception):
    """Base of all errors that everclip raises on purpose; `exit_code` is the exit code of the command."""

    exit_code = 1


class ConfigError(EverclipError):
    """An invalid setting, name or path. Nothing was started."""

    exit_code = 2


class DataError(EverclipError):
    """Data that cannot be read, or lack something that is needed."""

    exit_code = 3


class RunFolderError(EverclipError):
    """The run folder belongs to another configuration, or another process works in it."""

    exit_code = 4


class CheckpointError(EverclipError):
    """No checkpoint can be used, or one cannot be written (for example: the disk is full)."""

    exit_code = 5


class DivergedError(EverclipError):
    """The loss is NaN, infinite or too large; the last good checkpoint is kept."""

    exit_code = 6


class ProcessLostError(EverclipError):
    """Another of several processes ended, so that this one cannot go on; the last good checkpoint is kept."""

    exit_code = 7


class LimitError(EverclipError):
    """A number breaks a limit that the user set; everything was measured and written."""

    exit_code = 8


class Interrupted(EverclipError):
    """A run stopped by SIGTERM or SIGINT: a checkpoint is written, and the same command continues the run."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: "try again later"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean ...?` if there are similar names, else the known names."""
    name, known = str(name), sorted(set(known))
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(repr(c) for c in close)}?"
    if len(known) > 30:  # a page of names would hide the message
        return (
            f" Known: {', '.join(known[:20])} and {len(known) - 20} more (everclip ls shows what has a name)."
        )
    return f" Known: {', '.join(known)}." if known else ""
