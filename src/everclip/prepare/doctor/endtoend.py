"""Runs the trial of half a minute, and explains its failures."""

from __future__ import annotations

import tempfile

from everclip.prepare.doctor.child import ChildResult, run_child
from everclip.prepare.doctor.finding import Finding
from everclip.prepare.doctor.variables import LAUNCHED

NAME = "trial"

REMEDIES = {
    "prepare": "check the folders above: the temporary folder must be writable and have free space",
    "learn": "fix the failures above; if there are none, report this message as a bug",
    "stop": "signals do not reach Python here: stop runs with Ctrl-C, or use checkpoints (checkpoint.every_seconds)",
    "resume": "resumed runs may not be exact: reinstall torch, and set OMP_NUM_THREADS to a fixed number",
    "classify": "the built-in model or torch's arithmetic is broken: reinstall everclip, then torch",
}


def check_end_to_end(seconds: float = 300) -> list[Finding]:
    """Learn, stop, resume and classify a few emoji, in a child process and a temporary folder."""
    environment: dict[str, str | None] = dict.fromkeys((*LAUNCHED, "MASTER_ADDR", "MASTER_PORT"))
    try:
        with tempfile.TemporaryDirectory(prefix="everclip-doctor-") as folder:
            return [
                _judge(
                    run_child(["-m", "everclip.prepare.doctor.trial", folder], seconds, environment), seconds
                )
            ]
    except OSError as error:
        return [Finding(NAME, "fail", f"no temporary folder ({error})", REMEDIES["prepare"])]


def _judge(result: ChildResult, seconds: float) -> Finding:
    stage = result.document.get("stage", "start")
    if result.code is None:
        text = f"did not end within {seconds:g} seconds"
        return Finding(NAME, "fail", text, "the machine is very busy or has too little memory: see above")
    if stage == "done" and "error" not in result.document:
        text = f"learned, stopped, resumed bit-identically, classified ({result.document['seconds']} s)"
        return Finding(NAME, "ok", text)
    if not result.document:
        last = result.errors.splitlines()[-1] if result.errors else "no message"
        how = f"a signal ({-result.code})" if result.code and result.code < 0 else f"status {result.code}"
        remedy = "fix the failures above first; signal 9 means too little memory"
        return Finding(NAME, "fail", f"ended with {how}: {last}", remedy)
    return Finding(
        NAME, "fail", f"{stage}: {result.document.get('error')}", REMEDIES.get(stage, REMEDIES["learn"])
    )
