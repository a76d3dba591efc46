"""The tasks of MIRB (Zhao et al. 2024, arXiv 2406.12742), and its files as they are published.

A folder holds one JSON file per task, a list of `{"questions": text, "answers": text or number, "images": [paths]}`,
beside `images/`. Five tasks were renamed after publication; both names are read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from everclip.errors import DataError

Rule = Literal["letter", "number", "yes-no", "place", "word", "title"]
"""How the answer of a generative model is compared with the right one."""


@dataclass(frozen=True)
class MirbTask:
    """One task.

    Attributes:
        name: its file, without `.json`.
        category: one of the four dimensions of the paper.
        rule: how an answer in words is compared.
        unsupported: why a dual encoder cannot answer it; empty if it can.
        variant_of: the task that it asks in another form; variants count in no mean.
    """

    name: str
    category: str
    rule: Rule
    unsupported: str = ""
    variant_of: str = ""


_NEEDS_TEXT = "unsupported for a dual encoder: needs text to be read in the images and generated"
_NEEDS_COUNT = "unsupported for a dual encoder: objects must be matched between views"

_MAIN = (
    MirbTask("image_jigsaw", "perception", "letter"),
    MirbTask("count", "perception", "number"),
    MirbTask("attribute", "perception", "yes-no"),
    MirbTask("food", "knowledge", "letter"),
    MirbTask("sightseeing", "knowledge", "place"),
    MirbTask("codeu", "reasoning", "letter"),
    MirbTask("plot_code", "reasoning", "word", _NEEDS_TEXT),
    MirbTask("analogy", "reasoning", "yes-no"),
    MirbTask("3d_scene", "reasoning", "number", _NEEDS_COUNT),
    MirbTask("visual_chain", "multi-hop", "number", _NEEDS_TEXT),
    MirbTask("arxiv", "multi-hop", "title"),
)
_VARIANTS = {
    "3d_scene_concat": "3d_scene",
    "arxiv_text": "arxiv",
    "codeu_text": "codeu",
    "count_concat": "count",
    "plot_text": "plot_code",
    "visual_chain_concat": "visual_chain",
}
ALIASES = {
    "domain": "attribute",
    "foods": "food",
    "image_needles": "visual_chain",
    "image_needles_concat": "visual_chain_concat",
    "places": "sightseeing",
    "plot": "plot_code",
}
"""Names of the first publication, and those that replaced them."""


def _tasks() -> dict[str, MirbTask]:
    main = {task.name: task for task in _MAIN}
    variants = {
        name: MirbTask(name, main[of].category, main[of].rule, f"a variant of {of} with other inputs", of)
        for name, of in _VARIANTS.items()
    }
    return main | variants


TASKS = _tasks()
"""Name of a task -> the task: the eleven of the paper, then the variants of some with other inputs."""


def task_of(name: str) -> MirbTask | None:
    """Return a task by its name or an earlier one; `None` for another name."""
    return TASKS.get(ALIASES.get(name, name))


@dataclass(frozen=True)
class MirbQuestion:
    """One question as it is published.

    Attributes:
        task: its task.
        index: its place in the file, from 0.
        text: the question, with its options if it has any.
        answer: the right answer, as text.
        images: paths below the folder.
    """

    task: MirbTask
    index: int
    text: str
    answer: str
    images: tuple[str, ...]

    @property
    def id(self) -> str:
        """Its name: task and place."""
        return f"{self.task.name}/{self.index}"


def mirb_questions(folder: Path) -> dict[str, list[MirbQuestion]]:
    """Return the questions of each task whose file is in a folder; empty if there is none.

    Raises:
        DataError: for a file that is not of this form, or a task that is there under both names.
    """
    found: dict[str, list[MirbQuestion]] = {}
    for name in (*TASKS, *ALIASES):
        task, file = task_of(name), folder / f"{name}.json"
        if task is None or not file.is_file():
            continue
        if task.name in found:
            raise DataError(
                f"{folder}: {name}.json and {task.name}.json are the same task; keep one of them."
            )
        found[task.name] = [_question(file, task, i, entry) for i, entry in enumerate(_entries(file))]
    return {name: found[name] for name in TASKS if name in found}


def is_mirb(folder: Path, files: list[str]) -> bool:
    """Whether a folder with these files holds MIRB: one file has the name and the form of a task."""
    for name in (*TASKS, *ALIASES):
        if f"{name}.json" in files:
            with (folder / f"{name}.json").open("rb") as file:
                head = file.read(4096)
            return re.match(rb'(?:\xef\xbb\xbf)?\s*\[\s*\{\s*"', head) is not None and b'"questions"' in head
    return False


def _entries(file: Path) -> list[Any]:
    try:
        entries = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is not JSON: {error}.") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{file}: expected a list of questions, found {type(entries).__name__} of no entry.")
    return entries


def _question(file: Path, task: MirbTask, index: int, entry: Any) -> MirbQuestion:
    where = f"{file}: question {index}"
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {type(entry).__name__}; expected questions, answers and images.")
    for key, kinds in (("questions", (str,)), ("answers", (str, int)), ("images", (list,))):
        if not isinstance(entry.get(key), kinds) or isinstance(entry.get(key), bool):
            raise DataError(
                f"{where}: {key!r} is {entry.get(key)!r:.60}; expected {' or '.join(k.__name__ for k in kinds)}."
            )
    if not all(isinstance(path, str) for path in entry["images"]):
        raise DataError(f"{where}: 'images' holds something else than paths.")
    answer = str(entry["answers"]).strip()
    return MirbQuestion(task, index, entry["questions"].strip(), answer, tuple(entry["images"]))


_MARK = "(?:^|(?<=[\\s(]))[{}][.):]\\s*"


def options_of(text: str) -> tuple[str, list[str]]:
    """Separate a question from its options `A. ... B. ...`; without two options the list is empty.

    Options follow the word "Options" if it is there. Letters count in their order: the next option begins at the next
    letter only.
    """
    cut = text.rfind("Options")
    start = 0 if cut < 0 else cut + len("Options")
    places: list[re.Match[str]] = []
    for letter in "ABCDEFGH":
        found = re.compile(_MARK.format(letter)).search(text, places[-1].end() if places else start)
        if found is None:
            break
        places.append(found)
    if len(places) < 2:
        return text, []
    ends = [mark.start() for mark in places[1:]] + [len(text)]
    options = [
        text[mark.end() : end].rstrip("( \n\t").strip() for mark, end in zip(places, ends, strict=True)
    ]
    return text[: places[0].start() if cut < 0 else cut].strip(), options
