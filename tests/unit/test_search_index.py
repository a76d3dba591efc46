"""The tables of a search index: filters and ranking against brute force, changes against a dict, kills, locks."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from everclip.errors import CheckpointError, ConfigError, DataError, RunFolderError
from everclip.search import ann, tables
from everclip.search.change import Change
from everclip.search.filters import conditions
from everclip.search.index import ADD_LOCK, REINDEX_LOCK, Index
from everclip.search.metadata import ARROW, kind_of, parse, shown, stored
from everclip.search.records import SERVING, Column, versions_needed

WIDTH = 8
SOURCE = str(Path(__file__).parents[2] / "src")
COLUMNS = [
    Column(name="time", kind="int", also="year"),
    Column(name="price", kind="float"),
    Column(name="name", kind="text"),
    Column(name="tags", kind="list"),
    Column(name="sold", kind="bool"),
    Column(name="seen", kind="time"),
]
START = datetime(2024, 1, 1, tzinfo=UTC)


def unit(rows: Any) -> Any:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def vectors_of(contents: Sequence[str]) -> Any:
    """A vector per content, so that replaced content is noticed."""
    return unit(np.stack([np.random.default_rng(list(c.encode())).standard_normal(WIDTH) for c in contents]))


def items(ids: Sequence[str], contents: Sequence[str], metadata: Sequence[Sequence[Any]]) -> pa.Table:
    columns: dict[str, Any] = {f.name: pa.nulls(len(ids), f.type) for f in tables.ITEM_FIELDS}
    columns |= {"id": pa.array(ids), "sha256": pa.array(contents)}
    for i, column in enumerate(COLUMNS):
        values = [stored(row[i], column, "test") for row in metadata]
        columns[f"m{i}"] = pa.array(values, ARROW[column.kind])
    return pa.table(columns)


def some_metadata(draw: random.Random) -> list[Any]:
    values: list[Any] = [
        2000 + draw.randrange(6),
        draw.choice([0.5, 1.0, 2.25]),
        draw.choice(["red", "dark red", "it's", '"; DROP TABLE items', "", "50% off_", "猫"]),
        draw.choice([["cat"], ["cat", "dog"], ["catalogue"], []]),
        draw.random() < 0.5,
        START + timedelta(hours=draw.randrange(200)),
    ]
    return [None if draw.random() < 0.15 else value for value in values]


def begun(folder: Path, exact_below: int = 1000, keys: Sequence[str] = ("k1",)) -> Index:
    index = Index.create(folder, exact_below)
    with index.changing("test") as change:
        for number, key in enumerate(keys, start=1):
            change.new_space(key, f"v{number:04d}", "tower", WIDTH)
        change.serve(keys[0])
        change.add_columns(COLUMNS)
    return index


def put(change: Change, ids: Sequence[str], contents: Sequence[str], metadata: Any, key: str = "k1") -> None:
    change.put(items(ids, contents, metadata), {key: vectors_of(contents)})


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, list[str], Any, list[list[Any]]]:
    """An index of 120 items; only to be read."""
    draw = random.Random(0)
    index = begun(tmp_path_factory.mktemp("filled"))
    ids = [f"item {i}" for i in range(120)]
    metadata = [some_metadata(draw) for _ in ids]
    with index.changing("test") as change:
        put(change, ids, ids, metadata)
    return index, ids, vectors_of(ids), metadata


# -- filters and ranking --------------------------------------------------------------------------------------

FILTERS = [
    [],
    ["year>=2003"],
    ["time>=2003", "price<2"],
    ["year>2002.5", "year != 2004"],
    ["name=it's"],
    ['name="; DROP TABLE items'],
    ["name!=red"],
    ["name~red"],
    ["name="],
    ["name=50% off_"],
    ["name=猫", "sold=true"],
    ["tags=cat"],
    ["tags!=cat"],
    ["tags=dog", "sold=false"],
    ["seen>=2024-01-03", "seen<2024-01-05T12:00"],
    ["seen<=2024-01-02T02:00:00+02:00"],
    ["tags=nothing"],
]


@pytest.mark.parametrize("texts", FILTERS, ids=lambda texts: " & ".join(texts) or "none")
def test_filters_and_ranking_are_those_of_brute_force(filled: Any, texts: list[str]) -> None:
    index, ids, vectors, metadata = filled
    view = index.view()
    wanted = conditions(texts, view.state.columns)
    query = vectors_of(["query"])
    rows = [
        {
            f"m{i}": stored(value, column, "")
            for i, (value, column) in enumerate(zip(row, COLUMNS, strict=True))
        }
        for row in metadata
    ]
    good = [n for n, row in enumerate(rows) if all(one.matches(row) for one in wanted)]
    order = sorted(good, key=lambda n: -float(vectors[n] @ query[0]))[:7]
    hits = view.search("k1", query, 7, wanted)[0]
    assert [hit.id for hit in hits] == [ids[n] for n in order]
    assert [hit.cosine for hit in hits] == pytest.approx(
        [float(vectors[n] @ query[0]) for n in order], abs=1e-5
    )
    for hit, n in zip(hits, order, strict=True):
        year = metadata[n][0]
        assert hit.metadata.get("year") == year


def test_a_pass_over_the_table_finds_the_nearest_of_many_queries(
    filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, ids, vectors, _ = filled
    monkeypatch.setattr(tables, "PASS", 50)
    queries = vectors_of(["a", "b", "c"])
    order = np.argsort(-(queries @ vectors.T), axis=1)
    for top in (4, 500):
        expected = [[ids[n] for n in row[:top]] for row in order]
        assert tables.nearest_of_many(index.view().vectors("k1"), queries, top) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yeer>2000", "no column 'yeer'. Did you mean 'year'"),
        ("year>=new", "needs a whole number, found 'new'"),
        ("price=cheap", "needs a number"),
        ("sold=maybe", "needs true or false"),
        ("sold<true", "allow = !="),
        ("tags>cat", "allow = !="),
        ("year~20", "allow = != < <= > >="),
        ("seen>yesterday", "needs a date or time"),
        ("year", "expected COLUMN"),
        ("price=nan", "needs a number"),
        ("tags=a\x1fb", "needs text"),
    ],
)
def test_a_wrong_condition_is_refused_before_any_query(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match="--where") as error:
        conditions([text], COLUMNS)
    assert said in str(error.value)


def test_kinds_of_columns_and_their_values() -> None:
    text = pa.string()
    assert kind_of(["1", "20", ""], text) == "int"
    assert kind_of(["007", "20"], text) == "text"  # a name, not a number
    assert kind_of(["1.5", "2"], text) == "float"
    assert kind_of(["1_2", "3_4"], text) == "text"  # Python would read 12 and 34
    assert kind_of(["\u0663", "2"], text) == "text"  # an Arabic digit
    assert kind_of(["2024-01-01", "2024-02-01T10:00"], text) == "time"
    assert kind_of(["0001-01-01T00:00+10:00"], text) == "text"  # before the first time in UTC
    assert kind_of([], text) == "text"
    assert kind_of([None], pa.binary()) is None
    assert shown(stored(["a", "b"], COLUMNS[3], ""), "list") == ["a", "b"]
    assert shown(stored([], COLUMNS[3], ""), "list") == []
    assert stored(float("nan"), COLUMNS[1], "") is None
    assert parse("2024-01-01T01:00+01:00", "time") == START
    with pytest.raises(DataError, match=r"row 3: 'n/a' in column 'price' is no float"):
        stored("n/a", COLUMNS[1], "row 3")
    with pytest.raises(DataError, match="is no int"):
        stored(1.5, COLUMNS[0], "row")


def test_queries_of_another_space_are_refused(filled: Any) -> None:
    view = filled[0].view()
    with pytest.raises(ConfigError, match=r"another image encoder.*vectors are of v0001.*everclip reindex"):
        view.search("other", vectors_of(["query"]))
    with pytest.raises(ConfigError, match=r"expected \(N, 8\), found \(1, 5\)"):
        view.search("k1", np.zeros((1, 5), np.float32))


# -- changes --------------------------------------------------------------------------------------------------


def assert_holds(index: Index, expected: dict[str, tuple[str, list[Any]]]) -> None:
    view = index.view()
    assert view.contents() == {i: content for i, (content, _) in expected.items()}
    rows = tables.all_rows(view.vectors("k1"), ["id", "sha256", "vector", "m0", "m2"])
    held = {row["id"]: row for row in rows.to_pylist()}
    assert len(rows) == len(expected)
    for i, (content, metadata) in expected.items():
        assert held[i]["sha256"] == content
        assert np.allclose(held[i]["vector"], vectors_of([content])[0])
        assert (held[i]["m0"], held[i]["m2"]) == (metadata[0], metadata[2])
    other = tables.all_rows(view.vectors("k2"), ["id", "sha256", "m0"]).to_pylist()
    for row in other:  # another space never holds a vector of an earlier content, and its metadata follow
        content, metadata = expected[row["id"]]
        assert (row["sha256"], row["m0"]) == (content, metadata[0])
    assert set(view.missing("k2")) == set(expected) - {row["id"] for row in other}


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 6))])
def test_any_order_of_changes_equals_a_dict(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    index = begun(tmp_path, keys=("k1", "k2"))
    expected: dict[str, tuple[str, list[Any]]] = {}
    for number in range(9):
        ids = draw.sample([f"i{n}" for n in range(9)], draw.randrange(1, 5))
        with index.changing("test") as change:
            match draw.randrange(3):
                case 0:
                    assert change.remove(ids) == sorted(set(ids) & set(expected))
                    for i in ids:
                        expected.pop(i, None)
                case 1:  # new content, or the first
                    new = {i: (f"{i} {number}", some_metadata(draw)) for i in ids}
                    put(change, ids, [c for c, _ in new.values()], [m for _, m in new.values()])
                    expected |= new
                case _ if known := [i for i in ids if i in expected]:  # new metadata, the same content
                    new = {i: (expected[i][0], some_metadata(draw)) for i in known}
                    change.put(items(known, [c for c, _ in new.values()], [m for _, m in new.values()]), {})
                    expected |= new
        if number % 4 == 1:
            view = index.view()
            todo = list(view.missing("k2"))[:3]
            if todo:
                with index.changing("test") as change:
                    rows = tables.rows_with(change.table(tables.ITEMS), todo)
                    change.put_vectors("k2", rows, vectors_of(rows.column("sha256").to_pylist()))
    assert_holds(index, expected)


def test_new_columns_are_empty_in_items_that_are_there(tmp_path: Path) -> None:
    index = begun(tmp_path)
    with index.changing("test") as change:
        put(change, ["a"], ["a"], [some_metadata(random.Random(1))])
        change.add_columns([Column(name="colour", kind="text")])
    view = index.view()
    hit = view.search("k1", vectors_of(["a"]), 1)[0][0]
    assert "colour" not in hit.metadata
    assert view.search("k1", vectors_of(["a"]), 1, conditions(["colour=red"], view.state.columns)) == [[]]


def swap(index: Index) -> None:
    with index.changing("test") as change:
        change.remove(["a"])
        put(change, ["c"], ["c"], [some_metadata(random.Random(2))])


class Killed(BaseException):
    """Ends a change where a process may be killed."""


def test_a_change_that_was_killed_is_not_there_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = begun(tmp_path)
    with index.changing("test") as change:
        put(change, ["a", "b"], ["a", "b"], [some_metadata(random.Random(1))] * 2)
    held = index.view()
    for name in ("in index: tables written", "before renaming serving"):

        def point(passed: str, wanted: str = name) -> None:
            if passed == wanted:
                raise Killed(passed)

        with monkeypatch.context() as patch:
            for module in ("everclip.search.index", "everclip.files"):
                patch.setattr(f"{module}.crash_point", point)
            with pytest.raises(Killed):
                swap(index)
        again = Index(tmp_path)
        assert set(again.view().contents()) == {"a", "b"}
        assert {hit.id for hit in again.view().search("k1", vectors_of(["a"]), 9)[0]} == {"a", "b"}
    with index.changing("test") as change:
        put(change, ["d"], ["d"], [some_metadata(random.Random(3))])
    assert set(Index(tmp_path).view().contents()) == {"a", "b", "d"}
    assert len(Index(tmp_path).view().search("k1", vectors_of(["a"]), 9)[0]) == 3
    assert set(held.contents()) == {"a", "b"}  # a reader keeps what it opened
    assert list((tmp_path / "index").glob(".*.tmp")) == []


KILLED = """
import os, sys
from pathlib import Path
import pyarrow as pa
import everclip.files, everclip.search.index
from everclip.search import tables
from everclip.search.index import Index
def point(name):
    if name == sys.argv[2]:
        os._exit(9)
for module in (everclip.files, everclip.search.index):
    module.crash_point = point
index = Index(Path(sys.argv[1]))
with index.changing("test") as change:
    rows = tables.rows_with(change.table(tables.ITEMS), ["a"])
    change.remove(["a", "b"])
    change.put(rows.set_column(0, "id", pa.array(["c"])), {})
"""


@pytest.mark.parametrize(
    ("point", "held"),
    [
        ("in index: tables written", {"a", "b"}),
        pytest.param("before renaming serving", {"a", "b"}, marks=pytest.mark.slow),
        pytest.param("after renaming serving", {"c"}, marks=pytest.mark.slow),
    ],
)
def test_a_process_that_is_killed_leaves_the_index_before_or_after(
    point: str, held: set[str], tmp_path: Path
) -> None:
    index = begun(tmp_path)
    with index.changing("test") as change:
        put(change, ["a", "b"], ["a", "b"], [some_metadata(random.Random(1))] * 2)
    command = [sys.executable, "-c", KILLED, str(tmp_path), point]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": SOURCE}, timeout=120, check=False)
    assert ended.returncode == 9
    assert set(index.view().contents()) == held
    with index.changing("test") as change:  # the lock is free, and what was left behind is not there
        put(change, ["d"], ["d"], [some_metadata(random.Random(3))])
    assert set(index.view().contents()) == {*held, "d"}
    assert list((tmp_path / "index").glob(".*.tmp")) == []


def test_cleaning_removes_old_versions_and_never_the_one_that_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = begun(tmp_path)
    for name in "abc":
        with index.changing("test") as change:
            put(change, [name], [name], [some_metadata(random.Random(1))])
    monkeypatch.setattr(tables, "KEPT", timedelta(milliseconds=1))
    ann.keep_ann(index, None, lambda line: None)
    with index.alone(REINDEX_LOCK, "reindex"):
        index.clean()  # a process that moves the index reads an old version
    before = len(tables.at_version(index.database, tables.ITEMS, index.state.items).list_versions())
    assert before > 3
    index.clean()
    index.clean()
    state = index.state
    assert len(tables.at_version(index.database, tables.ITEMS, state.items).list_versions()) <= 2
    monkeypatch.setattr("everclip.search.index.crash_point", kill)
    with pytest.raises(Killed):
        cleaned_inside(index)
    assert index.state == state
    assert set(index.view().contents()) == {"a", "b", "c"}  # the version that holds has a tag
    assert len(index.view().search("k1", vectors_of(["a"]), 9)[0]) == 3


def kill(point: str) -> None:
    raise Killed(point)


def cleaned_inside(index: Index) -> None:
    with index.changing("test") as change:
        put(change, ["d"], ["d"], [some_metadata(random.Random(1))])
        tables.clean(change.table(tables.ITEMS))


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    index = begun(tmp_path)
    assert versions_needed(tmp_path) == {"v0001"}
    path = tmp_path / "index" / SERVING
    path.write_text(path.read_text().replace("v0001", "v0007"))
    for act in (lambda: index.state, lambda: versions_needed(tmp_path)):
        with pytest.raises(CheckpointError, match="serving: damaged"):
            act()
    assert versions_needed(tmp_path / "elsewhere") == set()


def test_a_full_disk_is_one_error_and_what_was_there_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = begun(tmp_path)

    def full(*given: Any) -> Any:
        raise RuntimeError("lance error: IO error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(Change, "put", full)
        with pytest.raises(CheckpointError, match=r"cannot be changed \(the disk is full\)"):
            swap(index)
    assert index.view().contents() == {}
    swap(index)
    assert set(index.view().contents()) == {"c"}


def test_a_second_process_is_refused_with_the_holder(tmp_path: Path) -> None:
    index = begun(tmp_path)
    with (
        index.alone(ADD_LOCK, "index"),
        pytest.raises(RunFolderError, match=rf"`index` \(process {os.getpid()} on .* works on this index"),
        Index(tmp_path).alone(ADD_LOCK, "index --remove"),
    ):
        pass


def test_no_index_and_no_library_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="has no search index; `everclip index"):
        Index(tmp_path)
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(ConfigError, match=r"pip install 'everclip\[search\]'"):
        Index.create(tmp_path)


# -- many vectors ---------------------------------------------------------------------------------------------


def test_many_vectors_get_an_approximate_index_with_its_recall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann, "QUERIES", 15)
    index = begun(tmp_path, exact_below=100)
    ids = [f"i{n}" for n in range(300)]
    metadata = [some_metadata(random.Random(1))] * len(ids)
    with index.changing("test") as change:
        put(change, ids[:90], ids[:90], metadata[:90])
    said: list[str] = []
    ann.keep_ann(index, None, said.append)
    assert index.state.spaces["k1"].ann is None
    with index.changing("test") as change:
        put(change, ids[90:], ids[90:], metadata[90:])
    ann.keep_ann(index, None, said.append)
    built = index.state.spaces["k1"].ann
    assert built is not None
    assert built.rows == 300
    assert built.recall.images is not None
    assert built.recall.images >= 0.9
    assert built.recall.texts is None
    assert "recall@10 against exact" in said[0]
    with index.changing("test") as change:  # later vectors are found too, and removed ones are not
        put(change, ["late"], ["late"], metadata[:1])
        change.remove(["i7"])
    ann.keep_ann(index, None, said.append)
    assert len(said) == 1
    view = index.view()
    assert view.search("k1", vectors_of(["late"]), 1)[0][0].id == "late"
    near = [hit.id for hit in view.search("k1", vectors_of(["i7"]), 10)[0]]
    exact = [hit.id for hit in view.search("k1", vectors_of(["i7"]), 10, exact=True)[0]]
    assert "i7" not in near
    assert len(set(near) & set(exact)) >= 8


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_stored_vectors_are_those_that_were_given(storage: Any, tmp_path: Path) -> None:
    index = Index.create(tmp_path)
    with index.changing("test") as change:
        change.new_space("k1", "v0001", "tower", WIDTH, storage)
        change.serve("k1")
        change.put(items(["a", "b"], ["a", "b"], [[None] * 6] * 2).drop([f"m{i}" for i in range(6)]), {})
        rows = tables.rows_with(change.table(tables.ITEMS), ["a", "b"])
        change.put_vectors("k1", rows, vectors_of(rows.column("id").to_pylist()))
    held = tables.vectors_of(index.view().vectors("k1"), ["a", "b"])
    for name, row in held.items():
        assert np.allclose(row, vectors_of([name])[0], atol=1e-6 if storage == "float32" else 1e-3)
    hits = index.view().search("k1", vectors_of(["a"]), 2)[0]
    assert [hit.id for hit in hits] == ["a", "b"]
    assert hits[0].cosine == pytest.approx(1, abs=1e-3)
