"""Arguments and options that several verbs share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from everclip.errors import ConfigError

StoreFolder = Annotated[str, typer.Argument(help="A store: its folder, or its URL (s3://bucket/shop).")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for another process that changes the store.")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="Tag or file of weights, if MODEL is an architecture.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def on_this_machine(context: typer.Context, param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Return a path, unless it was given as a URL: a folder named `s3:` would be made.

    Raises:
        ConfigError: for a URL.
    """
    if value is not None and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(value)):
        name = max(param.opts, key=len) if param.opts else str(param.name)
        given = str(value).replace(":/", "://", 1)  # a path has no two slashes
        raise ConfigError(f"{name}: {given} is a URL; expected a path on this machine.")
    return value
