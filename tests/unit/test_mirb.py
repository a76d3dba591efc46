"""MIRB in its published layout: what a dual encoder is asked, what is left out by name, and what is wrong in a file."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mirb
from everclip.config import validated
from everclip.data.reading.formats.mirb_tasks import ALIASES, TASKS, options_of, task_of
from everclip.data.reading.loaded import Loaded
from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.data.sampling.multi_image import MultiImageTask, tasks_of
from everclip.errors import DataError
from everclip.learner.evaluate import Evaluation
from everclip.scenarios.measuring import measured_set

Call = Callable[..., tuple[int, str, str]]
LEFT_OUT = {"plot_code", "3d_scene", "visual_chain", "arxiv", "count_concat"}


def loaded(source: Path, **more: object) -> Loaded:
    return read(validated(DataSpec, {"source": str(source), **more}, "data"))


def tasks(source: Path, **more: object) -> dict[str, MultiImageTask]:
    return {task.id: task for task in tasks_of(measured_set(loaded(source, **more).table).data)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mirb.write(tmp_path_factory.mktemp("mirb") / "MIR")


def test_there_are_eleven_tasks_in_four_categories() -> None:
    main = [task for task in TASKS.values() if not task.variant_of]
    assert Counter(task.category for task in main) == {
        "perception": 3,
        "knowledge": 2,
        "reasoning": 4,
        "multi-hop": 2,
    }
    assert all(task_of(old) is TASKS[new] for old, new in ALIASES.items())
    assert task_of("captions") is None


def test_every_task_that_a_dual_encoder_can_answer_is_asked(folder: Path) -> None:
    found = tasks(folder)
    assert Counter(task.name for task in found.values()) == {
        "analogy": 6,
        "attribute": 6,
        "codeu": 6,
        "count": 6,
        "food": 6,
        "image_jigsaw": 6,
        "sightseeing": 12,
    }
    assert found["attribute/1"].texts == ("a painting", "a sketch")
    assert (found["attribute/1"].kind, found["attribute/1"].target, found["attribute/1"].gold) == (
        "same_different",
        1,
        1,
    )
    cities = ("a photo of London", "a photo of Paris", "a photo of Rome")
    assert (found["sightseeing/0"].kind, found["sightseeing/0"].texts, found["sightseeing/0"].gold) == (
        "same_different",
        cities,
        1,
    )
    assert (found["sightseeing/3"].kind, found["sightseeing/3"].gold) == ("retrieve", 0)  # London
    assert found["codeu/2"].texts == ("Welcome!", "Meet our team.", "Our services.", "Reach us by phone.")
    assert (found["codeu/2"].gold, found["codeu/2"].category) == (2, "reasoning")
    assert len(found["food/1"].candidates) == 3
    assert [found[f"food/{n}"].gold for n in range(4)] == [0, 1, 2, 3]  # the last is no candidate
    assert found["food/3"].guessing == 1 / 4
    assert found["food/0"].texts[0].endswith("considering the ingredients?")
    assert found["analogy/0"].needs_threshold
    count = found["count/3"]
    assert (count.gold, count.weak, count.texts[3], count.guessing) == (3, True, "a photo of 3 cat", 1 / 21)


def test_a_jigsaw_is_put_together_from_its_pieces(folder: Path) -> None:
    table = measured_set(loaded(folder).table).data
    task = next(task for task in tasks_of(table) if task.id == "image_jigsaw/2")

    def pixels(row: int) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(table.value("image", row))).convert("RGB"))

    whole = pixels(task.images[0])
    assert (task.gold, len(task.candidates)) == (1, 4)
    assert np.array_equal(pixels(task.candidates[1]), whole)
    pieces = [whole[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] for y in (0, 1) for x in (0, 1)]
    a, b, c, d = (pieces[number] for number in mirb.ORDERS[0])
    assert np.array_equal(pixels(task.candidates[0]), np.concatenate([np.hstack([a, b]), np.hstack([c, d])]))


def test_questions_in_another_order_and_earlier_names_are_the_same_questions(
    folder: Path, tmp_path: Path
) -> None:
    asked = mirb.questions()
    old = {new: name for name, new in ALIASES.items()}
    mixed = {old.get(name, name): entries[::-1] for name, entries in asked.items()}
    other = tasks(mirb.write(tmp_path / "MIR", asked).parent / "MIR")
    renamed = tmp_path / "old"
    mirb.write(renamed, asked)
    for name in asked:
        (renamed / f"{name}.json").unlink()
    for name, entries in mixed.items():
        (renamed / f"{name}.json").write_text(json.dumps(entries), encoding="utf-8")
    turned = tasks(renamed)
    assert Counter(task.content for task in turned.values()) == Counter(
        task.content for task in other.values()
    )
    assert {task.name for task in turned.values()} == {task.name for task in tasks(folder).values()}


@pytest.mark.parametrize("gone", ["images/food/1_2.png", "images/image_jigsaw/3_4.png"])
def test_a_missing_image_costs_its_question_and_is_named(tmp_path: Path, gone: str) -> None:
    place = mirb.write(tmp_path / "MIR", missing=[gone])
    with pytest.raises(DataError, match=rf"missing-file(.|\n)*{gone}"):
        loaded(place, quarantine_limit=0)
    said: list[str] = []
    kept = measured_set(loaded(place, quarantine_limit=0.1).table, say=said.append)
    lost = "/".join(gone.split("/")[1:]).partition("_")[0] if "food" in gone else "image_jigsaw/3"
    assert lost not in {task.id for task in tasks_of(kept.data)}
    assert said == [f"MIR: 1 question left out, since an image is missing: '{lost}'"]


def test_what_is_not_scored_is_said_and_is_in_no_mean(
    command: Call, micro_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The model of the tests reads 12 tokens, which would leave most questions out.
    monkeypatch.setattr("everclip.evaluation.scoring.longer_than_read", lambda tokenizer, texts: set())
    code, out, error = command("eval", micro_folder / "model", "--on", folder, "--no-cache", "--json")
    assert code == 0, error
    evaluation = Evaluation.model_validate_json(out)
    part = evaluation.sets[0]
    assert part.questions is not None
    scored = part.questions.tasks
    assert not LEFT_OUT & set(scored)
    assert set(part.questions.left_out) >= LEFT_OUT
    assert "unsupported for a dual encoder" in part.questions.left_out["plot_code"]
    assert any("arxiv: 6 questions of 6 left out (it has no list" in line for line in evaluation.notes)
    means = part.questions.categories
    assert set(means) <= {"perception", "knowledge", "reasoning"}
    assert "count" not in means["perception"].tasks  # weak: reported apart
    assert scored["count"].weak
    strong = [task.score.value or 0 for task in scored.values() if not task.weak]
    assert part.scores["multi_image_task_mean"].value == pytest.approx(sum(strong) / len(strong))
    code, out, _ = command("eval", micro_folder / "model", "--on", folder, "--no-cache")
    assert "left out of every mean" in out
    assert "weak: in no mean" in out
    assert out.index("  knowledge\n") < out.index("  perception\n")


def test_a_task_without_a_file_is_named(command: Call, micro_folder: Path, tmp_path: Path) -> None:
    asked = {"food": mirb.questions()["food"]}
    folder = mirb.write(tmp_path / "MIR", asked)
    _, out, error = command("eval", micro_folder / "model", "--on", folder, "--no-cache", "--json")
    part = Evaluation.model_validate_json(out).sets[0]
    assert part.questions is not None, error
    assert part.questions.left_out["codeu"] == "there is no file codeu.json"
    assert part.questions.left_out["plot_code"].startswith("unsupported")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"questions": "?", "answers"', r"food.json: is not JSON"),
        ('[{"questions": "?", "answers": 1}]', r"question 0: 'images' is None; expected list"),
        ('[{"questions": 1, "answers": 1, "images": []}]', r"question 0: 'questions' is 1; expected str"),
        ('[{"questions": "?", "answers": true, "images": []}]', r"'answers' is True; expected str or int"),
        ('[{"questions": "?", "answers": 1, "images": [2]}]', r"'images' holds something else than paths"),
        ('[{"questions": "?", "answers": 1, "images": []}, 2]', r"question 1 is int"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "food.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        loaded(tmp_path)


def test_a_number_of_any_length_is_a_number(tmp_path: Path) -> None:
    """Python refuses to read more than 4,300 digits."""
    long, zeros = "9" * 5000, "0" * 5000 + "2"
    asked = mirb.questions(2)
    asked["count"][0]["answers"] = long
    asked["count"][1]["answers"] = zeros
    asked["food"][0]["questions"] = asked["food"][0]["questions"].replace("Food 1", f"Food {long}")
    asked["image_jigsaw"][0]["questions"] = asked["image_jigsaw"][0]["questions"].replace(
        "[3, 0", f"[{long}, 0"
    )
    kept = {name: asked[name] for name in ("count", "food", "image_jigsaw")}
    found = tasks(mirb.write(tmp_path / "MIR", kept))
    assert "count" in " ".join(found)


def test_packed_images_and_two_names_of_a_task_are_refused(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = mirb.questions()["food"]
    (tmp_path / "food.json").write_text(json.dumps(entries), encoding="utf-8")
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"images.zip is not unpacked"):
        loaded(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "foods.json").write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(DataError, match=r"foods.json and food.json are the same task"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("text", "stem", "options"),
    [
        ("Which? Options: A. one B. two C. three", "Which?", ["one", "two", "three"]),
        ("Which?\nA) one\nB) two", "Which?", ["one", "two"]),
        (
            "Is vitamin A. in it? B. or not? Options: (A) yes (B) no",
            "Is vitamin A. in it? B. or not?",
            ["yes", "no"],
        ),
        ("How many?", "How many?", []),
        ("Options: A. alone", "Options: A. alone", []),
    ],
)
def test_options_are_read_letter_by_letter(text: str, stem: str, options: list[str]) -> None:
    assert options_of(text) == (stem, options)


def test_a_question_with_a_text_that_the_text_tower_cuts_off_is_left_out(
    command: Call, micro_folder: Path, tmp_path: Path
) -> None:
    entries = mirb.questions()["codeu"]
    for number, entry in enumerate(entries):
        first = "print(1) " * 80 if number == 1 else "a cup"
        entry["questions"] = f"What does it show? Options: A. {first} B. a lid C. a box D. a hat"
    foods = mirb.questions()["food"]
    for number, entry in enumerate(foods):
        asked = "Which is good?" * 40 if number < 2 else "Which?"  # the model reads 12 tokens
        entry["questions"] = f"{asked} Options: A. Food 1 B. Food 2 C. Food 3 D. None"
    folder = mirb.write(tmp_path / "MIR", {"codeu": entries, "food": foods})
    _, out, error = command("eval", micro_folder / "model", "--on", folder, "--no-cache", "--json")
    part = Evaluation.model_validate_json(out).sets[0]
    assert part.questions is not None, error
    assert part.questions.tasks["codeu"].score.n == 5
    assert part.questions.tasks["food"].score.n == 4
    for what in ("codeu (1 of 6)", "food (2 of 6)"):
        assert "longer than the text tower reads" in part.questions.left_out[what]


def test_images_outside_of_the_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(mirb.png(mirb.picture(1)))
    for number, path in enumerate(("../secret.png", str(tmp_path / "secret.png"))):
        questions = mirb.questions(2)
        questions["image_jigsaw"][0]["images"][2] = path
        folder = mirb.write(tmp_path / f"MIR{number}", {"image_jigsaw": questions["image_jigsaw"]})
        assert set(tasks(folder)) == {"image_jigsaw/1"}
        assert any("an image lies outside of the folder" in line for line in loaded(folder).guesses)


def test_a_city_in_another_case_is_the_same_answer(tmp_path: Path) -> None:
    entries = mirb.questions()["sightseeing"]
    for entry, city in zip(entries[1::2], ("Paris", "paris", "PARIS."), strict=False):
        entry["answers"] = city
    found = tasks(mirb.write(tmp_path / "MIR", {"sightseeing": entries})).values()
    (texts,) = {task.texts for task in found}
    assert texts == ("a photo of London", "a photo of PARIS.", "a photo of Rome")
    assert {task.gold for task in found if task.kind == "retrieve"} == {0, 1, 2}


def test_a_folder_without_an_answerable_question_says_why(tmp_path: Path) -> None:
    text = json.dumps([{"questions": "?", "answers": "yes", "images": ["a.png"]}])
    (tmp_path / "analogy.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    with pytest.raises(DataError, match=r"can answer\.\nanalogy: 1 question of 1 left out \(it has 1 images"):
        loaded(tmp_path)
