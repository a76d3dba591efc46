"""Findings about classes: their sizes, their names, and sides without rows of a class."""

from __future__ import annotations

from collections.abc import Iterator

from everclip.data.reading.class_name_notes import listed_names, names_of_classes
from everclip.data.wording import counted
from everclip.prepare.check.document import Check, Classes, Finding


def balance(check: Check) -> Iterator[Finding]:
    """Yield the findings about classes."""
    classes = check.classes
    if classes is None:
        return
    if classes.imbalance > 10:
        small = sum(entry.count * 10 < classes.counts[0].count for entry in classes.counts)
        yield Finding(
            level="mend",
            code="imbalance",
            message=f"{counted(small, 'class has', 'classes have')} less than a tenth of the images of "
            f"{classes.counts[0].name!r}",
            remedy="Gather more of the small classes; read mean_class_accuracy beside accuracy.",
        )
    if classes.single:
        yield Finding(
            level="mend",
            code="single",
            message=f"{counted(classes.single, 'class has', 'classes have')} one image only",
            remedy="It cannot be both learned and tested: add images or leave the class out.",
        )
    for note in names_of_classes([entry.name for entry in classes.counts]):
        yield Finding(level=note.level, code=note.code, message=note.message, remedy=note.remedy)
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
            message=f"{counted(classes.unlabelled, 'image has', 'images have')} no class",
            remedy="Give them one, or leave them out.",
        )
    yield from _sides_of_classes(classes)


def _sides_of_classes(classes: Classes) -> Iterator[Finding]:
    """Yield findings about classes without rows on a side."""
    if classes.not_trained:
        yield Finding(
            level="mend",
            code="not-trained",
            message=f"{counted(len(classes.not_trained), 'class stands', 'classes stand')} in the test alone: "
            f"{listed_names(classes.not_trained)}",
            remedy="Fine if they measure zero-shot ability; else look for a misspelt name.",
        )
    if classes.not_tested:
        yield Finding(
            level="mend",
            code="not-tested",
            message=f"{counted(len(classes.not_tested), 'class has', 'classes have')} no test row: "
            f"{listed_names(classes.not_tested)}",
            remedy="Such a class is learned without being measured, and a stream of classes leaves it out: add test "
            "images.",
        )
    if classes.not_validated:
        yield Finding(
            level="note",
            code="not-validated",
            message=f"{counted(len(classes.not_validated), 'class has', 'classes have')} no validation row: "
            f"{listed_names(classes.not_validated)}",
            remedy="Choices on validation rows ignore it: add some, or accept that.",
        )
