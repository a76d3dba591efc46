"""The token of those who may change which version serves: none is shipped, and none is ever logged."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from everclip.errors import ConfigError
from everclip.serve.refusal import Refusal

VARIABLE = "EVERCLIP_TOKEN"
LEAST = 16
"""Characters of a token at least; `python -c "import secrets; print(secrets.token_urlsafe())"` makes one."""

HOW = (
    f"Start the server with a token of at least {LEAST} characters in the environment variable {VARIABLE}, or in a "
    "file that --token-file names."
)


def read_token(file: Path | None) -> str | None:
    """Return the token from a file, else from the environment; `None` if there is none.

    Raises:
        ConfigError: if the file cannot be read, or the token is too short or not ASCII without spaces.
    """
    where = f"--token-file {file}" if file is not None else VARIABLE
    if file is not None:
        try:
            with open(file, encoding="utf-8") as handle:
                token = handle.read(4096).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{where}: cannot be read ({getattr(error, 'strerror', None) or 'not text'})."
            ) from error
    else:
        token = os.environ.get(VARIABLE, "").strip()
        if not token:
            return None
    if len(token) < LEAST or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{where}: expected at least {LEAST} printable ASCII characters without spaces.")
    return token


def require_token(expected: str | None, header: str | None) -> None:
    """Check the header `Authorization` of a request.

    Raises:
        Refusal: if there is no token on this server (403), or the request has another one or none (401).
    """
    if expected is None:
        raise Refusal(
            403, "no-token", f"This server has no token, so nobody may change what it serves. {HOW}"
        )
    kind, _, given = (header or "").partition(" ")
    # Always compared, in constant time, so that the time of an answer says nothing about the token.
    same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), expected.encode())
    if kind.lower() != "bearer" or not same:
        raise Refusal(
            401,
            "wrong-token",
            "Authorization: Bearer TOKEN is missing or wrong.",
            {"WWW-Authenticate": 'Bearer realm="everclip"'},
        )
