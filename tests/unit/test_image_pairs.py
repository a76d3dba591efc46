"""Sets of image pairs: MMVP-VLM's published layout, Winoground, pairs with one caption; measured alone and in a run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from everclip.config import EvaluationConfig, resolve_config, validated
from everclip.data.reading.loaded import Loaded
from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError, DataError
from everclip.evaluation.guessing import guessed_pairs
from everclip.evaluation.headline import metric_of
from everclip.evaluation.pairs import answer_pairs
from everclip.evaluation.results import Column, Results
from everclip.evaluation.scoring import compute_metrics
from everclip.evaluation.statistics import wilson
from everclip.learner.evaluate import Evaluation
from everclip.run import execute
from everclip.scenarios.load import load_scenario
from everclip.scenarios.measuring import measured_set

Call = Callable[..., tuple[int, str, str]]
Question = tuple[object, str, str]
PATTERNS = ("Color and Appearance", "Texts", "Viewpoint and Perspective")


def png(seed: int, side: int = 8) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def questions(pairs: int = 6) -> list[Question]:
    """Return two statements per pair; two pairs per pattern."""
    return [
        (number, PATTERNS[(number - 1) // 4 % 3], f"a {'red' if number % 2 else 'blue'} thing {number}")
        for number in range(1, 2 * pairs + 1)
    ]


def published(
    folder: Path, rows: Sequence[Question], missing: tuple[int, ...] = (), fixes: Sequence[Question] = ()
) -> Path:
    """Write our own images in the layout of MMVP-VLM."""
    for number, pattern, _ in questions():
        place = folder / "MLLM_VLM Images" / pattern
        place.mkdir(parents=True, exist_ok=True)
        if number not in missing:
            Image.open(io.BytesIO(png(int(str(number))))).save(place / f"{number}.jpg")
    for name, header, lines in (
        ("Questions.csv", ("Question ID", "Type", "Statement"), rows),
        ("fixes.csv", ("Question ID", "Statement"), [(number, text) for number, _, text in fixes]),
    ):
        if lines:
            with (folder / name).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([header, *lines])
    return folder


def read_all(source: Path, **more: object) -> Loaded:
    return read(validated(DataSpec, {"source": str(source), **more}, "data"))


def rows_of(loaded: Loaded, template: str | None = None) -> list[tuple[str, str, str | None, str]]:
    """Return the rows of the whole pairs: pair, id, caption, hash of the image."""
    data = measured_set(loaded.table, None if template is None else (template,)).data
    captions, pairs = data.column("caption"), data.column("pair")
    return [(pairs[i], data.ids[i], captions[i], data.content(i)) for i in range(len(data))]


# -- the published layout -------------------------------------------------------------------------------------


def test_the_published_layout_is_read(tmp_path: Path) -> None:
    loaded = read_all(published(tmp_path / "mmvp", questions()))
    rows = rows_of(loaded)
    assert [(pair, name) for pair, name, *_ in rows] == [(str((n + 1) // 2), str(n)) for n in range(1, 13)]
    assert rows[0][2] == "a photo of a red thing 1"
    assert loaded.table.column("pattern")[::4] == list(PATTERNS)
    assert rows_of(loaded, "{}!")[0][2] == "a red thing 1!"
    assert any("a photo of {}" in line for line in loaded.guesses)


def test_rows_in_another_order_and_inside_a_folder_are_the_same_pairs(tmp_path: Path) -> None:
    first = rows_of(read_all(published(tmp_path / "a", questions())))
    mixed = [questions()[i] for i in (7, 0, 11, 4, 2, 9, 1, 10, 3, 6, 5, 8)]
    other = rows_of(read_all(published(tmp_path / "b" / "MMVP_VLM", mixed).parent))
    assert sorted(first) == sorted(other)
    assert [row[0] for row in other[::2]] == [row[0] for row in other[1::2]]


def test_a_missing_image_costs_its_pair_and_is_named(tmp_path: Path) -> None:
    folder = published(tmp_path / "mmvp", questions(), missing=(3,))
    with pytest.raises(DataError, match=r"missing-file(.|\n)*Color and Appearance/3.jpg"):
        read_all(folder)
    loaded = read_all(folder, quarantine_limit=0.1)
    assert [entry.reason for entry in loaded.quarantine.entries] == ["missing-file"]
    said: list[str] = []
    kept = measured_set(loaded.table, say=said.append)
    assert set(kept.data.column("pair")) == {"1", "3", "4", "5", "6"}
    assert said == ["mmvp: 1 pair left out, since one of its two rows is missing: '2' (only id 4 is there)"]


def test_images_may_have_another_ending(tmp_path: Path) -> None:
    folder = published(tmp_path / "mmvp", questions())
    image = folder / "MLLM_VLM Images" / PATTERNS[0] / "1.jpg"
    image.unlink()
    image.with_suffix(".png").write_bytes(png(1))
    assert len(rows_of(read_all(folder))) == 12


def changed(at: int, row: Question) -> list[Question]:
    rows = questions()
    rows[at] = row
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*questions(), questions()[4]], r"Questions.csv, row 13: question 5 is in row 5 already"),
        (changed(0, ("x1", PATTERNS[0], "a thing")), r"row 1: Question ID is 'x1'; expected a number"),
        (changed(0, (0, PATTERNS[0], "a thing")), r"row 1: Question ID is '0'; expected a number"),
        (changed(2, (3, PATTERNS[0], "")), r"empty-caption(.|\n)*row 3: the statement is empty"),
        (changed(1, (2, PATTERNS[1], "a thing")), r"missing-file(.|\n)*Texts/2.jpg"),
    ],
    ids=["twice", "no number", "zero", "no statement", "image elsewhere"],
)
def test_what_is_wrong_in_the_questions_is_named(tmp_path: Path, rows: list[Question], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_all(published(tmp_path / "mmvp", rows))


def test_an_odd_one_out_is_left_out_by_name_and_two_patterns_are_refused(tmp_path: Path) -> None:
    said: list[str] = []
    loaded = read_all(published(tmp_path / "a", questions()[:-1]))
    assert len(measured_set(loaded.table, say=said.append).data) == 10
    assert "'6' (only id 11 is there)" in said[0]
    folder = published(tmp_path / "b", changed(1, (2, PATTERNS[1], "a thing")))
    place = folder / "MLLM_VLM Images"
    (place / PATTERNS[0] / "2.jpg").rename(place / PATTERNS[1] / "2.jpg")
    with pytest.raises(DataError, match=r"pair '1' \(ids 1, 2\) has two patterns, .*Color.* and 'Texts'"):
        measured_set(read_all(folder).table)


def test_a_list_of_fixes_replaces_statements(tmp_path: Path) -> None:
    loaded = read_all(published(tmp_path / "a", questions(), fixes=[(7, "", "a lamp")]))
    captions = {row[1]: row[2] for row in rows_of(loaded)}
    assert captions["7"] == "a photo of a lamp"
    assert captions["8"] == "a photo of a blue thing 8"
    assert any("replaces 1 statement (question 7)" in line for line in loaded.guesses)
    for number, text, message in ((99, "a lamp", "question 99 is not in Questions.csv"), (7, "", "is empty")):
        with pytest.raises(DataError, match=message):
            read_all(published(tmp_path / f"b{number}", questions(), fixes=[(number, "", text)]))


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    folder = published(tmp_path / "mmvp", questions())
    (folder / "Questions.csv").write_text("Question ID,Statement\n1,a thing\n", encoding="utf-8")
    with pytest.raises(DataError, match="no column 'Type'; columns are 'Question ID', Statement"):
        read_all(folder)


# -- other pairs ----------------------------------------------------------------------------------------------


def winoground(path: Path) -> Path:
    rows = [
        {
            "id": number,
            "image_0": png(number),
            "image_1": png(100 + number),
            "caption_0": f"a dog on a cat {number}",
            "caption_1": f"a cat on a dog {number}",
            "collapsed_tag": "Object" if number % 2 else "Relation",
        }
        for number in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def one_caption(path: Path) -> Path:
    rows = [
        {
            "sentence": f"there are {n} boxes",
            "image_true": png(n),
            "image_false": png(50 + n),
            "group_id": str(n),
        }
        for n in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_two_images_in_a_row_become_two_rows(tmp_path: Path) -> None:
    found = measured_set(read_all(winoground(tmp_path / "w.parquet")).table).data
    assert found.column("pair") == [str(n) for n in range(4) for _ in range(2)]
    assert found.column("caption")[2:4] == ["a dog on a cat 1", "a cat on a dog 1"]
    assert [found.value("image", i) for i in (2, 3)] == [png(1), png(101)]
    assert found.column("pattern")[::2] == ["Relation", "Object"] * 2
    loaded = read_all(one_caption(tmp_path / "n.parquet"))
    assert not loaded.quarantine.entries
    found = measured_set(loaded.table).data
    assert found.column("caption") == [t for n in range(4) for t in (f"there are {n} boxes", None)]
    assert [found.value("image", i) for i in (4, 5)] == [png(2), png(52)]


def table_of_pairs(path: Path, rows: list[dict[str, Any]]) -> Path:
    for number, row in enumerate(rows):
        row.setdefault("image", png(number))
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("pairs", "captions", "message"),
    [
        (["1", "1", "1"], ["a", "b", "c"], r"pair '1' has 3 rows"),
        (["1", "2", "3"], ["a", "b", "c"], r"there is no pair"),
    ],
)
def test_what_is_no_pair_is_refused(
    tmp_path: Path, pairs: list[str], captions: list[str], message: str
) -> None:
    rows = [{"pair": pair, "caption": text} for pair, text in zip(pairs, captions, strict=True)]
    table = read_all(table_of_pairs(tmp_path / "p.parquet", rows)).table
    with pytest.raises(DataError, match=message):
        measured_set(table)
    with pytest.raises(ConfigError, match="one text around their captions; found 2"):
        measured_set(table, ("{}", "a {}"))
    assert measured_set(table, kind="retrieval").kind == "retrieval"


def test_a_row_without_a_caption_needs_a_partner_with_one(tmp_path: Path) -> None:
    marks = [("1", None), ("1", "a"), ("2", None), ("2", None), (None, None), (None, "b")]
    rows = [{"pair": pair, "caption": caption} for pair, caption in marks]
    loaded = read_all(table_of_pairs(tmp_path / "p.parquet", rows), quarantine_limit=1)
    assert [(e.row, e.reason) for e in loaded.quarantine.entries] == [
        (3, "empty-caption"),
        (4, "empty-caption"),
        (5, "empty-caption"),
    ]
    said: list[str] = []
    kept = measured_set(loaded.table, say=said.append).data
    assert kept.column("caption") == ["a", None]  # the row with a caption comes first
    assert "1 row without a value of `pair` left out" in said[0]


# -- measured -------------------------------------------------------------------------------------------------


def brute(folder: Path, model: Path) -> dict[str, list[bool]]:
    """Return by pattern whether each pair is right, text to image, from open_clip's own towers."""
    from everclip.learner.evaluate import load_model

    backbone = load_model(str(model)).method.backbone
    found: dict[str, list[bool]] = {}
    rows = {number: (pattern, text) for number, pattern, text in questions()}
    for number in range(1, 13, 2):
        pattern = rows[number][0]
        files = [folder / "MLLM_VLM Images" / pattern / f"{n}.jpg" for n in (number, number + 1)]
        with torch.no_grad():
            pixels = torch.stack([backbone.preprocess(Image.open(file).convert("RGB")) for file in files])
            images = backbone.clip.encode_image(pixels, normalize=True)
            tokens = backbone.tokenise([f"a photo of {rows[n][1]}" for n in (number, number + 1)])
            texts = backbone.clip.encode_text(tokens, normalize=True)
        p = (100 * texts @ images.T).softmax(dim=1)
        found.setdefault(pattern, []).append(bool(p[0, 0] > 0.5) and bool(p[1, 1] > 0.5))
    return found


def test_eval_of_the_published_layout_is_the_published_rule(
    command: Call, micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "cache"))
    folder, model = published(tmp_path / "mmvp", questions()), micro_folder / "model"
    code, out, error = command("eval", model, "--on", folder, "--json")
    assert code == 0, error
    part = Evaluation.model_validate_json(out).sets[0]
    assert (part.kind, part.samples) == ("pairs", 12)
    expected = brute(folder, model)
    rights = [right for own in expected.values() for right in own]
    score, interval = part.scores["pair_text_to_image"], wilson(sum(rights), 6)
    assert (score.value, score.n) == (pytest.approx(sum(rights) / 6), 6)
    assert (score.low, score.high) == (interval.low, interval.high)
    for name, own in expected.items():
        mine = part.patterns[name]["pair_text_to_image"]
        assert (mine.value, mine.n) == (sum(own) / len(own), 2)
    assert part.scores["pair_pattern_mean"].n == 3
    assert part.guessing == {
        "pair_text_to_image": 1 / 4,
        "pair_image_to_text": 1 / 4,
        "pair_both": 1 / 6,
        "pair_pattern_mean": 1 / 4,
    }
    code, out, _ = command("eval", model, "--on", folder)
    assert f"{sum(rights)} of 6  (guessing: 25.0)" in out
    assert "mean of patterns" in out
    assert out.count("(guessing: 25.0)") == 3
    assert "(guessing: 16.7)" in out


def test_pairs_with_one_caption_are_scored_in_one_direction(
    command: Call, micro_folder: Path, tmp_path: Path
) -> None:
    file = one_caption(tmp_path / "n.parquet")
    code, out, error = command("eval", micro_folder / "model", "--on", file, "--no-cache", "--json")
    assert code == 0, error
    part = Evaluation.model_validate_json(out).sets[0]
    scores = part.scores
    assert part.guessing == {"pair_text_to_image": 1 / 2}  # NLVR: 40 % right is below it, not above 25 %
    assert scores["pair_text_to_image"].n == 4
    assert scores["pair_image_to_text"].value is None
    assert scores["pair_pattern_mean"].value is None


@pytest.mark.parametrize("one", [0, 1500, 6000])
def test_guessing_is_what_random_similarities_give(one: int) -> None:
    count = 6000
    two = torch.arange(count) >= one
    patterns = ["a", "b"] * (count // 2)
    drawn = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(0))
    scores, _ = compute_metrics("pairs", answer_pairs(drawn, two, patterns), EvaluationConfig(), 0)
    guessed = guessed_pairs(scores)
    assert set(guessed) == {
        name
        for name, score in scores.items()
        if score.value is not None and (name != "pair_pattern_mean" or one in (0, count))
    }
    for name, value in guessed.items():
        assert scores[name].value == pytest.approx(value, abs=4 * 0.5 / (count / 4) ** 0.5)
    assert guessed_pairs({}) == {}


def test_the_same_image_twice_is_never_right(command: Call, micro_folder: Path, tmp_path: Path) -> None:
    rows = [{"pair": str(n // 2), "caption": f"a thing {n}", "image": png(n // 2)} for n in range(8)]
    file = table_of_pairs(tmp_path / "same.parquet", rows)
    _, out, _ = command("eval", micro_folder / "model", "--on", file, "--no-cache", "--json")
    part = Evaluation.model_validate_json(out).sets[0]
    assert part.scores["pair_text_to_image"].value == 0
    assert part.ambiguous == 4


def stream(micro_folder: Path, folder: Path, **more: object) -> Path:
    """Write a stream of one task with a retention set of pairs."""
    document = yaml.safe_load((micro_folder / "time.yaml").read_text(encoding="utf-8"))
    document["tasks"] = document["tasks"][:1]
    document["retention"] = [{"name": "pairs", "kind": "pairs", "data": {"source": str(folder)}, **more}]
    file = folder.parent / "stream.yaml"
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


def test_pairs_are_a_retention_set_without_a_twin(micro_folder: Path, tmp_path: Path) -> None:
    folder = published(tmp_path / "mmvp", questions()[:-1])
    scenario = load_scenario(resolve_config(str(stream(micro_folder, folder))).scenario)
    found = next(s for s in scenario.eval_sets if s.group == "retention")
    assert (found.name, found.kind, len(found.data)) == ("pairs", "pairs", 10)
    assert found.data.column("caption")[0] == "a photo of a red thing 1"
    assert not scenario.retention_val
    assert any(
        "pairs have no validation twin, so the guard does not watch" in line for line in scenario.notes
    )
    assert any("'6' (only id 11 is there)" in line for line in scenario.notes)
    asked = stream(micro_folder, folder, templates=["{} at night"], where={"pattern": PATTERNS[0]})
    scenario = load_scenario(resolve_config(str(asked)).scenario)
    captions = next(s for s in scenario.eval_sets if s.kind == "pairs").data.column("caption")
    assert captions[0] == "a red thing 1 at night"
    assert len(captions) == 4
    refused = stream(micro_folder, folder, val={"source": str(folder)})
    with pytest.raises(ConfigError, match="pairs have no validation twin"):
        load_scenario(resolve_config(str(refused)).scenario)


@pytest.mark.parametrize(
    ("metric", "kind", "shown"),
    [
        ("auto", "pairs", "pair_text_to_image"),
        ("mean_r5", "pairs", "pair_text_to_image"),
        ("accuracy", "pairs", "pair_text_to_image"),
        ("pair_both", "pairs", "pair_both"),
        ("mean_r5", "retrieval", "mean_r5"),
        ("accuracy", "retrieval", "mean_r1"),
    ],
)
def test_a_column_of_pairs_shows_the_published_score(metric: str, kind: Any, shown: str) -> None:
    column = Column(name="x", kind=kind, group="retention", task=None, samples=2)
    assert metric_of(column, {"metric": metric}) == shown


@pytest.mark.slow
def test_every_row_of_a_run_measures_its_pairs(command: Call, micro_folder: Path, tmp_path: Path) -> None:
    folder = published(tmp_path / "mmvp", questions())
    fixed = [f"backbone={micro_folder / 'model'}", "training.threads=1", "training.device=cpu"]
    execute(str(stream(micro_folder, folder)), *fixed, f"output={tmp_path / 'run'}")
    results = Results.read(tmp_path / "run")
    assert [row.scores["pairs"]["own"]["pair_text_to_image"].n for row in results.rows] == [6, 6]
    assert set(results.rows[0].per_class["pairs"]) == set(PATTERNS)
    before = results.rows[0].scores["pairs"]["own"]["pair_text_to_image"].value
    assert results.metrics["retention_before"] == before
    assert sum(v or 0 for v in results.rows[0].per_class["pairs"].values()) / 3 == pytest.approx(before)
    assert "mmvp" not in {example.column for example in results.examples}
    assert "guessing: 25.0" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    execute(str(stream(micro_folder, folder)), *fixed, f"output={tmp_path / 'two'}", "seed=1")
    code, _, error = command("compare", tmp_path / "run", tmp_path / "two", "-o", tmp_path / "c.html")
    assert code == 0, error
    both = (tmp_path / "run", micro_folder / "model")
    code, out, error = command("over-time", *both, "--on", tmp_path / "stream.yaml")
    assert code == 0, error
    assert "static suite" in out
