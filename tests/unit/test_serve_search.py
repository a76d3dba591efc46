"""`/search` over an index of a store: the learner's own order, conditions, two spaces, a switch."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from everclip.errors import CheckpointError
from everclip.search import hits, in_memory, tables
from everclip.search.adding import add, images_of, remove
from everclip.search.index import Index, View
from everclip.search.reindexing import reindex
from everclip.search.ways import Job
from everclip.serve import search_routes
from everclip.serve.indexed import StoreIndex, key_of
from everclip.serve.search_routes import SmallPictures
from everclip.serve.search_service import SearchService
from everclip.store.indexed import model_of
from everclip.store.versions import Store
from serving import BEARER, b64, client, copied, image, said, two_versions

pytest.importorskip("lancedb")


@pytest.fixture(scope="module")
def made(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two versions with an index of v0001's vectors; only to be copied."""
    path = two_versions(tmp_path_factory.mktemp("search") / "store", micro_folder / "model")
    store, index = Store(path), Index.create(path)
    model = model_of(store)
    for images in images_of([str(micro_folder / "reference.parquet")], "id"):
        add(index, model, images)
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    return copied(made, tmp_path)


def ids(answer: Any, query: int = 0) -> list[str]:
    return [hit["id"] for hit in answer.json()["results"][query]]


def test_results_are_in_the_order_of_the_learners_cosines(made: Path, micro_folder: Path) -> None:
    rows = pq.read_table(micro_folder / "reference.parquet").to_pydict()
    learner = Store(made).load("v0001")
    found = learner.encode(rows["image"], ["red 1"])
    cosines = (found["texts"] @ found["images"].T)[0].numpy()
    with client(Store(made)) as served:
        answer = served.post(
            "/search", json={"texts": ["red 1"], "images": [b64(rows["image"][3])], "top": 20}
        )
        assert answer.json()["version"] == "v0001"
        scores = {hit["id"]: hit["score"] for hit in answer.json()["results"][0]}
        assert scores == pytest.approx(dict(zip(rows["id"], cosines.tolist(), strict=True)), abs=1e-5)
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        assert ids(answer, 1)[0] == rows["id"][3]  # an image finds itself
        fields = [("texts", "red 1"), ("top", "20"), ("where", "style=style-1"), ("exact", "true")]
        form = served.post("/search", files=[(name, (None, value)) for name, value in fields])
        assert form.status_code == 200, form.text
        styles = dict(zip(rows["id"], rows["style"], strict=True))
        assert ids(form) == [i for i in scores if styles[i] == "style-1"]
        small = served.get(f"/images/{rows['id'][3]}")
        with Image.open(io.BytesIO(small.content)) as picture:
            np.testing.assert_array_equal(
                np.asarray(picture), np.asarray(Image.open(io.BytesIO(rows["image"][3])).convert("RGB"))
            )
        facts = served.get("/index").json()
        assert facts["items"] == len(rows["id"])
        assert [(s["version"], s["answers"]) for s in facts["spaces"]] == [("v0001", True)]


@pytest.mark.parametrize(
    "condition", ["nothing=1", "time>='", "time", "time=1 OR 1=1", "style='; DROP TABLE items; --", "time~1"]
)
def test_conditions_never_reach_a_query_as_text(made: Path, condition: str) -> None:
    with client(Store(made)) as served:
        answer = served.post("/search", json={"texts": ["a"], "where": [condition]})
        if condition.startswith("style"):
            assert ids(answer) == []  # a text that no item has
        else:
            assert said(answer) == (422, "wrong-condition")
        assert served.get("/images/x' OR '1'='1").status_code == 404
        assert served.get("/images/..%2f..%2fstore.json").status_code == 404


@pytest.mark.parametrize("texts", [[], [""], ["red", " \n"]])
def test_a_blank_text_is_nothing_to_search_for(made: Path, texts: list[str], command: Any) -> None:
    with client(Store(made)) as served:
        assert said(served.post("/search", json={"texts": texts})) == (422, "nothing")
    code, _, err = command("search", made, *texts[-1:])
    assert (code, "give a text or --image" in err) == (2, True)


def test_vectors_in_memory_give_what_the_table_gives(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    view = Index(store.path).view()
    model = model_of(store)
    queries = model.of_texts(["red 1", "a", "blue"])
    held = in_memory.held_vectors(view, model.key)
    assert held is not None
    for top in (1, 7, 1000):
        expected = view.search(model.key, queries, top, exact=True, paths=False)
        for ours, theirs in zip(held.search(queries, top), expected, strict=True):
            assert [hit.id for hit in ours] == [hit.id for hit in theirs]
            assert [hit.metadata for hit in ours] == [hit.metadata for hit in theirs]
            assert [hit.cosine for hit in ours] == pytest.approx([hit.cosine for hit in theirs], abs=1e-6)
    # All equal: by id.
    assert [hit.id for hit in held.search(queries[:1] * 0, 3)[0]] == sorted(view.contents())[:3]
    monkeypatch.setattr(in_memory, "MOST", 10)
    assert in_memory.held_vectors(view, model.key) is None  # a large index stays on disk


def test_tables_stay_open_until_the_index_changes(
    store: Store, micro_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    at_version = tables.at_version

    def counting(database: Any, name: str, version: int) -> Any:
        opened.append(name)
        return at_version(database, name, version)

    monkeypatch.setattr(tables, "at_version", counting)
    with client(store) as served:
        first = served.post("/search", json={"texts": ["red"], "top": 99}).json()
        opened.clear()
        assert served.post("/search", json={"texts": ["red"], "top": 99}).json() == first
        assert opened == []
        gone = first["results"][0][0]["id"]
        remove(Index(store.path), [gone])
        assert ids(served.post("/search", json={"texts": ["red"], "top": 99})) == [
            hit["id"] for hit in first["results"][0][1:]
        ]


def test_a_search_is_repeated_if_its_tables_were_cleaned_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server keeps tables open; `reindex` ends by removing old versions of them, under a request in flight."""
    search, calls = View.search, []

    def cleaned(self: View, *given: Any, **named: Any) -> Any:
        calls.append(self)
        if len(calls) == 1:
            raise CheckpointError("index table vectors: damaged")
        return search(self, *given, **named)

    monkeypatch.setattr(View, "search", cleaned)
    with client(store) as served:
        answer = served.post("/search", json={"texts": ["red"], "where": ["style=style-1"]})
        assert answer.status_code == 200, answer.text
    assert len(calls) == 2
    assert calls[0] is not calls[1]


def test_a_thread_that_reopens_the_index_leaves_no_other_without_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread whose tables were cleaned forgets the index; another one must not answer that there is none."""

    class Mark:
        """Compared just before another thread forgets the index."""

        def __ne__(self, other: object) -> bool:
            search._opened = (None, None)
            return other is not self

    mark = Mark()
    with client(store) as served:
        search = SearchService(
            served.service, lambda _: StoreIndex(Index(store.path).view()), key_of, lambda _: None
        )
        kept = search._open()
        monkeypatch.setattr(search, "_marked", lambda _: mark)
        search._opened = (mark, kept)
        assert search._open() is kept


@pytest.mark.parametrize("part", ["data", "_versions"])
def test_a_damaged_index_is_refused_and_the_log_says_why(
    part: str, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with client(store) as served:
        item = ids(served.post("/search", json={"texts": ["red"]}))[0]
    for file in (store.path / "index/tables").glob(f"*.lance/{part}/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with client(store) as served:
        answers = [served.post("/search", json={"texts": ["red"]}), served.get(f"/images/{item}")]
        answers += [served.get("/index")] if part == "_versions" else []  # counting rows reads no data
        assert [said(answer) for answer in answers] == [(503, "index-unusable")] * len(answers)
        assert all(str(store.path) not in answer.text for answer in answers)
        assert served.post("/embed", json={"texts": ["red"]}).status_code == 200
    assert "the search index cannot be used: index table" in caplog.text


def test_small_pictures_keep_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache held whole images before: 512 of them may fill the memory of the server."""
    monkeypatch.setattr(search_routes, "_PICTURES", 2)
    kept, read, decode = SmallPictures(), [], search_routes.decode

    def counted(data: bytes, name: str) -> Image.Image:
        read.append(data)
        return decode(data, name)

    monkeypatch.setattr(search_routes, "decode", counted)
    images = [image(shade, 600) for shade in range(3)]
    for place in (0, 0, 1, 2, 0):
        with Image.open(io.BytesIO(kept.small(images[place]))) as small:
            assert small.size == (256, 256)
    assert read == [images[0], images[1], images[2], images[0]]
    assert all(len(key) == 32 for key in kept._kept)


def test_search_goes_on_with_the_vectors_it_has_while_versions_change(store: Store) -> None:
    request = {"texts": ["red 1"], "top": 5}
    with client(store) as served:
        before = served.post("/search", json=request)
        assert served.post("/promote", json={"version": "v0002"}, headers=BEARER).status_code == 200
        after = served.post("/search", json=request)
        assert after.json() == before.json()  # v0001's, whose vectors these are
        assert served.post("/embed", json={"texts": ["a"]}).json()["version"] == "v0002"
        named = served.post("/search", json={**request, "version": "v0002"})
        assert said(named) == (409, "other-space")
        index = Index(store.path)
        done = reindex(Job(index, lambda: model_of(store, "v0001"), model_of(store)))
        assert done.switched
        served.service.live.each_poll()  # type: ignore[attr-defined]
        moved = served.post("/search", json=request)
        assert moved.json()["version"] == "v0002"
        assert served.get("/healthz").json()["loaded"] == ["v0002"]


def test_a_shadow_version_searches_too_once_the_index_has_its_vectors(store: Store) -> None:
    request = {"texts": ["red 1", "green 2"], "top": 5}
    with client(store, shadow="v0002") as served:
        first = served.post("/search", json=request)
        assert served.get("/shadow").json()["kinds"]["search"]["dropped"] == 1
        reindex(Job(Index(store.path), lambda: model_of(store), model_of(store, "v0002")), switch=False)
        again = served.post("/search", json=request)
        assert again.json() == first.json()
        other = served.post("/search", json={**request, "version": "v0002"})
        counts = served.get("/shadow").json()["kinds"]["search"]
    assert counts["compared"] == 2
    shares = [len(set(ids(again, n)) & set(ids(other, n))) / 5 for n in (0, 1)]
    assert counts["overlap"] == pytest.approx(np.mean(shares))


def test_what_is_found_is_counted_and_written_at_the_end(store: Store) -> None:
    request = {"texts": ["red 1", "green 2"], "top": 3}
    shutil.rmtree(store.path / "index" / "hits", ignore_errors=True)  # of tests before this one
    with client(store, hits=False) as served:
        served.post("/search", json=request)
    assert hits.held(store.path / "index") == {}
    with client(store) as served:
        answers = [served.post("/search", json=request) for _ in range(2)]
        served.post("/embed", json={"texts": ["red 1"]})
    expected = Counter(i for answer in answers for n in (0, 1) for i in ids(answer, n))
    assert hits.held(store.path / "index") == expected


def test_without_an_index(micro_folder: Path, tmp_path: Path) -> None:
    with client(Store(two_versions(tmp_path / "store", micro_folder / "model"))) as served:
        assert said(served.post("/search", json={"texts": ["a"]})) == (404, "no-index")
        assert "everclip index" in served.post("/search", json={"images": [b64(image())]}).text
        assert said(served.get("/index")) == (404, "no-index")
        assert said(served.get("/images/a")) == (404, "no-index")
