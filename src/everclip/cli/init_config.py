"""`everclip init-config`: write a YAML file for a user's data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everclip.cli.check import data_block, split_arguments
from everclip.cli.options import on_this_machine
from everclip.errors import ConfigError

if TYPE_CHECKING:
    from everclip.prepare.init_config.propose import Proposal


Data = Annotated[
    list[str],
    typer.Argument(help="Data, and settings of the data block as key=value, such as columns.caption=title"),
]
Kind = Annotated[
    str | None,
    typer.Option(
        "--kind",
        help="time, languages, domains, classes, sources, online or single; default: depends on the data.",
    ),
]
ClassesPerTask = Annotated[
    int | None,
    typer.Option("--classes-per-task", help="Classes per task; default: one task with all classes."),
]
Test = Annotated[
    str | None,
    typer.Option("--test", help="Separate test data; then no row of DATA is held out for testing."),
]
RemoveShared = Annotated[
    bool,
    typer.Option(
        "--remove-shared",
        help="Remove training images that are also test images, if the data mark both sides.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Write to FILE.yaml instead of printing.", callback=on_this_machine),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]


def init_config(
    data: Data,
    kind: Kind = None,
    classes_per_task: ClassesPerTask = None,
    test: Test = None,
    remove_shared: RemoveShared = False,
    output: Output = None,
    force: Force = False,
) -> None:
    """Print a commented YAML file for your data.

    The file is complete and ready for `everclip run`. Several data sets become one task each. One data set becomes
    tasks by time or by language, or by classes on request. Sides that the data mark (train, validation, test) are kept.

    Example: everclip init-config photos/ -o photos.yaml

    Example: everclip init-config photos/ --classes-per-task 5 --test held-out/ -o photos.yaml

    Example: everclip init-config shop.csv columns.image=file columns.caption=title > shop.yaml
    """
    sources, settings = split_arguments(data)
    if output is not None:
        _check_output(output, force)
    block = data_block(settings)
    from everclip.prepare.init_config.candidates import Wish
    from everclip.prepare.init_config.propose import propose

    wish = Wish(kind, classes_per_task, None if test is None else {"source": test, **block}, remove_shared)
    proposal = propose([{"source": source, **block} for source in sources], wish)
    _check_differences(proposal)
    _print_remarks(proposal)
    _write(proposal, output)


def _check_output(output: Path, force: bool) -> None:
    """Check that the file can be written, before the data are read."""
    from everclip.files import require_writable

    if output.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--output: {output} is not a YAML file; use a name that ends in .yaml.")
    if output.exists() and not force:
        raise ConfigError(f"--output: {output} exists already; --force replaces it.")
    require_writable(output.parent, "--output")


def _check_differences(proposal: Proposal) -> None:
    """Check that the tokenizer tells the texts of each task apart."""
    from everclip.learner.learnable import require_differences
    from everclip.models.tokenizers import default_tokenizer

    if proposal.scenario.spec.kind != "online":  # a part of a stream may have one class, beside others
        require_differences(proposal.scenario.tasks, default_tokenizer())


def _print_remarks(proposal: Proposal) -> None:
    """Print quarantined rows, guesses and notes as comments on standard error."""
    for quarantine in proposal.quarantine:
        typer.echo(f"# {quarantine.table()}".replace("\n", "\n# "), err=True)
    for guess in proposal.guesses:
        typer.echo(f"# guessed: {guess}", err=True)
    for note in proposal.notes:
        typer.echo(f"# note: {note}", err=True)


def _tasks(proposal: Proposal) -> str:
    count = len(proposal.scenario.tasks)
    return "1 task" if count == 1 else f"{count} tasks"


def _write(proposal: Proposal, output: Path | None) -> None:
    """Print the YAML text, or write it to a file and name the next command."""
    from everclip.files import write_text_atomic

    text = text_for(proposal, output)
    if output is None:
        typer.echo(text, nl=False)
        return
    write_text_atomic(output, text)
    typer.echo(f"{output}: {_tasks(proposal)}; next: everclip run {output} --dry-run")


def text_for(proposal: Proposal, output: Path | None) -> str:
    """Return the YAML text; its paths are relative to the file that will hold it."""
    from dataclasses import replace

    from everclip.prepare.init_config.yaml_text import yaml_of

    folder = Path() if output is None else output.parent
    document = dict(proposal.document)
    if "data" in document:
        document |= {k: _from_folder(document[k], folder) for k in ("data", "test") if k in document}
    else:
        document["sources"] = [
            {**source, "data": _from_folder(source["data"], folder)} for source in document["sources"]
        ]
    file = f"{document['name']}.yaml" if output is None else str(output)
    return yaml_of(replace(proposal, document=document), file)


def _from_folder(block: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a data block with paths relative to a folder."""
    from everclip.urls import is_remote

    def relative(text: str) -> str:
        named = text.startswith(("builtin:", "hub:", "~", "${")) or is_remote(text)
        if named or Path(text).is_absolute():
            return text
        return os.path.relpath(text, folder)

    changed = dict(block)
    for key in ("source", "root", "downloads"):
        value = block.get(key)
        if isinstance(value, str):
            changed[key] = relative(value)
        elif isinstance(value, list | tuple):
            changed[key] = [relative(text) for text in value]
    return changed
