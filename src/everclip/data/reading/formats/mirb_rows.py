"""Turn MIRB's questions into what a dual encoder can answer: images, candidates, texts and the right answer."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from everclip.data.pictures.images import decode
from everclip.data.pictures.picture_error import PictureError
from everclip.data.reading.formats.mirb_tasks import MirbQuestion, options_of
from everclip.data.reading.formats.whole_numbers import whole_number

NUMBERS = range(11)
"""What is counted in one image; a total is a sum over images."""


@dataclass(frozen=True)
class Asked:
    """A question for a dual encoder; see the columns of `everclip.data.sampling.multi_image`.

    Attributes:
        kind: what it asks.
        answer: the right candidate; 1 or 0 for yes or no.
        images: paths or encoded bytes, in order.
        options: how many images at the end are candidates.
        texts, values, choices, target, weak: as in the columns.
    """

    kind: str
    answer: int
    images: tuple[str | bytes, ...]
    options: int = 0
    texts: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    choices: int | None = None
    target: int | None = None
    weak: bool = False


Found = Asked | str
"""A question, or why it is left out."""


def asked(questions: Sequence[MirbQuestion], folder: Path) -> list[Found]:
    """Return the questions of one task as a dual encoder answers them, each or the reason why it is left out."""
    make = _MAKERS[questions[0].task.name]
    vocabulary = _vocabulary(questions)
    return [make(question, vocabulary, folder) for question in questions]


def _vocabulary(questions: Sequence[MirbQuestion]) -> list[str]:
    """Return the answers that the questions of a task name: domains of `attribute`, cities of `sightseeing`."""
    if questions[0].task.name == "attribute":
        named = [_domain(question) for question in questions]
    elif questions[0].task.name == "sightseeing":
        named = [None if yes_or_no(question) is not None else question.answer for question in questions]
    else:
        return []
    # One of "Paris", "paris" and "Paris.": a tokenizer may give them one embedding, and a tie is always wrong.
    written = {_as_word(name): name for name in sorted(filter(None, named), reverse=True)}
    return sorted(written.values())


def _as_word(name: str) -> str:
    """Return a name as it is compared: in one case, without a full stop."""
    return name.casefold().strip(". ")


def yes_or_no(question: MirbQuestion) -> int | None:
    """Return 1 or 0 if the right answer is yes or no; else `None`."""
    return {"yes": 1, "no": 0}.get(question.answer.lower().rstrip("."))


def _domain(question: MirbQuestion) -> str | None:
    found = re.search(r"belongs? to the (.+?) domain", question.text, re.IGNORECASE)
    return None if found is None else found[1].lower()


def _letter(question: MirbQuestion, options: Sequence[str]) -> int | None:
    """Return the number of the right option."""
    at = "ABCDEFGH".find(question.answer.upper().strip("(). ") or "-")
    return at if 0 <= at < len(options) else None


_NO_OPTIONS = "its options A, B, ... are not found, or none of them is the right answer"
_NO_YES = "its answer is neither yes nor no"


def _jigsaw(question: MirbQuestion, _: list[str], folder: Path) -> Found:
    _stem, options = options_of(question.text)
    right, pieces = _letter(question, options), question.images[1:]
    orders = [[whole_number(number) for number in re.findall(r"\d+", option)] for option in options]
    side = math.isqrt(len(pieces))
    if right is None:
        return _NO_OPTIONS
    if side < 2 or side * side != len(pieces):
        return f"{len(pieces)} pieces form no square"
    if any(sorted(order) != list(range(len(pieces))) for order in orders):
        return f"an option is no order of the {len(pieces)} pieces"
    if any(_leaves(folder, path) for path in pieces):
        return "an image lies outside of the folder"
    try:
        loaded = [decode((folder / path).read_bytes(), path) for path in pieces]
    except (OSError, PictureError):
        # The files by their paths: reading names the one that is missing or damaged, and leaves the question out.
        return Asked("retrieve", right, question.images, len(pieces), choices=len(options))
    built = [_put_together([loaded[number] for number in order], side) for order in orders]
    return Asked("retrieve", right, (question.images[0], *built), len(built))


def _leaves(folder: Path, path: str) -> bool:
    """Whether a path, with all links followed, leads out of the folder."""
    return not Path(os.path.realpath(folder / path)).is_relative_to(os.path.realpath(folder))


def _put_together(pieces: Sequence[Image.Image], side: int) -> bytes:
    """Return a PNG with pieces in their places, row by row; all have the size of the first."""
    width, height = pieces[0].size
    whole = Image.new("RGB", (side * width, side * height))
    for place, piece in enumerate(pieces):
        fitting = piece if piece.size == (width, height) else piece.resize((width, height))
        whole.paste(fitting, (place % side * width, place // side * height))
    file = io.BytesIO()
    whole.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _count(question: MirbQuestion, _: list[str], folder: Path) -> Found:
    found = re.search(r"how many (.+?) (?:are|is|can|do|does)\b", question.text, re.IGNORECASE)
    if found is None or not question.answer.isdecimal():
        return "it does not ask how many there are, or its answer is no number"
    most = len(question.images) * NUMBERS[-1]
    if (total := whole_number(question.answer)) > most:
        return f"its answer is above {NUMBERS[-1]} per image"
    texts = tuple(f"a photo of {number} {found[1]}" for number in NUMBERS)
    values = tuple(map(float, NUMBERS))
    return Asked("count", total, question.images, texts=texts, values=values, weak=True)


def _attribute(question: MirbQuestion, domains: list[str], folder: Path) -> Found:
    right, domain = yes_or_no(question), _domain(question)
    if right is None:
        return _NO_YES
    if domain is None or len(domains) < 2:
        return Asked("same_different", right, question.images)
    texts = tuple(f"a {name}" for name in domains)
    return Asked("same_different", right, question.images, texts=texts, target=domains.index(domain))


def _sightseeing(question: MirbQuestion, cities: list[str], folder: Path) -> Found:
    right, texts = yes_or_no(question), tuple(f"a photo of {city}" for city in cities)
    if right is not None:
        return Asked("same_different", right, question.images, texts=texts if len(texts) > 1 else ())
    if len(texts) < 2:
        return "its answer is the only city of the file"
    gold = [_as_word(city) for city in cities].index(_as_word(question.answer))
    return Asked("retrieve", gold, question.images, texts=texts)


def _food(question: MirbQuestion, _: list[str], folder: Path) -> Found:
    stem, options = options_of(question.text)
    right = _letter(question, options)
    if right is None:
        return _NO_OPTIONS
    numbers = [re.search(r"\b(\d+)\b", option) for option in options]
    shown = [0 if found is None else whole_number(found[1]) for found in numbers]
    candidates = [at for at, number in enumerate(shown) if 1 <= number <= len(question.images)]
    if len(candidates) < 2:
        return "its options name none of its images"
    # An option without an image ("None of the above") comes last: it is never chosen.
    answer = candidates.index(right) if right in candidates else len(candidates)
    images = tuple(question.images[shown[at] - 1] for at in candidates)
    return Asked("retrieve", answer, images, len(images), texts=(stem,), choices=len(options))


def _among_texts(question: MirbQuestion, _: list[str], folder: Path) -> Found:
    _stem, options = options_of(question.text)
    right = _letter(question, options)
    if right is None and question.answer in options:
        right = options.index(question.answer)
    if right is None:
        return _NO_OPTIONS if question.task.rule == "letter" else "it has no list of candidate titles"
    return Asked("retrieve", right, question.images, texts=tuple(options))


def _analogy(question: MirbQuestion, _: list[str], folder: Path) -> Found:
    right = yes_or_no(question)
    if right is None:
        return _NO_YES
    if len(question.images) != 4:
        return f"it has {len(question.images)} images; an analogy has four"
    return Asked("analogy", right, question.images)


_MAKERS: dict[str, Callable[[MirbQuestion, list[str], Path], Found]] = {
    "image_jigsaw": _jigsaw,
    "count": _count,
    "attribute": _attribute,
    "food": _food,
    "sightseeing": _sightseeing,
    "codeu": _among_texts,
    "analogy": _analogy,
    "arxiv": _among_texts,
}


def rows_of(question: MirbQuestion, found: Asked) -> list[dict[str, Any]]:
    """Return the rows of a question, one per image, with the columns of a multi-image set."""
    total = len(found.images)
    return [
        {
            "id": f"{question.id}/{place}",
            "image": {
                "bytes": image if isinstance(image, bytes) else None,
                "path": os.fspath(image) if isinstance(image, str) else None,
            },
            "caption": question.text,
            "question": question.id,
            "question_task": question.task.name,
            "question_category": question.task.category,
            "question_kind": found.kind,
            "question_place": place,
            "question_size": total,
            "question_answer": found.answer,
            "question_role": "option" if place >= total - found.options else None,
            "question_texts": list(found.texts) or None,
            "question_values": list(found.values) or None,
            "question_choices": found.choices,
            "question_target": found.target,
            "question_weak": found.weak,
        }
        for place, image in enumerate(found.images)
    ]
