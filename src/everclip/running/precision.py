"""Chooses the number format of a run: the one it began with, also if another machine continues it."""

from __future__ import annotations

from pathlib import Path

from everclip.config import RunConfig
from everclip.registry import read_yaml
from everclip.training.precision import chosen_precision, slow_precision
from everclip.training.processes import start_processes
from everclip.training.run_folder import CONFIG

Notes = tuple[tuple[str, str], ...]
"""Pairs of kind and message, for `events` in the results."""

KIND = "precision"


def resolve_precision(config: RunConfig) -> tuple[RunConfig, Notes]:
    """Replace `training.precision: auto` by a format, and return notes on it.

    A run that began keeps the format in its folder's configuration, so that it stays bit-identical on a machine
    where `auto` would choose another format.

    Returns:
        The configuration with `fp32`, `bf16` or `fp16`, and notes.
    """
    setting, device = config.training.precision, start_processes(config.training).device
    here = chosen_precision(setting, device)
    used = (_recorded(config.folder) or here) if setting == "auto" else setting
    notes = []
    if used != here:
        notes.append(
            f"{used}, as this run began; auto would choose {here} on this machine, but one run must not mix two "
            "formats"
        )
    elif setting == "auto" and used != "fp32":
        notes.append(f"auto chose {used} on this GPU; training.precision=fp32 is more exact and slower")
    slow = slow_precision(used, device)
    if slow is not None:
        notes.append(slow)
    training = config.training.model_copy(update={"precision": used})
    return config.model_copy(update={"training": training}), tuple((KIND, note) for note in notes)


def _recorded(folder: Path) -> str | None:
    """Return the format in the configuration of a run folder; `None` if no run began there."""
    file = folder / CONFIG
    if not file.is_file():
        return None
    training = read_yaml(file).get("training")
    found = training.get("precision") if isinstance(training, dict) else None
    return found if found in ("fp32", "bf16", "fp16") else None
