"""Checks environment variables that affect everclip."""

from __future__ import annotations

import os

from everclip.prepare.doctor.finding import Finding
from everclip.prepare.doctor.machine import usable_cores

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
SHOWN = (
    *THREADS,
    *LAUNCHED,
    "CUDA_VISIBLE_DEVICES",
    "EVERCLIP_CACHE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "TMPDIR",
    "XDG_CACHE_HOME",
)


def check_variables() -> list[Finding]:
    """Check variables of threads, devices, launchers and caches."""
    found = [f for name in THREADS if (f := _threads(name)) is not None]
    found += [f for f in (_launched(), _hidden()) if f is not None]
    set_here = ", ".join(f"{name}={os.environ[name]}" for name in SHOWN if name in os.environ)
    return [*found, Finding("variables", "ok", set_here or "none of them is set")]


def _threads(name: str) -> Finding | None:
    value = os.environ.get(name)
    if value is None:
        return None
    first = value.split(",")[0].strip()
    if not first.isdecimal() or int(first) == 0:
        remedy = f"unset {name}, or set it to a number of threads: {name}={usable_cores()}"
        return Finding(name, "fail", f"{value!r} is not a number of threads", remedy)
    if int(first) > usable_cores():
        return Finding(name, "note", f"{value}, with {usable_cores()} cores", f"{name}={usable_cores()}")
    return None


def _launched() -> Finding | None:
    """Find leftover variables of a launcher: a single process would wait for others that never start."""
    present = {name: os.environ[name] for name in LAUNCHED if name in os.environ}
    if present.get("WORLD_SIZE", "1") in ("", "1"):
        return None
    text = ", ".join(f"{name}={value}" for name, value in present.items())
    return Finding(
        "launcher",
        "fail",
        f"{text}: these say that this process is one of {present['WORLD_SIZE']}",
        f"start everclip with accelerate launch or torchrun, or: unset {' '.join(present)}",
    )


def _hidden() -> Finding | None:
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Finding(
            "CUDA_VISIBLE_DEVICES", "note", "hides every GPU", "unset CUDA_VISIBLE_DEVICES to use them"
        )
    return None
