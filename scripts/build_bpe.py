"""Train the vocabulary of `builtin:tiny`: byte-pair merges in CLIP's format, read by open_clip's tokenizer.

The text is what the model may know: English names and keywords of the emoji released up to a year.

    python scripts/build_bpe.py

The same data and settings give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer

from everclip.data.builtin.emoji import emoji

Symbols = tuple[str, ...]
TARGET = Path(__file__).resolve().parents[1] / "src/everclip/models/builtin/tiny/merges.txt.gz"


def texts(last_year: int) -> list[str]:
    """Return each known emoji's English name and keywords."""
    found: list[str] = []
    for row in emoji().select(["year", "name_en", "keywords_en"]).to_pylist():
        if row["year"] <= last_year and row["name_en"]:
            found += [row["name_en"], *(row["keywords_en"] or ())]
    return found


def words(lines: Iterable[str]) -> Counter[Symbols]:
    """Count words as open_clip's tokenizer cuts them: byte symbols, the last one marked as a word's end."""
    reader = SimpleTokenizer()
    counts: Counter[Symbols] = Counter()
    for line in lines:
        for word in reader.pat.findall(reader.clean_fn(line)):
            symbols = [reader.byte_encoder[byte] for byte in word.encode("utf-8")]
            counts[(*symbols[:-1], symbols[-1] + "</w>")] += 1
    return counts


def joined(word: Symbols, pair: tuple[str, str]) -> Symbols:
    """Return the word with every occurrence of the pair made one symbol, from the left."""
    result: list[str] = []
    for symbol in word:
        # The left half must still be a symbol of its own: in "aaa" the middle "a" is taken once.
        if result and (result[-1], symbol) == pair:
            result[-1] += symbol
        else:
            result.append(symbol)
    return tuple(result)


def train(counts: Counter[Symbols], size: int, at_least: int) -> list[tuple[str, str]]:
    """Return up to `size` merges, most frequent first (ties by the text), each seen `at_least` times."""
    merges: list[tuple[str, str]] = []
    while len(merges) < size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in counts.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < at_least:
            break
        merges.append(best)
        merged: Counter[Symbols] = Counter()
        for word, count in counts.items():
            merged[joined(word, best)] += count
        counts = merged
    return merges


def main() -> None:
    """Train and write the merges."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--last-year", type=int, default=2015)
    parser.add_argument("--merges", type=int, default=1486, help="the vocabulary has 514 entries more")
    parser.add_argument("--at-least", type=int, default=2, help="how often a merged pair must occur")
    options = parser.parse_args()
    merges = train(words(texts(options.last_year)), options.merges, options.at_least)
    # The reader skips the first line, and would read a trailing newline as one more entry.
    document = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(gzip.compress(document.encode("utf-8"), mtime=0))
    print(f"{options.out.name}: {len(merges)} merges, vocabulary of {len(merges) + 514}")


if __name__ == "__main__":
    main()
