"""A store of two small versions for tests of the server, and a client for it."""

from __future__ import annotations

import base64
import io
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image

from everclip.serve.app import create_app
from everclip.serve.service import Service
from everclip.serve.serving import listen, server_of
from everclip.serve.settings import ServeSettings
from everclip.store.creating import create_store
from everclip.store.records import GateLimits
from everclip.store.versions import Store

TOKEN = "a-token-of-the-tests-0123"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
OPEN = GateLimits(retention=None, gain=None, negative_flips=None, latency=None, size=None)


def two_versions(path: Path, model: Path) -> Path:
    """Make a store whose v0001 serves, and whose v0002 has other weights; return its folder."""
    store = create_store(path, str(model), gates=OPEN, method_settings={"trainable": ["image", "text"]})
    learner = store.load()
    for parameter in learner.method.parameters():
        parameter.data.mul_(1.1).add_(0.01)
    second = store.version("v0001").model_copy(
        update={"id": "v0002", "parent": "v0001", "towers": learner.method.backbone.fingerprints()}
    )
    store.add(learner, second, None, lambda folder: _pages(folder))
    return path


def _pages(folder: Path) -> None:
    (folder / "diagnosis.html").write_text("<h1>both versions</h1>")


def copied(made: Path, tmp_path: Path) -> Store:
    """Return a copy of a store that a test may change."""
    shutil.copytree(made, tmp_path / "store")
    return Store(tmp_path / "store")


@contextmanager
def client(store: Store, token: str | None = TOKEN, **settings: Any) -> Iterator[TestClient]:
    """Serve a store inside this process; `client.service` is the service."""
    document = {"poll_seconds": 3600.0, "wait_ms": 0.0, **settings}
    service = Service(store, ServeSettings(**document))
    with TestClient(
        create_app(service, token), base_url="http://127.0.0.1", raise_server_exceptions=False
    ) as made:
        made.service = service  # type: ignore[attr-defined]
        yield made


def image(seed: int = 0, side: int = 20) -> bytes:
    """Return a PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def b64(data: bytes) -> str:
    """Return bytes as base64."""
    return base64.b64encode(data).decode()


def said(answer: Any) -> tuple[int, str]:
    """Return the status and code of a refusal."""
    return answer.status_code, answer.json()["error"]["code"]


@contextmanager
def running(store: Store, token: str | None = TOKEN, **settings: Any) -> Iterator[str]:
    """Serve a store on a free port of this machine, in a thread; yields the address."""
    service = Service(store, ServeSettings(**{"poll_seconds": 0.1, "log_level": "error", **settings}))
    with listen("127.0.0.1", 0) as listening:
        server = server_of(service, token)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(60)
