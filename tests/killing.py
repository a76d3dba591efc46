"""Kill a command of everclip at its crash points, each time on a fresh copy of a store far away.

    python killing.py MADE FOLDER VERB STORE [ARGUMENT...]

MADE is a folder that holds a store; STORE stands for its URL. The command runs once to its end, which says which crash
points it passes. Then, for the first and the last one of each kind, a child process runs it on a copy and sends itself
SIGKILL there: where it does something, and where files named by numbers are written (leases, commits, contents); the
others are renamed in the working copy, which nobody else sees. FOLDER/N/left is what it left, FOLDER/N/store the same
after the command was repeated on another machine.
Prints `[[number, name, exit code of the repeated command], ...]`.

The children are forks of a process that has imported everything but LanceDB, whose threads do not survive a fork.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

import everclip.cli.main
import everclip.diagnosis.diagnosis_page
import everclip.files
import everclip.search.adding
import everclip.search.reembedding
import everclip.store.updating
from everclip.store.remote import publishing

POINTS = re.compile(r"in .*|before renaming \.?#(\.json(\.#\.tmp)?)?")

BATCH = 8
"""Images of a batch of the index, so that few images make several commits."""


def run(store: Path, cache: Path, arguments: list[str], point: Callable[[str], None]) -> int:
    """Run the command in a child process; return its exit code, negative if it was killed."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70
    try:
        said = os.open(cache.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.environ["EVERCLIP_CACHE"] = str(cache)
        for name, module in list(sys.modules.items()):
            if name.startswith("everclip.") and hasattr(module, "crash_point"):
                module.crash_point = point  # type: ignore[attr-defined]
        sys.argv = ["everclip", *(f"file://{store}" if a == "STORE" else a for a in arguments)]
        everclip.cli.main.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:  # noqa: BLE001  # the parent reads it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def passed_by(made: Path, folder: Path, arguments: list[str]) -> list[str]:
    """Run the command to its end; return the names of the crash points that it passed."""
    written = folder / "points"
    lock = threading.Lock()

    def point(name: str) -> None:
        with lock, written.open("a", encoding="utf-8") as file:
            file.write(name + "\n")

    folder.mkdir(parents=True)
    shutil.copytree(made, folder / "store")
    if code := run(folder / "store", folder / "cache", arguments, point):
        raise SystemExit(f"exit code {code}: {(folder / 'cache.log').read_text()}")
    return written.read_text(encoding="utf-8").splitlines()


def first_and_last(names: list[str]) -> list[int]:
    """Return the numbers of the first and the last point of each kind, from 1."""
    found: dict[str, list[int]] = {}
    for number, name in enumerate(names, start=1):
        if POINTS.fullmatch(kind := re.sub(r"[0-9a-f]{64}|\d+", "#", name)):
            found.setdefault(kind, []).append(number)
    return sorted({number for numbers in found.values() for number in (numbers[0], numbers[-1])})


def killing(number: int) -> Callable[[str], None]:
    """Return a crash point that kills the process when it is passed for the `number`-th time."""
    left, lock = number, threading.Lock()

    def point(name: str) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return point


def main(made: Path, folder: Path, arguments: list[str]) -> None:
    """Kill the command at each chosen point, and repeat it."""
    torch.set_num_threads(1)
    publishing.EVERY = 0.0
    everclip.search.adding.BLOCK = everclip.search.reembedding.BLOCK = BATCH  # type: ignore[attr-defined]
    everclip.search.embedding.BLOCK = everclip.search.embedding.TOGETHER = BATCH
    names = passed_by(made, folder / "end", arguments)
    found = []
    for number in first_and_last(names):
        here = folder / str(number)
        shutil.copytree(made, here / "store")
        code = run(here / "store", here / "killed", arguments, killing(number))
        if code != -signal.SIGKILL:
            raise SystemExit(f"{number}: exit code {code}: {(here / 'killed.log').read_text()}")
        shutil.copytree(here / "store", here / "left")
        repeated = run(here / "store", here / "again", arguments, lambda name: None)
        found.append([number, names[number - 1], repeated])
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
