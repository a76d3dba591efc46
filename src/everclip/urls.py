"""URLs: which texts are one, where copies of what lies there are kept, and messages without the keys of accounts."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from everclip.errors import ConfigError
from everclip.files import cache_folder

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# `name:password@`, but not the port of a host; keys of S3 may contain `/`. `https://` has no containers.
_ACCOUNT = re.compile(r"https?://[^/?]*@|[^:/]+://[^/@:]*:(?!\d+(?:/|$))[^?]*@")
_QUERY = re.compile(r"\?[^/]*=")
_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL|SAS", re.IGNORECASE)
_LEAST_SECRET = 8  # characters: shorter values are words of messages, too
_IN_URL = re.compile(r"//[^/@\s\"']+@")
_SIGNED = re.compile(r"((?:signature|credential|token|sig|password|accesskeyid)=)[^&\s\"']+", re.IGNORECASE)


def is_remote(place: str) -> bool:
    """Whether a path is a URL."""
    return _URL.match(place) is not None


def copy_of_run(url: str) -> Path:
    """Return the folder on this machine for the copy of a run folder far away; it has the same name."""
    place = url.rstrip("/")
    key = hashlib.sha256(place.encode()).hexdigest()[:16]
    return cache_folder() / "runs" / key / (place.rpartition("/")[2] or "run")


def require_no_secrets(url: str, key: str) -> None:
    """Refuse a URL that holds a password or a signature: it would be written into configurations and results.

    The name of a container (`abfs://container@account...`) and a `?` in a pattern are none.

    Raises:
        ConfigError: without the secret.
    """
    account = _ACCOUNT.match(url)
    if account or _QUERY.search(url):
        scheme, _, rest = url.partition("://")
        shown = f"{scheme}://{(url[account.end() :] if account else rest).partition('?')[0]}"
        raise ConfigError(
            f"{key}: the URL of {shown} holds an account, a key or a query. Configurations and results would keep it: "
            "give the URL without, and the key through the environment (AWS_PROFILE, HF_TOKEN...)."
        )


def brief_error(error: Exception) -> str:
    """Return the type and the text of an error of a library; some have no text.

    Keys are masked: those of the environment, of the account in a URL (also that of a server, `AWS_ENDPOINT_URL`), and
    those of a signed URL, which libraries quote if a server does not answer.
    """
    text = str(error)
    for name, value in os.environ.items():
        bare = value.strip()  # of a key with a line end, a library may quote either
        if len(bare) >= _LEAST_SECRET and _SECRET_NAME.search(name) and not os.path.exists(value):
            text = text.replace(bare, "***")
    text = _SIGNED.sub(r"\1***", _IN_URL.sub("//***@", text))
    return f"{type(error).__name__}: {text}"[:300]
