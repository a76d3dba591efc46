"""Find texts that a model cannot tell apart: its tokenizer turns them into the same tokens.

Case, blanks, Unicode form and text beyond the context often make no difference: the model does not read them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from everclip.contracts import ClassEntry

Tokenise = Callable[[list[str]], Any]
"""Texts to token ids `(N, L)`, cut at the model's context."""

BLOCK = 1024
"""Texts that are tokenised together."""


def token_keys(tokenise: Tokenise, texts: Sequence[str]) -> list[bytes]:
    """Return a key of each text's tokens; texts with equal keys are the same to the model."""
    return [row.tobytes() for row in tokenise(list(texts)).cpu().numpy()] if texts else []


class TextKeys:
    """Keys of texts by their tokens; each text is tokenised once per object.

    Args:
        tokenise: texts to token ids.
    """

    def __init__(self, tokenise: Tokenise) -> None:
        self.tokenise = tokenise
        self._known: dict[str, bytes] = {}

    def of(self, texts: Iterable[str]) -> dict[str, bytes]:
        """Return the key of every distinct text, in order of first appearance."""
        distinct = list(dict.fromkeys(texts))
        new = [text for text in distinct if text not in self._known]
        for start in range(0, len(new), BLOCK):
            block = new[start : start + BLOCK]
            keys = (hashlib.blake2b(key, digest_size=16).digest() for key in token_keys(self.tokenise, block))
            self._known |= dict(zip(block, keys, strict=True))
        return {text: self._known[text] for text in distinct}


def keys_by_text(tokenise: Tokenise, texts: Iterable[str]) -> dict[str, bytes]:
    """Return the key of every distinct text, each tokenised once, in order of first appearance."""
    return TextKeys(tokenise).of(texts)


def first_equal(keys: Sequence[object]) -> list[int]:
    """Return for each key the position of the first that equals it."""
    first: dict[object, int] = {}
    return [first.setdefault(key, position) for position, key in enumerate(keys)]


def first_same_class(keys_of: TextKeys, entries: Sequence[ClassEntry]) -> list[int]:
    """Return for each class the position of the first class with the same tokens in every template."""
    first = [entry.prompts()[0] for entry in entries]
    known = keys_of.of(first)
    times = Counter(known[text] for text in first)
    doubtful = [i for i, text in enumerate(first) if times[known[text]] > 1]
    rest = keys_of.of(text for i in doubtful for text in entries[i].prompts())
    keys: list[object] = list(range(len(entries)))
    for i in doubtful:
        keys[i] = tuple(rest[text] for text in entries[i].prompts())
    return first_equal(keys)


def same_classes(tokenise: Tokenise, entries: Sequence[ClassEntry]) -> list[list[ClassEntry]]:
    """Return the groups of two or more classes whose texts have the same tokens in every template."""
    groups: dict[int, list[ClassEntry]] = {}
    for entry, first in zip(entries, first_same_class(TextKeys(tokenise), entries), strict=True):
        groups.setdefault(first, []).append(entry)
    return [group for group in groups.values() if len(group) > 1]


def shown_names(group: Sequence[ClassEntry], most: int = 5) -> str:
    """Return `'crane' (n01) = 'crane' (n02)`; a key that equals the name is left out."""
    shown = [repr(e.name) if e.key == e.name else f"{e.name!r} ({e.key})" for e in group[:most]]
    return " = ".join(shown) + (f" and {len(group) - most} more" if len(group) > most else "")
