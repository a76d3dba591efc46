"""Evaluation sets without a stream, for `everclip eval` and `Learner.evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from everclip.contracts import EvalProtocol, EvalSet, LabelSpace
from everclip.data.reading.class_name_notes import notes_on_names
from everclip.data.sampling.image_pairs import PAIR, whole_pairs
from everclip.data.sampling.multi_image import is_multi_image, tasks_of, whole_questions
from everclip.data.sampling.same_texts import Tokenise, keys_by_text, same_classes, shown_names
from everclip.data.sampling.splits import side_of
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.scenarios.base import class_entries

OWN = EvalProtocol("own")

PLAIN = ("{}",)
"""The class name alone."""


@dataclass(frozen=True)
class MeasuredSets:
    """Evaluation sets, each scored among its own classes or captions."""

    eval_sets: tuple[EvalSet, ...]
    protocols: tuple[EvalProtocol, ...] = (OWN,)
    shown_protocol: str = OWN.name

    def label_space(
        self, eval_set: EvalSet, learned: Collection[int], protocol: EvalProtocol
    ) -> LabelSpace | None:
        """Return the set's own classes."""
        return LabelSpace(eval_set.classes or (), None)

    def pool(
        self, eval_set: EvalSet, learned: Collection[int], protocol: EvalProtocol
    ) -> Sequence[EvalSet] | None:
        """Return the set itself."""
        return (eval_set,)


def measured_set(
    table: Table,
    templates: Sequence[str] | None = None,
    kind: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> EvalSet:
    """Return the test rows of a table (all rows if none is marked) as an evaluation set.

    Args:
        table: with captions, or with classes.
        templates: texts around class names, or the one around the captions of pairs; default: the name alone, and what
            the rows of pairs say.
        kind: `multi-image`, `pairs`, `retrieval` or `classification`; default: multi-image or pairs if there is a
            column `question` or `pair`, else retrieval if there are captions.
        say: called with a line for people about pairs or questions that are left out.

    Raises:
        ConfigError: for several templates around the captions of pairs.
        DataError: if there is nothing to score.
    """
    if table.has("split"):
        held_out = table.where("split", lambda mark: side_of(mark) == "test")
        table = held_out if len(held_out) else table
    if kind == "multi-image" or (kind is None and is_multi_image(table)):
        return multi_image_set(table, templates, table.name, say)
    if kind == "pairs" or (kind is None and table.has(PAIR)):
        return pair_set(table, templates, table.name, say)
    captioned = table.has("caption") and any(table.column("caption"))
    kind = kind or ("retrieval" if captioned else "classification")
    column = "caption" if kind == "retrieval" else "class_key"
    if not table.has(column):
        raise DataError(
            f"{table.name}: {kind} needs a column `{'class_name' if column == 'class_key' else column}`; columns are "
            f"{', '.join(table.column_names)}."
        )
    table = table.where(column, lambda value: value is not None and value != "")
    if len(table) == 0:
        raise DataError(f"{table.name}: there is no row to score.")
    if kind == "retrieval":
        return EvalSet(table.name, "retrieval", table)
    return EvalSet(table.name, "classification", table, classes=class_entries(table, templates or PLAIN))


def pair_set(
    table: Table,
    templates: Sequence[str] | None,
    name: str,
    say: Callable[[str], None],
    group: Literal["task", "retention"] = "task",
) -> EvalSet:
    """Return the whole pairs of a table as an evaluation set; see `measured_set`.

    Raises:
        ConfigError: for several templates.
        DataError: for what is no pair, or if there is none.
    """
    if templates is not None and len(templates) != 1:
        raise ConfigError(
            f"{name}: pairs take one text around their captions; found {len(templates)} templates."
        )
    rows = whole_pairs(table, None if templates is None else templates[0], say)
    return EvalSet(name, "pairs", rows.renamed(name), None, group)


def multi_image_set(
    table: Table,
    templates: Sequence[str] | None,
    name: str,
    say: Callable[[str], None],
    group: Literal["task", "retention"] = "task",
) -> EvalSet:
    """Return the whole questions of a table as an evaluation set; see `measured_set`.

    Raises:
        ConfigError: if templates are given.
        DataError: for what is no question, or if there is none.
    """
    if templates is not None:
        raise ConfigError(
            f"{name}: questions about several images have texts of their own; leave templates out."
        )
    rows = whole_questions(table, say).renamed(name)
    tasks_of(rows)  # refuses what cannot be answered before anything is encoded
    return EvalSet(name, "multi-image", rows, None, group)


def same_text_notes(sets: Sequence[EvalSet], tokenise: Tokenise) -> list[str]:
    """Return a note per group of classes whose texts are equal to the model; it names all sets with this group."""
    sets_of: dict[str, list[str]] = {}
    for s in sets:
        for group in same_classes(tokenise, s.classes or ()):
            sets_of.setdefault(shown_names(group), []).append(s.name)
    return [
        f"{', '.join(names[:3])}{f' and {len(names) - 3} more sets' if len(names) > 3 else ''}: the classes {group} "
        "are the same text to the model, so they share one answer, which counts as right for each of them; give them "
        "different names, or one class_key"
        for group, names in sets_of.items()
    ]


def class_name_notes(sets: Sequence[EvalSet]) -> list[str]:
    """Return notes on class names that are numbers or codes, or hold underscores, of the stream and retention sets."""
    groups = [[s for s in sets if s.group != "retention"], *([s] for s in sets if s.group == "retention")]
    lines = []
    for group in filter(None, groups):
        names = list(dict.fromkeys(entry.name for s in group for entry in s.classes or ()))
        what = group[0].name if len(group) == 1 else "the classes of the tasks"
        lines += [f"{what}: {line}" for line in notes_on_names(names)]
    return lines


def single_answer_note(s: EvalSet, tokenise: Tokenise) -> str | None:
    """Return a note if a set has only one possible answer, so that every model scores 100 %; else `None`."""
    if s.kind in ("pairs", "multi-image"):
        return None
    if s.kind == "classification":
        texts = {text: entry.name for entry in s.classes or () for text in entry.prompts()[:1]}
        keys = set(keys_by_text(tokenise, texts).values())
        what = f"its {len(s.classes or ()):,} classes are one text ({next(iter(texts.values()), '')!r})"
        what = f"it has one class ({next(iter(texts.values()), '')!r})" if len(s.classes or ()) == 1 else what
    else:
        captions = [str(c) for c in s.data.column("caption")]
        keys = set(keys_by_text(tokenise, captions).values())
        what = f"all of its {len(captions):,} captions are one text ({captions[0][:60]!r})"
    if len(keys) > 1:
        return None
    return f"{s.name}: {what}, so every model scores 100 % and the score says nothing"
