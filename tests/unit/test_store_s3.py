"""The commands of a store on a server that speaks S3's protocol (moto), and below a `file://` URL.

S3 needs `pip install s3fs 'moto[server]'`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(params=["file", "s3"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a bucket; account and server come from the environment, as users give them."""
    if request.param == "file":
        yield f"file://{tmp_path}"
        return
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "account")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-key")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("shops")
    yield "s3://shops"
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.slow
def test_the_commands_from_init_to_prune(
    command: Call, micro_folder: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, said = f"{bucket}/shop", []
    off = ("gates.retention=null", "gates.gain=null", "gates.negative_flips=null", "gates.latency=null")

    def call(*given: object) -> str:
        code, out, err = command(*given)
        assert code == 0, err
        said.append(out + err)
        return out

    def json_of(*given: object) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(call(*given, "--json"))
        return found

    call("init", url, "--model", micro_folder / "model", "training.steps=1", "training.batch_size=8", *off)
    assert command("init", url, "--model", micro_folder / "model")[0] == 2
    assert "v0002 serves now" in call("update", url, "--data", micro_folder / "reference.parquet")
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "another machine"))
    call("index", url, micro_folder / "reference.parquet")
    assert "index: 20 items; v0002 answers" in call("status", url)
    assert call("rollback", url) == "v0001 serves\n"
    before = json_of("search", url, "red")
    assert (before["version"], before["newer"]) == ("v0002", "v0001")
    call("reindex", url)
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "a third one"))
    assert call("eval", url, "--on", micro_folder / "reference.parquet", "--json")
    after = json_of("search", url, "red")
    assert (after["version"], after["newer"]) == ("v0001", None)
    assert len(after["results"]) == 10
    call("reindex", url, "--tidy")
    assert "removed no version" in call("prune", url, "--keep", "0")  # the index holds vectors of both
    status = json_of("status", url)
    assert (status["current"], status["problems"]) == ("v0001", [])
    assert "a-secret-key" not in "".join(said)
    if url.startswith("s3"):
        code, _, err = command("versions", "s3://no-such-bucket/shop")
        assert (code, "is no store" in err) == (2, True)
        code, _, err = command("init", "s3://no-such-bucket/shop", "--model", micro_folder / "model")
        assert (code, "no such bucket" in err) == (4, True)
