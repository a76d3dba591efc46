"""A run folder: one process at a time, one fixed configuration, and a log that can be rewound."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from everclip.config import RunConfig, validated
from everclip.errors import EverclipError, RunFolderError
from everclip.files import clear_leftovers, disk_errors, write_text_atomic
from everclip.registry import read_yaml

CONFIG, LOG, LOCK = "config.yaml", "metrics.jsonl", ".lock"

MAY_GROW = ("benchmark:", "scenario.")
"""Settings that may differ when a run is extended; the data themselves show whether earlier tasks are unchanged."""

MUST_STAY = ("scenario.protocols:",)
"""Exceptions, because the data do not show them: rows would be measured in different ways."""


def remembering(config: RunConfig) -> RunConfig:
    """Return the configuration with the directory in which its run began: that of the run folder, else this one."""
    if config.directory is not None:
        return config
    file = config.folder / CONFIG
    began = read_yaml(file).get("directory") if file.is_file() else None
    return config.model_copy(update={"directory": began or os.getcwd()})


class RunFolder:
    """Lock a run folder while it is open (a context manager).

    Args:
        path: the folder; created if it does not exist.
        config: the run's configuration.
        owner: whether this process writes (the first of several).
        extend: whether the scenario may have grown since the run began; `adopt` then stores the new one.

    Raises:
        RunFolderError: if another process uses the folder, or it belongs to another configuration.
    """

    def __init__(self, path: Path, config: RunConfig, owner: bool = True, extend: bool = False) -> None:
        self.path, self._owner, self._place = path, owner, config.output
        self._lock: IO[str] | None = None
        if not owner:
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"output: {path} cannot be created ({error.strerror}). Choose another output=."
            ) from error
        self._take_lock()
        for part in (path, path / "rows", path / "examples"):
            clear_leftovers(part)
        try:
            self._check_config(config, extend)
        except EverclipError:
            self.__exit__()
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            self._lock.close()  # this releases the lock, as does the end of a killed process
            self._lock = None

    def _take_lock(self) -> None:
        if not os.access(self.path, os.W_OK):
            raise RunFolderError(f"output: {self.path} cannot be written to. Choose another output=.")
        lock = open(self.path / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - held open for as long as the run
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise RunFolderError(
                f"{self._place}: another process uses this run folder (process {holder}). Wait for it, stop it, or "
                "choose another output."
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _check_config(self, config: RunConfig, extend: bool) -> None:
        file = self.path / CONFIG
        stored = validated(RunConfig, read_yaml(file), str(file)).identity() if file.is_file() else None
        if stored is None:
            self.adopt(config)
            return
        changes = differences(stored, config.identity())
        if extend:
            changes = [
                line for line in changes if line.startswith(MUST_STAY) or not line.startswith(MAY_GROW)
            ]
        if changes:
            listed = "\n".join(f"  {line}" for line in changes)
            raise RunFolderError(
                f"{self._place}: this run folder belongs to another configuration:\n{listed}\nUse the same "
                "settings to continue it, or choose another output=."
                + ("" if extend else " To learn tasks that were added to the scenario, use --extend.")
            )
        if not extend:
            self.adopt(config)

    def adopt(self, config: RunConfig) -> None:
        """Store a configuration as that of the run."""
        if self._owner:
            document = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
            file = self.path / CONFIG
            if not file.is_file() or file.read_bytes() != document.encode():
                write_text_atomic(file, document)

    # -- log --------------------------------------------------------------------------------------------------

    def rewind_log(self, size: int) -> None:
        """Truncate the log to its size at the checkpoint, so that repeated steps are not logged twice."""
        file = self.path / LOG
        if self._owner and file.is_file() and file.stat().st_size > size:
            os.truncate(file, size)

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append one line of JSON to the log."""
        if self._owner:
            file_name = self.path / LOG
            with disk_errors(file_name), open(file_name, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def log_size(self) -> int:
        """Sync the log to disk and return its size in bytes."""
        file = self.path / LOG
        if not file.is_file():
            return 0
        with disk_errors(file), open(file, "rb") as handle:
            os.fsync(handle.fileno())
            return os.fstat(handle.fileno()).st_size


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return the differences between two configurations as `key: old -> new`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        return [
            d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))
        ]
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]
