"""Streams of languages: order, source captions, what is scored when, and what is said of small languages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import micro
from everclip.config import resolve_config
from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError, DataError
from everclip.evaluation.results import Results
from everclip.run import execute
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario
from everclip.training.progress import Progress

Rows = list[tuple[str, list[tuple[str, str]], str]]
"""(image, captions as (language, text), side)."""


def write(path: Path, rows: Rows | None = None) -> Path:
    """Write pictures with captions in lists of {lang, text}, as flickr8k_1000_multilingual holds them."""
    draw = np.random.default_rng(0)
    rows = rows or [
        (
            f"{n}",
            [
                ("en", f"one {n}"),
                ("en", f"two {n}"),
                ("de", f"eins {n}"),
                ("de", f"zwei {n}"),
                ("de", f"drei {n}"),
                *([("ar", f"واحد {n}")] if n % 2 else []),
            ],
            "test" if n < 4 else "train",
        )
        for n in range(12)
    ]
    kind = pa.list_(pa.struct([("lang", pa.string()), ("text", pa.string())]))
    table = {
        "image": pa.array([micro.picture((10 * i, 200 - 9 * i, 50), i, draw) for i in range(len(rows))]),
        "captions": pa.array([[{"lang": k, "text": t} for k, t in texts] for _, texts, _ in rows], kind),
        "split": pa.array([side for *_, side in rows]),
    }
    pq.write_table(pa.table(table), path)
    return path


def stream(path: Path, **settings: Any) -> ListScenario:
    document = {
        "name": "tongues",
        "version": 1,
        "summary": "a small stream",
        "kind": "languages",
        "data": {"source": str(path)},
        "split": {"column": "split", "validation": 0},
        **settings,
    }
    return load_scenario(document)


def test_each_language_is_a_task_with_its_source_captions(tmp_path: Path) -> None:
    scenario = stream(write(tmp_path / "data.parquet"))
    assert [(t.name, t.language) for t in scenario.tasks] == [("en", "en"), ("de", "de"), ("ar", "ar")]
    assert [len(t.train) for t in scenario.tasks] == [16, 24, 4]
    english, german, arabic = (
        list(zip(t.train.column("caption"), t.train.column("source_caption"), strict=True))
        for t in scenario.tasks
    )
    assert english[:2] == [("one 4", "one 4"), ("two 4", "two 4")]
    assert german[:3] == [("eins 4", "one 4"), ("zwei 4", "two 4"), ("drei 4", "one 4")]
    assert arabic[0] == ("واحد 5", "one 5")
    assert [(s.name, s.kind, len(s.data)) for s in scenario.eval_sets] == [
        ("en", "retrieval", 8),
        ("de", "retrieval", 12),
        ("ar", "retrieval", 2),
    ]


def test_only_languages_that_were_learned_are_scored(tmp_path: Path) -> None:
    scenario = stream(write(tmp_path / "data.parquet"))
    (protocol,) = scenario.protocols
    assert (protocol.name, protocol.space) == ("learned", "learned")
    one, two, _ = scenario.eval_sets
    assert scenario.pool(one, [0], protocol) == (one,)
    assert scenario.pool(two, [0], protocol) is None
    assert scenario.pool(two, [0, 1], protocol) == (two,)
    own = stream(write(tmp_path / "data.parquet"), protocols=[{"name": "own"}], headline={"protocol": "own"})
    assert own.pool(two, [], own.protocols[0]) == (two,)


def test_orders(tmp_path: Path) -> None:
    path = write(tmp_path / "data.parquet")
    listed = stream(path, order=["ar", "en"])
    assert [t.name for t in listed.tasks] == ["ar", "en"]
    named = stream(path, order="mine", orders={"mine": ["de", "ar", "en"]})
    assert [t.name for t in named.tasks] == ["de", "ar", "en"]
    drawn = {tuple(t.name for t in stream(path, order="seed", order_seed=n).tasks) for n in range(8)}
    assert drawn == {("en", "de", "ar"), ("en", "ar", "de")}  # the source language comes first
    assert next(t.name for t in stream(path, order="seed", source_language="ar").tasks) == "ar"


def test_another_column_and_no_source_language(tmp_path: Path) -> None:
    path = write(tmp_path / "data.parquet")
    scenario = stream(path, source_language="fr")
    assert any("no training row is in 'fr'" in note for note in scenario.notes)
    assert set(scenario.tasks[0].train.column("source_caption")) == {None}
    with pytest.raises(DataError, match="no column 'tongue'"):
        stream(path, column="tongue")


def test_a_language_that_cannot_be_measured_is_left_out_with_a_note_or_refused_if_listed(
    tmp_path: Path,
) -> None:
    rows: Rows = [
        (f"{n}", [("en", f"one {n}"), *([("hi", f"एक {n}")] if n > 5 else [])], "test" if n < 3 else "train")
        for n in range(9)
    ]
    rows.append(("9", [("en", "nine"), ("th", " ")], "train"))  # a language whose only caption is blank
    data = {"source": str(write(tmp_path / "data.parquet", rows)), "quarantine_limit": 0.5}
    scenario = stream(tmp_path, data=data)
    assert [t.name for t in scenario.tasks] == ["en"]
    assert any("the language 'hi' has 3 training and 0 test rows: left out" in n for n in scenario.notes)
    with pytest.raises(DataError, match=r"'hi' \(order\) has 3 training and 0 test rows"):
        stream(tmp_path, data=data, order=["en", "hi"])
    with pytest.raises(ConfigError, match="'xx' is none of the values of 'language'"):
        stream(tmp_path, data=data, order=["en", "xx"])


def test_languages_are_measured_by_retrieval(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`languages` are measured by retrieval"):
        stream(write(tmp_path / "data.parquet"), evaluate_as="classification")


def test_a_run_over_languages(micro_folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "data.parquet")
    text = "name: tongues\nversion: 1\nsummary: small\nkind: languages\ndata: {source: data.parquet}\n"
    (tmp_path / "tongues.yaml").write_text(text + "split: {column: split, validation: 0.2}\n")
    settings = [
        f"backbone={micro_folder / 'model'}",
        f"output={tmp_path / 'run'}",
        "method=cll-clip",
        *("training.steps=3", "training.batch_size=6", "training.threads=1", "training.device=cpu"),
        "training.augment=null",
        "report=true",
    ]
    execute(resolve_config(str(tmp_path / "tongues.yaml"), settings), progress=Progress(quiet=True))
    results = Results.read(tmp_path / "run")
    lower = [[value is not None for value in row] for row in results.matrix.values]
    assert lower == [[False] * 3, [True, False, False], [True, True, False], [True] * 3]
    assert results.metrics["aa"] is not None
    assert results.metrics["forgetting_since_learned"] is not None
    assert results.metrics["forgetting_first"] is not None
    assert [entry["name"] for entry in results.rows[3].notes["languages"]] == ["ar"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Languages" in page
    assert "Other tokens: the share" in page


def test_the_emoji_have_one_row_per_drawing_and_language() -> None:
    table = read(DataSpec(source="builtin:emoji", languages=["en", "ha"], styles=["noto"])).table
    names = table.column("language")
    assert (names.count("en"), names.count("ha")) == (1870, 1790)
    assert len(set(table.ids)) == len(table)
    assert len(set(table.column("image_id"))) == 1870
    with pytest.raises(ConfigError, match="give `language` or `languages`"):
        read(DataSpec(source="builtin:emoji", languages=["en"], language="de"))
    with pytest.raises(ConfigError, match="unknown language"):
        read(DataSpec(source="builtin:emoji", languages=["en", "xx"]))


def small_emoji(*languages: str) -> ListScenario:
    settings = [f"scenario.data.languages=[{','.join(languages)}]"] if languages else []
    return load_scenario(resolve_config("emoji-languages", settings).scenario)


def check_emoji(scenario: ListScenario) -> None:
    """Assert that no drawing that is measured was learned or chosen on, and that all know their English name."""
    measured = {s.data.image_key(i) for s in scenario.eval_sets for i in range(len(s.data))}
    for task in scenario.tasks:
        assert task.val is not None
        own = {name for part in (task.train, task.val) for name in part.column("image_id")}
        assert own.isdisjoint(name for s in scenario.eval_sets for name in s.data.column("image_id"))
        assert None not in task.train.column("source_caption")
        known = set(task.train.column("concept")) | set(task.val.column("concept"))
        (of_task,) = (s for s in scenario.eval_sets if s.task == task.index)
        assert len(of_task.data) > 800
        assert set(of_task.data.column("concept")) <= known
    assert len(measured) == sum(len(s.data) for s in scenario.eval_sets)


def test_the_benchmark_of_emoji_in_two_languages() -> None:
    scenario = small_emoji("en", "ka")
    assert [task.language for task in scenario.tasks] == ["en", "ka"]
    check_emoji(scenario)


@pytest.mark.slow
def test_the_benchmark_of_emoji_in_all_languages() -> None:
    scenario = small_emoji()
    assert len(scenario.tasks) == 24
    check_emoji(scenario)


def test_the_published_order_of_the_36_languages() -> None:
    document = resolve_config("cll-36").scenario
    order = document["orders"]["222"]
    assert len(set(order)) == len(order) == 36
    assert order[:3] == ["en", "it", "de"]
    assert "no" in order  # not false
    assert order[-2:] == ["ja", "hu"]
