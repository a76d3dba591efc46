"""`everclip serve`: a store over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everclip.cli.options import StoreFolder, on_this_machine
from everclip.errors import ConfigError


def serve(
    store: StoreFolder,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            help="Limits as key=value: batch=64 wait_ms=5 queue=2048 body_bytes=1000000 (docs/serve.md)"
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one.")] = 8000,
    shadow: Annotated[
        str | None,
        typer.Option("--shadow", help="A version that answers too; its answers are only compared."),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option("--beside", help="A version that requests can name; may be repeated."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", help="A site whose pages may read answers (CORS); may be repeated."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            help="Holds the token of those who may promote; else $EVERCLIP_TOKEN.",
            callback=on_this_machine,
        ),
    ] = None,
) -> None:
    """Serve a store over HTTP: embed, classify, versions, metrics, and a web page.

    It follows the store: a version that an update or `promote` lets serve is loaded beside the old one, and no request
    fails during the switch. Ctrl-C or SIGTERM ends it after the requests in flight.

    Example: everclip serve stores/shop --port 8000 --shadow v0003
    """
    from everclip.config import validated
    from everclip.overrides import overrides_document, types_of

    require_packages()
    from everclip.serve.serving import serve as run
    from everclip.serve.settings import ServeSettings
    from everclip.serve.token import read_token
    from everclip.store.opening import open_store

    document = overrides_document(settings or [], types_of(ServeSettings))
    document |= {"host": host, "port": port, "shadow": shadow}
    document |= {"beside": tuple(beside or ()), "allow_origins": tuple(allow_origin or ())}
    chosen = validated(ServeSettings, document, "serve")
    run(open_store(store, typer.echo, tables=True), chosen, read_token(token_file), typer.echo)


def require_packages() -> None:
    """Check that the packages of the extra are there.

    Raises:
        ConfigError: if one is missing.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"serve: the package {error.name} is missing; `pip install 'everclip[serve]'` installs it."
        ) from error
