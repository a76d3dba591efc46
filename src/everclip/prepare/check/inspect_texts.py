"""Count classes and captions as the model reads them: texts with equal tokens are one text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from everclip.data.sampling.same_texts import Tokenise, keys_by_text
from everclip.data.table import Table
from everclip.prepare.check.document import Captions, Classes, Named, Spread
from everclip.prepare.check.duplicates import SIDES

_BATCH = 4096
_SHOWN = 5
"""Limit of groups of equal texts in the document, and of texts per group."""


def text_column(table: Table) -> list[Any]:
    """Return the text of each row: its caption, else its class name."""
    captions = table.column("caption") if table.has("caption") else [None] * len(table)
    names = table.column("class_name") if table.has("class_name") else [None] * len(table)
    return [caption or name for caption, name in zip(captions, names, strict=True)]


def counts_of(values: Any) -> dict[str, int]:
    """Return the count of each value, the most frequent first."""
    counts = Counter(str(value) for value in values)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def named(counts: dict[str, int], most: int | None = None) -> tuple[Named, ...]:
    """Return counts as entries of the document."""
    return tuple(Named(name=name, count=count) for name, count in list(counts.items())[:most])


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    """Return the smallest, the median and the largest value."""
    return Spread(low=float(np.min(values)), median=float(np.median(values)), high=float(np.max(values)))


def classes_of(
    table: Table, sides: Sequence[str | None], first: list[int], tokenise: Tokenise
) -> Classes | None:
    """Count images per class; classes are identified by their keys and shown by their names.

    Args:
        table: the data.
        sides: of every row.
        first: one row per image.
        tokenise: of the model.
    """
    if not table.has("class_name") and not table.has("class_key"):
        return None
    keys = table.column("class_key" if table.has("class_key") else "class_name")
    names = table.column("class_name") if table.has("class_name") else keys
    name_of = {
        str(key): str(key if name is None else name)
        for key, name in zip(reversed(keys), reversed(names), strict=True)
        if key is not None
    }
    counts = counts_of(keys[row] for row in first if keys[row] is not None)
    if not counts:
        return None
    sizes = np.array(list(counts.values()), dtype=np.float64)
    share = sizes / sizes.sum()
    on = {
        side: {str(k) for k, at in zip(keys, sides, strict=True) if at == side and k is not None}
        for side in SIDES
    }
    both = bool(on["train"] and on["test"])
    return Classes(
        counts=tuple(Named(name=name_of[key], count=count) for key, count in counts.items()),
        imbalance=float(sizes.max() / sizes.min()),
        effective=float(np.exp(-(share * np.log(share)).sum())),
        single=int((sizes == 1).sum()),
        unlabelled=sum(keys[row] is None for row in first),
        not_trained=tuple(sorted(name_of[key] for key in on["test"] - on["train"])) if both else (),
        not_tested=tuple(sorted(name_of[key] for key in on["train"] - on["test"])) if both else (),
        not_validated=tuple(sorted(name_of[key] for key in on["train"] - on["val"])) if on["val"] else (),
        same_text=_same(tokenise, {key: name_of[key] for key in counts}),
    )


def _same(tokenise: Tokenise, name_of: dict[str, str]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of classes with equal tokens, each class by its name (and key)."""
    read = keys_by_text(tokenise, name_of.values())
    groups: dict[bytes, list[str]] = {}
    for key, name in name_of.items():
        groups.setdefault(read[name], []).append(repr(name) if key == name else f"{name!r} ({key})")
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _lengths_of(texts: Sequence[str], lengths: Callable[[Sequence[str]], list[int]]) -> dict[str, int]:
    """Return the number of tokens of each text, counted in blocks."""
    blocks = (texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH))
    return {text: count for block in blocks for text, count in zip(block, lengths(block), strict=True)}


def captions_of(
    table: Table,
    sides: Sequence[str | None],
    tokenizer: str,
    context: int,
    lengths: Callable[[Sequence[str]], list[int]],
    tokenise: Tokenise,
) -> Captions | None:
    """Count texts as the model reads them.

    Args:
        table: the data.
        sides: of every row.
        tokenizer: its name in messages.
        context: limit of the model in tokens.
        lengths: texts to their numbers of tokens, without the limit.
        tokenise: of the model.
    """
    given = table.column("caption") if table.has("caption") else []
    source: Literal["captions", "class names"] = "captions" if any(given) else "class names"
    held = [(str(t), side) for t, side in zip(text_column(table), sides, strict=True) if t]
    texts = [text for text, _ in held]
    if not texts:
        return None
    written = list(dict.fromkeys(texts))
    read = keys_by_text(tokenise, written)
    empty = keys_by_text(tokenise, [""])[""]
    spellings: dict[bytes, list[str]] = {}
    for text in written:
        spellings.setdefault(read[text], []).append(text)
    length_of = _lengths_of(written, lengths)
    tokens = np.array([length_of[text] for text in texts])
    longest = sorted(written, key=lambda text: (-length_of[text], text))[:3]
    shared = (
        _shared(table, given, read) if source == "captions" else {}
    )  # a class name stands for many images
    rows = Counter(read[text] for text in texts)
    most = {spellings[key][0][:300]: count for key, count in shared.items()}
    several = [tuple(t[:120] for t in group[:_SHOWN]) for group in spellings.values() if len(group) > 1]
    return Captions(
        source=source,
        count=len(texts),
        distinct=len(spellings),
        learned=len({read[t] for t, side in held if side == "train"}) if any(sides) else None,
        written=len(written),
        same_text=tuple(several[:_SHOWN]),
        wordless=rows[empty],
        missing=len(table) - len(texts),
        per_picture=spread(list(Counter(table.identities()).values())),
        tokenizer=tokenizer,
        tokens=spread(tokens),
        context=context,
        cut=int((tokens > context).sum()),
        longest=tuple(Named(name=text[:300], count=length_of[text]) for text in longest),
        ambiguous=len(shared),
        ambiguous_share=sum(rows[key] for key in shared) / len(texts),
        most_shared=named(dict(sorted(most.items(), key=lambda i: (-i[1], i[0]))), 3),
    )


def _shared(table: Table, given: Sequence[Any], read: dict[str, bytes]) -> dict[bytes, int]:
    """Return the texts of several images (or concepts), with the number of images."""
    things = table.column("concept") if table.has("concept") else table.identities()
    pictures: dict[bytes, set[str]] = {}
    for text, thing in zip(given, things, strict=True):
        if text:
            pictures.setdefault(read[str(text)], set()).add(str(thing))
    return {key: len(found) for key, found in pictures.items() if len(found) > 1}
