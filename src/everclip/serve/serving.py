"""Listen, and serve until a signal ends it."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from everclip.errors import ConfigError
from everclip.serve.app import create_app
from everclip.serve.protocol import TimedHeaders
from everclip.serve.service import Service
from everclip.serve.settings import ServeSettings
from everclip.store.versions import Store

_STOPPING_SECONDS = 30
_HEADER_BYTES = 32 * 1024
_BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ConfigError: if the address is not of this machine, or the port is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        raise ConfigError(
            f"serve: cannot listen on {host}:{port} ({error.strerror or error}); choose another --host or --port."
        ) from error
    return made


def server_of(service: Service, token: str | None) -> uvicorn.Server:
    """Return the server of a service."""
    settings = service.settings
    config = uvicorn.Config(
        create_app(service, token),
        http=TimedHeaders,
        ws="none",
        log_config=None,
        log_level=settings.log_level,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.connections,
        timeout_graceful_shutdown=_STOPPING_SECONDS,
        h11_max_incomplete_event_size=_HEADER_BYTES,
    )
    return uvicorn.Server(config)


def serve(
    store: Store,
    settings: ServeSettings,
    token: str | None,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Serve a store until SIGTERM or Ctrl-C; requests in flight are answered first.

    Args:
        store: the store.
        settings: limits, batches, versions.
        token: of those who may change what serves.
        tell: called with lines for the user.

    Raises:
        ConfigError: if the address cannot be used, or a version does not exist.
        CheckpointError: if the version that should serve is damaged.
    """
    with listen(settings.host, settings.port) as listening:  # before loading, which may take long
        logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
        service = Service(store, settings)
        server = server_of(service, token)
        listening.listen(
            _BACKLOG
        )  # before the line below says so: from here on connections wait to be answered
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        tell(f"{store.place}: {service.live.current.id} serves on http://{shown}:{port}")
        if token is None:
            tell("note: no token, so nobody can promote or roll back over HTTP (docs/serve.md)")
        # uvicorn raises the signal that ended it once more when it is done; that shall not end the process.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _done)
        server.run(sockets=[listening])


def _done(number: int, frame: FrameType | None) -> None:
    """Ignore a signal that the server has already obeyed."""
