"""The provenance of a result: versions, hardware, threads, state of the source tree."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from everclip.distributed import world

PACKAGES = (
    "everclip",
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "accelerate",
    "safetensors",
    "numpy",
    "pillow",
    "pyarrow",
)


def versions() -> dict[str, str]:
    """Return the versions that influence the rounding of a result."""
    return dict(_versions())


@cache  # they stay while a process lives, and a run asks at every row
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def fixed(device: str) -> dict[str, Any]:
    """Return the properties that must not change for a bit-identical resume; `device` as torch writes it."""
    return {
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),  # vector width decides the order of sums
        "device": torch.cuda.get_device_name(device)
        if device.startswith("cuda")
        else device.removesuffix(":0"),
        "processes": world(),  # decides the order of sums over a batch, and what dropout drops
    }


def describe(device: str) -> dict[str, Any]:
    """Return the provenance fields that describe the machine and the sources."""
    return {
        **fixed(device),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else processor(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "git": None if (state := _git()) is None else dict(state),
        "command": " ".join([_program(sys.argv[0]), *sys.argv[1:]]),
    }


def _program(path: str) -> str:
    """Return the program of a command line; `python -m everclip` is the command `everclip`."""
    found = Path(path)
    return found.parent.name if found.name == "__main__.py" else found.name


WATTS_PER_THREAD, WATTS_PER_GPU = 10.0, 500.0
"""Assumed power in watts, only for an order of magnitude; nothing is measured."""


def consumption(stages: Mapping[str, float], device: str) -> dict[str, Any]:
    """Return seconds by stage, the peak memory of this process, and an estimate of the energy with its assumption.

    Memory is that of the host; on a GPU also the device memory that torch allocated.
    """
    seconds = sum(stages.values())
    watts = WATTS_PER_GPU if device.startswith("cuda") else WATTS_PER_THREAD * torch.get_num_threads()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": {name: round(value, 3) for name, value in stages.items()},
        "seconds_total": round(seconds, 3),
        "peak_memory_mb": round(peak, 1),
        **_device_memory(device),
        "energy_wh": round(seconds * watts / 3600, 3),
        "energy_assumption": f"estimated: {watts:g} W during the run, not measured",
    }


def _device_memory(device: str) -> dict[str, float]:
    if not device.startswith("cuda"):
        return {}
    return {"peak_device_memory_mb": round(torch.cuda.max_memory_allocated(device) / 2**20, 1)}


def processor() -> str:
    """Return the processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache  # a process runs the sources that it has imported, also when they change later
def _git() -> dict[str, Any] | None:
    """Return commit and number of changed files of everclip's source tree; `None` for an installed package."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, timeout=10, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        return (
            {"commit": commit, "changed_files": len(git("status", "--porcelain").splitlines())}
            if commit
            else None
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
