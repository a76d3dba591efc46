"""The built-in emoji: what the data card promises holds for the files.

* every emoji has exactly one held-out drawing, in the style that the hash names, and others to train on;
* the counts of the card are the counts of the tables;
* every drawing decodes to 64x64 RGB and is not blank;
* what is missing (names of 2022 outside English) is null, never guessed;
* a wrong language or style is answered with what would have been right.
"""

from __future__ import annotations

import collections
import hashlib
import io
import subprocess
import sys
from importlib import resources
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from everclip.data.builtin import emoji as data


@pytest.fixture(scope="module")
def facts() -> pa.Table:
    return data.emoji()


@pytest.fixture(scope="module")
def drawings() -> pa.Table:
    return data.drawings()


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return data.card()


def test_each_emoji_has_one_held_out_drawing_chosen_by_hash(facts: pa.Table, drawings: pa.Table) -> None:
    styles: dict[str, dict[str, bool]] = collections.defaultdict(dict)
    columns = (drawings[c].to_pylist() for c in ("emoji_id", "style", "held_out"))
    for identifier, style, held_out in zip(*columns, strict=True):
        styles[identifier][style] = held_out
    assert set(styles) == set(facts["id"].to_pylist())
    for identifier, found in styles.items():
        digest = hashlib.sha256(f"everclip-emoji-v1|{identifier}".encode()).hexdigest()
        first = int(digest, 16) % 3
        order = data.STYLES[first:] + data.STYLES[:first]
        expected = next(style for style in order if style in found)
        assert [style for style, held_out in found.items() if held_out] == [expected]
        assert len(found) >= 2


def test_ids_are_unique_and_follow_their_rule(facts: pa.Table, drawings: pa.Table) -> None:
    ids = facts["id"].to_pylist()
    assert len(set(ids)) == len(ids)
    assert ids == ["-".join(f"{ord(c):x}" for c in e if c != "\ufe0f") for e in facts["emoji"].to_pylist()]
    assert [[ord(c) for c in e] for e in facts["emoji"].to_pylist()] == facts["codepoints"].to_pylist()
    drawing_ids = drawings["id"].to_pylist()
    assert len(set(drawing_ids)) == len(drawing_ids)
    pairs = zip(drawings["style"].to_pylist(), drawings["emoji_id"].to_pylist(), strict=True)
    assert drawing_ids == [f"{style}/{identifier}" for style, identifier in pairs]
    assert drawings["image_id"].to_pylist() == drawing_ids


def test_no_skin_tones(facts: pa.Table) -> None:
    assert not any(0x1F3FB <= c <= 0x1F3FF for row in facts["codepoints"].to_pylist() for c in row)


def test_card_counts_the_data(facts: pa.Table, drawings: pa.Table, card: dict[str, Any]) -> None:
    assert card["emoji"] == facts.num_rows
    assert card["drawings"] == drawings.num_rows
    years = collections.Counter(map(str, facts["year"].to_pylist()))
    assert card["emoji_per_year"] == years
    assert card["emoji_per_group"] == collections.Counter(facts["group"].to_pylist())
    assert card["shared_emoji"] == sum(facts["shared"].to_pylist())
    for style in data.STYLES:
        mask = np.array([s == style for s in drawings["style"].to_pylist()])
        counts = card["styles"][style]
        assert counts["drawings"] == mask.sum() == card["emoji"] - len(counts["missing"])
        assert counts["held_out"] == (mask & np.array(drawings["held_out"].to_pylist())).sum()
    for language, count in card["languages"].items():
        assert count == facts.num_rows - facts[f"name_{language}"].null_count


def test_releases_have_their_years(facts: pa.Table, card: dict[str, Any]) -> None:
    releases = zip(facts["release"].to_pylist(), facts["year"].to_pylist(), strict=True)
    assert set(releases) <= set(card["year_of_release"].items())
    assert sum(year <= 2015 for year in facts["year"].to_pylist()) == 1299


def test_every_image_decodes_and_shows_something(drawings: pa.Table) -> None:
    for identifier, data_bytes in zip(drawings["id"].to_pylist(), drawings["image"].to_pylist(), strict=True):
        with Image.open(io.BytesIO(data_bytes)) as image:
            assert (image.mode, image.size) == ("RGB", (64, 64)), identifier
            assert any(low < 240 for low, _ in image.getextrema()), f"{identifier} is blank"


def test_equal_drawings_are_marked_shared(facts: pa.Table, drawings: pa.Table) -> None:
    shared = dict(zip(facts["id"].to_pylist(), facts["shared_with"].to_pylist(), strict=True))
    owners: dict[tuple[str, bytes], set[str]] = collections.defaultdict(set)
    columns = (drawings[c].to_pylist() for c in ("style", "image", "emoji_id"))
    for style, image, identifier in zip(*columns, strict=True):
        owners[style, image].add(identifier)  # encoding is deterministic: equal pixels, equal bytes
    for group in owners.values():
        for identifier in group:
            assert group - {identifier} <= set(shared[identifier])
    assert {"1f1f8-1f1ef", "1f1e7-1f1fb"} <= set(shared["1f1f3-1f1f4"])  # Svalbard and Bouvet fly Norway's
    assert facts["shared"].to_pylist() == [bool(shared[i]) for i in facts["id"].to_pylist()]
    for identifier, partners in shared.items():
        assert all(identifier in shared[partner] for partner in partners)


def test_emoji_of_2022_have_english_names_only(facts: pa.Table) -> None:
    newest = facts.take([i for i, year in enumerate(facts["year"].to_pylist()) if year == 2022])
    assert newest.num_rows == 21
    assert "moose" in newest["name_en"].to_pylist()
    for language in data.languages():
        assert newest[f"name_{language}"].null_count == (0 if language == "en" else 21)
        assert newest[f"keywords_{language}"].null_count == 21


def test_languages_name_most_emoji(facts: pa.Table) -> None:
    assert len(data.languages()) >= 40
    assert list(data.languages()) == sorted(data.languages())
    for language in data.languages():
        assert facts.num_rows - facts[f"name_{language}"].null_count >= 1500


def test_drawings_in_another_language_and_style() -> None:
    table = data.drawings("de", ["twemoji"])
    assert set(table["style"].to_pylist()) == {"twemoji"}
    assert set(table["language"].to_pylist()) == {"de"}
    row = table["emoji_id"].to_pylist().index("1f1f3-1f1f4")
    assert table["name"][row].as_py() == "Flagge: Norwegen"
    assert table["shared"][row].as_py()
    named = data.drawings("de", ["twemoji"], named_only=True)
    assert named["name"].null_count == 0
    assert named.num_rows == table.num_rows - table["name"].null_count < table.num_rows


def test_unknown_names_are_answered_with_close_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown language: found 'fra', expected one of af, .*mean 'fr'"):
        data.drawings("fra")
    with pytest.raises(ValueError, match=r"unknown style: found 'openmojis', expected .* mean 'openmoji'"):
        data.drawings(styles=["openmojis"])
    with pytest.raises(ValueError, match="at least one of noto, openmoji, twemoji"):
        data.drawings(styles=[])


def test_files_fit_the_package() -> None:
    sizes = {f.name: len(f.read_bytes()) for f in resources.files(data).iterdir() if f.is_file()}
    assert {f"LICENSE-{part}" for part in (*data.STYLES, "unicode")} | {"CARD.md", "card.json"} <= set(sizes)
    assert sum(sizes.values()) <= 20e6
    assert max(sizes.values()) < 11e6


def test_import_is_light() -> None:
    code = (
        "import sys, everclip.data.builtin.emoji as e; e.languages()\n"
        "print([m for m in ('pyarrow', 'numpy', 'PIL', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
