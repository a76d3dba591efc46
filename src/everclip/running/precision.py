"""Which number format a run trains in: the one it began with, also when another machine continues it."""

from __future__ import annotations

from pathlib import Path

from everclip.config import RunConfig
from everclip.registry import read_yaml
from everclip.training.precision import chosen_precision, slow_precision
from everclip.training.processes import start_processes
from everclip.training.run_folder import CONFIG

Notes = tuple[tuple[str, str], ...]
"""Pairs of kind and message, as results keep them under `events`."""

KIND = "precision"


def settle_precision(config: RunConfig) -> tuple[RunConfig, Notes]:
    """Replace `training.precision: auto` by a format, and say what people should know about it.

    A run that began keeps the format of its folder's configuration, so that it stays bit-identical on a machine
    where `auto` would take another.

    Returns:
        The configuration with `fp32`, `bf16` or `fp16`, and notes.
    """
    asked, device = config.training.precision, start_processes(config.training).device
    here = chosen_precision(asked, device)
    used = (_recorded(Path(config.output)) or here) if asked == "auto" else asked
    notes = []
    if used != here:
        notes.append(
            f"{used}, as this run began; auto would take {here} on this machine, and numbers of both formats "
            "must not be mixed in one run"
        )
    elif asked == "auto" and used != "fp32":
        notes.append(f"auto took {used} on this GPU; training.precision=fp32 rounds less and is slower")
    slow = slow_precision(used, device)
    if slow is not None:
        notes.append(slow)
    training = config.training.model_copy(update={"precision": used})
    return config.model_copy(update={"training": training}), tuple((KIND, note) for note in notes)


def _recorded(folder: Path) -> str | None:
    """Return the format in the configuration of a run's folder; `None` where no run began."""
    file = folder / CONFIG
    if not file.is_file():
        return None
    training = read_yaml(file).get("training")
    found = training.get("precision") if isinstance(training, dict) else None
    return found if found in ("fp32", "bf16", "fp16") else None
