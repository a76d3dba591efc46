"""One run of `same_results.py`, and what is kept of it: results, weights, cost, plan and checkpoint, without times."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

from same_cases import Case

Record = dict[str, Any]

KEPT_OF_PROVENANCE = ("precision", "processes", "threads", "data", "towers", "towers_before")
"""The rest names the machine, versions, the commit and the command."""

_TIMES = re.compile(r"^  time, extrapolated.*$", re.MULTILINE)
_FREE = re.compile(r"of [\d.]+ MB free")


def run_case(case: Case, folder: Path, file: Path) -> int:
    """Do one run in `folder`, where the files of the list lie, and write its record to `file`."""
    os.chdir(folder)
    output = Path("out", hashlib.sha256(case.name.encode()).hexdigest()[:12])
    record: Record = {}
    try:
        record = observed(case, folder, output)
    except Exception as error:
        record = {"crash": without_paths(f"{type(error).__name__}: {error}", folder, output)}
        raise
    finally:
        file.write_text(json.dumps(record), encoding="utf-8")
        shutil.rmtree(output, ignore_errors=True)
    return 0


def observed(case: Case, folder: Path, output: Path) -> Record:
    """Return the record of a run: its plan, then what it wrote or why it was refused."""
    arguments = ["run", case.target, *case.settings, f"output={output}"]
    code, text, problem = everclip([*arguments, "--dry-run"])
    plan = _FREE.sub("of N MB free", _TIMES.sub("", text)) if code == 0 else refusal(problem)
    record: Record = {"plan": {"exit": code, "text": without_paths(plan, folder, output).splitlines()}}
    code, _, problem = everclip(arguments)
    if code != 0:
        return record | {"refused": {"exit": code, "text": without_paths(refusal(problem), folder, output)}}
    document = json.loads((output / "results.json").read_text(encoding="utf-8"))
    record["losses"] = _losses(output / "metrics.jsonl")  # first, since what changed shows there first
    record |= canonical(document)
    record |= _checkpoint(output / "checkpoints")
    names = {re.sub(r"\d{8}", "N", str(path.relative_to(output))) for path in output.rglob("*")}
    record["files"] = sorted(names)
    return dict(json.loads(without_paths(json.dumps(record), folder, output)))


def everclip(arguments: list[str]) -> tuple[int, str, str]:
    """Call the command in this process; return its exit code, standard output and standard error."""
    sys.argv = ["everclip", *arguments]
    out, err = io.StringIO(), io.StringIO()
    code: int | str | None = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module("everclip", run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    return int(code or 0), out.getvalue(), err.getvalue()


def refusal(text: str) -> str:
    """Return the message of the command without progress and notes before it."""
    _, mark, message = text.partition("everclip: ")
    return message.strip() if mark else text.strip()


def without_paths(text: str, folder: Path, output: Path) -> str:
    """Replace the folders of this run by words."""
    for path, word in (
        (os.path.realpath(folder), "FOLDER"),
        (str(folder), "FOLDER"),
        (str(output), "OUTPUT"),
    ):
        text = text.replace(path, word)
    return text


# -- results --------------------------------------------------------------------------------------------------


def canonical(results: Record) -> Record:
    """Return `results.json` by parts, without what differs between two runs of the same code.

    That is `cost` (seconds, memory, energy, sessions), and of `provenance` everything that names the machine,
    versions, the commit or the command.
    """
    parts = {key: value for key, value in results.items() if key not in ("cost", "provenance", "method")}
    provenance = results.get("provenance", {})
    parts["provenance"] = {key: provenance[key] for key in KEPT_OF_PROVENANCE if key in provenance}
    method = dict(results.get("method", {}))
    parts["describe"] = method.pop("cost", None)
    return parts | {"method": method}


def _losses(file: Path) -> dict[str, list[Any]]:
    """Return the log of the steps by name: losses, rates, norms of gradients."""
    lines = (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    )
    names = sorted({name for line in lines for name in line})
    return {name: [line.get(name) for line in lines] for name in names}


# -- weights --------------------------------------------------------------------------------------------------


def _checkpoint(folder: Path) -> Record:
    """Return what the newest checkpoint holds: prints of its tensors, the learner's state, the names of the rest."""
    from safetensors.torch import load_file

    newest = max(path for path in folder.iterdir() if re.fullmatch(r"\d{8}", path.name))
    tensors = load_file(newest / "tensors.safetensors")
    state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    return {
        "weights": {name: _print(tensor) for name, tensor in sorted(tensors.items())},
        "state": {key: value if key == "learner" else _names(value) for key, value in state.items()},
    }


def _names(value: Any) -> Any:
    return sorted(value) if isinstance(value, dict) else type(value).__name__


def _print(tensor: Any) -> Record:
    """Return type, shape, hash of the bytes, length, and the product with a fixed wave, which a step moves."""
    import numpy as np
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    values = flat.to(torch.float64).numpy()
    wave = np.sin(1.234567 * np.arange(len(values)) + 0.5)
    return {
        "type": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "hash": hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()[:12],
        "length": float(np.sqrt(values @ values)),
        "wave": float(values @ wave),
    }
