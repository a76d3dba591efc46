"""Questions about several images: the built-in set of emoji, tables of one's own, measured alone and in a run."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from everclip.config import resolve_config, validated
from everclip.data.builtin import emoji
from everclip.data.builtin.emoji.questions import STYLES, emoji_questions
from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.data.sampling.multi_image import MultiImageTask, tasks_of
from everclip.errors import ConfigError, DataError
from everclip.evaluation.results import Results
from everclip.evaluation.statistics import wilson
from everclip.learner.evaluate import Evaluation
from everclip.run import execute
from everclip.scenarios.load import load_scenario
from everclip.scenarios.measuring import measured_set

Call = Callable[..., tuple[int, str, str]]


def png(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def question(name: str, kind: str, answer: int, images: list[int], **more: object) -> list[dict[str, Any]]:
    """Return the rows of a question; images are drawn from their numbers."""
    return [
        {
            "id": f"{name}/{place}",
            "image": png(number),
            "caption": "?",
            "question": name,
            "question_task": str(more.get("question_task", kind)),
            "question_kind": kind,
            "question_place": place,
            "question_size": len(images),
            "question_answer": answer,
            **more,
        }
        for place, number in enumerate(images)
    ]


def rows() -> list[dict[str, Any]]:
    """Return questions of every kind."""
    found = [
        row for n in range(4) for row in question(f"odd{n}", "compare", n % 3, [3 * n, 3 * n + 1, 3 * n + 2])
    ]
    found += [
        row for n in range(12) for row in question(f"same{n}", "same_different", n % 2, [40 + n, 60 + n])
    ]
    found += question("find", "retrieve", 1, [100, 101], question_texts=["a cup", "a box", "a lid"])
    found += question("when", "order", 0, [110, 111], question_texts=["old", "new"], question_values=[1, 2])
    found += question(
        "sum", "count", 3, [1, 2], question_texts=["no", "one", "two"], question_values=[0, 1, 2]
    )
    found += question(
        "both", "same_different", 1, [5, 6], question_texts=["red", "blue"], question_task="colour"
    )
    return found


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    names = list(dict.fromkeys(name for row in found for name in row))
    pq.write_table(pa.table({name: [row.get(name) for row in found] for name in names}), path)
    return path


def tasks(path: Path, limit: float = 0.01) -> list[MultiImageTask]:
    spec = validated(DataSpec, {"source": str(path), "quarantine_limit": limit}, "data")
    return tasks_of(measured_set(read(spec).table).data)


# -- the built-in set -----------------------------------------------------------------------------------------


def test_the_built_in_set_is_made_of_held_out_drawings_and_a_function_of_its_seed() -> None:
    table = emoji_questions(per_task=6)
    assert table.equals(emoji_questions(per_task=6))
    assert not table.equals(emoji_questions(seed=1, per_task=6))
    facts = {d["image"]: d for d in emoji.drawings().to_pylist() if d["held_out"] and not d["shared"]}
    asked: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        asked.setdefault(row["question"], []).append(row)
    assert Counter(name.partition("/")[0] for name in asked) == {
        "odd-one-out": 6,
        "same-group": 9,
        "first-release": 6,
        "jigsaw": 6,
    }
    for name, found in asked.items():
        right = found[0]["question_answer"]
        if name.startswith("jigsaw"):
            assert len({row["image"] for row in found}) == 4
            asked_name = found[0]["question_texts"][0].removeprefix("an emoji of ")
            whole = [image for image, d in facts.items() if d["name"] == asked_name]
            pixels = [
                np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
                for image in (found[right]["image"], *whole)
            ]
            assert any(np.array_equal(pixels[0], held) for held in pixels[1:])
            continue
        shown = [facts[row["image"]] for row in found]
        assert len({d["emoji_id"] for d in shown}) == len(shown)
        assert len({d["style"] for d in shown}) == 1
        assert shown[0]["style"] in STYLES
        if name.startswith("odd"):
            others = [d for at, d in enumerate(shown) if at != right]
            assert len({d["subgroup"] for d in others}) == 1
            assert shown[right]["group"] != others[0]["group"]
        elif name.startswith("same"):
            assert (shown[0]["group"] == shown[1]["group"]) == bool(right)
        else:
            assert [d["year"] for d in shown].index(min(d["year"] for d in shown)) == right
            assert len({d["year"] for d in shown}) == 3


def test_another_version_of_the_built_in_set_and_settings_that_do_not_apply_are_refused() -> None:
    with pytest.raises(ConfigError, match="has version 1"):
        read(validated(DataSpec, {"source": "builtin:emoji-multi-image@2"}, "data"))
    with pytest.raises(ConfigError, match=r"data\.language: does not apply"):
        read(validated(DataSpec, {"source": "builtin:emoji-multi-image", "language": "en"}, "data"))
    with pytest.raises(ConfigError, match="builtin:emoji-multi-image"):
        read(validated(DataSpec, {"source": "builtin:emoji-multi-imag"}, "data"))


# -- tables ---------------------------------------------------------------------------------------------------


def test_rows_in_another_order_are_the_same_questions(tmp_path: Path) -> None:
    plain = {task.id: task for task in tasks(write(tmp_path / "a.parquet", rows()))}
    mixed = {task.id: task for task in tasks(write(tmp_path / "b.parquet", rows()[::-1]))}
    assert set(plain) == set(mixed)
    assert {name: task.content for name, task in plain.items()} == {n: t.content for n, t in mixed.items()}
    assert {task.id: task.choices for task in plain.values() if not task.id.startswith(("odd", "same"))} == {
        "find": 3,
        "when": 2,
        "sum": 5,
        "both": 2,
    }


def test_a_missing_image_costs_its_question_and_is_named(tmp_path: Path) -> None:
    found = rows()
    found[1]["image"] = b""
    said: list[str] = []
    spec = validated(
        DataSpec, {"source": str(write(tmp_path / "a.parquet", found)), "quarantine_limit": 0.1}, "data"
    )
    kept = measured_set(read(spec).table, say=said.append)
    assert "odd0" not in {task.id for task in tasks_of(kept.data)}
    assert said == ["a.parquet: 1 question left out, since an image is missing: 'odd0'"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_kind": "compar"}, "kind 'compar'.*compare"),
        ({"question_answer": 3}, "the answer is 3; expected 0 to 2"),
        ({"question_place": 0}, "two images at place 0: odd0/0 and odd0/1"),
        ({"question_kind": "analogy"}, "3 images; expected 4"),
        ({"question_kind": "retrieve"}, "0 texts to choose from"),
        ({"question_kind": "order"}, "0 texts and 0 values"),
        ({"question_kind": "same_different", "question_target": 2}, "question_target is 2"),
        ({"question": None}, "odd0/0: question is empty"),
        ({"question_place": "x"}, "question_place is 'x'; expected a whole number from 0 to 2"),
        ({"question_place": 3}, "question_place is 3; expected a whole number from 0 to 2"),
        ({"question_place": 0.5}, "question_place is 0.5; expected a whole number"),
        ({"question_size": None}, "question_size is None; expected a whole number from 1"),
        ({"question_task": None}, "question_task is empty"),
        ({"question_answer": "B"}, "question_answer is 'B'; expected a whole number"),
        ({"question_answer": 1.7}, "question_answer is 1.7; expected a whole number"),
        ({"question_role": "options"}, "question_role is 'options'; expected 'option' or nothing"),
        ({"question_texts": "red"}, "question_texts is 'red'; expected a list of texts"),
        ({"question_texts": ["red", None]}, "expected a list of texts"),
        ({"question_values": ["1", "2"]}, "question_values is .*; expected a list of numbers"),
        ({"question_values": [1.0, float("nan")]}, "expected a list of numbers"),
        ({"question_choices": 2}, "question_choices is 2, and there are 3 to choose from"),
        ({"question_weak": "no"}, "question_weak is 'no'; expected true or false"),
        (
            {"question_kind": "same_different", "question_texts": ["a"]},
            "1 text; expected none, or at least two",
        ),
        (
            {"question_kind": "order", "question_texts": ["a", "b"], "question_values": [1, 1]},
            "all values are equal",
        ),
        (
            {"question_kind": "count", "question_texts": ["a", "b"], "question_values": [0.5, 1]},
            "a value is no whole number from 0",
        ),
    ],
)
def test_what_is_no_question_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    found = question("odd0", "compare", 0, [0, 1, 2])
    for row in found:
        row.update(change)
    with pytest.raises(DataError, match=message):
        tasks(write(tmp_path / "a.parquet", found))


def test_rows_of_a_question_agree_and_empty_cells_do_not_count(tmp_path: Path) -> None:
    found = question("odd0", "compare", 1, [0, 1, 2])
    for place in (0, 2):
        found[place]["question_answer"] = None
    assert tasks(write(tmp_path / "a.parquet", found))[0].gold == 1
    found[2]["question_answer"] = 0
    with pytest.raises(DataError, match="question_answer is 1 and 0 in rows of one question"):
        tasks(write(tmp_path / "b.parquet", found))
    found[2]["question_size"] = 4
    with pytest.raises(DataError, match="odd0/2: question_size is 4, in another row 3"):
        tasks(write(tmp_path / "c.parquet", found))


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    found = question("odd0", "compare", 0, [0, 1, 2])
    for row in found:
        del row["question_size"]
    with pytest.raises(DataError, match=r"need a column 'question_size' \(the number of images"):
        tasks(write(tmp_path / "a.parquet", found))


# -- measured -------------------------------------------------------------------------------------------------


def test_eval_writes_each_answer_guessing_and_the_threshold(
    command: Call, micro_folder: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.parquet", rows())
    code, out, error = command("eval", micro_folder / "model", "--on", file, "--no-cache", "--json")
    assert code == 0, error
    part = Evaluation.model_validate_json(out).sets[0]
    found = part.questions
    assert found is not None
    assert (part.kind, part.samples) == ("multi-image", len(rows()))
    assert {name: task.guessing for name, task in found.tasks.items()} == {
        "colour": 1 / 2,
        "compare": pytest.approx(1 / 3),
        "count": 1 / 5,
        "order": 1 / 2,
        "retrieve": pytest.approx(1 / 3),
        "same_different": 1 / 2,
    }
    cut = found.tasks["same_different"].threshold
    assert cut is not None
    assert cut.n + found.tasks["same_different"].score.n == 12
    for name, task in found.tasks.items():
        mine = [one for one in found.questions if one.task == name]
        right = sum(one.correct for one in mine)
        interval = wilson(right, len(mine))
        assert (task.score.value, task.score.low, task.score.high) == (
            right / len(mine),
            interval.low,
            interval.high,
        )
        assert all(one.correct == (one.prediction == one.gold) for one in mine)
    code, out, _ = command("eval", micro_folder / "model", "--on", file, "--no-cache")
    assert f"yes above {cut.value:.4f}, fitted on {cut.n} other questions" in out
    assert out.count("(guessing: ") == 6 + 2  # each task, the mean over tasks and all questions


def test_the_same_image_in_all_places_is_never_right(
    command: Call, micro_folder: Path, tmp_path: Path
) -> None:
    found = question("odd", "compare", 0, [7, 7, 7])
    found += question("find", "retrieve", 1, [7], question_texts=["a cup", "a cup"])
    _, out, error = command(
        "eval", micro_folder / "model", "--on", write(tmp_path / "a.parquet", found), "--no-cache", "--json"
    )
    part = Evaluation.model_validate_json(out).sets[0]
    assert part.questions is not None, error
    assert [one.prediction for one in part.questions.questions] == [None, None]
    assert part.scores["multi_image_accuracy"].value == 0
    assert part.ambiguous == 2


def stream(micro_folder: Path, file: Path, **more: object) -> Path:
    """Write a stream of one task with a retention set of questions."""
    document = yaml.safe_load((micro_folder / "time.yaml").read_text(encoding="utf-8"))
    document["tasks"] = document["tasks"][:1]
    document["retention"] = [
        {"name": "several", "kind": "multi-image", "data": {"source": str(file)}, **more}
    ]
    path = file.parent / "stream.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_questions_are_a_retention_set_without_a_twin(micro_folder: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", rows())
    scenario = load_scenario(resolve_config(str(stream(micro_folder, file))).scenario)
    found = next(s for s in scenario.eval_sets if s.group == "retention")
    assert (found.name, found.kind, len(found.data)) == ("several", "multi-image", len(rows()))
    assert not scenario.retention_val
    assert any("questions about several images have no validation twin" in line for line in scenario.notes)
    for more, message in (
        ({"val": {"source": str(file)}}, "multi-image sets have no validation twin"),
        ({"templates": ["a {}"]}, "have texts of their own"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_scenario(resolve_config(str(stream(micro_folder, file, **more))).scenario)


@pytest.mark.slow
def test_every_row_of_a_run_measures_its_questions(command: Call, micro_folder: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", rows())
    fixed = [f"backbone={micro_folder / 'model'}", "training.threads=1", "training.device=cpu"]
    execute(str(stream(micro_folder, file)), *fixed, f"output={tmp_path / 'run'}")
    results = Results.read(tmp_path / "run")
    first, last = (row.scores["several"]["own"]["multi_image_accuracy"] for row in results.rows)
    assert first.n == last.n == 20 - 4 + 4 - len_of_development(file)
    assert results.metrics["retention_before"] == first.value
    assert set(results.rows[0].thresholds["several"]) == {"same_different"}
    assert results.rows[0].thresholds != results.rows[1].thresholds
    assert len(results.rows[0].per_class["several"]) == 6
    assert (tmp_path / "run" / "report.html").is_file()
    execute(str(stream(micro_folder, file)), *fixed, f"output={tmp_path / 'two'}", "seed=1")
    code, _, error = command("compare", tmp_path / "run", tmp_path / "two", "-o", tmp_path / "c.html")
    assert code == 0, error


def len_of_development(file: Path) -> int:
    from everclip.evaluation.multi_image_answers import in_development

    return sum(task.needs_threshold and in_development(task, 0) for task in tasks(file))


def test_every_built_in_question_has_a_first_image_also_one_that_only_a_text_asks() -> None:
    asked = tasks_of(read(validated(DataSpec, {"source": "builtin:emoji-multi-image"}, "data")).table)
    assert any(not question.images for question in asked)  # a diagnosis names a question by its first image
    assert all(question.first_row in (*question.images, *question.candidates) for question in asked)


@pytest.mark.slow
def test_the_built_in_set_runs_in_half_a_minute(command: Call) -> None:
    code, out, error = command("eval", "builtin:tiny", "--on", "emoji-multi-image@1", "--no-cache", "--json")
    assert code == 0, error
    found = Evaluation.model_validate_json(out)
    assert found.seconds < 30
    part = found.sets[0].questions
    assert part is not None
    assert {name: task.score.n for name, task in part.tasks.items() if name != "same group"} == {
        "first release": 150,
        "jigsaw": 150,
        "odd one out": 150,
    }
    odd = part.tasks["odd one out"].score
    assert odd.low is not None
    assert odd.low > 0.5  # the model knows the subgroups of emoji
