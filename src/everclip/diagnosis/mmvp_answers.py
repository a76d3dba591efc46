"""Score a generative model's answers to MMVP (Tong et al. 2024, arXiv 2401.06209): a pair counts if both are right.

Published is `scripts/gpt_grader.py`: GPT-4 says yes or no to each answer, and lines 1 and 2 of the file are a pair, 3
and 4, and so on. What is wrong with it, and mended here: two right answers are published wrong (questions 100 and 280);
lines in another order form other pairs; and a grade "Yes." with a full stop counts as no.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everclip.data.reading.formats.files import read_file
from everclip.data.reading.formats.system_files import brief
from everclip.data.reading.settings import PLAIN
from everclip.diagnosis.answer_lines import AnswerLine, number_name, read_answers, require_all
from everclip.diagnosis.answer_rules import LETTERS, chosen_letter, yes_or_no
from everclip.diagnosis.answer_scores import AnswerResult, AnswerScores, task_score
from everclip.errors import DataError
from everclip.learner.multi_image import share_of

QUESTIONS = 300
CORRECTED = {100: "A", 280: "A"}
"""Questions (from 1) whose published answer (b) is wrong: MMVP issues 14 and 30."""

TABLE = "Questions.csv"
_COLUMNS = ("Index", "Options", "Correct Answer")


@dataclass(frozen=True)
class _Question:
    gold: str
    options: tuple[str, ...]


def score_mmvp(answers: Path, folder: Path | None = None, published_rule: bool = False) -> AnswerScores:
    """Score a file of answers.

    Args:
        answers: JSON lines with `question_id` (1 to 300), `response`, and, without `folder`, `answer`, the right one;
            `grade` ("yes" or "no"), if a grader judged each answer, decides in place of the text.
        folder: with the published `Questions.csv`.
        published_rule: published answers and pairs of neighbouring lines.

    Raises:
        DataError: for what is wrong in either, by file and row.
    """
    lines = read_answers(answers, number_name)
    questions = _of_lines(answers, lines) if folder is None else _of_folder(folder)
    known = [str(n) for n in range(1, QUESTIONS + 1)] if folder is None else list(questions)
    require_all(answers, lines, known, f"MMVP ({TABLE if folder else '1 to 300'})")
    graded = _graded(answers, lines)
    ordered = lines if published_rule else sorted(lines, key=lambda line: int(line.id))
    changed = [] if published_rule else [n for n in CORRECTED if str(n) in questions]
    results = []
    for line in ordered:
        question = questions[line.id]
        gold = CORRECTED[int(line.id)] if int(line.id) in changed else question.gold
        by_grade = graded and gold == question.gold  # a grader judged by the published answer
        results.append(_result(line, question, gold, by_grade, published_rule))
    pairs, alone = _pairs(results, published_rule)
    notes = [_rule(graded, published_rule)]
    if alone:
        notes.append(f"without the other question of their pair, in no pair: questions {brief(alone)}")
    if changed := [n for n in changed if questions[str(n)].gold != CORRECTED[n]]:
        notes.append(f"right answers corrected to (a): questions {', '.join(map(str, changed))}")
    return AnswerScores(
        benchmark="mmvp",
        answers=str(answers),
        rule="published" if published_rule else "mended",
        tasks={"questions": task_score("", results, [1 / 2] * len(results))},
        pairs=share_of(sum(a.correct and b.correct for a, b in pairs), len(pairs)) if pairs else None,
        notes=notes,
        questions=results,
    )


def _rule(graded: bool, published_rule: bool) -> str:
    judged = (
        "grades from the file"
        if graded
        else "options read in the texts (the published grader is GPT-4-0314; give its verdicts as `grade`)"
    )
    if published_rule:
        return f"the published rule: published right answers, lines 2k-1 and 2k of the file form a pair; {judged}"
    return f"the mended rule: questions 2k-1 and 2k form a pair (--published-rule for lines); {judged}"


def _pairs(
    results: Sequence[AnswerResult], published_rule: bool
) -> tuple[list[tuple[AnswerResult, AnswerResult]], list[str]]:
    """Return the pairs of answers, and the ids of those that have no partner."""
    if published_rule:  # by lines
        alone = [result.id for result in results[len(results) // 2 * 2 :]]
        return list(zip(results[::2], results[1::2], strict=False)), alone
    by_id = {int(result.id): result for result in results}
    firsts = [number for number in by_id if number % 2 and number + 1 in by_id]
    alone = [str(number) for number in by_id if (number + 1 if number % 2 else number - 1) not in by_id]
    return [(by_id[number], by_id[number + 1]) for number in firsts], alone


def _letter(where: str, value: object) -> str:
    found = re.fullmatch(r"\s*\(?([ab])\)?\s*", str(value).lower())
    if found is None:
        raise DataError(f"{where}: the right answer is {value!r}; expected (a) or (b).")
    return found[1].upper()


def _options(text: str) -> tuple[str, ...]:
    return tuple(found.strip() for found in re.findall(r"\([a-h]\)\s*(.*?)\s*(?=\([a-h]\)|$)", text))


def _of_lines(answers: Path, lines: Sequence[AnswerLine]) -> dict[str, _Question]:
    found = {}
    for line in lines:
        where = f"{answers}, row {line.row}"
        if "answer" not in line.fields:
            raise DataError(
                f"{where}: has no right answer (`answer`); give it, or the published folder with --on."
            )
        gold = _letter(where, line.fields["answer"])
        found[line.id] = _Question(gold, _options(str(line.fields.get("prompt", ""))))
    return found


def _of_folder(folder: Path) -> dict[str, _Question]:
    path = folder / TABLE
    if not path.is_file():
        raise DataError(f"{folder}: no {TABLE}; expected the published folder of MMVP.")
    raw = read_file(path, PLAIN)
    rows: list[Mapping[str, Any]] = raw.columns.to_pylist()
    for name in _COLUMNS:
        if name not in raw.columns.column_names:
            raise DataError(f"{path}: no column {name!r}; columns are {', '.join(raw.columns.column_names)}.")
    found: dict[str, _Question] = {}
    for number, row in enumerate(rows):
        name, where = number_name(str(row["Index"]).strip()), raw.row_name(number)
        if re.fullmatch(r"[1-9]\d{0,8}", name) is None or name in found:
            raise DataError(f"{where}: Index is {row['Index']!r:.60}; expected a number from 1, once.")
        gold = _letter(where, row["Correct Answer"])
        found[name] = _Question(gold, _options(str(row["Options"])))
    return found


def _graded(answers: Path, lines: Sequence[AnswerLine]) -> bool:
    """Whether the file has a grade for each answer.

    Raises:
        DataError: if only some have one, or one is no text.
    """
    without = [line for line in lines if line.fields.get("grade") is None]
    if without and len(without) < len(lines):
        raise DataError(f"{answers}, row {without[0].row}: has no grade, and other rows have one.")
    for line in lines if not without else ():
        if not isinstance(grade := line.fields["grade"], str):
            raise DataError(f'{answers}, row {line.row}: grade is {grade!r:.60}; expected "yes" or "no".')
    return not without


def _result(
    line: AnswerLine, question: _Question, gold: str, by_grade: bool, published_rule: bool
) -> AnswerResult:
    if by_grade:
        grade = str(line.fields["grade"])
        plain = re.match(r"^(yes|no)$", grade, re.IGNORECASE)
        verdict = (plain[1].lower() if plain else None) if published_rule else yes_or_no(grade)
        other = LETTERS[1 - LETTERS.index(gold)]
        read = None if verdict is None else gold if verdict == "yes" else other
    else:
        first = next((text for text in line.text.splitlines() if text.strip()), "")
        read = chosen_letter(first.strip(" \t*_`\"'"), question.options)
    return AnswerResult(id=line.id, task="questions", gold=gold, read=read, correct=read == gold)
