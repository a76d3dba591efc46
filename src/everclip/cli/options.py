"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StoreFolder = Annotated[Path, typer.Argument(help="The folder of a store.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for another process that changes the store.")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="Tag or file of weights, if MODEL is an architecture.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
