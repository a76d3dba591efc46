"""Answers of generative models to MIRB and MMVP: each rule by examples, published and mended, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import mirb
from everclip.data.reading.formats.mirb_tasks import Rule
from everclip.diagnosis.answer_rules import chosen_letter, mended, number_in, published
from everclip.diagnosis.answer_scores import AnswerScores
from everclip.diagnosis.mmvp_answers import score_mmvp
from everclip.errors import DataError
from everclip.evaluation.statistics import wilson

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("rule", "text", "gold", "by_code", "by_us"),
    [
        ("yes-no", "Yes.", "Yes", True, True),
        ("yes-no", "Yes, they are.\nNo doubt.", "yes", True, True),
        ("yes-no", "No, they differ.", "no", True, True),
        ("yes-no", "I cannot tell.", "no", True, False),  # never a yes: all no-questions right
        ("yes-no", "", "no", True, False),
        ("yes-no", "It has eyes", "yes", True, False),  # part of a word
        ("yes-no", "No. Yes.", "no", True, True),
        ("yes-no", "Not exactly a yes", "no", False, False),
        ("number", "7", "7", True, True),
        ("number", "There are 7 objects.", "7", True, True),
        ("number", "seven", "7", True, True),
        ("number", "There are seven objects.", "7", False, True),  # words count only alone
        ("number", "Third", "3", True, True),
        ("number", "many", "7", False, False),
        ("number", "7.0", "7", True, True),
        ("number", "1,024", "1024", False, True),
        ("number", "17", "7", False, False),
        ("number", "They show 3,4 and 5", "3", True, True),  # no thousands
        ("number", "12345678", "12345679", False, False),
        ("number", "9" * 400, "9" * 399, False, False),
        ("number", "Twenty-one", "1", False, False),
        ("letter", "B", "B", True, True),
        ("letter", "b.", "B", True, True),
        ("letter", "B. [0, 1, 2, 3]", "B", True, True),
        ("letter", "(B)", "B", False, True),
        ("letter", "The answer is B", "B", False, True),
        ("letter", "B or C", "B", False, False),
        ("letter", "(B) or (C)", "B", False, False),
        ("letter", "(C) or (B)", "C", False, False),
        ("letter", "A", "B", False, False),
        ("place", "They are in Paris, France.", "Paris", True, True),
        ("place", "Paris, London, Rome or Berlin", "Paris", True, False),  # all cities named
        ("place", "Comparison is hard", "Paris", True, False),  # a part of a word
        ("place", "paris", "Paris", True, True),
        ("place", "It is New York.", "New York", True, True),  # York is another city
        ("place", "York", "York", True, True),
        ("place", "New York or York", "York", True, False),
        ("place", "Yes", "Yes", True, True),
        ("place", "unclear", "no", True, False),
        ("title", "MovieQA: Understanding Stories", "MovieQA: Understanding Stories", True, True),
        ("title", '"MovieQA: Understanding Stories."', "MovieQA: Understanding Stories", False, True),
        ("title", "A vs. B: a study", "A vs. B: a study", False, True),  # cut at the first full stop
        ("title", "Another one", "MovieQA: Understanding Stories", False, False),
        ("word", "Third", "Third", True, True),
        ("word", "Third.", "third", True, True),
        ("word", "The third", "Third", False, False),
        ("word", "!!", "??", False, False),
    ],
)
def test_each_rule_by_its_examples(rule: Rule, text: str, gold: str, by_code: bool, by_us: bool) -> None:
    assert published(rule, text, gold).correct is by_code
    assert mended(rule, text, gold, places=["Paris", "London", "Rome", "York", "New York"]).correct is by_us


def test_options_in_words() -> None:
    options = ["First", "Second", "Third"]
    assert mended("word", "C. Third", "Third", options).correct
    assert mended("word", "It is the second one", "Second", options).correct
    assert not mended("word", "first or second", "Second", options).correct
    assert chosen_letter("The answer is a cat", ["a dog", "a cat"]) == "B"
    assert chosen_letter("(a)") == chosen_letter("a)") == chosen_letter("A.") == "A"
    assert chosen_letter("D", ["x", "y"]) is None
    assert [number_in(text) for text in ("3.50", "none", "-2", "ten")] == ["3.5", None, "-2", "10"]


# -- MIRB -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The questions of MIRB without images, which answers do not need."""
    place = tmp_path_factory.mktemp("mirb") / "MIR"
    place.mkdir()
    for task, entries in mirb.questions().items():
        (place / f"{task}.json").write_text(json.dumps(entries), encoding="utf-8")
    return place


def right_answers() -> dict[str, dict[str, Any]]:
    """Return a right answer to each question that is no variant, by id."""
    return {
        f"{task}/{at}": {"id": f"{task}/{at}", "response": str(entry["answers"])}
        for task, entries in mirb.questions().items()
        if task != "count_concat"
        for at, entry in enumerate(entries)
    }


def write(path: Path, lines: Mapping[str, Mapping[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines.values()) + "\n", encoding="utf-8")
    return path


def test_categories_and_the_average_are_means_over_tasks(command: Call, folder: Path, tmp_path: Path) -> None:
    lines = right_answers()
    for at in range(6):
        lines[f"3d_scene/{at}"]["response"] = "no idea"
    lines["arxiv/0"]["response"] = "x"
    file = write(tmp_path / "a.jsonl", lines)
    code, out, error = command("eval", "mirb", "--answers", file, "--on", folder, "--json")
    assert code == 0, error
    found = AnswerScores.model_validate_json(out)
    assert found.rule == "mended"
    arxiv = found.tasks["arxiv"].score
    interval = wilson(5, 6)
    assert (arxiv.value, arxiv.low, arxiv.high, arxiv.n) == (5 / 6, interval.low, interval.high, 6)
    assert (found.tasks["3d_scene"].score.value, found.tasks["3d_scene"].undecided) == (0, 6)
    shares = {name: mean.value for name, mean in found.categories.items()}
    assert shares == {
        "perception": 1,
        "knowledge": 1,
        "reasoning": pytest.approx(3 / 4),
        "multi-hop": pytest.approx((1 + 5 / 6) / 2),
    }
    assert found.mean is not None
    assert found.mean.value == pytest.approx(sum(shares.values()) / 4)
    assert found.categories["multi-hop"].guessing == 0  # free answers, as the paper counts
    code, out, _ = command("eval", "mirb", "--answers", file, "--on", folder)
    assert "the mended rules" in out
    assert "MIRB average" in out
    assert "undecided: 6" in out


def test_the_published_rule_is_the_option_and_the_output_says_so(
    command: Call, folder: Path, tmp_path: Path
) -> None:
    lines = right_answers()
    for name in lines:
        if name.startswith("analogy/"):
            lines[name]["response"] = "I cannot tell"  # three of six are "no"
    file = write(tmp_path / "a.jsonl", lines)
    shares = {}
    for flag in ((), ("--published-rule",)):
        code, out, error = command("eval", "mirb", "--answers", file, "--on", folder, "--json", *flag)
        assert code == 0, error
        found = AnswerScores.model_validate_json(out)
        shares[found.rule] = found.tasks["analogy"].score.value
    assert shares == {"mended": 0, "published": 1 / 2}
    _, out, _ = command("eval", "mirb", "--answers", file, "--on", folder, "--published-rule")
    assert "the published rule" in out


def test_a_variant_counts_in_no_mean_and_a_lacking_task_leaves_no_average(
    command: Call, folder: Path, tmp_path: Path
) -> None:
    lines = right_answers() | {"v": {"id": "count_concat/0", "prediction": "9"}}
    _, out, error = command(
        "eval", "mirb", "--answers", write(tmp_path / "a.jsonl", lines), "--on", folder, "--json"
    )
    found = AnswerScores.model_validate_json(out)
    assert found.tasks["count_concat"].score.value == 0, error
    assert found.categories["perception"].value == 1
    assert found.mean is not None
    part = tmp_path / "part"
    part.mkdir()
    (part / "places.json").write_text((folder / "sightseeing.json").read_text(encoding="utf-8"))
    lines = {n: {**x, "id": n.replace("sightseeing", "places")} for n, x in lines.items() if "sight" in n}
    _, out, error = command(
        "eval", "mirb", "--answers", write(tmp_path / "b.jsonl", lines), "--on", part, "--json"
    )
    found = AnswerScores.model_validate_json(out)
    assert found.mean is None, error
    assert found.categories["knowledge"].of == ["sightseeing"]
    assert any("no MIRB average" in note for note in found.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", r"a.jsonl, row 3: is not JSON"),
        ("[1]", r"row 3: is list; expected an object"),
        ('{"response": "x"}', r"row 3: has no id; expected question_id or id, or task and index"),
        ('{"id": "food/1"}', r"row 3: has no answer; expected response or prediction"),
        ('{"id": "food/1", "response": null}', r"row 3: response is None; expected text"),
        ('{"id": "food/99", "response": "A"}', r"row 3: question 'food/99' is not in .*MIR"),
        ('{"id": "image_jigsaw/1", "response": "A"}', r"'image_jigsaw/1' is answered in row 2 already"),
        ('{"task": "image_jigsaw", "index": 1, "response": "A"}', r"is answered in row 2 already"),
        ("", r"no answer to 1 of 72 questions: image_jigsaw/2"),
    ],
)
def test_what_is_wrong_in_answers_is_named_by_file_and_row(
    command: Call, folder: Path, tmp_path: Path, change: str, message: str
) -> None:
    lines = write(tmp_path / "a.jsonl", right_answers()).read_text(encoding="utf-8").splitlines()
    lines[2] = change
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    code, out, error = command("eval", "mirb", "--answers", tmp_path / "a.jsonl", "--on", folder)
    assert (code, out) == (3, "")
    with pytest.raises(DataError, match=message):
        raise DataError(error)


def test_options_of_the_verb_that_do_not_fit_are_refused(
    command: Call, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "a.jsonl", right_answers())
    for arguments, message in (
        (("builtin:tiny", "--answers", file), "Expected mirb or mmvp"),
        (("mirb", "--answers", file), "name the folder of MIRB once"),
        (("mirb", "--answers", file, "--on", folder, "--no-cache"), "nothing is encoded"),
        (("builtin:tiny", "--on", folder, "--published-rule"), "applies to --answers only"),
        (("mirb", "--on", folder), "mirb is a benchmark, no model"),
    ):
        code, _, error = command("eval", *arguments)
        assert code == 2
        assert message in error
    for arguments, message in (
        (("mirb", "--answers", tmp_path / "none.jsonl", "--on", folder), "none.jsonl: No such file"),
        (("mirb", "--answers", file, "--on", tmp_path), "no file of MIRB"),
    ):
        code, _, error = command("eval", *arguments)
        assert code == 3
        assert message in error


# -- MMVP -----------------------------------------------------------------------------------------------------


def mmvp(**more: str) -> dict[str, dict[str, Any]]:
    """Return an answer (a) to odd and (b) to even questions, as MMVP's script writes them; all right as published."""
    return {
        str(n): {
            "question_id": n,
            "prompt": "Is it open? (a) Open (b) Closed",
            "answer": "(b)" if n % 2 == 0 else "(a)",
            "response": "(b) Closed" if n % 2 == 0 else "Open",
            **more,
        }
        for n in range(1, 301)
    }


def scored(command: Call, path: Path, lines: Mapping[str, Mapping[str, Any]], *flags: object) -> AnswerScores:
    code, out, error = command("eval", "mmvp", "--answers", write(path, lines), "--json", *flags)
    assert code == 0, error
    return AnswerScores.model_validate_json(out)


def test_a_pair_counts_if_both_are_right_and_two_labels_are_corrected(command: Call, tmp_path: Path) -> None:
    found = scored(command, tmp_path / "a.jsonl", mmvp())
    assert found.pairs is not None
    assert (found.pairs.value, found.pairs.n) == (148 / 150, 150)  # 100 and 280 are (a)
    assert found.tasks["questions"].score.value == 298 / 300
    assert any("questions 100, 280" in note for note in found.notes)
    wrong = {one.id for one in found.questions if not one.correct}
    assert wrong == {"100", "280"}
    as_published = scored(command, tmp_path / "b.jsonl", mmvp(), "--published-rule")
    assert as_published.pairs is not None
    assert as_published.pairs.value == 1
    lines = mmvp()
    lines["1"]["response"] = "Closed"
    lines["4"]["response"] = "open or closed"
    found = scored(command, tmp_path / "c.jsonl", lines)
    assert found.pairs is not None
    assert found.pairs.value == 146 / 150
    assert found.tasks["questions"].undecided == 1


def test_pairs_are_by_id_and_not_by_line(command: Call, tmp_path: Path) -> None:
    lines = mmvp()
    for n in range(2, 301, 2):
        lines[str(n)]["response"] = "Open"
    mixed = dict(sorted(lines.items(), key=lambda item: int(item[0]) % 2))  # even ones first
    found = scored(command, tmp_path / "a.jsonl", mixed)
    assert found.pairs is not None
    assert found.pairs.value == 2 / 150  # 99-100 and 279-280, corrected
    by_lines = scored(command, tmp_path / "b.jsonl", mixed, "--published-rule")
    assert by_lines.pairs is not None
    assert by_lines.pairs.value == 75 / 150


def test_grades_decide_in_place_of_the_text(command: Call, tmp_path: Path) -> None:
    lines = mmvp(grade="Yes.")
    found = scored(command, tmp_path / "a.jsonl", lines)
    assert found.pairs is not None
    assert found.pairs.value == 148 / 150  # a grade by the wrong published answer does not count
    as_published = scored(command, tmp_path / "b.jsonl", lines, "--published-rule")
    assert as_published.pairs is not None
    assert as_published.pairs.value == 0  # only exactly yes
    lines["7"]["grade"] = 1
    code, _, error = command("eval", "mmvp", "--answers", write(tmp_path / "n.jsonl", lines))
    assert (code, 'row 7: grade is 1; expected "yes" or "no"' in error) == (3, True)
    del lines["7"]["grade"]
    code, _, error = command("eval", "mmvp", "--answers", write(tmp_path / "c.jsonl", lines))
    assert code == 3
    assert "c.jsonl, row 7: has no grade" in error


def test_right_answers_come_from_the_published_table(command: Call, tmp_path: Path) -> None:
    folder = tmp_path / "MMVP"
    folder.mkdir()
    with (folder / "Questions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["Index", "Question", "Options", "Correct Answer"])
        for n in range(1, 301):
            writer.writerow([n, "Is it open?", "(a) Open (b) Closed", "(b)" if n % 2 == 0 else "(a)"])
    lines = {n: {"id": line["question_id"], "response": line["response"]} for n, line in mmvp().items()}
    found = scored(command, tmp_path / "a.jsonl", lines, "--on", folder)
    assert found.pairs is not None
    assert found.pairs.value == 148 / 150
    for change, message in (
        ({"id": 301, "response": "Open"}, "row 300: question '301' is not in MMVP (Questions.csv)"),
        ({"id": 299, "response": "Open"}, "question '299' is answered in row 299 already"),
    ):
        code, _, error = command(
            "eval", "mmvp", "--answers", write(tmp_path / "b.jsonl", lines | {"300": change}), "--on", folder
        )
        assert code == 3
        assert message in error
    code, _, error = command("eval", "mmvp", "--answers", write(tmp_path / "c.jsonl", lines))
    assert code == 3
    assert "has no right answer" in error
    (folder / "Questions.csv").write_text("Index,Question\n1,a\n", encoding="utf-8")
    code, _, error = command("eval", "mmvp", "--answers", tmp_path / "a.jsonl", "--on", folder)
    assert "no column 'Options'" in error


def test_a_part_of_the_published_table_has_pairs_by_id(tmp_path: Path) -> None:
    questions = [f"{n},?,(a) Open (b) Closed,{'(b)' if n % 2 == 0 else '(a)'}" for n in (1, 2, 4, 5, 7, 8)]
    table = "\n".join(["Index,Question,Options,Correct Answer", *questions])
    (tmp_path / "Questions.csv").write_text(table, encoding="utf-8")
    lines = {str(n): {"id": f"00{n}", "response": "(b)" if n % 2 == 0 else "(a)"} for n in (8, 7, 5, 4, 2, 1)}
    found = score_mmvp(write(tmp_path / "a.jsonl", lines), tmp_path)
    assert found.pairs is not None
    assert (found.pairs.value, found.pairs.n) == (1, 2)  # 1-2 and 7-8, not 4-5
    assert any("in no pair: questions 4, 5" in note for note in found.notes)
    long = {**lines, "x": {"id": "9" * 5000, "response": "(a)"}}
    with pytest.raises(DataError, match=r"row 7: question '9+' is not in MMVP"):
        score_mmvp(write(tmp_path / "b.jsonl", long), tmp_path)
    (tmp_path / "Questions.csv").write_text(table.replace("1,?", "0,?"), encoding="utf-8")
    with pytest.raises(DataError, match="Index is '0'; expected a number from 1"):
        score_mmvp(tmp_path / "a.jsonl", tmp_path)
