"""Two or more gloo processes as a launcher would start them, and their jobs; one process does the same jobs beside."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from everclip.config import RunConfig
from everclip.learner import Cursor
from everclip.run import Run
from everclip.training.progress import Progress

Job = Callable[..., Any]
PATIENCE = 90.0
"""Seconds to wait for an answer: processes that wait for each other must fail a test, not hang it."""


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _rank(rank: int, count: int, port: int, jobs: list[tuple[Job, tuple[Any, ...]]], answers: Any) -> None:
    # What torchrun and `accelerate launch` set.
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    for number, (job, arguments) in enumerate(jobs):
        try:
            answers.put((rank, number, job(*arguments), None))
        except BaseException as error:
            answers.put(
                (rank, number, error if isinstance(error, Exception) else None, traceback.format_exc())
            )
            raise
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Pair:
    """Two processes (or `count`) at work on the same jobs, one after the other."""

    def __init__(self, *jobs: tuple[Job, tuple[Any, ...]], count: int = 2) -> None:
        # A server that has torch loaded and forks: fresh processes without seconds of importing.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["everclip.run", "pair"])
        self._jobs = len(jobs)
        port = _port()
        self._answers = [context.Queue() for _ in range(count)]
        self.processes = [
            context.Process(target=_rank, args=(rank, count, port, list(jobs), self._answers[rank]))
            for rank in range(count)
        ]
        for process in self.processes:
            process.start()

    def results(self) -> list[tuple[Any, ...]]:
        """Return what each job gave on rank 0, rank 1 and so on.

        Raises:
            AssertionError: with the traceback, if one of them failed.
        """
        found: list[list[Any]] = [[] for _ in self.processes]
        try:
            for rank in range(len(self.processes)):
                for _ in range(self._jobs):
                    _, _, value, problem = self._answers[rank].get(timeout=PATIENCE)
                    assert problem is None, f"rank {rank}: {problem}"
                    found[rank].append(value)
        finally:
            self.end()
        return list(zip(*found, strict=True))

    def errors(self) -> list[Exception]:
        """Return the error that each rank ended with."""
        answers = [queue.get(timeout=PATIENCE) for queue in self._answers]
        self.end()
        return [answer[2] for answer in answers]

    def end(self, patience: float = 10.0) -> list[int | None]:
        """Wait a while, kill what still runs, and return the exit codes."""
        for process in self.processes:
            process.join(patience)
            if process.is_alive():
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]


# -- jobs -----------------------------------------------------------------------------------------------------


def gradients(config: RunConfig) -> dict[str, Any]:
    """Learn the first task in double precision; return the last step's gradients and what was seen in it."""
    run = Run.of(config, Progress(quiet=True))
    method, seen = run.learner.method.double(), {}
    inner, after, found = method.forward, method.after_step, {}

    def forward(batch: Any, progress: Any) -> Any:
        columns = dict(batch["main"])
        seen.update({k: columns[k].tolist() for k in ("image_key", "label") if k in columns})
        seen["id"] = columns["id"]
        finer = {name: given | {"image": given["image"].double()} for name, given in batch.items()}
        return inner(finer, progress)

    def after_step(progress: Any) -> None:
        # Now, since a method may discard what it trained when the task ends.
        found.update({n: p.grad.numpy() for n, p in method.named_parameters() if p.grad is not None})
        after(progress)

    method.forward, method.after_step = forward, after_step  # type: ignore[method-assign]
    run.learner.learn(run.tasks[0], Cursor())
    return {"gradients": found, **seen}


def whole_run(config: RunConfig) -> dict[str, Any]:
    """Run to the end; return scores, weights and what the buffer holds, as this process knows them."""
    run = Run.of(config, Progress(quiet=True))
    results = run.execute()
    method = run.learner.method
    return {
        "values": results.matrix.values,
        "ambiguous": [row.ambiguous for row in results.rows],
        "notes": [row.notes for row in results.rows],
        "representation": [row.representation for row in results.rows],
        "weights": {k: v.numpy() for k, v in method.state_dict().items()},
        "buffer": None if method.buffer is None else method.buffer.state(),
    }


def run_and_signal(config: RunConfig, rank: int, step: int, number: int) -> None:
    """Run, and on one rank send this process a signal after a step."""
    from everclip import run as module

    left = step

    def act(point: str) -> None:
        nonlocal left
        left -= point == "after step"
        if left == 0 and int(os.environ["RANK"]) == rank:
            left = -1
            os.kill(os.getpid(), number)

    module.crash_point = act
    Run.of(config, Progress(quiet=True)).execute()


def launched(words: list[str]) -> list[str]:
    """Return the command line that starts `words` on two processes."""
    import sys

    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        f"--master_port={_port()}",
        *words,
    ]


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Return the files of a run folder that must be bit-identical."""
    kept = [
        folder / "metrics.jsonl",
        *folder.glob("rows/*"),
        *folder.glob("checkpoints/*/tensors.safetensors"),
    ]
    return {str(p.relative_to(folder)): p.read_bytes() for p in kept}


SIGKILL, SIGTERM = int(signal.SIGKILL), int(signal.SIGTERM)
