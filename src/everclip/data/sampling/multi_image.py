"""Rows that form questions about several images: one row per image, with the columns `question`, `question_...`.

A question has images, candidates (some of its images, or texts) and one right answer. MIRB (Zhao et al. 2024, arXiv
2406.12742) and the built-in set of emoji are read into this form; a table with these columns is, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from everclip.data.sampling.order import key_of
from everclip.data.sampling.question_values import numbers, one_value, texts_in, whole_number
from everclip.data.table import Table
from everclip.data.wording import counted
from everclip.errors import DataError, did_you_mean

TaskKind = Literal["retrieve", "compare", "same_different", "analogy", "order", "count"]
"""What a question asks.

* `retrieve`: which candidate (image or text) fits the images and texts that are given?
* `compare`: which of the images is unlike the others?
* `same_different`: do the images show the same? Yes or no.
* `analogy`: is the second image to the first as the fourth is to the third? Yes or no.
* `order`: which image comes first, on the scale that the texts with values give?
* `count`: how many are there in all images together? Texts with values name the numbers.
"""

YES_NO: tuple[TaskKind, ...] = ("same_different", "analogy")

QUESTION = "question"
OPTION = "option"
"""The role of an image that is a candidate."""

COLUMNS = {
    QUESTION: "names the question; rows that share it form one",
    "question_kind": ", ".join(get_args(TaskKind)),
    "question_task": "the name under which questions are scored together",
    "question_place": "the place of the image in its question, from 0",
    "question_size": "the number of images of the question",
    "question_answer": "the right candidate, from 0; of yes and no: 1 is yes",
}
"""Columns that every row of a multi-image set has, and their meaning.

Optional are `question_category`, `question_role` (`option` for an image that is a candidate), `question_texts` (list),
`question_values` (a number per text), `question_choices` (the number of answers, if some are not candidates),
`question_target` (of `same_different`: the text that all images must show) and `question_weak` (scored apart).
"""


@dataclass(frozen=True)
class MultiImageTask:
    """One question about several images.

    Attributes:
        id: its name.
        name: the name under which it is scored together with others (`odd one out`).
        kind: what it asks.
        images: rows of the images that are given.
        candidates: rows of the images that are candidates; empty if texts are, or if the images themselves are.
        texts: of `retrieve` the candidates, or without any the query; of `same_different` the answers to compare; of
            `order` and `count` the scale.
        values: of each text, for `order` and `count`.
        gold: the right candidate; of yes and no 1 is yes; of `count` the number.
        choices: how many answers there are to choose from.
        category: MIRB's four are perception, knowledge, reasoning and multi-hop.
        target: of `same_different`: the position of the text that all images must show; `None`: any, but the same.
        weak: whether it is scored apart, outside of all means.
        content: a hash of images and texts; the same question has the same one wherever it stands.
    """

    id: str
    name: str
    kind: TaskKind
    images: tuple[int, ...]
    gold: int
    candidates: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    choices: int = 0
    category: str = ""
    target: int | None = None
    weak: bool = False
    content: str = ""

    @property
    def first_row(self) -> int:
        """The row of its first image, which is a candidate where a text asks for one."""
        return (*self.images, *self.candidates)[0]

    @property
    def guessing(self) -> float:
        """The probability of guessing right."""
        return 1 / self.choices

    @property
    def needs_threshold(self) -> bool:
        """Whether yes and no are told apart by a threshold on a similarity."""
        return self.kind in YES_NO and not self.texts


def is_multi_image(table: Table) -> bool:
    """Whether a table holds questions about several images."""
    return table.has(QUESTION) and table.has("question_kind")


def whole_questions(table: Table, say: Callable[[str], None] = lambda line: None) -> Table:
    """Return the rows of whole questions, question by question, in the order of `question_place`.

    Args:
        table: with the columns of `COLUMNS`.
        say: called with a line for people about questions that are left out.

    Raises:
        DataError: if a column is missing, a place or size is no such number, a place is there twice, or no question is
            whole.
    """
    for column in COLUMNS:
        if not table.has(column):
            raise DataError(
                f"{table.name}: questions about several images need a column {column!r} ({COLUMNS[column]}); columns "
                f"are {', '.join(table.column_names)}."
            )
    sizes, places = table.column("question_size"), table.column("question_place")
    rows_of: dict[str, dict[int, int]] = {}
    size_of: dict[str, int] = {}
    for row, name in enumerate(table.column(QUESTION)):
        where = f"{table.name}: {table.ids[row]}"
        if name is None:
            raise DataError(f"{where}: {QUESTION} is empty; expected the name of its question.")
        held = rows_of.setdefault(str(name), {})
        size = whole_number(f"{where}: question_size", sizes[row], least=1)
        place = whole_number(f"{where}: question_place", places[row], most=size - 1)
        if size_of.setdefault(str(name), size) != size:
            raise DataError(f"{where}: question_size is {size}, in another row {size_of[str(name)]}.")
        if place in held:
            raise DataError(
                f"{table.name}: question {name!r} has two images at place {place}: {table.ids[held[place]]} and "
                f"{table.ids[row]}."
            )
        held[place] = row
    whole = {name: held for name, held in rows_of.items() if len(held) == size_of[name]}
    lacking = [name for name in rows_of if name not in whole]
    if lacking:
        named = ", ".join(map(repr, lacking[:5])) + (
            f" and {len(lacking) - 5:,} more" if len(lacking) > 5 else ""
        )
        say(f"{table.name}: {counted(len(lacking), 'question')} left out, since an image is missing: {named}")
    if not whole:
        raise DataError(f"{table.name}: no question has all of its images.")
    return table.select([held[place] for held in whole.values() for place in sorted(held)])


def tasks_of(table: Table) -> list[MultiImageTask]:
    """Return the questions of a table of whole questions; rows are its positions.

    Raises:
        DataError: for a value that is no such kind, or an answer that is none of the candidates.
    """
    columns = {name: table.column(name) for name in table.column_names if name.startswith(QUESTION)}
    contents = table.contents()
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(columns[QUESTION]):
        rows_of.setdefault(str(name), []).append(row)
    return [_task(table.name, name, rows, columns, contents) for name, rows in rows_of.items()]


def _task(
    where: str,
    name: str,
    rows: Sequence[int],
    columns: Mapping[str, list[Any]],
    contents: Sequence[str],
) -> MultiImageTask:
    about = f"{where}: question {name!r}"

    def fact(column: str, default: Any = None) -> Any:
        values = [columns[column][row] for row in rows] if column in columns else []
        return one_value(f"{about}: {column}", values, default)

    def number(column: str, default: int | None = None) -> int:
        return whole_number(f"{about}: {column}", fact(column, default))

    kind = str(fact("question_kind"))
    if kind not in get_args(TaskKind):
        raise DataError(f"{about} is of kind {kind!r}.{did_you_mean(kind, get_args(TaskKind))}")
    roles = columns.get("question_role", [None] * len(contents))
    if strange := [roles[row] for row in rows if roles[row] not in (None, "", OPTION)]:
        raise DataError(f"{about}: question_role is {strange[0]!r:.60}; expected {OPTION!r} or nothing.")
    texts = texts_in(f"{about}: question_texts", fact("question_texts", ()))
    weak = fact("question_weak", False)
    if not isinstance(weak, bool):
        raise DataError(f"{about}: question_weak is {weak!r:.60}; expected true or false.")
    task = MultiImageTask(
        id=name,
        name=str(fact("question_task", "")),
        kind=cast("TaskKind", kind),  # checked above
        images=tuple(row for row in rows if roles[row] != OPTION),
        candidates=tuple(row for row in rows if roles[row] == OPTION),
        texts=texts,
        values=numbers(f"{about}: question_values", fact("question_values", ())),
        gold=number("question_answer"),
        category=str(fact("question_category", "")),
        target=None if fact("question_target") is None else number("question_target"),
        weak=weak,
        content=f"{key_of(kind, fact('question_task'), *(contents[row] for row in rows), *texts):032x}",
    )
    least = _choices(task)
    choices = number("question_choices", least)
    problem = _problem(task, choices, least)
    if problem:
        raise DataError(f"{about} ({task.name}, {kind}): {problem}.")
    return replace(task, choices=choices)


def _choices(task: MultiImageTask) -> int:
    """Return how many answers there are to choose from."""
    if task.kind == "retrieve":
        return len(task.candidates) or len(task.texts)
    if task.kind == "count":
        return len(task.images) * int(max(task.values, default=0)) + 1
    return 2 if task.kind in YES_NO else len(task.images)


def _problem(task: MultiImageTask, choices: int, least: int) -> str:
    """Return in words what is wrong with a question; empty if it can be answered.

    Args:
        task: the question.
        choices: the number of its answers, at least `least`, that of its candidates.
    """
    if not task.name:
        return "question_task is empty"
    return _scale_problem(task) or _candidates_problem(task) or _answer_problem(task, choices, least)


def _scale_problem(task: MultiImageTask) -> str:
    """Return what is wrong with the texts that have values, or with a target among texts."""
    if task.kind in ("order", "count") and (len(task.values) != len(task.texts) or len(task.texts) < 2):
        return (
            f"{len(task.texts)} texts and {len(task.values)} values; expected at least two, each with a value"
        )
    if task.kind == "order" and len(set(task.values)) < 2:
        return "all values are equal, so nothing comes first"
    if task.kind == "count" and not all(value >= 0 and value.is_integer() for value in task.values):
        return "a value is no whole number from 0"
    if task.kind == "same_different" and len(task.texts) == 1:
        return "1 text; expected none, or at least two to choose from"
    if task.target is not None and not 0 <= task.target < len(task.texts):
        return f"question_target is {task.target}, and there are {len(task.texts)} texts"
    return ""


def _candidates_problem(task: MultiImageTask) -> str:
    """Return what is wrong with the images and texts to choose from."""
    given = len(task.images)
    if task.kind == "retrieve" and not (task.candidates or given):
        return "there is no image"
    if task.kind == "retrieve" and task.candidates and not (given or task.texts):
        return "there are candidates and nothing to compare them with"
    if task.kind == "retrieve" and not task.candidates and len(task.texts) < 2:
        return f"{len(task.texts)} texts to choose from; expected at least two"
    least = {"compare": 3, "same_different": 2, "order": 2, "analogy": 4}.get(task.kind, 0)
    if given < least or (task.kind == "analogy" and given != 4):
        return f"{given} images; expected {'' if task.kind == 'analogy' else 'at least '}{least}"
    return ""


def _answer_problem(task: MultiImageTask, choices: int, least: int) -> str:
    """Return what is wrong with the right answer or with the number of answers."""
    if choices < least:
        return f"question_choices is {choices}, and there are {least} to choose from"
    if choices < 2 or not 0 <= task.gold < max(choices, 2):
        return f"the answer is {task.gold}; expected 0 to {choices - 1}"
    return ""


def texts_of_questions(table: Table) -> list[str]:
    """Return the distinct texts of all questions, in order of first appearance."""
    if not table.has("question_texts"):
        return []
    lists = table.column("question_texts")
    return list(dict.fromkeys(str(text) for texts in lists if texts is not None for text in texts))
