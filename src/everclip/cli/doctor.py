"""`everclip doctor`: test this installation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from everclip.cli.options import Json
from everclip.cli.printing import json_text

MARKS = {"ok": "ok  ", "note": "note", "fail": "FAIL"}


def doctor(
    quick: Annotated[
        bool, typer.Option("--quick", help="Skip the trial run, which takes half a minute.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Test this installation.

    Tests packages, devices, folders, environment variables, and a trial run of half a minute. Prints a remedy for every
    failure. Exits with code 1 if a test fails.

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
        typer.echo(json_text({"healthy": healthy, "counts": counts, "checks": document}))
    else:
        words = "everything works" if not counts["fail"] else f"{counts['fail']} of these do not work"
        typer.echo(f"{words} ({counts['ok']} ok, {counts['note']} notes)")
    if counts["fail"]:
        raise typer.Exit(1)
