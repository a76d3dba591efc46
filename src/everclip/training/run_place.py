"""Where a run folder is: here, or far away. Every command that takes a run takes its URL, too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from everclip.config import RunConfig
from everclip.distributed import is_first, is_first_here, world
from everclip.errors import ConfigError, RunFolderError
from everclip.files import user_path
from everclip.remote.files import Say, open_files
from everclip.training.run_folder import CONFIG
from everclip.urls import is_remote

# What imports torch is imported where it is needed: a report of a run that is here does without.
if TYPE_CHECKING:
    from everclip.training.remote_run import RunCopy


@contextmanager
def working_copy(config: RunConfig, say: Say) -> Iterator[RunCopy | None]:
    """Hold the copy of a run's folder on every machine; `None` where nothing is to be published.

    Args:
        config: of the run.
        say: called with lines for the user.

    Raises:
        RunFolderError: if another process works on the run, or the server does not answer.
    """
    if not is_remote(config.output):
        yield None
        return
    from everclip.training.processes import start_processes
    from everclip.training.remote_run import RunCopy

    processes = start_processes(config.training)
    if not is_first():
        copy = RunCopy(config.output)
        processes.wait_for_everyone()  # until the first process holds the lease, and has published a newer copy
        if is_first_here():
            copy.refresh(published=True)  # the first one goes on from what is published
        processes.wait_for_everyone()
        yield None
        return
    copy = RunCopy(config.output, say)
    with copy.changing("run"):
        problem = copy.publish()
        if problem is not None and world() > 1:  # the other machines would go on from an older state
            raise RunFolderError(problem)
        processes.wait_for_everyone()
        processes.wait_for_everyone()
        yield copy


def local_run(place: str | os.PathLike[str], where: str = "run") -> Path:
    """Return the folder of a run; of one far away, a copy on this machine, brought up to date.

    Args:
        place: a path, or the URL of a run folder.
        where: the argument or setting that holds it, for people.

    Raises:
        ConfigError: for a path that the system refuses, or if there is no run at the URL.
        RunFolderError: if the server does not answer, or refuses.
    """
    if not is_remote(str(place)):
        return user_path(place, where)
    from everclip.training.remote_run import RunCopy

    copy = RunCopy(str(place), where=where)
    copy.refresh()
    if not (copy.folder / CONFIG).is_file():
        raise _no_run(str(place))
    return copy.folder


def _no_run(url: str) -> ConfigError:
    return ConfigError(f"{url}: holds no run (there is no {CONFIG}).")


@contextmanager
def changed_run(place: str | os.PathLike[str], verb: str) -> Iterator[Path]:
    """Give a run folder in which files are changed; of one far away, a copy that is published at the end.

    Args:
        place: a path, or the URL of a run folder.
        verb: what is done, for others.

    Raises:
        ConfigError: for a path that the system refuses, or if there is no run at the URL.
        RunFolderError: if another process works on the run, or the server does not answer.
    """
    if not is_remote(str(place)):
        yield user_path(place, verb)
        return
    url = str(place).rstrip("/")
    if not is_run_far_away(url, verb):  # before a lease is written there
        raise _no_run(url)
    from everclip.training.remote_run import RunCopy

    copy = RunCopy(url, where=verb)
    with copy.changing(verb):
        yield copy.folder


def is_run_far_away(url: str, where: str = "model") -> bool:
    """Whether a run folder, or a saved learner, lies at a URL.

    Args:
        url: of the folder.
        where: the argument or setting that holds it, for people.

    Raises:
        RunFolderError: if the server does not answer, or refuses.
    """
    try:
        open_files(url, what="run folder", given_as=where).read(CONFIG)
    except FileNotFoundError:
        return False
    return True
