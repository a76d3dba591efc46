"""The server: embed, classify, versions, limits, token, hot switch, shadow; inside this process."""

from __future__ import annotations

import base64
import json
import logging
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from torch import nn

from everclip.errors import ConfigError
from everclip.serve.batching import Batcher
from everclip.serve.loaded import Loaded, space_of
from everclip.serve.protocol import TimedHeaders
from everclip.serve.refusal import Refusal
from everclip.serve.serving import listen
from everclip.serve.token import read_token
from everclip.store.paths import CURRENT, OBJECTS
from everclip.store.versions import Store
from serving import BEARER, TOKEN, b64, client, copied, image, running, said, two_versions

Call = Callable[..., tuple[int, str, str]]
WORDS = ["red 1", "green 2", "a blue square"]


@pytest.fixture(scope="module")
def made(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two versions; only to be copied or read."""
    return two_versions(tmp_path_factory.mktemp("serve") / "store", micro_folder / "model")


@pytest.fixture(scope="module")
def served(made: Path) -> Iterator[TestClient]:
    """A server that tests only ask."""
    with client(Store(made), beside=("v0002",), images=4, texts=6, prompts=20, text_length=50) as found:
        yield found


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    return copied(made, tmp_path)


# -- embed ----------------------------------------------------------------------------------------------------


def test_embeddings_are_those_of_the_learner(served: TestClient, made: Path) -> None:
    expected = Store(made).load("v0001").encode([image(0), image(1)], WORDS)
    answer = served.post("/embed", json={"texts": WORDS, "images": [b64(image(0)), b64(image(1))]})
    found = answer.json()
    assert found["version"] == "v0001"
    assert found["width"] == 32
    for kind in ("texts", "images"):
        torch.testing.assert_close(torch.tensor(found[kind]), expected[kind], atol=1e-6, rtol=0)
    assert found["towers"] == Store(made).version("v0001").towers


def test_a_form_and_base64_give_the_same(served: TestClient) -> None:
    document = {"texts": WORDS, "images": [b64(image(0)), b64(image(1))]}
    floats = served.post("/embed", json=document).json()
    packed = served.post("/embed", json={**document, "format": "base64"}).json()
    files = [("images", ("a.png", image(n), "image/png")) for n in (0, 1)]
    form = served.post("/embed", data={"texts": WORDS}, files=files).json()
    assert form == floats
    for kind in ("texts", "images"):
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in packed[kind]]
        np.testing.assert_allclose(rows, floats[kind], atol=1e-8)


def test_a_data_uri_is_an_image(served: TestClient) -> None:
    plain = served.post("/embed", json={"images": [b64(image())]}).json()
    assert served.post("/embed", json={"images": [f"data:image/png;base64,{b64(image())}"]}).json() == plain


def test_another_version_in_memory_answers_if_named(served: TestClient, made: Path) -> None:
    found = served.post("/embed", json={"texts": WORDS, "version": "v0002"}).json()
    assert found["version"] == "v0002"
    expected = Store(made).load("v0002").encode(texts=WORDS)["texts"]
    torch.testing.assert_close(torch.tensor(found["texts"]), expected, atol=1e-6, rtol=0)
    assert said(served.post("/embed", json={"texts": WORDS, "version": "v0009"})) == (404, "not-loaded")


# -- classify -------------------------------------------------------------------------------------------------


def test_names_are_those_of_the_learner(served: TestClient, made: Path) -> None:
    names, templates = ["red 1", "grey 3", "dark"], ["a {}", "{} photo"]
    expected = Store(made).load("v0001").classify([image(0), image(1)], names, templates, top=2)
    request = {"images": [b64(image(0)), b64(image(1))], "names": names, "templates": templates, "top": 2}
    for _ in range(2):  # the second time from the kept class bank
        answer = served.post("/classify", json=request).json()
        assert answer["version"] == "v0001"
        for found, of in zip(answer["images"], expected, strict=True):
            assert [n["name"] for n in found["names"]] == [name for name, _ in of]
            assert [n["score"] for n in found["names"]] == pytest.approx([s for _, s in of], abs=1e-5)
            assert (found["route"], found["experts"]) == (None, {})


def test_a_form_can_classify(served: TestClient) -> None:
    files = [("images", ("a.png", image(3), "image/png"))]
    answer = served.post("/classify", data={"names": ["red", "dark"], "top": "1"}, files=files)
    assert len(answer.json()["images"][0]["names"]) == 1


class Routed(nn.Module):
    """Predicts as a method with routes and experts does."""

    backbone = SimpleNamespace(embedding_width=lambda: 2)
    batch_dependent = "an option of a published method"

    def routes(self) -> tuple[str, ...]:
        return ("zero-shot", "birds")

    def expert_places(self) -> tuple[str, ...]:
        return ("image block 3", "text block 3")

    def class_scores(self, images: Any, space: Any, bank: Any) -> torch.Tensor:
        return images["embedding"]


def test_the_route_and_the_experts_of_an_image_are_told() -> None:
    loaded = Loaded("v0001", Routed(), {})  # type: ignore[arg-type]  # what is used of a method
    features = {
        "embedding": torch.tensor([[0.1, 0.3], [0.9, 0.2]]),
        "route": torch.tensor([1.0, 0.0]),
        "experts": torch.tensor([[4.0, 2.0, 7.0, -1.0], [-1.0, -1.0, -1.0, -1.0]]),
    }
    first, second = loaded.answers(space_of(["a", "b"], ("{}",)), {}, 1)(features)
    assert (first.names[0][0], first.route) == ("b", "birds")
    assert first.experts == {"image block 3": [4, 2], "text block 3": [7]}
    assert (second.names[0][0], second.route) == ("a", "zero-shot")
    assert second.experts == {"image block 3": [], "text block 3": []}
    assert loaded.one_by_one


# -- limits and wrong requests --------------------------------------------------------------------------------

ONE = b64(image())


def bomb(side: int = 20_000) -> bytes:
    """Return a PNG whose header says that it has `side` x `side` pixels."""
    head = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    body = b"".join(
        len(d).to_bytes(4, "big") + k + d + zlib.crc32(k + d).to_bytes(4, "big") for k, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("path", "document", "expected"),
    [
        ("/embed", {"texts": ["a"] * 7}, (413, "too-many-texts")),
        ("/embed", {"texts": ["a" * 51]}, (413, "text-too-long")),
        ("/embed", {"images": [ONE] * 5}, (413, "too-many-images")),
        ("/embed", {}, (422, "nothing")),
        ("/embed", {"texts": "a"}, (422, "invalid")),
        ("/embed", {"texts": [1]}, (422, "invalid")),
        ("/embed", {"text": ["a"]}, (422, "invalid")),
        ("/embed", {"images": ["?"]}, (422, "not-base64")),
        ("/embed", {"images": [b64(b"GIF89a")]}, (422, "image-truncated")),
        ("/embed", {"images": [b64(b"")]}, (422, "image-zero-bytes")),
        ("/embed", {"images": [b64(b"<svg/>")]}, (422, "image-not-an-image")),
        ("/embed", {"images": [b64(bomb())]}, (413, "image-too-large")),
        ("/embed", {"images": [b64(image(0, 200)[:200])]}, (422, "image-truncated")),
        (
            "/classify",
            {"images": [ONE], "names": ["a"] * 7, "templates": ["{}"] * 3},
            (413, "too-many-names"),
        ),
        ("/classify", {"images": [ONE], "names": []}, (422, "invalid")),
        ("/classify", {"images": [ONE], "names": ["a"], "templates": ["a"]}, (422, "wrong-template")),
        ("/classify", {"images": [], "names": ["a"]}, (422, "invalid")),
        ("/classify", {"images": [ONE], "names": ["a"], "top": 0}, (422, "invalid")),
    ],
)
def test_what_does_not_fit_is_refused_clearly(
    served: TestClient, path: str, document: Any, expected: tuple[int, str]
) -> None:
    answer = served.post(path, json=document)
    assert said(answer) == expected
    assert len(answer.json()["error"]["message"]) > 10
    assert answer.json().keys() == {"error"}


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b'{"texts": ["\\ud800"]}', "application/json", 422),
        (b"[" * 100_000, "application/json", 422),
        (b"texts=a", "application/x-www-form-urlencoded", 415),
        (b"x", "", 415),
        (b"nothing", "multipart/form-data; boundary=b", 400),
        (b"--b\r\nbroken", "multipart/form-data; boundary=b", 422),
    ],
)
def test_damaged_bodies(served: TestClient, body: bytes, kind: str, status: int) -> None:
    answer = served.post("/embed", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_a_large_or_compressed_body_is_not_read(made: Path) -> None:
    with client(Store(made), body_bytes=1000) as small:
        assert said(small.post("/embed", json={"texts": ["a" * 2000]})) == (413, "body-too-large")
        parts = (b"x" * 600 for _ in range(3))  # without a length
        assert said(small.post("/embed", content=parts)) == (413, "body-too-large")
        packed = small.post("/embed", content=b"x", headers={"Content-Encoding": "gzip"})
        assert said(packed) == (415, "compressed")


def test_slow_bodies_and_slow_headers_are_cut_off(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TimedHeaders, "header_seconds", 0.2)
    with running(Store(made), body_seconds=0.2) as url:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(address, 30) as slow:
            slow.sendall(b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            answer = b"".join(iter(lambda: slow.recv(4096), b""))  # until it closes
            assert b" 408 " in answer.splitlines()[0]
            assert b"slow-body" in answer
        with socket.create_connection(address, 30) as slow:
            slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: loc")
            assert slow.recv(4096) == b""
        with socket.create_connection(address, 30) as whole:
            whole.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in whole.recv(4096)


def test_unknown_paths_and_methods_and_hosts(served: TestClient) -> None:
    assert said(served.get("/nothing")) == (404, "http")
    assert said(served.get("/embed")) == (405, "http")
    assert said(served.get("/healthz", headers={"Host": "evil.example"})) == (421, "wrong-host")
    assert served.get("/healthz", headers={"Host": "localhost:8000"}).status_code == 200


def test_headers_of_every_answer(served: TestClient) -> None:
    for answer in (served.get("/versions"), served.get("/nothing"), served.post("/embed", json={})):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "access-control-allow-origin" not in answer.headers


def test_other_sites_read_nothing_unless_allowed(made: Path, served: TestClient) -> None:
    origin = {"Origin": "https://shop.example"}
    assert "access-control-allow-origin" not in served.get("/versions", headers=origin).headers
    with client(Store(made), allow_origins=("https://shop.example",)) as open_:
        answer = open_.get("/versions", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        other = open_.get("/versions", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


# -- the store over HTTP --------------------------------------------------------------------------------------


def test_versions_and_their_pages(served: TestClient) -> None:
    found = served.get("/versions").json()
    assert (found["serves"], found["current"], found["before"]) == ("v0001", "v0001", [])
    first, second = found["versions"]
    assert (first["id"], first["serves"], first["loaded"], first["pages"]) == ("v0001", True, True, [])
    assert (second["parent"], second["serves"], second["pages"]) == ("v0001", False, ["diagnosis"])
    page = served.get("/versions/v0002/diagnosis")
    assert page.text == "<h1>both versions</h1>"
    assert "script-src" not in page.headers["Content-Security-Policy"]
    for path in ("v0001/diagnosis", "v0002/version.json", "..%2f..%2f/diagnosis", "v0002/blind-pairs"):
        assert served.get(f"/versions/{path}").status_code == 404


def test_a_page_that_is_a_link_out_of_the_store_is_none(store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (store.folder("v0001") / "diagnosis.html").symlink_to(tmp_path / "secret")
    with client(store) as found:
        assert found.get("/versions/v0001/diagnosis").status_code == 404


def test_promote_and_rollback_need_the_token(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with client(store) as found:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            answer = found.post("/promote", json={"version": "v0002"}, headers=header)
            assert said(answer) == (401, "wrong-token")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert store.current.version == "v0001"
        assert said(found.post("/promote", json={"version": "v0009"}, headers=BEARER)) == (404, "no-version")
        assert said(found.post("/promote", json={}, headers=BEARER)) == (422, "invalid")
        done = found.post("/promote", json={"version": "v0002"}, headers=BEARER)
        assert done.json() == {"serves": "v0002", "before": ["v0001"]}
        assert found.post("/embed", json={"texts": ["a"]}).json()["version"] == "v0002"
        assert found.post("/rollback", headers=BEARER).json() == {"serves": "v0001", "before": []}
        assert said(found.post("/rollback", headers=BEARER)) == (409, "nothing-before")
        with store.changing("update"):  # another process
            answer = found.post("/promote", json={"version": "v0002"}, headers=BEARER)
            assert said(answer) == (409, "store-in-use")
            assert str(store.path) not in answer.text
    assert TOKEN not in caplog.text
    assert [e.verb for e in store.journal.entries()][:3] == ["init", "promote", "rollback"]


def test_without_a_token_nobody_changes_anything(store: Store) -> None:
    with client(store, None) as found:
        for path in ("/promote", "/rollback", "/load"):
            answer = found.post(path, json={"version": "v0002"}, headers=BEARER)
            assert said(answer) == (403, "no-token")
            assert "EVERCLIP_TOKEN" in answer.text


def test_load_brings_a_version_into_memory(store: Store) -> None:
    with client(store, loaded=2) as found:
        assert said(found.post("/embed", json={"texts": ["a"], "version": "v0002"})) == (404, "not-loaded")
        assert found.post("/load", json={"version": "v0002"}, headers=BEARER).json() == {
            "loaded": ["v0001", "v0002"]
        }
        assert found.post("/embed", json={"texts": ["a"], "version": "v0002"}).status_code == 200
        assert found.post("/promote", json={"version": "v0002"}, headers=BEARER).status_code == 200
        assert found.post("/rollback", headers=BEARER).json()["serves"] == "v0001"
        assert found.get("/healthz").json()["loaded"] == ["v0001", "v0002"]  # it stays, to compare


def test_where_the_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERCLIP_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("EVERCLIP_TOKEN", TOKEN)
    assert read_token(None) == TOKEN
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}-of-a-file\n")
    assert read_token(file) == f"{TOKEN}-of-a-file"
    for text in ("short", "with spaces in the middle", "ä" * 20, ""):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"at least 16 printable"):
            read_token(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "none")


# -- the switch -----------------------------------------------------------------------------------------------


def test_no_request_fails_while_versions_are_switched(store: Store) -> None:
    """Each answer is that of the version which it names, whenever the switch comes."""
    expected = {v: store.load(v).encode(texts=["a text"])["texts"][0] for v in ("v0001", "v0002")}
    with client(store, poll_seconds=0.02, wait_ms=1.0) as found:
        answers: list[tuple[int, str, Any]] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                answer = found.post("/embed", json={"texts": ["a text"]})
                document = answer.json()
                answers.append((answer.status_code, document.get("version"), document.get("texts")))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for version in ("v0002", "v0001", "v0002"):
            store.point_to(version)  # as an update of another process does
            until = time.monotonic() + 20
            while found.get("/healthz").json()["version"] != version and time.monotonic() < until:
                time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join()
        metrics = found.get("/metrics").text
    assert {status for status, _, _ in answers} == {200}
    assert {version for _, version, _ in answers} == {"v0001", "v0002"}
    for _, version, texts in answers:
        torch.testing.assert_close(torch.tensor(texts[0]), expected[version], atol=1e-6, rtol=0)
    assert "everclip_switches_total 3.0" in metrics
    assert 'everclip_serving{version="v0002"} 1.0' in metrics


def test_a_damaged_version_does_not_serve_and_the_old_one_goes_on(store: Store) -> None:
    first, second = store.version("v0001").tensors, store.version("v0002").tensors
    name = next(name for name, content in second.items() if content not in first.values())
    store.objects.path(second[name]).write_bytes(b"damaged")
    with client(store) as found:
        answer = found.post("/promote", json={"version": "v0002"}, headers=BEARER)
        assert said(answer) == (409, "damaged")
        assert str(store.path) not in answer.text
        store.point_to("v0002")  # past the check of `promote`
        found.service.live.look()  # type: ignore[attr-defined]
        health = found.get("/healthz").json()
        assert (health["status"], health["version"], health["wanted"]) == ("degraded", "v0001", "v0002")
        assert f"STORE/{OBJECTS}/" in health["reason"]
        assert str(store.path) not in health["reason"]
        metrics = found.get("/metrics").text
        assert "everclip_trouble 1.0" in metrics
        assert "everclip_switch_failures_total 1.0" in metrics
        assert found.post("/embed", json={"texts": ["a"]}).json()["version"] == "v0001"
        (store.path / CURRENT).write_text("{")
        found.service.live.look()  # type: ignore[attr-defined]
        assert found.get("/versions").json()["serves"] == "v0001"
        store.path.joinpath(CURRENT).write_text(json.dumps({"version": "v0001", "before": []}))
        found.service.live.look()  # type: ignore[attr-defined]
        assert found.get("/healthz").json()["status"] == "ok"


# -- shadow ---------------------------------------------------------------------------------------------------


def test_a_shadow_version_is_compared_and_never_sent(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "everclip.serve")
    names = [f"thing {n}" for n in range(12)]
    request = {"images": [b64(image(n)) for n in range(3)], "names": names, "top": 3}
    with client(store) as alone:
        expected = alone.post("/classify", json=request).json()
        other = alone.post("/load", json={"version": "v0002"}, headers=BEARER)
        assert other.status_code == 200
        candidate = alone.post("/classify", json={**request, "version": "v0002"}).json()["images"]
    with client(store, shadow="v0002") as found:
        assert found.post("/classify", json=request).json() == expected
        facts = found.get("/shadow", headers=BEARER).json()
        assert found.get("/shadow").json()["recent"] == []
        metrics = found.get("/metrics").text
    pairs = [
        ([n["name"] for n in old["names"]], [n["name"] for n in new["names"]])
        for old, new in zip(expected["images"], candidate, strict=True)
    ]
    counts = facts["kinds"]["classify"]
    assert counts["compared"] == 3
    assert counts["top1_changed"] == sum(old[0] != new[0] for old, new in pairs)
    assert counts["overlap"] == pytest.approx(np.mean([len(set(a) & set(b)) / 3 for a, b in pairs]))
    assert len(facts["recent"]) == sum(a[0] != b[0] or set(a) != set(b) for a, b in pairs) > 0
    assert 'everclip_shadow_total{kind="classify",outcome="compared"} 3.0' in metrics
    assert "shadow differs" in caplog.text


# -- batching -------------------------------------------------------------------------------------------------


class Slow:
    """Adds 1 to numbers, and writes down its batches."""

    one_by_one = False

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()

    def encode(self, kind: str, items: Any) -> dict[str, torch.Tensor]:
        self.go.wait(10)
        self.batches.append(list(items))
        if any(item < 0 for item in items):
            raise ValueError("below 0")
        return {"embedding": torch.tensor(items) + 1}


@pytest.fixture
def slow() -> Slow:
    return Slow()


def test_requests_that_wait_are_encoded_together_and_keep_their_order(slow: Slow) -> None:
    batcher = Batcher(4, 0.0, 100)
    finish = lambda found: found["embedding"].tolist()  # noqa: E731
    futures = [
        batcher.submit(slow, "text", items, finish) for items in ([0], [1, 2], [3, 4, 5, 6, 7, 8], [9])
    ]
    slow.go.set()
    assert [f.result(10) for f in futures] == [[1], [2, 3], [4, 5, 6, 7, 8, 9], [10]]
    assert max(map(len, slow.batches)) == 4
    assert sorted(n for batch in slow.batches for n in batch) == list(range(10))
    # A job larger than a batch takes turns: the last one did not wait for its end.
    assert 9 in slow.batches[-1] or 8 in slow.batches[-1]
    batcher.stop()


def test_a_version_whose_answers_depend_on_the_batch_gets_one_item_at_a_time(slow: Slow) -> None:
    slow.one_by_one = True
    slow.go.set()
    batcher = Batcher(8, 0.01, 100)
    assert batcher.submit(slow, "text", [1, 2, 3], lambda f: f["embedding"].tolist()).result(10) == [2, 3, 4]
    assert slow.batches == [[1], [2], [3]]
    batcher.stop()


def test_one_wrong_item_does_not_fail_the_others(slow: Slow) -> None:
    batcher = Batcher(8, 0.05, 100)
    futures = [batcher.submit(slow, "text", [n], lambda f: f["embedding"].tolist()) for n in (1, -1, 2)]
    slow.go.set()
    assert futures[0].result(10) == [2]
    assert futures[2].result(10) == [3]
    with pytest.raises(ValueError, match="below 0"):
        futures[1].result(10)
    failing = batcher.submit(slow, "text", [1], lambda f: f["nothing"])
    with pytest.raises(KeyError):
        failing.result(10)
    assert batcher.works
    batcher.stop()


def test_a_full_queue_says_when_to_try_again(slow: Slow) -> None:
    batcher = Batcher(2, 0.0, 5)
    with batcher.admitting(4):
        with batcher.admitting(1), pytest.raises(Refusal) as refused, batcher.admitting(1):
            pass
        assert (refused.value.status, refused.value.code) == (503, "busy")
        assert int(refused.value.headers["Retry-After"]) >= 1
    with batcher.admitting(50):  # alone, a large one is let in
        assert batcher.admitted == 50
    assert batcher.admitted == 0
    batcher.stop()


def test_the_background_waits_for_everything_else(slow: Slow) -> None:
    batcher = Batcher(2, 0.0, 4)
    first = batcher.submit(slow, "text", [0], lambda f: None)  # the thread waits inside it
    late = batcher.submit_in_background(slow, "text", [100, 101], lambda f: None)
    assert batcher.submit_in_background(slow, "text", [1, 2, 3], lambda f: None) is None  # dropped
    others = [batcher.submit(slow, "text", [n], lambda f: None) for n in (1, 2)]
    slow.go.set()
    for future in (first, *others, late):
        assert future is not None
        future.result(10)
    assert slow.batches[-1] == [100, 101]
    batcher.stop()


def test_embeddings_do_not_depend_on_the_batch(made: Path) -> None:
    texts = [f"thing {n}" for n in range(9)]
    images = [b64(image(n)) for n in range(9)]
    with client(Store(made), batch=1) as one, client(Store(made), batch=5) as many:
        together = many.post("/embed", json={"texts": texts, "images": images}).json()
        for n, (text, picture) in enumerate(zip(texts, images, strict=True)):
            alone = one.post("/embed", json={"texts": [text], "images": [picture]}).json()
            for kind in ("texts", "images"):
                np.testing.assert_allclose(alone[kind][0], together[kind][n], atol=1e-6)


# -- the command ----------------------------------------------------------------------------------------------


def test_wrong_settings_are_refused_before_anything_starts(command: Call, made: Path) -> None:
    for words, text in (
        (("batch=0",), "batch"),
        (("bacht=1",), "Did you mean 'batch'"),
        (("--beside", "v0009"), "no version 'v0009'"),
        (("--beside", "v0002", "loaded=1"), "loaded=2"),
        (("--token-file", "nowhere"), "nowhere"),
    ):
        code, _, err = command("serve", made, "--port", "0", *words)
        assert (code, text in err) == (2, True), err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = command("serve", made, "--port", taken.getsockname()[1])
        assert (code, "cannot listen" in err) == (2, True)


def test_a_free_port_is_found() -> None:
    with listen("127.0.0.1", 0) as found:
        assert found.getsockname()[1] > 0
