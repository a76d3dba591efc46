"""Training of vocabularies: the merges of a plain count, and the bytes that builtin:tiny has."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import open_clip
import pytest

from everclip.config import BackboneConfig
from everclip.models.backbone import load_backbone

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import build_bpe  # noqa: E402

sys.path.remove(str(ROOT / "scripts"))

PHOTO = ROOT / "src/everclip/models/builtin/photo"
TEXTS = [
    "banana bandana aaaa aaaaa",
    "a band, bananas; nan-nan 2015",
    "ban bana cabana über naïve",
    "aaaa aa",
]


def counted_anew(counts: Counter[build_bpe.Symbols], size: int, at_least: int) -> list[build_bpe.Pair]:
    """Train as the definition says: count all pairs before each merge."""
    merges: list[build_bpe.Pair] = []
    while len(merges) < size:
        pairs: Counter[build_bpe.Pair] = Counter()
        for word, count in counts.items():
            for pair in pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < at_least:
            break
        merges.append(best)
        counts = Counter({build_bpe.joined(word, best): count for word, count in counts.items()})
    return merges


@pytest.mark.parametrize(("size", "at_least"), [(100, 1), (100, 2), (5, 1), (0, 1)])
def test_merges_are_those_of_counting_all_pairs_anew(size: int, at_least: int) -> None:
    counts = build_bpe.words(TEXTS)
    assert build_bpe.train(counts, size, at_least) == counted_anew(counts, size, at_least)


def test_merges_of_emoji_are_those_of_counting_all_pairs_anew() -> None:
    counts = build_bpe.words(build_bpe.emoji_texts(2010))
    assert build_bpe.train(counts, 60, 2) == counted_anew(counts, 60, 2)


def test_builtin_tiny_gets_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["build_bpe.py", "--out", str(tmp_path / "merges.txt.gz")])
    build_bpe.main()
    shipped = ROOT / "src/everclip/models/builtin/tiny/merges.txt.gz"
    assert (tmp_path / "merges.txt.gz").read_bytes() == shipped.read_bytes()


def test_texts_of_photographs_need_wordnet() -> None:
    with pytest.raises(ValueError, match="--wordnet: expected the folder"):
        build_bpe.photo_texts(None)


def test_the_folder_of_builtin_photo_makes_a_model_of_less_than_20_mb() -> None:
    backbone = load_backbone(BackboneConfig(name=str(PHOTO), weights="random"), 0)
    size = sum(parameter.numel() for parameter in backbone.parameters())
    assert size * 2 <= 20e6
    tokens = backbone.tokenise(["a photo of a golden retriever"])
    assert tokens.shape == (1, 32)
    # Common words are one token each: start, six words (retriever in three), end.
    assert int((tokens != 0).sum()) <= 10


def test_every_token_of_builtin_photo_is_in_the_vocabulary() -> None:
    tokenizer = open_clip.SimpleTokenizer(str(PHOTO / "merges.txt.gz"))
    assert tokenizer.vocab_size == 6000
