"""`everclip doctor`: does this installation work, and if not, what to do."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

MARKS = {"ok": "ok  ", "note": "note", "fail": "FAIL"}


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the half-minute trial.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Examine this installation: packages, devices, folders, variables, and a half-minute trial.

    Ends with code 1 if something does not work; every failure is printed with its remedy.

    Example: everclip doctor
    """
    from everclip.prepare.doctor.examine import examine

    counts = {"ok": 0, "note": 0, "fail": 0}
    document: dict[str, Any] = {}
    for title, findings in examine(quick):
        document[title] = [asdict(finding) for finding in findings]
        if not as_json:
            typer.echo(f"{title}:")
        for finding in findings:
            counts[finding.state] += 1
            if as_json:
                continue
            typer.echo(f"  {MARKS[finding.state]}  {finding.name}: {finding.found}")
            if finding.remedy:
                typer.echo(f"        -> {finding.remedy}")
    if as_json:
        healthy = counts["fail"] == 0
        typer.echo(json.dumps({"healthy": healthy, "counts": counts, "checks": document}, indent=1))
    else:
        words = "all is well" if not counts["fail"] else f"{counts['fail']} of these do not work"
        typer.echo(f"{words} ({counts['ok']} ok, {counts['note']} notes)")
    if counts["fail"]:
        raise typer.Exit(1)
