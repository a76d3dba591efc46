"""The tour: a CLIP of 2015 learns the names of new emoji with three methods; a look, a table and a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from everclip import registry
from everclip.config import resolve_config
from everclip.evaluation.results import Results
from everclip.report import compare, comparison_text, write_comparison
from everclip.report.fitting import terminal_width
from everclip.report.look import text
from everclip.report.runs import Run
from everclip.report.side_tables import search_table
from everclip.run import execute

BENCHMARK = "emoji-names"
ALL_TRAIN = "scenario.split.validation=0"
"""None of the methods chooses anything on validation drawings, so these are learned, too."""

METHODS = ("zero-shot", "finetune", "text-ridge")
DETAILS = ("transfer", "average", "forgetting")
"""Metrics of single tasks, which compare.html and the reports show; the printed table is about old and new."""

NEXT = (
    ("everclip check FOLDER", "what everclip finds in them"),
    (
        "everclip init-config FOLDER -o mine.yaml",
        "a configuration that is ready to run; your CLIP goes into `backbone:`",
    ),
    ("everclip suggest mine.yaml", "preset and learning rate for your images, with reasons"),
    ("everclip run mine.yaml", "learn and measure, as here"),
)


def run_demo(output: Path, overrides: Sequence[str]) -> None:
    """Run every method of the demo, look at six drawings, and print the comparison; an interrupted demo continues.

    Args:
        output: the folder of the runs. They share the encoded features of the start model.
        overrides: settings of all runs.
    """
    typer.echo(
        "A CLIP that stopped learning in 2015 learns the emoji of 2016 to 2022, year by year. It names drawings that "
        "it never trained on, among the names of all emoji, old and new (real drawings, small model).\n"
        f"{len(METHODS)} methods take turns; each is measured before it learns and after every year. This takes some "
        "minutes. Ctrl-C stops it, and the same command continues."
    )
    folders: list[Path] = []
    for number, method in enumerate(METHODS, start=1):
        folder = output / method
        typer.echo(f"\n[{number}/{len(METHODS)}] {method}: {registry.method_entry(method).summary}")
        shared = [f"output={folder}", f"method={method}", f"evaluation.cache={output / 'cache'}", ALL_TRAIN]
        execute(resolve_config(BENCHMARK, [*shared, *overrides]))
        folders.append(folder)
        if number == 1:
            _look(folder, "New emoji, the rank of the true name, and what the model of 2015 calls them:", [0])
    _look(
        folders[-1],
        f"The same drawings with {METHODS[-1]}: the rank before and after, and its answers year by year:",
        None,
    )
    comparison = compare(folders)
    typer.echo(f"\n{comparison_text(comparison.without(*DETAILS), terminal_width())}")
    if (found := search_table([Run(folder) for folder in folders])) is not None:
        typer.echo(f"{found.text()}\n")
    page = write_comparison(folders, output / "compare.html", comparison=comparison)
    pages = ((page, "all methods side by side"), (folders[-1] / "report.html", f"{METHODS[-1]} in detail"))
    typer.echo(_facts([Run(folder).results for folder in folders]))
    _list("To open in a browser:", pages)
    _list("Next, your own images:", NEXT)


def _facts(results: Sequence[Results]) -> str:
    """Return what the tables do not say: chance, the time of learning, and what stays valid."""
    names = sum(column.classes or 0 for column in results[0].columns if column.group in ("known", "task"))
    seconds = {str(r.method["name"]): r.cost["seconds"]["training"] for r in results}
    learned = " and ".join(f"{seconds[name]:.0f} s with {name}" for name in METHODS[1:])
    return (
        f"Chance is {100 / names:.2f} %: one of {names:,} names. Learning took {learned}.\n"
        "`(changed)`: all training drawings are learned; none are held out for validation, which no method here uses.\n"
        f"{METHODS[-1]} changes no image embedding: a search index of images stays valid.\n"
    )


def _list(title: str, lines: Sequence[tuple[object, str]]) -> None:
    """Print what each line names, with its explanation in a column beside it."""
    width = max(len(str(named)) for named, _ in lines)
    typer.echo("\n".join([title, *(f"  {named!s:<{width}}  {meaning}" for named, meaning in lines)]))


def _look(folder: Path, title: str, rows: Sequence[int] | None) -> None:
    """Print the answers to a few drawings, if the run recorded any (`evaluation.examples`)."""
    if lines := text(Run(folder), rows):
        typer.echo(f"\n{title}\n{lines}")
