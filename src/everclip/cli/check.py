"""`everclip check`: examine data before training on them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everclip.cli.options import Json, on_this_machine
from everclip.cli.printing import json_text
from everclip.errors import ConfigError, DataError

if TYPE_CHECKING:
    from everclip.data.reading.spec import DataSpec
    from everclip.prepare.check.inspect import Inspected


def check(
    data: Annotated[
        list[str],
        typer.Argument(help="Data, and settings of the data block as key=value, such as columns.image=file"),
    ],
    model: Annotated[
        str, typer.Option("--model", help="The model to train; decides token and pixel limits.")
    ] = "builtin:photo",
    test: Annotated[
        list[str] | None,
        typer.Option("--test", help="Separate test data: images that are in both are leaks."),
    ] = None,
    leak_limit: Annotated[
        float,
        typer.Option(
            "--leak-limit", min=0, max=1, help="Share of test images that may leak without exit code 3."
        ),
    ] = 0.0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for sheet.png, check.json and CSV lists.", callback=on_this_machine
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what data hold and what to fix before training.

    With --output, also draws a sample sheet. Exits with code 3 if training would be pointless or its results misleading
    (docs/exit-codes.md).

    Example: everclip check photos.csv columns.image=file --test test.csv --output checked
    """
    sources, settings = split_arguments(data)
    block = data_block(settings)
    from everclip.cli.check_text import text_of

    if output is not None:
        from everclip.files import require_writable

        require_writable(output, "--output")
    found = inspect_sources(sources, test or [], block, model, leak_limit)
    if as_json:
        document = found.check.model_dump(mode="json")
        typer.echo(json_text(document))
    else:
        typer.echo(text_of(found.check))
    if output is not None:  # after the text, which is shown even if the disk is full
        from everclip.cli.check_files import write_all

        write_all(found, output)
        if not as_json:
            typer.echo(f"\nsample sheet: {output / 'sheet.png'}\nlists:        {output}")
    if found.check.stops:
        raise DataError(f"check: {'; '.join(finding.message for finding in found.check.stops)}.")


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate data from `key=value` settings; an existing file is data, whatever its name.

    Raises:
        ConfigError: if no data are named.
    """
    from everclip.data.reading.spec import DataSpec

    def is_setting(text: str) -> bool:
        key, equals, value = text.removeprefix("data.").partition("=")
        first = key.partition(".")[0]
        if not equals or "/" in first or os.path.lexists(text):
            return False
        # `year=2024/*.csv` is a path or pattern; `colums.image=file` is a misspelt setting.
        return first in DataSpec.model_fields or "." in key or not re.search(r"[/*?\[]", value)

    settings = [text for text in arguments if is_setting(text)]
    sources = [text for text in arguments if not is_setting(text)]
    if not sources:
        raise ConfigError("check: no data named; example: everclip check photos.csv")
    return sources, settings


def data_block(settings: list[str]) -> dict[str, Any]:
    """Return the settings of the data block from `columns.image=file` or `data.columns.image=file`."""
    from everclip.config import RunConfig
    from everclip.data.reading.spec import DataSpec
    from everclip.overrides import overrides_document, types_of

    found = overrides_document([text.removeprefix("data.") for text in settings], types_of(DataSpec))
    if "source" in found:
        raise ConfigError("check: name the data directly, not as data.source=.")
    of_runs = sorted(found.keys() & RunConfig.model_fields.keys() - DataSpec.model_fields.keys())
    if of_runs:
        raise ConfigError(
            f"{of_runs[0]}: a setting of runs, not of data; write it into the YAML file, or pass it to `everclip run`."
        )
    return found


def inspect_sources(
    sources: list[str], test: list[str], block: dict[str, Any], model: str, leak_limit: float = 0.0
) -> Inspected:
    """Read and examine data. Unusable rows never stop a check: it reports them."""
    from everclip.config import validated
    from everclip.data.reading.sources import read
    from everclip.data.reading.spec import DataSpec
    from everclip.models.limits import limits_of
    from everclip.prepare.check.inspect import inspect, join
    from everclip.training.progress import Progress

    def spec(named: list[str]) -> DataSpec:
        return validated(DataSpec, {"source": named[0] if len(named) == 1 else named, **block}, "data")

    limit = spec(sources).quarantine_limit
    limits = limits_of(model)
    progress = Progress()

    def read_all(named: list[str]) -> Any:
        progress.start(f"read {', '.join(named)}", 0)
        loaded = read(
            spec(named).model_copy(update={"quarantine_limit": 1.0}),
            tick=lambda done, total: progress.update(done, "images", total),
        )
        progress.finish()
        return loaded

    loaded = read_all(sources)
    if test:
        loaded = join(loaded, read_all(test))
    progress.start("compare images", 0)
    found = inspect(
        loaded,
        limits,
        limit,
        leak_limit,
        tick=lambda done, total: progress.update(done, "candidates", total),
    )
    progress.finish()
    return found
