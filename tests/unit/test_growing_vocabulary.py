"""A text tower learns further tokens: old ids, old rows and old embeddings stay, and the first end token is pooled."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import module_models
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from everclip.errors import ConfigError
from everclip.models.backbone import Backbone, load_backbone
from everclip.models.export import export_backbone
from everclip.models.modules import insert
from everclip.models.modules.token_rows import (
    add_rows,
    embedding_of,
    has_rows,
    put_rows_back,
    take_rows,
)
from everclip.models.vocabulary import (
    GrownTokenizer,
    Vocabulary,
    changed_share,
    require_growable,
    train_vocabulary,
    used_ids,
    words_of,
)

GERMAN = ["ein roter Ball", "ein roter Hund", "der rote Ball, ein Hund", "Hunde und rote Bälle", "rot"]
HINDI = ["लाल गेंद", "लाल कुत्ता", "एक लाल गेंद", "कुत्ता और गेंद"]


@pytest.fixture
def backbone(micro_folder: Path) -> Backbone:
    return load_backbone(str(micro_folder / "model"))


def grow(backbone: Backbone, texts: list[str], name: str = "de", scale: float = 0.02) -> Vocabulary:
    vocabulary = train_vocabulary(require_growable(backbone.tokenizer, "micro"), texts, name, 10_000)
    draw = torch.Generator().manual_seed(len(name))
    count = len([t for t in vocabulary.tokens if t not in backbone.tokenizer.encoder])
    backbone.grow_vocabulary(vocabulary, scale * torch.randn(count, 32, generator=draw))
    return vocabulary


def test_old_ids_and_rows_stay_and_new_ones_follow(backbone: Backbone) -> None:
    before, table = backbone.tokenizer, embedding_of(backbone.clip).weight.detach().clone()
    vocabulary = grow(backbone, GERMAN)
    after = backbone.tokenizer
    assert vocabulary.tokens
    assert all(after.encoder[token] == i for token, i in before.encoder.items())
    assert [after.encoder[t] for t in vocabulary.tokens] == list(range(514, 514 + len(vocabulary.tokens)))
    assert (after.sot_token_id, after.eot_token_id) == (512, 513)
    weight = embedding_of(backbone.clip).weight
    assert len(weight) == after.vocab_size == len(after.encoder)
    assert torch.equal(weight[:514], table)
    assert backbone.layout is not None
    assert backbone.layout.model_cfg["text_cfg"]["vocab_size"] == len(weight)
    assert isinstance(before, SimpleTokenizer)
    assert not isinstance(before, GrownTokenizer)


def test_a_second_language_keeps_the_first(backbone: Backbone) -> None:
    grow(backbone, GERMAN)
    one = backbone.tokenizer
    words = one(["ein roter Ball"])
    grow(backbone, HINDI, "hi")
    two = backbone.tokenizer
    assert all(two.encoder[token] == i for token, i in one.encoder.items())
    assert list(two.bpe_ranks)[: len(one.bpe_ranks)] == list(one.bpe_ranks)
    assert torch.equal(two(["ein roter Ball"]), words)
    assert changed_share(one, two, GERMAN) == 0
    assert changed_share(one, two, HINDI) == 1
    assert changed_share(one, two, []) is None


def test_the_first_end_token_is_pooled_and_a_text_without_new_tokens_keeps_its_embedding(
    backbone: Backbone,
) -> None:
    backbone.eval()
    texts = ["zq xk", "3 % !?"]
    before = backbone.encode_text(backbone.tokenise(texts))
    grow(backbone, GERMAN)
    assert torch.equal(backbone.encode_text(backbone.tokenise(texts)), before)
    tokens = backbone.tokenise(["ein roter Ball"])
    pooled = backbone.encode_text(tokens)
    after_end = tokens.clone()
    end = int((tokens[0] == backbone.tokenizer.eot_token_id).int().argmax())
    after_end[0, end + 1 :] = (
        backbone.tokenizer.eot_token_id
    )  # padding with the end token, as CLIP's own does
    assert torch.allclose(backbone.encode_text(after_end), pooled, atol=1e-6)
    assert int(tokens[0].argmax()) != end  # what argmax would pool
    backbone.clip.text_pool_type = "argmax"
    assert not torch.allclose(backbone.encode_text(tokens), pooled, atol=1e-3)


def test_the_same_texts_give_the_same_vocabulary_in_any_order(backbone: Backbone) -> None:
    shuffled = random.Random(0).sample(GERMAN, len(GERMAN))
    one = train_vocabulary(backbone.tokenizer, GERMAN, "de", 10_000)
    assert train_vocabulary(backbone.tokenizer, shuffled, "de", 10_000) == one


@pytest.mark.slow  # another process imports everything again
def test_another_process_trains_the_same_vocabulary(backbone: Backbone) -> None:
    code = (
        "from open_clip.tokenizer import SimpleTokenizer; from everclip.models.vocabulary import *; import gzip, sys, "
        "tempfile, pathlib; p = pathlib.Path(tempfile.mkdtemp()) / 'm.gz'; p.write_bytes(gzip.compress(b'#')); "
        f"print(repr(train_vocabulary(SimpleTokenizer(str(p)), {GERMAN!r}, 'de', 10_000)))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == repr(train_vocabulary(backbone.tokenizer, GERMAN, "de", 10_000)), (
        done.stderr
    )


def test_frequency_and_size_bound_the_vocabulary(backbone: Backbone) -> None:
    every = train_vocabulary(backbone.tokenizer, GERMAN, "de", 10_000, min_frequency=1)
    often = train_vocabulary(backbone.tokenizer, GERMAN, "de", 10_000, min_frequency=3)
    small = train_vocabulary(backbone.tokenizer, GERMAN, "de", 520, min_frequency=1)
    assert len(every.tokens) > len(often.tokens) > len(small.tokens) == 6
    assert small.merges == every.merges[:6]
    assert train_vocabulary(backbone.tokenizer, GERMAN, "de", 100).tokens == ()
    assert train_vocabulary(backbone.tokenizer, [], "none", 10_000) == Vocabulary("none", (), ())


def test_text_is_cleaned_and_split_as_the_model_does(backbone: Backbone) -> None:
    words = list(words_of(backbone.tokenizer, ["Ein  BALL&amp;ein <start_of_text> Ball's 12"]))
    assert words == [["ein", "ball", "&", "ein", "ball", "'s", "1", "2"]]
    assert train_vocabulary(backbone.tokenizer, ["EIN Ball", "ein ball"], "de", 10_000).merges == (
        train_vocabulary(backbone.tokenizer, ["ein ball"] * 2, "de", 10_000).merges
    )


def test_a_script_that_was_never_seen_and_mixed_directions_are_read_as_bytes(backbone: Backbone) -> None:
    grow(backbone, GERMAN)
    for text in ("ქართული", "שלום hello مرحبا 1 2 3", "🎈"):
        ids = backbone.tokenizer.encode(text)
        assert backbone.tokenizer.decode(ids).strip() == text
        assert max(ids) < len(embedding_of(backbone.clip).weight)
        assert torch.isfinite(backbone.encode_text(backbone.tokenise([text]))).all()


def test_a_caption_longer_than_the_context_ends_with_the_end_token(backbone: Backbone) -> None:
    grow(backbone, GERMAN)
    row = backbone.tokenise(["ein roter Ball " * 20])[0]
    assert len(row) == 12
    assert int(row[-1]) == backbone.tokenizer.eot_token_id
    ids = used_ids(backbone.tokenizer, ["ein roter Ball " * 20])
    assert ids == set(row[1:-1].tolist())
    assert used_ids(backbone.tokenizer, ["rot"]) == set(backbone.tokenizer.encode("rot"))


def test_the_fingerprint_of_the_text_tower_covers_its_tokenizer(backbone: Backbone) -> None:
    before = backbone.fingerprints()
    token_free = Vocabulary("merge", (), (("a", "b"),))
    assert before == backbone.fingerprints()
    grow(backbone, GERMAN)
    one = backbone.fingerprints()
    backbone.grow_vocabulary(token_free)  # the same weights read other tokens
    two = backbone.fingerprints()
    assert before["image"] == one["image"] == two["image"]
    assert len({before["text"], one["text"], two["text"]}) == 3


def test_a_vocabulary_survives_json(backbone: Backbone) -> None:
    vocabulary = grow(backbone, HINDI, "hi")
    assert Vocabulary.of(vocabulary.document()) == vocabulary


def test_an_export_reads_the_same_in_plain_open_clip_and_grows_further(
    backbone: Backbone, tmp_path: Path
) -> None:
    grow(backbone, GERMAN)
    # A merge whose token another merge makes already.
    token = next(t for t in backbone.tokenizer.encoder if len(t.removesuffix("</w>")) == 3)
    split = next(
        (a, b)
        for a, b in ((token[:1], token[1:]), (token[:2], token[2:]))
        if (a, b) not in backbone.tokenizer.bpe_ranks
    )
    backbone.grow_vocabulary(Vocabulary("twice", (), (split,)))
    texts = [*GERMAN, *HINDI]
    expected = backbone.encode_text(backbone.tokenise(texts))
    take_rows(backbone.clip, [1, 2, 520])
    exported = export_backbone(backbone, tmp_path / "out", {})
    assert exported.parity.tokens
    again = load_backbone(str(tmp_path / "out"))
    assert not isinstance(again.tokenizer, GrownTokenizer)
    assert torch.allclose(again.encode_text(again.tokenise(texts)), expected, atol=1e-6)
    grow(again, HINDI, "hi")
    assert torch.allclose(again.encode_text(again.tokenise(GERMAN)), expected[: len(GERMAN)], atol=1e-6)


def test_an_export_of_more_merges_than_open_clip_reads_is_refused(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(backbone, GERMAN)
    monkeypatch.setattr("everclip.models.vocabulary.MOST_MERGES", 3)
    with pytest.raises(ConfigError, match=r"open_clip reads at most 3 .* run folder"):
        export_backbone(backbone, tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_kind_does_not_grow(backbone: Backbone) -> None:
    class Other:
        pass

    backbone.tokenizer = Other()
    with pytest.raises(
        ConfigError, match=r"vocabulary of .* cannot grow: its tokenizer is Other, not open_clip's own"
    ):
        backbone.grow_vocabulary(Vocabulary("de", ("ab",), (("a", "b"),)))


@pytest.mark.parametrize("case", ["custom text, no mask, last", "custom text, class token"])
def test_a_tower_that_does_not_pool_the_end_does_not_grow(case: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot grow: it pools"):
        add_rows(module_models.build(case), torch.zeros(1, 1), 1)


@pytest.mark.parametrize("case", ["vit", "custom text", "custom text, eos"])
def test_only_rows_that_were_taken_out_have_a_gradient(case: str) -> None:
    clip = module_models.build(case)
    table = embedding_of(clip).weight.detach().clone()
    tokens = module_models.tokens([3, 5])
    clip.eval()
    before = clip.encode_text(tokens)
    used = sorted(set(tokens.flatten().tolist()))[1:3]
    take_rows(clip, used)
    assert has_rows(clip)
    assert torch.equal(clip.encode_text(tokens), before)
    clip.encode_text(tokens).sum().backward()
    embedding: Any = embedding_of(clip)
    assert embedding.weight.grad is None
    assert embedding.rows.grad.abs().sum() > 0
    with torch.no_grad():
        embedding.rows.add_(1)
    changed = clip.encode_text(tokens)
    assert not torch.allclose(changed, before)
    put_rows_back(clip)
    assert not has_rows(clip)
    assert torch.equal(clip.encode_text(tokens), changed)
    now = embedding_of(clip).weight
    rest = [i for i in range(len(now)) if i not in used]
    assert torch.equal(now[rest], table[rest])
    assert torch.equal(now[used], table[used] + 1)
    put_rows_back(clip)  # nothing to do


def test_prompts_find_the_end_token_after_growth(backbone: Backbone) -> None:
    insert(backbone.clip, "prompt", {"tower": "text", "count": 2})
    backbone.eval()
    texts = ["zq xk", "3 %"]
    before = backbone.encode_text(backbone.tokenise(texts))
    grow(backbone, GERMAN)
    assert torch.equal(backbone.encode_text(backbone.tokenise(texts)), before)
    long = backbone.tokenise(["ein roter Ball " * 20])
    moved = backbone.clip.token_embedding.prompt.extend(long)  # type: ignore[operator]
    assert int(moved[0, -1]) == backbone.tokenizer.eot_token_id
