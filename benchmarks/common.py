"""Shared by the benchmarks: the machine in words, interleaved timing, tables."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from everclip.training.environment import processor, versions


def cell_options(description: str | None, stream: str, output: Path) -> argparse.ArgumentParser:
    """Return the options of a benchmark whose cells are runs: settings, stream, seeds, folder, tables only.

    Args:
        description: the docstring of the script.
        stream: what `--stream` may be.
        output: the default folder of the cells.
    """
    words = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("settings", nargs="*", help="key=value for all runs")
    words.add_argument("--stream", default="emoji-time", help=stream)
    words.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    words.add_argument("--output", type=Path, default=output)
    words.add_argument(
        "--tables", action="store_true", help="run nothing: the table of the cells that are there"
    )
    return words


def machine() -> str:
    """Return processor, cores, threads and versions in one line."""
    found = versions()
    return (
        f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, "
        f"Python {found['python']}, torch {found['torch']}, open_clip {found['open_clip_torch']}"
    )


def alternate(
    first: Callable[[], None], second: Callable[[], None], rounds: int, warmup: int = 1
) -> tuple[list[float], list[float]]:
    """Time two things in turn (A B, B A, A B...), so that a drifting machine favours neither; seconds per call."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + warmup):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            started = time.perf_counter()
            (first, second)[which]()
            if number >= warmup:
                times[which].append(time.perf_counter() - started)
    return times


def processor_seconds(acts: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the processor seconds of each, in turn forwards and backwards, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in acts}
    for number in range(rounds + 1):
        for name in list(acts) if number % 2 == 0 else list(reversed(acts)):
            started = time.process_time()
            acts[name]()
            if number:
                times[name].append(time.process_time() - started)
    return times


def ratio(baseline: list[float], ours: list[float]) -> tuple[float, float, float]:
    """Return the median of baseline / ours over paired rounds (above 1: ours is faster), with its quartiles."""
    pairs = sorted(b / o for b, o in zip(baseline, ours, strict=True))
    low, _, high = statistics.quantiles(pairs, n=4)
    return statistics.median(pairs), low, high


def table(title: str, rows: list[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """Return a Markdown table with a title and the machine."""
    lines = [f"## {title}", "", f"Machine: {machine()}.", "", "| " + " | ".join(header) + " |"]
    lines.append("|" + "---|" * len(header))
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, ""])
