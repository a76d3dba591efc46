"""What stands before every request: host names, the size and pace of bodies, security headers, counting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from everclip.serve.refusal import Refusal

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
"""Names of this machine."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
STRICT = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""The content security policy of answers that are no pages."""

Counted = Callable[[str, int, float], None]
"""Called with the endpoint, the status and the seconds of each request."""


class Guard:
    """The outermost layer of the application.

    Args:
        app: what it guards.
        hosts: values of `Host` that are answered; empty: all.
        body_bytes, body_seconds: limits of a body.
        counted: called after each request.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Sequence[str],
        body_bytes: int,
        body_seconds: float,
        counted: Counted,
    ) -> None:
        self._app, self._hosts = app, frozenset(hosts)
        self._bytes, self._seconds, self._counted = body_bytes, body_seconds, counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Content-Security-Policy", STRICT)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            try:
                self._check_host(scope)
                body = await self._body(scope, receive)
            except Refusal as refusal:
                # What is left of the body is not read, so the connection cannot be used again.
                headers = {**refusal.headers, "Connection": "close"}
                answer = JSONResponse(refusal.document(), refusal.status, headers)
                await answer(scope, receive, sending)
                return
            await self._app(scope, _replayed(body, receive), sending)
        finally:
            self._counted(_endpoint(scope), status, time.monotonic() - started)

    def _check_host(self, scope: Scope) -> None:
        host = Headers(scope=scope).get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if self._hosts and name.lower() not in self._hosts:
            raise Refusal(
                421, "wrong-host", "This server does not answer to that name; `hosts=[NAME]` lets it."
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Read the body of a request, at most so much and for so long; `None` if it has none."""
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return None
        headers = Headers(scope=scope)
        if headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "compressed", "Bodies must not be compressed (Content-Encoding).")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._bytes:
            raise self._too_large()
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":  # the client has gone
                        raise Refusal(400, "disconnected", "The body is not whole.")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Refusal(408, "slow-body", f"The body did not arrive within {self._seconds:g} s.") from None

    def _too_large(self) -> Refusal:
        return Refusal(413, "body-too-large", f"The body is larger than {self._bytes:,} bytes.")


def _replayed(body: bytes | None, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read already."""
    if body is None:
        return receive
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _endpoint(scope: Scope) -> str:
    """Return the path of the route that answered, with its parameters unfilled: there are only so many of them."""
    return str(getattr(scope.get("route"), "path", "other"))
