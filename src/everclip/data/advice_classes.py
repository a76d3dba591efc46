"""What a user should know about the classes of a data set: their sizes, their names, and the sides that they lack."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from everclip.data.checked import Check, Classes, Finding
from everclip.data.wording import counted

_CODE = re.compile(
    r"\s*((class|label|cls|category|cat|id|c|type|group|object|obj)[-_ ]?)?[-+]?\d+(\.\d+)?\s*|true|false|n\d{8}",
    re.IGNORECASE,
)
"""Names that say nothing: 7, 1.0, class_3, c_12, True, and ImageNet's n02123045."""
_UNSPOKEN = re.compile(r"\w_\w|^\d+[._]+\s*[^\W\d]")


def balance(check: Check) -> Iterator[Finding]:
    """Yield what should be known about classes."""
    classes = check.classes
    if classes is None:
        return
    if classes.imbalance > 10:
        small = sum(entry.count * 10 < classes.counts[0].count for entry in classes.counts)
        yield Finding(
            level="mend",
            code="imbalance",
            message=f"{counted(small, 'class has', 'classes have')} less than a tenth of the pictures of "
            f"{classes.counts[0].name!r}",
            remedy="Gather more of the small classes; read mean_class_accuracy beside accuracy.",
        )
    if classes.single:
        yield Finding(
            level="mend",
            code="single",
            message=f"{counted(classes.single, 'class has', 'classes have')} one picture only",
            remedy="It cannot be both learned and tested: add pictures or leave the class out.",
        )
    yield from names_of_classes([entry.name for entry in classes.counts])
    if classes.same_text:
        shown = "; ".join(" = ".join(group[:4]) for group in classes.same_text[:3])
        yield Finding(
            level="mend",
            code="same-name",
            message=f"{counted(len(classes.same_text), 'name stands', 'names stand')} for several classes, as the "
            f"model reads them: {shown}",
            remedy="No text can tell them apart, so they share one answer: give them names of their own, or one "
            "class_key if they are one class.",
        )
    if classes.unlabelled:
        yield Finding(
            level="mend",
            code="unlabelled",
            message=f"{counted(classes.unlabelled, 'picture has', 'pictures have')} no class",
            remedy="Give them one, or leave them out.",
        )
    yield from _sides_of_classes(classes)


def names_of_classes(names: Sequence[str]) -> Iterator[Finding]:
    """Yield what names hold that nobody would say: numbers and codes, several names in one, underscores."""
    if len(names) > 1 and all(map(_CODE.fullmatch, names)):
        numbers = all(name.strip().isdecimal() for name in names)
        yield Finding(
            level="mend",
            code="numbers",
            message=f"classes are called by {'numbers' if numbers else 'numbers or codes'} ({_names(names[:3])})",
            remedy="A CLIP learns and finds classes by their names: put them, a line each, into classnames.txt beside "
            "the data; in a table map numbers to words in the column `class_name` (columns.class_key=NAME keeps them).",
        )
    known = {name.strip() for name in names}
    several = [n for n in names if any(known & set(map(str.strip, n.split(s))) for s in "|;," if s in n)]
    if several:
        yield Finding(
            level="mend",
            code="several-names",
            message=f"{counted(len(several), 'class name looks', 'class names look')} like several in one cell: "
            f"{_names(several[:3])}",
            remedy="Each is a class of its own here. Give a picture one class, or its names as captions.",
        )
    odd = [name for name in names if _UNSPOKEN.search(name) and not _CODE.fullmatch(name)]
    if odd:
        yield Finding(
            level="note",
            code="written-names",
            message=f"{counted(len(odd), 'class name holds', 'class names hold')} underscores or a number in front: "
            f"{_names(odd[:3])}",
            remedy="The model reads names as they stand, and was trained on words: write 'golden retriever', not "
            "'golden_retriever'.",
        )


def notes_on_names(names: Sequence[str]) -> list[str]:
    """Return a line for each thing that `names_of_classes` finds, as `eval`, `init-config` and a run print it."""
    return [f"{found.message}. {found.remedy}" for found in names_of_classes(names)]


def _sides_of_classes(classes: Classes) -> Iterator[Finding]:
    """Name the classes that a side lacks."""
    if classes.not_trained:
        yield Finding(
            level="mend",
            code="not-trained",
            message=f"{counted(len(classes.not_trained), 'class stands', 'classes stand')} in the test alone: "
            f"{_names(classes.not_trained)}",
            remedy="Fine if they measure zero-shot ability; else look for a misspelt name.",
        )
    if classes.not_tested:
        yield Finding(
            level="mend",
            code="not-tested",
            message=f"{counted(len(classes.not_tested), 'class has', 'classes have')} no test row: "
            f"{_names(classes.not_tested)}",
            remedy="Such a class is learned without being measured, and a stream of classes leaves it out: add test "
            "pictures.",
        )
    if classes.not_validated:
        yield Finding(
            level="note",
            code="not-validated",
            message=f"{counted(len(classes.not_validated), 'class has', 'classes have')} no validation row: "
            f"{_names(classes.not_validated)}",
            remedy="What is chosen on validation rows does not look at it: add some, or leave it so.",
        )


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(repr(name) for name in names[:10]) + more
