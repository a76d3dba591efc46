"""Captions by language, and what a grown vocabulary does to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from everclip.contracts import Task
from everclip.data.sampling.order import unit_hash
from everclip.data.table import Table
from everclip.models.vocabulary import Growable, GrownTokenizer, Vocabulary, changed_share, used_ids

SAMPLE = 300
"""The most captions of an earlier language that are compared after each task, chosen by hash."""


def caption_tables(task: Task) -> list[tuple[str, Table]]:
    """Return the rows of each language of a task, in the order in which its data name them.

    Without a column `language`, all rows are one language with the name of the task.
    """
    table = task.train
    names = table.column("language") if table.has("language") else [None] * len(table)
    distinct = list(dict.fromkeys(names))
    if len(distinct) < 2:
        return [(str((distinct or [None])[0] or task.language or task.name), table)]
    places: dict[Any, list[int]] = {}
    for row, name in enumerate(names):
        places.setdefault(name, []).append(row)
    return [(str(name or "no language"), table.select(rows)) for name, rows in places.items()]


def captions_of(table: Table) -> list[str]:
    """Return the distinct captions of a table that hold text, in order."""
    found = table.column("caption") if table.has("caption") else []
    return list(dict.fromkeys(text for text in found if text is not None and text.strip()))


def cut_share(tokenizer: Growable, texts: Sequence[str]) -> float:
    """Return the share of texts that are longer than the context."""
    some = _sample(texts)
    room = int(tokenizer.context_length or 77) - 2
    return sum(len(tokenizer.encode(text)) > room for text in some) / max(1, len(some))


def compared(
    base: Growable,
    vocabularies: Sequence[Vocabulary],
    ends: Sequence[tuple[str, int]],
    own: Mapping[str, Sequence[str]],
    earlier: Sequence[tuple[str, Sequence[str]]],
) -> list[dict[str, Any]]:
    """Return what each language of a task added, as JSON.

    Args:
        base: the tokenizer of the start model.
        vocabularies: of all languages so far.
        ends: name of each task -> the number of vocabularies after it.
        own: the languages of the task, with their captions.
        earlier: the earlier tasks, with their captions.

    Returns:
        Per language: `name`, `captions` (distinct), `new_tokens`, `used_tokens`, `tokens_per_caption`, `cut` (share of
        captions longer than the context); per earlier task `changed`, the share of its captions that have other tokens
        now than when it was learned, and `overlap`, the share of the language's tokens that the task uses too.
    """
    now = _grown(base, vocabularies)
    number = dict(ends)
    added = {vocabulary.name: len(vocabulary.tokens) for vocabulary in vocabularies}
    changed, tokens = {}, {}
    for name, texts in earlier:
        some = _sample(texts)
        share = changed_share(_grown(base, vocabularies[: number.get(name, 0)]), now, some)
        changed[name] = None if share is None else round(share, 6)
        tokens[name] = used_ids(now, some)
    found = []
    for name, texts in own.items():
        some = _sample(texts)
        used = used_ids(now, some)
        lengths = [len(now.encode(text)) for text in some]
        found.append(
            {
                "name": name,
                "captions": len(texts),
                "new_tokens": added.get(name, 0),
                "used_tokens": len(used),
                "tokens_per_caption": round(sum(lengths) / max(1, len(lengths)), 3),
                "cut": round(cut_share(now, some), 6),
                "changed": changed,
                "overlap": {
                    other: round(len(used & t) / max(1, len(used)), 6) for other, t in tokens.items()
                },
            }
        )
    return found


def _sample(texts: Sequence[str]) -> list[str]:
    if len(texts) <= SAMPLE:
        return list(texts)
    return sorted(texts, key=lambda text: unit_hash("languages", text))[:SAMPLE]


def _grown(base: Growable, vocabularies: Sequence[Vocabulary]) -> Growable:
    if not vocabularies:
        return base
    tokens = [token for vocabulary in vocabularies for token in vocabulary.tokens]
    merges = [merge for vocabulary in vocabularies for merge in vocabulary.merges]
    return GrownTokenizer(base, Vocabulary("all", tuple(dict.fromkeys(tokens)), tuple(merges)))
