"""Train the vocabulary of a built-in model: byte-pair merges in CLIP's format, read by open_clip's tokenizer.

The text is what the model may know. builtin:tiny: English names and keywords of the emoji released up to a year.
builtin:photo: words and definitions of WordNet, names of ImageNet in templates, names and keywords of emoji.

    python scripts/build_bpe.py
    python scripts/build_bpe.py --model photo --wordnet FOLDER

The same data and settings give the same bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, SIMPLE_IMAGENET_TEMPLATES
from teachers import wordnet

from everclip.data.builtin.emoji import emoji

Symbols = tuple[str, ...]
Pair = tuple[str, str]
BUILTIN = Path(__file__).resolve().parents[1] / "src/everclip/models/builtin"
LAST_YEAR = 2015
"""Emoji released later are unknown to builtin:tiny."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What a model's merges are learned from.

    Attributes:
        texts: returns the texts, given WordNet's folder.
        merges: at most so many; the vocabulary has 514 entries more.
        at_least: how often a merged pair must occur.
    """

    texts: Callable[[Path | None], Iterable[str]]
    merges: int
    at_least: int


def emoji_texts(last_year: int) -> list[str]:
    """Return each known emoji's English name and keywords."""
    found: list[str] = []
    for row in emoji().select(["year", "name_en", "keywords_en"]).to_pylist():
        if row["year"] <= last_year and row["name_en"]:
            found += [row["name_en"], *(row["keywords_en"] or ())]
    return found


def photo_texts(wordnet_folder: Path | None) -> list[str]:
    """Return WordNet's words and definitions, ImageNet's names in templates, and names and keywords of all emoji.

    Raises:
        ValueError: If no folder is given.
    """
    if wordnet_folder is None:
        raise ValueError(
            "--wordnet: expected the folder of WordNet's data files (scripts/teachers.py says how)"
        )
    found = emoji_texts(9999)
    for synset in wordnet(wordnet_folder):
        found += [*synset.lemmas, synset.gloss]
    return found + [form(name) for form in SIMPLE_IMAGENET_TEMPLATES for name in IMAGENET_CLASSNAMES]


VOCABULARIES = {
    "tiny": Vocabulary(lambda _: emoji_texts(LAST_YEAR), merges=1486, at_least=2),
    "photo": Vocabulary(photo_texts, merges=5486, at_least=20),
}


def words(lines: Iterable[str]) -> Counter[Symbols]:
    """Count words as open_clip's tokenizer cuts them: byte symbols, the last one marked as a word's end."""
    reader = SimpleTokenizer()
    counts: Counter[Symbols] = Counter()
    for line in lines:
        for word in reader.pat.findall(reader.clean_fn(line)):
            symbols = [reader.byte_encoder[byte] for byte in word.encode("utf-8")]
            counts[(*symbols[:-1], symbols[-1] + "</w>")] += 1
    return counts


def joined(word: Symbols, pair: Pair) -> Symbols:
    """Return the word with every occurrence of the pair made one symbol, from the left."""
    result: list[str] = []
    for symbol in word:
        # The left half must still be a symbol of its own: in "aaa" the middle "a" is taken once.
        if result and (result[-1], symbol) == pair:
            result[-1] += symbol
        else:
            result.append(symbol)
    return tuple(result)


class PairCounts:
    """How often each pair of neighbours occurs in words, kept up to date while pairs are merged."""

    def __init__(self, counts: Counter[Symbols]) -> None:
        self.words = list(counts)
        self.frequencies = list(counts.values())
        self.pairs: Counter[Pair] = Counter()
        self.places: dict[Pair, set[int]] = {}
        for place in range(len(self.words)):
            self._add(place, 1)
        self.queue = [(-count, pair) for pair, count in self.pairs.items()]
        heapq.heapify(self.queue)

    def _add(self, place: int, sign: int) -> set[Pair]:
        """Count the pairs of one word, or take them away with sign -1; return them."""
        found = list(pairwise(self.words[place]))
        for pair in found:
            self.pairs[pair] += sign * self.frequencies[place]
            self.places.setdefault(pair, set()).add(place)
        return set(found)

    def most_frequent(self) -> Pair | None:
        """Return the most frequent pair, the first by its text among equals; None if there is none."""
        while self.queue:
            count, pair = self.queue[0]
            if count and self.pairs[pair] == -count:
                return pair
            heapq.heappop(self.queue)  # an old count
        return None

    def merge(self, pair: Pair) -> None:
        """Make the pair one symbol in all words."""
        changed: set[Pair] = set()
        for place in self.places.pop(pair):
            changed |= self._add(place, -1)
            self.words[place] = joined(self.words[place], pair)
            changed |= self._add(place, 1)
        for other in changed:
            heapq.heappush(self.queue, (-self.pairs[other], other))


def train(counts: Counter[Symbols], size: int, at_least: int) -> list[Pair]:
    """Return up to `size` merges, most frequent first (ties by the text), each seen `at_least` times."""
    known = PairCounts(counts)
    merges: list[Pair] = []
    while len(merges) < size:
        best = known.most_frequent()
        if best is None or known.pairs[best] < at_least:
            break
        merges.append(best)
        known.merge(best)
    return merges


def main() -> None:
    """Train and write the merges."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=sorted(VOCABULARIES), default="tiny")
    parser.add_argument("--wordnet", type=Path, help="folder of WordNet's data files; for photo")
    parser.add_argument("--out", type=Path, help="by default the model's folder in the package")
    options = parser.parse_args()
    vocabulary = VOCABULARIES[options.model]
    out = options.out or BUILTIN / options.model / "merges.txt.gz"
    merges = train(words(vocabulary.texts(options.wordnet)), vocabulary.merges, vocabulary.at_least)
    # The reader skips the first line, and would read a trailing newline as one more entry.
    document = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(gzip.compress(document.encode("utf-8"), mtime=0))
    print(f"{out.name}: {len(merges)} merges, vocabulary of {len(merges) + 514}")


if __name__ == "__main__":
    main()
