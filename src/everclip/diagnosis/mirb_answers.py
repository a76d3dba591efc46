"""Score the answers of a generative model to MIRB: per task, per category, and MIRB's average."""

from __future__ import annotations

from pathlib import Path

from everclip.data.reading.formats.mirb_rows import yes_or_no
from everclip.data.reading.formats.mirb_tasks import (
    TASKS,
    MirbQuestion,
    mirb_questions,
    options_of,
    task_of,
)
from everclip.diagnosis.answer_lines import AnswerLine, number_name, read_answers, require_all
from everclip.diagnosis.answer_rules import Reading, mended, published
from everclip.diagnosis.answer_scores import AnswerResult, AnswerScores, mean_of, task_score
from everclip.errors import DataError

PUBLISHED = (
    "the published rule; it takes options from the first token's probabilities where a model gives them, here from "
    "the text alone"
)
MENDED = "the mended rules (--published-rule for those of MIRB's code)"


def score_mirb(answers: Path, folder: Path, published_rule: bool = False) -> AnswerScores:
    """Score a file of answers; the file must answer each question of every task in the folder.

    Variants of a task (`codeu_text`...) are scored if they are answered, and count in no mean.

    Args:
        answers: JSON lines with `id` (`count/3`: task and place in its file, from 0) and `response`.
        folder: the published files.
        published_rule: compare as MIRB's code does.

    Raises:
        DataError: for what is wrong in either, by file and row.
    """
    held = mirb_questions(folder) if folder.is_dir() else {}
    if not held:
        raise DataError(f"{folder}: no file of MIRB, such as food.json.")
    lines = {line.id: line for line in read_answers(answers, _name)}
    asked = {name: group for name, group in held.items() if _is_asked(name, group, lines)}
    every = [question.id for group in held.values() for question in group]
    expected = [question.id for group in asked.values() for question in group]
    unknown = [line for line in lines.values() if line.id not in set(every)]
    require_all(answers, unknown or list(lines.values()), expected, str(folder))
    tasks, results = {}, []
    for name, group in asked.items():
        cities = sorted({q.answer for q in group if TASKS[name].rule == "place" and yes_or_no(q) is None})
        found = [_result(question, lines[question.id], cities, published_rule) for question in group]
        results += found
        guesses = [_guessing(question) for question in group]
        tasks[name] = task_score(TASKS[name].category, found, guesses, not TASKS[name].variant_of)
    counted = {name: task for name, task in tasks.items() if task.counted}
    categories = {
        category: mean_of(
            {n: (t.score.value or 0.0, t.guessing) for n, t in counted.items() if t.category == category}
        )
        for category in dict.fromkeys(task.category for task in counted.values())
    }
    missing = [name for name, task in TASKS.items() if not task.variant_of and name not in tasks]
    notes = [PUBLISHED if published_rule else MENDED]
    if missing:
        notes.append(f"no MIRB average: {folder} has no file of {', '.join(missing)}")
    return AnswerScores(
        benchmark="mirb",
        answers=str(answers),
        rule="published" if published_rule else "mended",
        tasks=tasks,
        categories=categories,
        mean=None if missing else mean_of({n: (c.value, c.guessing) for n, c in categories.items()}),
        notes=notes,
        questions=results,
    )


def _name(given: str) -> str:
    """Return an id with the present name of its task."""
    name, _, place = given.rpartition("/")
    task = task_of(name)
    return given if task is None else f"{task.name}/{number_name(place)}"


def _is_asked(name: str, group: list[MirbQuestion], lines: dict[str, AnswerLine]) -> bool:
    return not TASKS[name].variant_of or any(question.id in lines for question in group)


def _result(
    question: MirbQuestion, line: AnswerLine, cities: list[str], published_rule: bool
) -> AnswerResult:
    rule = question.task.rule
    reading: Reading
    if published_rule:
        reading = published(rule, line.text, question.answer)
    else:
        reading = mended(rule, line.text, question.answer, options_of(question.text)[1], cities)
    return AnswerResult(
        id=question.id,
        task=question.task.name,
        gold=question.answer,
        read=reading.read,
        correct=reading.correct,
    )


def _guessing(question: MirbQuestion) -> float:
    """Return the probability of guessing right, as the paper counts it: 0 where no answers are given."""
    if yes_or_no(question) is not None:
        return 1 / 2
    options = options_of(question.text)[1]
    return 1 / len(options) if options else 0.0
