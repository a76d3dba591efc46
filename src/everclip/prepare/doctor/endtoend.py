"""The half-minute trial, and what its failures mean."""

from __future__ import annotations

import tempfile

from everclip.prepare.doctor.child import Said, ask
from everclip.prepare.doctor.finding import Finding
from everclip.prepare.doctor.variables import LAUNCHED

NAME = "trial"

REMEDIES = {
    "prepare": "look at the folders above: the temporary one must be writable and have room",
    "learn": "mend what is reported above; if all is well there, the message is a bug to report",
    "stop": "signals do not reach Python here: stop runs by Ctrl-C, or rely on checkpoints (checkpoint.every_seconds)",
    "resume": "results cannot be trusted to be exact: reinstall torch, and export OMP_NUM_THREADS to a fixed number",
    "classify": "the built-in model or torch's arithmetic is damaged: reinstall everclip, then torch",
}


def check_end_to_end(seconds: float = 300) -> list[Finding]:
    """Learn, stop, resume and classify on a few emoji, in a process and a folder of their own."""
    alone: dict[str, str | None] = dict.fromkeys((*LAUNCHED, "MASTER_ADDR", "MASTER_PORT"))
    try:
        with tempfile.TemporaryDirectory(prefix="everclip-doctor-") as folder:
            return [_judge(ask(["-m", "everclip.prepare.doctor.trial", folder], seconds, alone), seconds)]
    except OSError as error:
        return [Finding(NAME, "fail", f"no temporary folder ({error})", REMEDIES["prepare"])]


def _judge(said: Said, seconds: float) -> Finding:
    stage = said.document.get("stage", "start")
    if said.code is None:
        text = f"did not end within {seconds:g} seconds"
        return Finding(NAME, "fail", text, "the machine is very busy, or has too little memory: see above")
    if stage == "done" and "error" not in said.document:
        text = f"learned, stopped, resumed to the same bits, classified ({said.document['seconds']} s)"
        return Finding(NAME, "ok", text)
    if not said.document:
        last = said.errors.splitlines()[-1] if said.errors else "without a word"
        how = f"a signal ({-said.code})" if said.code and said.code < 0 else f"status {said.code}"
        remedy = "mend the failures above first; a signal 9 means too little memory"
        return Finding(NAME, "fail", f"ended with {how}: {last}", remedy)
    return Finding(
        NAME, "fail", f"{stage}: {said.document.get('error')}", REMEDIES.get(stage, REMEDIES["learn"])
    )
