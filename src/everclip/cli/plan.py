"""`--dry-run`: the plan of a run, counted with the code that runs it."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from everclip.cli.plan_processes import memory_of, over_processes, print_processes
from everclip.config import RunConfig
from everclip.data.sampling.batches import share_of
from everclip.learner.memory_check import need_of
from everclip.methods.cost import bytes_on_disk
from everclip.running.prepare import Prepared, prepare
from everclip.scenarios.measuring import class_name_notes
from everclip.training.budget import macs_of, phase_steps, within_macs
from everclip.training.memory_need import MOMENT_BYTES, MemoryNeed
from everclip.training.progress import Progress, clock
from everclip.training.trial import count_macs, measure_seconds


def plan(config: RunConfig, processes: int | None = None) -> dict[str, Any]:
    """Return tasks, steps, parameters, memory, disk and time of a run, without starting it.

    Args:
        config: the run.
        processes: also say what each of so many processes would hold, send and spend.

    The time is extrapolated from a training batch and an evaluation batch, measured on this machine (smaller batches if
    the model is slow).
    """
    if processes is not None:
        share_of(config.training.batch_size, processes)
    run = prepare(config)
    progress = Progress(quiet=not run.learner.accelerator.is_main_process)
    run.learner.engine.report_to(progress.say)
    method = run.learner.method
    cost = method.describe()
    weights = cost.bytes + next(method.parameters()).element_size() * cost.task_parameters
    stored = bytes_on_disk(method, cost)
    # Counted before later tasks are planned: their stored samples are no part of the first task.
    measured = _measure(run, progress, processes) if run.learner.counts_macs else None
    planned = []
    for task in run.tasks:
        planned.append(run.learner.plan(task))
        run.learner.tasks.append(task)
        run.learner.method.store(task)  # replay may add samples to the next task
    moments = MOMENT_BYTES[config.training.optimiser] * cost.trainable_parameters
    measured = measured or _measure(run, progress, processes)
    timing, macs, need = measured.seconds, measured.macs, measured.need
    tasks: list[dict[str, Any]] = []
    spent = 0.0
    for task, phases in zip(run.tasks, planned, strict=True):
        phases = within_macs(phases, config.training, macs)
        steps = sum(phase_steps(p, config.training) * p.repeats for p in phases)
        tasks.append({"name": task.name, "samples": len(task.train), "steps": steps})
        spent += macs_of(phases, config.training, macs)
    begun = method.describe()  # within the first task, with all of its modules
    steps = sum(task["steps"] for task in tasks)
    pictures = sum(len(s.data) for s in run.scenario.eval_sets)
    rows = len(run.tasks if run.stream is None else run.stream.rows) + 1
    shared = (
        None
        if processes is None
        else over_processes(run, planned, measured.shared, timing["step"], steps, processes)
    )
    return {
        "benchmark": config.benchmark,
        "method": config.method.name,
        "backbone": config.backbone.name,
        "output": config.output,
        "precision": run.config.training.precision,
        "tasks": tasks,
        "steps": steps,
        "macs": spent or None,
        "rows": rows,
        "trainable_parameters": cost.trainable_parameters,
        "stored_parameters": cost.stored_parameters + cost.task_parameters,
        "active_parameters": begun.active_parameters,
        "growth_per_task": begun.growth_per_task,
        "held_during_task": cost.held_during_task,
        "memory_mb": round((weights + moments + 4 * cost.trainable_parameters) / 1e6, 1),
        "memory": None if need is None else memory_of(need, run.learner.accelerator.device),
        "memory_check": config.training.memory_check,
        "processes": shared,
        "disk_mb": round((config.checkpoint.keep + 1) * (stored + moments) / 1e6, 1),
        "disk_free_mb": round(shutil.disk_usage(_existing(config.folder)).free / 1e6),
        "notes": [*(message for _, message in run.remarks), *class_name_notes(run.scenario.eval_sets)],
        "seconds": round(steps * timing["step"] + rows * pictures * timing["picture"], 1),
    }


def _existing(path: Path) -> Path:
    path = Path(os.path.realpath(path))
    return path if path.exists() else _existing(path.parent)


MEASURING = 8.0
"""About how many seconds measuring the training step may take; encoding may take half as many."""


@dataclass(frozen=True)
class Measured:
    """What was measured on the first task.

    Attributes:
        seconds: of a `step` and of a `picture`.
        macs: multiply-accumulates of a step of each phase, if a run counts them.
        need: memory of a step; `None` if nothing trains by gradient.
        shared: the same of each of several processes.
    """

    seconds: dict[str, float]
    macs: dict[str, float]
    need: MemoryNeed | None
    shared: MemoryNeed | None


def _measure(run: Prepared, progress: Progress, processes: int | None) -> Measured:
    """Measure a training step with a real batch (the weights stay unchanged), its memory, and an encoding."""
    import torch

    from everclip.features.encoding import device_of
    from everclip.training.timing import extrapolated

    task, learner = run.tasks[0], run.learner
    method = learner.method
    progress.say(
        f"measuring a training step and an encoding; this takes at most about {1.5 * MEASURING:.0f} seconds"
    )
    method.begin_task(task, learner.past())
    phases = learner.plan(task)
    macs = count_macs(learner.engine, method, phases) if learner.counts_macs else {}
    need = need_of(learner.engine, method, phases)
    shared = None if processes is None else need_of(learner.engine, method, phases, processes=processes)
    step = measure_seconds(learner.engine, method, phases[0], MEASURING) if phases else 0.0
    side, device = method.backbone.pixels.size, device_of(method)
    method.eval()

    def encoding(count: int) -> float:
        pixels = torch.zeros(count, 3, side, side, device=device)
        started = time.monotonic()
        with torch.inference_mode():
            float(method.encode_images(pixels)["embedding"].sum())  # waits for the device
        return time.monotonic() - started

    # Texts cost about as much as images, hence twice.
    picture = 2 * extrapolated(encoding, BLOCK, MEASURING / 2) / BLOCK
    return Measured({"step": step, "picture": picture}, macs, need, shared)


BLOCK = 32
"""Images in the encoding that is measured."""


def print_plan(planned: dict[str, Any]) -> None:
    """Print a plan as text."""
    typer.echo(
        f"{planned['benchmark']} with {planned['method']} on {planned['backbone']}, into {planned['output']}"
    )
    typer.echo(f"  training in {planned['precision']}")
    for note in planned["notes"]:
        typer.echo(f"  note: {note}")
    for task in planned["tasks"]:
        typer.echo(f"  {task['name']:<16} {task['samples']:>7} samples  {task['steps']:>6} steps")
    typer.echo(f"  {planned['rows']} rows of evaluation, {planned['steps']} steps in all")
    if planned["macs"] is not None:
        typer.echo(
            f"  multiply-accumulates of training: {planned['macs']:.3g}, counted on the first task; steps of later "
            "tasks may cost more (replay, more classes), and are then fewer"
        )
    typer.echo(
        f"  parameters: {planned['trainable_parameters']:,} trained, {planned['stored_parameters']:,} in memory "
        "(frozen copies included)"
    )
    typer.echo(f"  also in memory during a task: {planned['held_during_task']}")
    typer.echo(f"  parameters that a prediction uses: {planned['active_parameters']:,}")
    typer.echo(f"  added by each task: {planned['growth_per_task']}")
    typer.echo(f"  memory for weights, gradients and moments: {planned['memory_mb']} MB")
    if planned["memory"] is not None:
        refused = planned["memory"]["refused"] and planned["memory_check"] == "refuse"
        rest = "; the run will be refused (training.memory_check)" if refused else ""
        typer.echo(f"  {planned['memory']['sentence']}{rest}")
    if planned["processes"] is not None:
        print_processes(planned["processes"])
    typer.echo(f"  disk for checkpoints: {planned['disk_mb']} MB of {planned['disk_free_mb']} MB free")
    typer.echo(f"  time, extrapolated from measured batches: about {clock(planned['seconds'])}")
