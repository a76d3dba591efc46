"""Runs a Python program in a child process, which may crash, hang or print nonsense."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ChildResult:
    """The result of a child process: its last line of output as JSON, and how it ended.

    Attributes:
        document: the JSON object; empty if there was none.
        code: exit status; negative for a signal, `None` if it was killed for taking too long.
        errors: the last lines of standard error.
    """

    document: dict[str, Any] = field(default_factory=dict)
    code: int | None = 0
    errors: str = ""


def run_child(
    arguments: Sequence[str], seconds: float, variables: Mapping[str, str | None] | None = None
) -> ChildResult:
    """Run this Python interpreter with arguments, and read its last line of output as JSON.

    Args:
        arguments: arguments of the interpreter.
        seconds: time after which it is killed.
        variables: environment variables to set; `None` removes a variable.
    """
    environment = dict(os.environ)
    for key, value in (variables or {}).items():
        environment.pop(key, None)
        if value is not None:
            environment[key] = value
    try:
        done = subprocess.run(
            [sys.executable, "-P", *arguments],  # -P: do not import a torch.py in the working directory
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as late:
        raw = late.stderr or b""
        return ChildResult({}, None, _tail(raw if isinstance(raw, str) else raw.decode(errors="replace")))
    lines = done.stdout.strip().splitlines()
    try:
        document = json.loads(lines[-1]) if lines else {}
    except ValueError:
        document = {}
    return ChildResult(document if isinstance(document, dict) else {}, done.returncode, _tail(done.stderr))


def _tail(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return "\n".join(lines[-3:])
