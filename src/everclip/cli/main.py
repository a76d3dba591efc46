"""The command line: parse, call, print. Heavy imports are inside the verbs, so that `ls` and `--help` are fast."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from everclip.cli import blind_pairs as blind_pairs_verb
from everclip.cli import check as check_verb
from everclip.cli import classify as classify_verb
from everclip.cli import diagnose as diagnose_verb
from everclip.cli import doctor as doctor_verb
from everclip.cli import evaluate as evaluate_verb
from everclip.cli import export as export_verb
from everclip.cli import init_config as init_config_verb
from everclip.cli import over_time as over_time_verb
from everclip.cli import reindex as reindex_verb
from everclip.cli import search as search_verbs
from everclip.cli import serve as serve_verb
from everclip.cli import store as store_verbs
from everclip.cli import suggest as suggest_verb
from everclip.cli.options import Json, on_this_machine
from everclip.cli.printing import json_text
from everclip.errors import ConfigError, EverclipError

app = typer.Typer(
    name="everclip",
    help="Keep a CLIP model up to date: learn a stream of tasks, measure gains and losses, stop and resume.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings as key=value: method=replay seed=1 training.epochs=5 output=runs/mine"),
]


def _print_json(document: object) -> None:
    typer.echo(json_text(document))


@app.command(name="ls")
def list_names(
    what: Annotated[
        str, typer.Argument(help="methods, benchmarks, backbones or datasets; default: all.")
    ] = "",
    as_json: Json = False,
) -> None:
    """List methods, benchmarks, backbones and data sets.

    Example: everclip ls methods
    """
    from everclip.cli.listing import catalogue

    listed = catalogue()
    if what and what not in listed:
        raise ConfigError(f"ls: cannot list {what!r}; choose from {', '.join(listed)}.")
    chosen = {what: listed[what]} if what else listed
    if as_json:
        _print_json(chosen)
        return
    for title, entries in chosen.items():
        typer.echo(f"{title}:")
        width = max((len(e["name"]) for e in entries), default=0)
        for entry in entries:
            aliases = f"  (also: {', '.join(entry['aliases'])})" if entry.get("aliases") else ""
            typer.echo(f"  {entry['name']:<{width}}  {entry['summary']}{aliases}")


@app.command()
def run(
    config: Annotated[str, typer.Argument(help="A benchmark (emoji-time, emoji-time@1) or a YAML file.")],
    settings: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            min=1,
            help="With --dry-run: also print what each of so many processes would hold, send and spend.",
        ),
    ] = None,
    extend: Annotated[
        bool,
        typer.Option(
            "--extend",
            help="Learn the tasks that were added to a finished run: next month's data, one more source.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result (or plan) as JSON.")] = False,
) -> None:
    """Run a method on a benchmark or stream. The same command continues a run that was stopped.

    Example: everclip run emoji-time method=replay seed=1 output=runs/replay
    Next month, with the new data in place: everclip run shop.yaml output=runs/shop --extend
    """
    from everclip.config import resolve_config

    resolved = resolve_config(config, settings or [])
    if processes is not None and not dry_run:
        raise ConfigError(
            "--processes: only with --dry-run. A run has as many processes as its launcher starts: "
            f"torchrun --nproc_per_node {processes} -m everclip run ..."
        )
    if dry_run:
        from everclip.cli.plan import plan, print_plan

        planned = plan(resolved, processes)
        _print_json(planned) if as_json else print_plan(planned)
        return
    from everclip.cli.summary import print_results
    from everclip.distributed import is_first
    from everclip.run import execute

    results = execute(resolved, extend=extend)
    if not is_first():
        return
    if as_json:
        _print_json(results.model_dump(mode="json"))
    else:
        print_results(results, resolved.folder, resolved.output)


@app.command()
def report(
    folder: Annotated[str, typer.Argument(help="A run folder, or its URL (s3://bucket/runs/shop).")],
) -> None:
    """Write the report of a run.

    The report is report.html, one self-contained file, and figures/.

    Example: everclip report runs/emoji-time-replay-s0
    """
    from everclip.report import write_report

    page = write_report(folder)
    typer.echo(f"{folder.rstrip('/')}/{page.name}")


@app.command()
def compare(
    folders: Annotated[
        list[str],
        typer.Argument(help="Run folders, or their URLs; runs of the same method count as its seeds."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Also write an HTML page to this file.", callback=on_this_machine
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compare runs even if their benchmarks differ.")
    ] = False,
    over: Annotated[
        Literal["seeds", "items"],
        typer.Option(
            "--over",
            help="With several seeds: whether intervals of differences are over seeds or over test items.",
        ),
    ] = "seeds",
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="Method to compare the others with; default: the first.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare runs, with paired differences and intervals.

    Example: everclip compare runs/finetune runs/replay -o compare.html
    """
    from everclip.report import compare as compare_runs
    from everclip.report import comparison_text, write_comparison
    from everclip.report.fitting import terminal_width
    from everclip.report.runs import Run
    from everclip.report.side_tables import side_tables

    if output is not None:
        from everclip.files import require_writable

        require_writable(output.parent if output.suffix else output, "--output")
    comparison = compare_runs(folders, force=force, baseline=baseline, over=over)
    if as_json:
        _print_json(comparison.model_dump(mode="json"))
    else:
        typer.echo(comparison_text(comparison, terminal_width()))
        for table in side_tables([Run(folder) for folder in folders]):
            typer.echo(f"{table.text()}\n")
    if output is not None:
        typer.echo(str(write_comparison(folders, output, force=force, comparison=comparison)))


app.command(name="eval")(evaluate_verb.evaluate)
app.command(name="diagnose")(diagnose_verb.diagnose)
for verb in (
    store_verbs.init,
    store_verbs.update,
    store_verbs.versions,
    store_verbs.promote,
    store_verbs.rollback,
    store_verbs.prune,
    store_verbs.status,
    search_verbs.index,
    search_verbs.search,
    reindex_verb.reindex,
):
    app.command()(verb)
app.command(name="serve")(serve_verb.serve)
app.command(name="over-time")(over_time_verb.over_time)
app.command(name="blind-pairs")(blind_pairs_verb.blind_pairs)
app.command(name="classify")(classify_verb.classify)
app.command(name="check")(check_verb.check)
app.command(name="init-config")(init_config_verb.init_config)
app.command(name="export")(export_verb.export)
app.command(name="doctor")(doctor_verb.doctor)
app.command(name="suggest")(suggest_verb.suggest)


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the runs.", callback=on_this_machine)
    ] = Path("runs/demo"),
    settings: Overrides = None,
) -> None:
    """Run the five-minute demo.

    Learns the names of new emoji, year by year, with three methods; prints what the model calls a few of them, then a
    table, and writes a report.

    Example: everclip demo
    """
    from everclip.cli.demo import run_demo

    run_demo(output, settings or [])


def _print_version(wanted: bool) -> None:
    if wanted:
        from everclip import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def before_verb(
    # Eager, else the error about a missing verb comes first.
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Handle options before a verb."""


def main() -> None:
    """Run the command line; errors become one clear message and an exit code (docs/exit-codes.md)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may not be UTF-8; printing them must not fail
            stream.reconfigure(errors="backslashreplace")
    try:
        # Newer versions of typer return the code of `typer.Exit` and of Ctrl-C; older versions raise.
        code = app(standalone_mode=False)
        if sys.stdout is not None:  # None where a caller closed it
            sys.stdout.flush()  # here, where a closed pipe can still be handled
        if code == STOPPED:
            raise KeyboardInterrupt
        if isinstance(code, int) and code:
            sys.exit(code)
    except EverclipError as error:
        _exit_with(error, error.exit_code)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _exit_with("stopped at once; what was saved before is intact.", STOPPED)
    except typer.TyperException as error:  # wrong usage: the message and code of click
        _exit_with_usage(error)
    except BrokenPipeError:
        # The reader of the output (`| head`) has closed it. Flushing at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _exit_with(_system_message(error), 1)


STOPPED = 130
"""The exit code that shells report for a program ended by Ctrl-C."""


def _exit_with(message: object, code: int) -> NoReturn:
    typer.echo(f"everclip: {message}", err=True)
    sys.exit(code)


def _exit_with_usage(error: typer.TyperException) -> NoReturn:
    formatted = getattr(error, "format_message", None)  # names the option that has the wrong value
    message = str(error) if formatted is None else str(formatted())
    if "Usage:" in message:  # no verb: print the help
        typer.echo(message, err=True)
        sys.exit(getattr(error, "exit_code", 2))
    message = message if message.endswith((".", "?")) else f"{message}."
    option = str(getattr(error, "option_name", ""))  # `--seed=1`, as in other programs
    if option and any(text.startswith(f"{option}=") for text in sys.argv):
        message += f" Settings are written without dashes: {option.lstrip('-')}=VALUE."
    _exit_with(f"{message} See everclip --help.", getattr(error, "exit_code", 2))


def _system_message(error: OSError) -> str:
    """Return the message of the operating system about a file, a folder or the network."""
    name = "" if error.filename is None else f"{str(error.filename)[:200]}: "
    return f"{name}{error.strerror or error}."


if __name__ == "__main__":
    main()
