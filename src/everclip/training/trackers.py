"""Experiment trackers (TensorBoard, Weights & Biases, MLflow...) through accelerate, in addition to `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everclip.config import RunConfig
from everclip.errors import ConfigError, did_you_mean
from everclip.files import warn_once


class Trackers:
    """The trackers of a configuration; none for `config=None`.

    Raises:
        ConfigError: for an unknown tracker, or one whose package is not installed.
    """

    def __init__(self, config: RunConfig | None) -> None:
        self._open: list[Any] = []
        if config is None or not config.trackers:
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        for name in config.trackers:
            if name not in LOGGER_TYPE_TO_CLASS:
                raise ConfigError(
                    f"trackers: {name!r} is not known.{did_you_mean(name, LOGGER_TYPE_TO_CLASS)}"
                )
            kind = LOGGER_TYPE_TO_CLASS[name]
            folder = config.folder / "trackers"
            options = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
            try:
                tracker = kind(config.folder.name, **options)
                tracker.start()
                tracker.store_init_configuration(
                    {"benchmark": config.benchmark, "method": config.method.name}
                )
                self._open.append(tracker)
            except OSError as error:
                warn_once(
                    name,
                    f"trackers: {name}: {folder} cannot be written ({error}); the run continues without it",
                )
            except ImportError as error:
                raise ConfigError(
                    f"trackers: {name} needs its package: pip install everclip[track] ({error})."
                ) from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers at a step."""
        for tracker in list(self._open):
            try:
                tracker.log(dict(values), step=step)
            except OSError as error:
                self._open.remove(tracker)
                warn_once(tracker.name, f"trackers: {tracker.name}: {error}; the run continues without it")

    def finish(self) -> None:
        """Flush and close."""
        for tracker in self._open:
            try:
                tracker.finish()
            except OSError as error:
                warn_once(
                    f"{tracker.name} end",
                    f"trackers: {tracker.name}: {error}; the end of its record is missing",
                )
        self._open = []
