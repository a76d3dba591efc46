"""Evaluation sets on their own, without a stream: what `everclip eval` and `Learner.evaluate` score."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from everclip.contracts import EvalProtocol, EvalSet, LabelSpace
from everclip.data.reading.class_name_notes import notes_on_names
from everclip.data.sampling.same_texts import Tokenise, keys_by_text, same_classes, shown_names
from everclip.data.sampling.splits import side_of
from everclip.data.table import Table
from everclip.errors import DataError
from everclip.scenarios.base import class_entries

OWN = EvalProtocol("own")


@dataclass(frozen=True)
class Measuring:
    """Evaluation sets, each scored on its own answers."""

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


def measured_set(table: Table, templates: Sequence[str], kind: str | None = None) -> EvalSet:
    """Return a table's test rows (all of them where none is marked) as an evaluation set.

    Args:
        table: with captions, or with classes.
        templates: texts around class names.
        kind: `retrieval` or `classification`; default: retrieval where there are captions.

    Raises:
        DataError: if there is nothing to score on.
    """
    if table.has("split"):
        held_out = table.where("split", lambda mark: side_of(mark) == "test")
        table = held_out if len(held_out) else table
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
    return EvalSet(table.name, "classification", table, classes=class_entries(table, templates))


def shared_names(sets: Sequence[EvalSet], tokenise: Tokenise) -> list[str]:
    """Say which classes of the sets no text can tell apart, once for sets that share them."""
    found: dict[str, list[str]] = {}
    for s in sets:
        for group in same_classes(tokenise, s.classes or ()):
            found.setdefault(shown_names(group), []).append(s.name)
    return [
        f"{', '.join(names[:3])}{f' and {len(names) - 3} more sets' if len(names) > 3 else ''}: the classes {group} "
        "are one text to the model: they share one answer, which is right for any of them; give them names of their "
        "own, or one class_key"
        for group, names in found.items()
    ]


def unspoken_names(sets: Sequence[EvalSet]) -> list[str]:
    """Say which classes have numbers, codes or underscores for names: once for a stream, and for each retention set."""
    groups = [[s for s in sets if s.group != "retention"], *([s] for s in sets if s.group == "retention")]
    lines = []
    for group in filter(None, groups):
        names = list(dict.fromkeys(entry.name for s in group for entry in s.classes or ()))
        what = group[0].name if len(group) == 1 else "the classes of the tasks"
        lines += [f"{what}: {line}" for line in notes_on_names(names)]
    return lines


def one_answer(s: EvalSet, tokenise: Tokenise) -> str | None:
    """Say that a set has one answer alone, so that every model is right; `None` where there is a choice."""
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
