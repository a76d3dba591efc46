"""Vocabularies of further languages: train byte-pair merges on texts, and add them to a model's tokenizer.

New tokens get the next free ids, so that every old id, also those of start and end, keeps its meaning (Yang et al.,
CLL-CLIP, arXiv 2401.17186, section 3.2). open_clip's own `SimpleTokenizer` puts start and end behind all merges;
`GrownTokenizer` therefore holds explicit ids.
"""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from open_clip.tokenizer import SimpleTokenizer

from everclip.data.sampling.order import key_of
from everclip.errors import ConfigError

Growable = SimpleTokenizer
"""The kind of tokenizer that can learn further vocabularies."""

END_OF_WORD = "</w>"
MOST_MERGES = 48_894
"""open_clip reads no more merges than these from a file."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and merges that one language adds.

    Attributes:
        name: of the language or task.
        tokens: the new tokens, in the order of their ids.
        merges: the new merges, in the order in which they apply.
    """

    name: str
    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"name": self.name, "tokens": list(self.tokens), "merges": [" ".join(m) for m in self.merges]}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Vocabulary:
        """Return what `document` returned."""
        merges = [str(merge).partition(" ") for merge in document["merges"]]
        pairs = tuple((first, second) for first, _, second in merges)
        return cls(str(document["name"]), tuple(map(str, document["tokens"])), pairs)


class GrownTokenizer(SimpleTokenizer):
    """open_clip's tokenizer with the vocabularies of further languages.

    Old merges apply before new ones, and old tokens keep their ids.

    Args:
        base: the tokenizer to grow; not changed.
        vocabulary: what is added.
    """

    def __init__(self, base: SimpleTokenizer, vocabulary: Vocabulary) -> None:
        self.__dict__ |= copy.copy(base.__dict__)
        new = [token for token in vocabulary.tokens if token not in base.encoder]
        start = max(base.encoder.values()) + 1
        self.encoder = base.encoder | {token: start + i for i, token in enumerate(new)}
        self.decoder = {i: token for token, i in self.encoder.items()}
        merges = dict.fromkeys([*base.bpe_ranks, *vocabulary.merges])
        self.bpe_ranks = {merge: rank for rank, merge in enumerate(merges)}
        # Words that were split before may be split in another way now.
        self.cache = {token: token for token in self.specials}
        self.vocab_size = len(self.encoder)

    @property
    def specials(self) -> list[str]:
        """The tokens that no text is split into, such as start and end."""
        return [self.decoder[i] for i in self.all_special_ids]

    def key(self) -> str:
        """Return a hash of all tokens with their ids, and of all merges in their order."""
        tokens = sorted(self.encoder.items(), key=lambda item: item[1])
        return f"{key_of(*(f'{i} {token}' for token, i in tokens), *map(' '.join, self.bpe_ranks)):032x}"

    def plain(self) -> tuple[bytes, list[int]]:
        """Return the vocabulary as open_clip's own tokenizer reads it.

        Returns:
            The content of `merges.txt.gz`, and for each id of a plain tokenizer that reads it the id here.

        Raises:
            ConfigError: if open_clip would not read all merges.
        """
        if len(self.bpe_ranks) > MOST_MERGES:
            raise ConfigError(
                f"export: the tokenizer has grown to {len(self.bpe_ranks):,} merges; open_clip reads at most "
                f"{MOST_MERGES:,} from a file. Use the model from its run folder (Learner.load, everclip eval)."
            )
        lines = ["#version: everclip", *map(" ".join, self.bpe_ranks)]
        characters = list(self.byte_encoder.values())
        order = [*characters, *(c + END_OF_WORD for c in characters), *map("".join, self.bpe_ranks)]
        ids = [self.encoder[token] for token in [*order, *self.specials]]
        return gzip.compress("\n".join(lines).encode(), mtime=0), ids


def with_vocabulary(tokenizer: Any, vocabulary: Vocabulary | None) -> Any:
    """Return a tokenizer with a vocabulary added, if there is one to add.

    Raises:
        ConfigError: if the tokenizer cannot grow.
    """
    if vocabulary is None:
        return tokenizer
    return GrownTokenizer(require_growable(tokenizer, "this model"), vocabulary)


def require_growable(tokenizer: Any, name: str) -> SimpleTokenizer:
    """Return a tokenizer if vocabularies can be added to it.

    Raises:
        ConfigError: if it is not open_clip's own byte-pair tokenizer.
    """
    if isinstance(tokenizer, SimpleTokenizer):
        return tokenizer
    raise ConfigError(
        f"backbone: the vocabulary of {name} cannot grow: its tokenizer is {type(tokenizer).__name__}, not open_clip's "
        "own byte-pair tokenizer. Use a CLIP with that tokenizer (builtin:tiny, ViT-B-32...), or a method that keeps "
        "the vocabulary (method=finetune)."
    )


def words_of(tokenizer: SimpleTokenizer, texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the words of each text as the tokenizer sees them before merging: every character stands for a byte."""
    specials = {tokenizer.decoder[i] for i in tokenizer.all_special_ids}
    for text in texts:
        found = tokenizer.pat.findall(tokenizer.clean_fn(text))
        words = ["".join(tokenizer.byte_encoder[b] for b in word.encode("utf-8")) for word in found]
        yield [word for word in words if word not in specials]


def train_vocabulary(
    tokenizer: SimpleTokenizer, texts: Sequence[str], name: str, size: int, min_frequency: int = 2
) -> Vocabulary:
    """Train the byte-pair merges of a language on its texts, cleaned and split as the model's tokenizer does.

    The same texts give the same vocabulary, in any order and in every process.

    Args:
        tokenizer: the model's; tokens and merges that it has are left out of the result.
        texts: training texts.
        name: of the language.
        size: entries of the language's own vocabulary, with 512 for single bytes and two for start and end.
        min_frequency: how often a pair must occur to be merged.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    characters = list(tokenizer.byte_encoder.values())
    # In this order, so that ids (which decide between equally frequent pairs) do not depend on hashes.
    singles = [*characters, *(c + END_OF_WORD for c in characters)]
    bpe = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=max(size - 2, len(singles)),
        min_frequency=min_frequency,
        show_progress=False,
        special_tokens=singles,
        initial_alphabet=characters,
        end_of_word_suffix=END_OF_WORD,
    )
    lines = (" ".join(words) for words in words_of(tokenizer, sorted(texts)))
    bpe.train_from_iterator(lines, trainer)
    return _added(tokenizer, bpe.to_str(), name)


def _added(tokenizer: SimpleTokenizer, trained: str, name: str) -> Vocabulary:
    """Return what a trained model has beyond a tokenizer."""
    model = json.loads(trained)["model"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    listed = sorted(model["vocab"], key=lambda token: int(model["vocab"][token]))
    tokens = tuple(token for token in listed if token not in tokenizer.encoder)
    added = tuple((str(a), str(b)) for a, b in merges if (a, b) not in tokenizer.bpe_ranks)
    return Vocabulary(name, tokens, added)


def used_ids(tokenizer: SimpleTokenizer, texts: Iterable[str]) -> set[int]:
    """Return the ids that texts are turned into, without start, end and padding, and cut at the context."""
    room = int(tokenizer.context_length or 77) - 2
    return {i for text in dict.fromkeys(texts) for i in tokenizer.encode(text)[:room]}


def changed_share(before: SimpleTokenizer, after: SimpleTokenizer, texts: Sequence[str]) -> float | None:
    """Return the share of texts whose ids differ between two tokenizers; `None` without texts."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return None
    changed = sum(bool(before.encode(text) != after.encode(text)) for text in distinct)
    return changed / len(distinct)
