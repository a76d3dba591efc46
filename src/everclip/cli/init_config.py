"""`everclip init-config`: a working YAML for one's own data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everclip.cli.check import data_block, split_arguments
from everclip.errors import ConfigError

if TYPE_CHECKING:
    from everclip.prepare.init_config.propose import Proposal


def init_config(
    data: Annotated[
        list[str],
        typer.Argument(help="Data, and settings of the data block as key=value: columns.caption=title"),
    ],
    kind: Annotated[
        str | None,
        typer.Option("--kind", help="time, domains, classes, sources or single; default: by the data."),
    ] = None,
    classes_per_task: Annotated[
        int | None,
        typer.Option("--classes-per-task", help="Make a task of every N classes; default: all are one task."),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option("--test", help="Separate test data; then none of DATA are held out for testing."),
    ] = None,
    remove_shared: Annotated[
        bool,
        typer.Option(
            "--remove-shared",
            help="Learn without pictures that are also test pictures, where data mark both.",
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write it to FILE.yaml instead of printing it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Print a commented, complete YAML that `everclip run` takes, made for the data.

    Several data sets become one task each; times or languages become tasks of one data set, classes on request. Sides
    that the data mark (train, validation, test) stay as they are.

    Example: everclip init-config photos/ -o photos.yaml

    Example: everclip init-config photos/ --classes-per-task 5 --test held-out/ -o photos.yaml

    Example: everclip init-config shop.csv columns.image=file columns.caption=title > shop.yaml
    """
    sources, settings = split_arguments(data)
    if output is not None:
        _check_output(output, force)
    block = data_block(settings)
    from everclip.files import write_text_atomic
    from everclip.learner.learnable import require_differences
    from everclip.models.tokenizers import default_tokenizer
    from everclip.prepare.init_config.candidates import Wish
    from everclip.prepare.init_config.propose import propose

    wish = Wish(kind, classes_per_task, None if test is None else {"source": test, **block}, remove_shared)
    proposal = propose([{"source": source, **block} for source in sources], wish)
    require_differences(proposal.scenario.tasks, default_tokenizer())
    _print_remarks(proposal)
    text = text_for(proposal, output)
    if output is None:
        typer.echo(text, nl=False)
        return
    write_text_atomic(output, text)
    typer.echo(f"{output}: {_tasks(proposal)}; next: everclip run {output} --dry-run")


def _check_output(output: Path, force: bool) -> None:
    """Refuse a file that cannot be written, before the data are read."""
    from everclip.files import require_writable

    if output.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--output: {output} is no YAML file; give it a name that ends in .yaml.")
    if output.exists() and not force:
        raise ConfigError(f"--output: {output} exists already; --force replaces it.")
    require_writable(output.parent, "--output")


def _print_remarks(proposal: Proposal) -> None:
    """Print what was set aside and what was guessed, as comments and on standard error."""
    for found in proposal.quarantine:
        typer.echo(f"# {found.table()}".replace("\n", "\n# "), err=True)
    for guess in proposal.guesses:
        typer.echo(f"# guessed: {guess}", err=True)
    for note in proposal.notes:
        typer.echo(f"# note: {note}", err=True)


def _tasks(proposal: Proposal) -> str:
    count = len(proposal.scenario.tasks)
    return "1 task" if count == 1 else f"{count} tasks"


def text_for(proposal: Proposal, output: Path | None) -> str:
    """Return the YAML text; paths are written relative to the file that will hold it."""
    from dataclasses import replace

    from everclip.prepare.init_config.yaml_text import yaml_of
    from everclip.registry import methods

    folder = Path() if output is None else output.parent
    document = dict(proposal.document)
    if "data" in document:
        document |= {k: _from_folder(document[k], folder) for k in ("data", "test") if k in document}
    else:
        document["sources"] = [
            {**source, "data": _from_folder(source["data"], folder)} for source in document["sources"]
        ]
    presets = {name: entry.summary for name, entry in methods().items()}
    chosen = "safe" if "safe" in presets and _has_validation(proposal) else "finetune"
    file = f"{document['name']}.yaml" if output is None else str(output)
    return yaml_of(replace(proposal, document=document), file, chosen, presets)


def _has_validation(proposal: Proposal) -> bool:
    return all(task.val is not None and len(task.val) for task in proposal.scenario.tasks)


def _from_folder(block: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a data block whose relative paths start from a folder."""

    def moved(text: str) -> str:
        if text.startswith(("builtin:", "hub:", "~", "${")) or Path(text).is_absolute():
            return text
        return os.path.relpath(text, folder)

    changed = dict(block)
    for key in ("source", "root", "downloads"):
        value = block.get(key)
        if isinstance(value, str):
            changed[key] = moved(value)
        elif isinstance(value, list | tuple):
            changed[key] = [moved(text) for text in value]
    return changed
