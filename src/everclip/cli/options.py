"""Arguments and options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

StoreFolder = Annotated[str, typer.Argument(help="A store: its folder, or its URL (s3://bucket/shop).")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for another process that changes the store.")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="Tag or file of weights, if MODEL is an architecture.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
