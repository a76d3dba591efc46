"""`everclip serve URL` as a process of its own, while other processes change the store."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from everclip.store.opening import open_store
from far import ITEMS, behind
from serving import b64, image

pytestmark = pytest.mark.slow

EVERCLIP = [sys.executable, "-m", "everclip"]
SECONDS = 300.0


@pytest.fixture
def url(micro_folder: Path, tmp_path: Path) -> str:
    return f"file://{behind(tmp_path, micro_folder)}"


@pytest.fixture
def address(url: str, tmp_path: Path) -> Iterator[str]:
    """Where the server answers, which ends with exit code 0."""
    environment = {**os.environ, "EVERCLIP_CACHE": str(tmp_path / "server"), "PYTHONUNBUFFERED": "1"}
    log = tmp_path / "server.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [*EVERCLIP, "serve", url, "--port", "0", "poll_seconds=0.2"],
            env=environment,
            stdout=file,
            stderr=file,
        )
    try:
        yield eventually(lambda: re.search(r"serves on (http://\S+)", log.read_text()), "a start")[1]
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0, log.read_text()
    finally:
        server.kill()
        server.wait()
    assert not list((tmp_path / "server").glob("stores/*/trees/*-*")), "the working copy ends with the server"


def eventually(found: Callable[[], Any], what: str) -> Any:
    """Return what a function returns as soon as that is true."""
    until = time.monotonic() + SECONDS
    while not (value := found()):
        assert time.monotonic() < until, what
        time.sleep(0.1)
    return value


def asked(address: str, path: str, document: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}/{path}", json.dumps(document).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        read: dict[str, Any] = json.load(answer)
        return read


def test_a_server_of_a_store_far_away_follows_other_processes(url: str, address: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> None:
        environment = {**os.environ, "EVERCLIP_CACHE": str(tmp_path / "other")}
        ended = subprocess.run([*EVERCLIP, *arguments], env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr

    def embedded() -> dict[str, Any]:
        return asked(address, "embed", {"images": [b64(image())], "texts": ["red"]})

    def search() -> dict[str, Any]:
        return asked(address, "search", {"texts": ["red"], "top": ITEMS})

    store = open_store(url, cache=tmp_path / "mine")
    expected = {v: store.load(v).encode([image()], ["red"]) for v in store.ids()}

    def assert_serves(version: str) -> None:
        found = embedded()
        assert found["version"] == version
        for kind in ("images", "texts"):
            torch.testing.assert_close(torch.tensor(found[kind]), expected[version][kind], atol=1e-6, rtol=0)

    assert_serves("v0002")
    assert (
        asked(address, "classify", {"images": [b64(image())], "names": ["red", "blue"]})["version"] == "v0002"
    )
    assert (search()["version"], len(search()["results"][0])) == (
        "v0001",
        ITEMS,
    )  # whose vectors the index holds
    run("promote", url, "v0001")
    eventually(lambda: embedded()["version"] == "v0001", "the switch")
    assert_serves("v0001")
    run("promote", url, "v0002")
    eventually(lambda: embedded()["version"] == "v0002", "the switch back")
    run("reindex", url)
    eventually(lambda: search()["version"] == "v0002", "the search with new vectors")
    assert len(search()["results"][0]) == ITEMS
    run("reindex", url, "--tidy")
    run("prune", url, "--keep", "0")  # the server needs nothing that goes
    assert_serves("v0002")
    assert len(search()["results"][0]) == ITEMS
