"""Find class names that are not words: numbers, codes, several names in one, underscores."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from everclip.data.wording import counted

_CODE = re.compile(
    r"\s*((class|label|cls|category|cat|id|c|type|group|object|obj)[-_ ]?)?[-+]?\d+(\.\d+)?\s*|true|false|n\d{8}",
    re.IGNORECASE,
)
"""Names without meaning: 7, 1.0, class_3, c_12, True, and ImageNet's n02123045."""
_NOT_WORDS = re.compile(r"\w_\w|^\d+[._]+\s*[^\W\d]")


_MISSING = frozenset(("nan", "null", "<na>", "n/a", "#n/a", "nat", "undefined", "none", "nil"))


class NameNote(NamedTuple):
    """A problem of class names, and its remedy."""

    level: Literal["mend", "note"]
    code: str
    message: str
    remedy: str


def names_of_classes(names: Sequence[str]) -> Iterator[NameNote]:
    """Yield the problems of class names: missing values, numbers and codes, several names in one, underscores."""
    missing = [name for name in names if name.strip().casefold() in _MISSING]
    if missing:
        yield NameNote(
            level="mend",
            code="missing-names",
            message=f"{counted(len(missing), 'class is', 'classes are')} called by a word for a missing value: "
            f"{listed_names(missing[:3])}",
            remedy="If the class is missing there, leave the cell empty; as it stands, it is learned as a class.",
        )
    names = [name for name in names if name not in missing]
    if len(names) > 1 and all(map(_CODE.fullmatch, names)):
        numbers = all(name.strip().isdecimal() for name in names)
        yield NameNote(
            level="mend",
            code="numbers",
            message=f"classes are called by {'numbers' if numbers else 'numbers or codes'} ({listed_names(names[:3])})",
            remedy="A CLIP learns and finds classes by their names: put them, a line each, into classnames.txt beside "
            "the data; in a table map numbers to words in the column `class_name` (columns.class_key=NAME keeps them).",
        )
    known = {name.strip() for name in names}
    several = [n for n in names if any(known & set(map(str.strip, n.split(s))) for s in "|;," if s in n)]
    if several:
        yield NameNote(
            level="mend",
            code="several-names",
            message=f"{counted(len(several), 'class name looks', 'class names look')} like several in one cell: "
            f"{listed_names(several[:3])}",
            remedy="Each is a class of its own here. Give an image one class, or its names as captions.",
        )
    odd = [name for name in names if _NOT_WORDS.search(name) and not _CODE.fullmatch(name)]
    if odd:
        yield NameNote(
            level="note",
            code="written-names",
            message=f"{counted(len(odd), 'class name holds', 'class names hold')} underscores or a number in front: "
            f"{listed_names(odd[:3])}",
            remedy="The model reads names as they stand, and was trained on words: write 'golden retriever', not "
            "'golden_retriever'.",
        )


def notes_on_names(names: Sequence[str]) -> list[str]:
    """Return one line per problem that `names_of_classes` finds, for `eval`, `init-config` and runs."""
    return [f"{found.message}. {found.remedy}" for found in names_of_classes(names)]


def listed_names(names: Sequence[str]) -> str:
    """Return the first ten names, quoted, and the number of the others."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(repr(name) for name in names[:10]) + more
