"""The five-minute tour: emoji-time with four methods, then a table and a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from everclip.config import resolve_config
from everclip.report import compare, comparison_text, write_comparison
from everclip.run import execute

METHODS = ("zero-shot", "finetune", "replay", "replay-merge")


def run_demo(output: Path, overrides: Sequence[str]) -> None:
    """Run every method of the demo and print the comparison; an interrupted demo continues.

    Args:
        output: the folder of the runs. They share the encoded features of the start model.
        overrides: settings of all runs.
    """
    typer.echo(
        "A CLIP that stopped learning in 2015 learns the emoji of 2016 to 2022 (real drawings, small model)."
    )
    folders = []
    for number, method in enumerate(METHODS, start=1):
        folder = output / method
        typer.echo(f"[{number}/{len(METHODS)}] {method}")
        shared = [f"output={folder}", f"method={method}", f"evaluation.cache={output / 'cache'}"]
        execute(resolve_config("emoji-time", [*shared, *overrides]))
        folders.append(folder)
    typer.echo("")
    comparison = compare(folders)
    typer.echo(comparison_text(comparison))
    page = write_comparison(folders, output / "compare.html", comparison=comparison)
    typer.echo(f"comparison: {page}")
    typer.echo(f"report:     {folders[-1] / 'report.html'}")
