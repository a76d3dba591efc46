"""The search index of a store: index, search, an update, re-embedding with stops and kills, switch and back."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from everclip.errors import ConfigError, DataError, RunFolderError
from everclip.search import adding, embedding, hits, reindexing, tables
from everclip.search.embedding import SearchModel, space_key
from everclip.search.index import REINDEX_LOCK, Index
from everclip.search.ways import Budget, Job
from everclip.store.creating import create_store
from everclip.store.indexed import answering, estimate_after_update, index_document, index_lines, model_of
from everclip.store.pruning import prune
from everclip.store.versions import Store
from moving import moved

Call = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]


def next_version(store: Store, part: str) -> str:
    """Add a version whose weights of a tower (`visual` or `text`) have moved; it serves."""
    name = moved(store, part)
    store.point_to(name)
    return name


@pytest.fixture(scope="module")
def made(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an indexed data set (40 items), then a second version that serves; only to be copied."""
    folder = tmp_path_factory.mktemp("search")
    store = create_store(folder / "store", str(micro_folder / "model"), method="finetune")
    rows = pq.read_table(micro_folder / "data.parquet").slice(0, 40)
    pq.write_table(rows, folder / "data.parquet")
    adding.add(Index.create(store.path), model_of(store), adding.images_of([str(folder / "data.parquet")])[0])
    shutil.copytree(store.path, folder / "first")
    next_version(store, "visual")
    return folder


@pytest.fixture
def call(command: Call) -> Call:
    """Return a function (*arguments) -> (exit code, standard output, standard error)."""
    return command


@pytest.fixture
def first(made: Path, tmp_path: Path) -> Store:
    """The store before its second version."""
    shutil.copytree(made / "first", tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    """The store after its second version, whose index holds vectors of the first."""
    shutil.copytree(made / "store", tmp_path / "store")
    return Store(tmp_path / "store")


def job(store: Store, **given: Any) -> Job:
    return Job(Index(store.path), lambda: model_of(store, "v0001"), model_of(store), **given)


def vectors(index: Index, key: str) -> dict[str, Any]:
    view = index.view()
    return tables.vectors_of(view.vectors(key), list(view.contents()))


def images_of(folder: Path, count: int, drop: int = 0) -> list[Path]:
    """Write images of the micro data as files."""
    folder.mkdir(parents=True, exist_ok=True)
    import micro

    draw = np.random.default_rng(5)
    files = []
    for number in range(count):
        path = folder / f"image {number}.png"
        path.write_bytes(micro.picture((20 * number % 250, 90, 200 - 9 * number), number + drop, draw))
        files.append(path)
    return files


# -- index and search -----------------------------------------------------------------------------------------


def test_a_search_ranks_as_the_learner_itself(first: Store, made: Path) -> None:
    index, model = Index(first.path), model_of(first)
    view = index.view()
    held = vectors(index, model.key)
    query = model.of_texts(["red green 0"])
    order = sorted(held, key=lambda i: (-float(held[i] @ query[0]), i))[:5]
    assert [hit.id for hit in view.search(model.key, query, 5)[0]] == order
    table = adding.images_of([str(made / "data.parquet")])[0].table
    embeddings = first.load().encode([table.value("image", row) for row in range(40)])["images"]
    for row, i in enumerate(table.ids):
        assert np.allclose(held[i], embeddings[row].numpy(), atol=1e-5)


def test_adding_again_adds_nothing_and_replace_keeps_the_vectors_of_the_same_content(
    first: Store, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, model = Index(first.path), model_of(first)
    before = vectors(index, model.key)
    images = adding.images_of([str(made / "data.parquet")])[0]
    again = adding.add(index, model, images)
    assert (again.added, again.replaced, again.same) == (0, 0, 40)
    rows = pq.read_table(made / "data.parquet").slice(0, 3)
    changed = rows.set_column(rows.column_names.index("time"), "time", pa.array([1999] * 3))
    pq.write_table(changed, tmp_path / "changed.parquet")
    images = adding.images_of([str(tmp_path / "changed.parquet")])[0]
    left = adding.add(index, model, images)
    assert (left.replaced, len(left.differing)) == (0, 3)

    def none(*given: Any) -> Iterator[Any]:
        raise AssertionError("an image is embedded although its content is the same")
        yield

    monkeypatch.setattr(adding, "embedded", none)
    done = adding.add(index, model, images, replacing=True)
    assert (done.added, done.replaced) == (0, 3)
    after = vectors(index, model.key)
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[i], before[i]) for i in before)
    assert {h.metadata["time"] for h in index.view().search(model.key, model.of_texts(["x"]), 40)[0]} >= {
        1999
    }


def test_files_are_named_by_their_path_and_unreadable_ones_by_their_reason(
    first: Store, call: Call, tmp_path: Path
) -> None:
    files = images_of(tmp_path / "photos", 4)
    files[3].write_bytes(b"no image")
    (tmp_path / "photos" / "again.png").write_bytes(files[0].read_bytes())
    code, out, err = call("index", first.path, tmp_path / "photos", files[0], "--quarantine-limit", 0.5)
    assert code == 0, err
    assert "4 added" in out or "3 added" in out
    assert "image 3.png" in out
    assert "not-an-image" in out
    code, out, _ = call("search", first.path, "--image", files[1], "--top", 1, "--json")
    best = json.loads(out)["results"][0]
    assert (code, best["id"], best["path"]) == (0, "photos/image 1.png", str(files[1]))
    assert best["cosine"] == pytest.approx(1, abs=1e-5)
    code, out, _ = call("index", first.path, "--remove", files[1])
    assert (code, out) == (0, "1 removed\n")
    code, _, err = call("index", first.path, "--remove", files[1])
    assert code == 3
    assert "has no item" in err
    code, out, _ = call(
        "search", first.path, "red", "--where", "style=style-1", "--where", "time>=2002", "--json"
    )
    found = json.loads(out)["results"]
    assert found
    counted = hits.held(first.path / "index")
    assert counted == {hit["id"]: 1 for hit in found}  # the removed item is forgotten
    assert call("search", first.path, "red", "--no-hits")[0] == 0
    assert hits.held(first.path / "index") == counted
    assert {hit["metadata"]["style"] for hit in found} == {"style-1"}
    assert {hit["metadata"]["time"] for hit in found} == {2002, 2003}


def test_short_work_says_nothing_of_its_progress(first: Store, call: Call, tmp_path: Path) -> None:
    files = images_of(tmp_path / "photos", 2)
    code, out, err = call("index", first.path, files[0], files[1])
    assert (code, out, err) == (0, "2 added, 0 replaced, 0 already there\n", "")
    files[0].write_bytes(b"no image")
    code, _, err = call("index", first.path, tmp_path / "photos")
    assert (code, "More than --quarantine-limit = 1.0%" in err) == (3, True)
    now = iter([0.0, 1.0, 6.0, 7.0, 8.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding.time, "monotonic", lambda: next(now))
        pace = embedding.Pace()
        assert [pace.due(n, 4) for n in (1, 2, 3, 4)] == [False, True, False, True]


def test_search_prints_where_files_lie_and_names_no_absolute_path(
    first: Store, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = images_of(tmp_path / "photos", 2) + images_of(tmp_path / "more/photos", 2, drop=1)
    monkeypatch.chdir(tmp_path)
    assert "2 added" in call("index", first.path, "photos")[1]
    assert "2 added" in call("index", first.path, "more/photos", files[0])[1]
    out = call("index", first.path, tmp_path)[1]  # as classes of folders: the items are the same
    assert "0 added" in out
    assert (
        "note: photos-2/image 0.png, photos-2/image 1.png, photos/image 0.png, photos/image 1.png are" in out
    )
    names = {i for i in Index(first.path).view().contents() if "/" in i}
    assert names == {f"photos{n}/image {i}.png" for n in ("", "-2") for i in (0, 1)}
    best = call("search", first.path, "--image", files[2], "--top", 1)[1]
    assert best.split("  ")[1].strip() == "more/photos/image 0.png"
    monkeypatch.chdir(tmp_path / "photos")
    best = call("search", first.path, "--image", files[2], "--top", 1)[1]
    assert best.split("  ")[1].strip() == str(files[2])
    assert call("index", first.path, "--remove", "image 0.png", "--remove", files[2])[1] == "2 removed\n"


def test_an_index_of_an_earlier_release_keeps_its_names(first: Store, call: Call, tmp_path: Path) -> None:
    files = images_of(tmp_path / "photos", 2)
    index = Index(first.path)
    with pytest.MonkeyPatch.context() as patch:  # earlier releases took the absolute path
        patch.setattr(adding, "name_of", lambda path, roots: None)
        adding.add(index, model_of(first), adding.images_of([str(files[0])])[0])
    assert str(files[0]) in index.view().contents()
    assert "1 added, 0 replaced, 1 already there" in call("index", first.path, tmp_path / "photos")[1]
    assert {i for i in index.view().contents() if "/" in i} == {str(files[0]), "photos/image 1.png"}


def test_metadata_of_another_kind_are_refused_and_nothing_is_added(
    first: Store, made: Path, tmp_path: Path
) -> None:
    rows = pq.read_table(made / "data.parquet").slice(0, 2).drop(["time", "id", "image_id"])
    rows = rows.set_column(rows.column_names.index("test"), "test", pa.array(["perhaps", "no"]))
    pq.write_table(rows.append_column("id", [["n1", "n2"]]), tmp_path / "new.parquet")
    index = Index(first.path)
    with pytest.raises(DataError, match=r"'perhaps' in column 'test' is no bool"):
        adding.add(index, model_of(first), adding.images_of([str(tmp_path / "new.parquet")])[0])
    assert "n1" not in index.view().contents()
    rows = rows.append_column("id", [["n1", "n2"]]).append_column(
        "weight", pa.array([1, 2**63 - 1 + 1], pa.uint64())
    )
    pq.write_table(rows.drop(["test"]), tmp_path / "large.parquet")
    with pytest.raises(DataError, match=r"'9223372036854775808' in column 'weight' is no int"):
        adding.add(index, model_of(first), adding.images_of([str(tmp_path / "large.parquet")])[0])
    assert "weight" not in {
        column.name for column in index.state.columns
    }  # it may be of another kind next time


def test_wrong_options_are_said(first: Store, call: Call, tmp_path: Path) -> None:
    assert "name images to add" in call("index", first.path)[2]
    assert "give a text or --image" in call("search", first.path)[2]
    assert (
        "--exact-below: the index is there already" in call("index", first.path, "x", "--exact-below", 5)[2]
    )
    assert "no column 'colour'" in call("search", first.path, "x", "--where", "colour=red")[2]
    assert "missing" in call("search", first.path, "--image", tmp_path / "none.png")[2]
    assert "expected a number of images" in call("reindex", first.path, "--budget", "soon")[2]
    assert "give one of --switch" in call("reindex", first.path, "--switch", "--tidy")[2]
    assert "no other space answered before" in call("reindex", first.path, "--rollback")[2]
    assert "expected one of reembed" in call("reindex", first.path, "--how", "magic", "--dry-run")[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, (None, None)),
        ("500", (500, None)),
        ("2h", (None, 7200.0)),
        ("1.5m", (None, 90.0)),
        ("9s", (None, 9.0)),
    ],
)
def test_budgets(text: str | None, expected: tuple[Any, Any]) -> None:
    budget = Budget.parse(text)
    assert (budget.images, budget.seconds) == expected


@pytest.mark.parametrize("text", ["0", "1.5", "-3", "2d", "", "h"])
def test_a_budget_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--budget"):
        Budget.parse(text)


# -- after an update ------------------------------------------------------------------------------------------


def test_after_an_update_the_version_of_the_vectors_answers(store: Store, call: Call, made: Path) -> None:
    found = answering(store, Index(store.path))
    assert (found.model.version, found.newer) == ("v0001", "v0002")
    code, out, err = call("search", store.path, "red", "--json")
    assert code == 0
    assert json.loads(out)["version"] == "v0001"
    assert "v0002 serves, and the index holds vectors of v0001" in err
    newer = model_of(store)
    with pytest.raises(ConfigError, match="another image encoder"):
        Index(store.path).view().search(newer.key, newer.of_texts(["red"]))
    with pytest.raises(ConfigError, match="another image encoder"):
        adding.add(Index(store.path), newer, adding.images_of([str(made / "data.parquet")])[0])


def test_an_update_of_the_text_tower_alone_answers_at_once(first: Store, call: Call) -> None:
    name = next_version(first, "text")
    found = answering(first, Index(first.path))
    assert (found.model.version, found.newer) == (name, None)
    code, out, _ = call("reindex", first.path)
    assert code == 0
    assert "0 images embedded" in out
    assert "its vectors are valid" in out
    assert "rollback" not in out
    assert Index(first.path).state.space.version == name  # type: ignore[union-attr]


def test_the_key_of_a_space_depends_on_weights_and_not_on_the_machine(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = model_of(store, "v0001"), model_of(store, "v0002")
    assert old.key != new.key
    key = old.key
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert space_key(old.learner.method, old.keys["image"]) == key
    assert model_of(store, "v0001").key == key


def test_reembedding_in_parts_then_one_switch_and_back(store: Store, call: Call) -> None:
    expected = SearchModel(store.load(), "v0002")
    before = reindexing.REEMBED.estimate(job(store))
    assert (before.images, before.recall) == (40, 1.0)
    assert before.seconds > 0
    assert Index(store.path).state.spaces.keys() == {
        Index(store.path).state.serving
    }  # a dry run writes nothing
    done = reindexing.reindex(job(store, budget=Budget(images=15)))
    assert (done.filled.images, done.filled.left, done.switched) == (15, 25, False)
    assert answering(store, Index(store.path)).model.version == "v0001"
    lines = index_lines(index_document(store))
    assert any("v0002  15 vectors (reembed), 25 without a vector" in line for line in lines)
    with pytest.raises(ConfigError, match=r"25 items have no vector of v0002 yet"):
        reindexing.switch(Index(store.path))
    code, out, _ = call("reindex", store.path, "--no-switch")
    assert code == 0
    assert "25 images embedded with v0002" in out
    assert "everclip reindex" in out
    index = Index(store.path)
    space = index.state.spaces[expected.key]
    assert space.compared is not None
    assert 0 <= space.compared.overlap < 1
    assert space.compared.by == "text"
    assert answering(store, index).model.version == "v0001"
    code, out, _ = call("reindex", store.path, "--switch")
    assert (code, out) == (0, "v0002 answers searches now\n")
    assert answering(store, index).newer is None
    # The new vectors are those that the new version gives.
    source = tables.all_rows(index.view().items, ["id", "bytes"]).to_pylist()
    held = vectors(index, expected.key)
    for row in source[:5]:
        assert np.allclose(held[row["id"]], expected.of_image(row["bytes"], "x")[0], atol=1e-5)
    code, out, _ = call("reindex", store.path, "--rollback")
    assert (code, out) == (0, "v0001 answers searches now\n")
    assert answering(store, index).model.version == "v0001"


def test_prune_keeps_the_version_of_the_vectors_and_tidy_lets_it_go(store: Store, call: Call) -> None:
    with store.changing("prune") as action:
        assert prune(store, 0, True, action).versions == []
    reindexing.reindex(job(store))
    third = next_version(store, "visual")
    reindexing.reindex(Job(Index(store.path), lambda: model_of(store, "v0002"), model_of(store, third)))
    assert [s.version for s in Index(store.path).state.spaces.values()] == ["v0001", "v0002", third]
    code, out, _ = call("reindex", store.path, "--tidy")
    assert (code, out) == (0, "removed the vectors of v0001\n")
    index = Index(store.path)
    assert len(tables.names(index.database)) == 3
    with store.changing("prune") as action:
        assert prune(store, 0, True, action).versions == ["v0001"]
    assert reindexing.rollback(index)[0].version == "v0002"


def test_images_that_changed_or_vanished_are_noticed(store: Store, tmp_path: Path) -> None:
    files = images_of(tmp_path / "photos", 6)
    index, old = Index(store.path), model_of(store, "v0001")
    adding.add(index, old, adding.images_of([str(tmp_path / "photos")])[0])
    files[0].write_bytes(files[1].read_bytes())
    files[2].unlink()
    with pytest.raises(DataError, match=r"1 of 46 images cannot be read .*missing-file.* is not switched"):
        reindexing.reindex(job(store))
    assert answering(store, index).model.version == "v0001"
    done = reindexing.reindex(job(store, limit=0.1))
    assert done.switched
    names = [f"photos/{path.name}" for path in files]
    assert list(done.filled.failed) == [names[2]]
    key = model_of(store).key
    held = vectors(index, key)
    assert names[2] not in held
    assert np.allclose(held[names[0]], held[names[1]])
    space, left = reindexing.rollback(index)
    assert (space.version, left) == ("v0001", 1)  # the changed file


def test_items_that_come_and_go_meanwhile(store: Store, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a re-embedding runs, an item is removed and another added: the new space ends with what is there."""
    index, old = Index(store.path), model_of(store, "v0001")
    ids = sorted(index.view().contents())
    calls: list[str] = []

    def point(name: str) -> None:
        if name == "in index: batch embedded again" and not calls:
            calls.append(name)
            adding.remove(Index(store.path), [ids[0], ids[-1]])
            images = adding.images_of([str(made / "data.parquet")])[0]
            adding.add(Index(store.path), old, images)

    monkeypatch.setattr("everclip.search.reembedding.crash_point", point)
    monkeypatch.setattr("everclip.search.reembedding.BLOCK", 16)
    monkeypatch.setattr("everclip.search.embedding.TOGETHER", 16)
    done = reindexing.reindex(job(store))
    assert done.switched
    assert calls
    view = index.view()
    assert view.missing(view.state.serving or "") == {}
    assert set(view.held(view.state.serving or "")) == set(view.contents())


def test_what_an_update_would_cost_the_index_is_said_before_it(first: Store) -> None:
    found = estimate_after_update(first)
    assert found is not None
    assert (found.images, found.disk) == (40, 40 * (4 * 32 + 100))
    assert found.seconds > 0


@pytest.mark.slow
def test_a_dry_run_of_an_update_says_it_too(first: Store, micro_folder: Path, call: Call) -> None:
    code, out, _ = call("update", first.path, "--data", micro_folder / "data.parquet", "--dry-run")
    assert code == 0
    assert "the search index: reembed: 40 images to embed with the new version" in out


def test_two_reindexings_at_once_are_refused_and_searching_is_not(store: Store, call: Call) -> None:
    with Index(store.path).alone(REINDEX_LOCK, "reindex"):
        with pytest.raises(RunFolderError, match=r"`reindex` .* works on this index"):
            reindexing.reindex(job(store))
        assert call("search", store.path, "red")[0] == 0


def test_a_rate_is_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("everclip.search.reembedding.time.sleep", slept.append)
    monkeypatch.setattr("everclip.search.reembedding.BLOCK", 10)
    reindexing.REEMBED.fill(job(store, rate=1.0))
    assert len(slept) == 4
    assert slept[0] < 10 < slept[1] < slept[2] < slept[3] <= 40


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
import everclip.files, everclip.search.embedding, everclip.search.index, everclip.search.reembedding
from everclip.search import reindexing
from everclip.search.index import Index
from everclip.search.ways import Job
from everclip.store.indexed import model_of
from everclip.store.versions import Store

left = int(sys.argv[2])
def point(name):
    global left
    left -= 1
    if left == 0:
        os._exit(9)
for module in (everclip.files, everclip.search.index, everclip.search.reembedding):
    module.crash_point = point
everclip.search.reembedding.BLOCK = everclip.search.embedding.TOGETHER = 8
store = Store(Path(sys.argv[1]))
reindexing.reindex(Job(Index(store.path), lambda: model_of(store, "v0001"), model_of(store)))
"""


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=pytest.mark.slow) for n in (2, 6, 9, 12, 17, 24, 30, 33, 36)]
)
def test_a_killed_reembedding_goes_on_where_it_was(number: int, store: Store, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, store.path, str(number), "", str(ROOT / "src")],
        timeout=300,
        check=False,
    )
    assert ended.returncode in (0, 9)
    index = Index(store.path)
    model = model_of(store)
    assert index.state.space is not None
    assert index.state.space.version in ("v0001", "v0002")
    view = index.view()
    held = view.held(model.key)
    assert len(view.held(index.state.serving or "")) == 40
    switched = index.state.serving == model.key  # it was killed after the last commit
    done = reindexing.reindex(job(store))
    assert done.filled.images == 40 - len(held)  # nothing twice, nothing missing
    assert done.switched != switched
    assert index.state.serving == model.key
    rows = tables.all_rows(index.view().vectors(model.key), ["id"])
    assert len(rows) == len(set(rows.column("id").to_pylist())) == 40
    assert list((store.path / "index").glob(".*.tmp")) == []


def test_progress_says_how_long_the_rest_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 100.0, 110.0, 110.0])
    monkeypatch.setattr("everclip.search.embedding.time.monotonic", lambda: next(times))
    pace = embedding.Pace()
    pace.due(50, 1000)  # the first block, after a start that took long
    assert pace.due(150, 1000)
    assert pace.left(150, 1000) == ", 10.0 per second, about 1\u00a0min 25\u00a0s left"
    assert pace.left(1000, 1000) == ""


def test_the_lines_of_the_api_page_search(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs/api/search.md").read_text()
    (lines,) = re.findall(r"```python\n(.+?)```", page, re.DOTALL)
    exec(lines.replace("stores/shop", str(store.path)), {})
    ids = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    found = Index(store.path)
    model = answering(store, found).model
    expected = found.view().search(model.key, model.of_texts(["a red kettle"]), top=5)[0]
    assert ids == [hit.id for hit in expected]
    assert len(ids) == 5
