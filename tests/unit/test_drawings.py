"""Further drawings of emoji for builtin:tiny: which emoji a name means, and which drawings are left out."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from everclip.data.builtin import emoji

SCRIPTS = str(Path(__file__).resolve().parents[2] / "scripts")
sys.path.insert(0, SCRIPTS)
import build_drawings  # noqa: E402
import drawing_names  # noqa: E402
import emoji_pictures  # noqa: E402

sys.path.remove(SCRIPTS)


def fact(text: str, name: str, year: int = 2010) -> dict[str, Any]:
    codepoints = [ord(character) for character in text]
    identifier = "-".join(f"{c:x}" for c in codepoints if c != 0xFE0F)
    return {"id": identifier, "codepoints": codepoints, "year": year, "name_en": name}


FACTS = [
    fact("\N{CAT}", "cat"),
    fact("\N{CAT FACE}", "cat face"),
    fact("\N{AUBERGINE}", "eggplant"),
    fact("\N{PILE OF POO}", "pile of poo"),
    fact("\N{GRINNING FACE WITH SMILING EYES}", "beaming face with smiling eyes"),
    fact("\N{SMILING FACE WITH OPEN MOUTH AND SMILING EYES}", "grinning face with smiling eyes"),
    fact("\N{BLACK HEART}", "black heart", 2016),
    fact("\N{AIRPLANE}\ufe0f", "airplane"),
    fact("\U0001f1e8\U0001f1ee", "flag: Côte d’Ivoire"),
    fact("#\ufe0f\u20e3", "keycap: #"),
    fact("*\ufe0f\u20e3", "keycap: *"),
    fact("1\ufe0f\u20e3", "keycap: 1"),
    fact("\N{BLACK SCISSORS}", "scissors"),
    fact("\N{HEAVY BLACK HEART}\ufe0f", "red heart"),
]
NAMES = drawing_names.EmojiNames(FACTS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", "1f408"),
        ("cat-face", "1f431"),
        ("aubergine", "1f346"),  # the character's name, where CLDR says eggplant
        ("eggplant", "1f346"),
        ("airplane", "2708"),  # with a variation selector
        ("flag-for-cote-d-ivoire", "1f1e8-1f1ee"),
        ("flag-cote-divoire", "1f1e8-1f1ee"),
        ("flag-for-flag-cote-divoire", "1f1e8-1f1ee"),
        ("keycap-1", "31-20e3"),
        ("keycap-pound", "23-20e3"),  # by the table
    ],
)
def test_a_certain_name_is_found(name: str, expected: str) -> None:
    assert NAMES.find("noto-v1", name).emoji_id == expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no-such-thing", "is the name of no emoji"),
        ("keycap", "is the name of several emoji"),  # of both keycaps whose sign is no letter or digit
        ("black-heart", "is newer than 2015"),
        ("cat-medium-skin-tone", "has a skin tone"),
        ("cat-tone3", "has a skin tone"),
    ],
)
def test_an_uncertain_name_is_refused(name: str, reason: str) -> None:
    found = NAMES.find("noto-v1", name)
    assert (found.emoji_id, found.reason) == ("", reason)


def test_a_name_of_two_emoji_is_refused_where_no_table_decides() -> None:
    assert NAMES.find("fxemoji", "grinningfacewithsmilingeyes").reason == "is the name of several emoji"
    assert NAMES.find("emojione", "grinning-face-with-smiling-eyes").emoji_id == "1f604"


def test_short_names_of_a_set_differ_from_cldr() -> None:
    assert NAMES.find("fxemoji", "cat").emoji_id == "1f431"
    assert NAMES.find("fxemoji", "catside").emoji_id == "1f408"
    assert NAMES.find("fxemoji", "sparkle").reason == "shows something else"


def test_a_name_that_also_means_a_newer_emoji_is_refused() -> None:
    names = drawing_names.EmojiNames([*FACTS, fact("\N{BLACK HEART}\u200d\N{CAT}", "eggplant", 2020)])
    assert names.find("noto-v1", "eggplant").reason == "is the name of several emoji"


def test_every_entry_of_the_tables_is_an_emoji_known_in_time() -> None:
    years = dict(zip(*(emoji.emoji()[c].to_pylist() for c in ("id", "year")), strict=True))
    for style, table in drawing_names.NAMED.items():
        assert style in build_drawings.SOURCES
        assert all(years[identifier] <= drawing_names.NEWEST for identifier in table.values())
        assert not drawing_names.REFUSED.get(style, frozenset()) & set(table)


def icons(names: list[str], aliases: dict[str, Any]) -> dict[str, Any]:
    return {"icons": {name: {"body": ""} for name in names}, "aliases": aliases}


def test_one_drawing_of_each_emoji_is_chosen_the_most_certain() -> None:
    found, unused = build_drawings.choose_icons(
        icons(["aubergine", "eggplant", "black-heart", "pictograph"], {"cat": {"parent": "pictograph"}}),
        "noto-v1",
        NAMES,
    )
    assert found == {"1f346": "eggplant", "1f408": "pictograph"}
    assert unused == {"is newer than 2015": ["black-heart"]}


def test_two_drawings_with_equal_right_and_turned_ones_are_refused() -> None:
    found, unused = build_drawings.choose_icons(
        icons(["cat-face", "catface", "scissors"], {"cat": {"parent": "scissors", "hFlip": True}}),
        "noto-v1",
        NAMES,
    )
    assert found == {"2702": "scissors"}
    assert unused == {
        "is a turned or missing drawing": ["cat"],
        "is one of several drawings of an emoji": ["cat-face", "catface"],
    }


def picture(colour: int, place: int = 20) -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).rectangle((place, 20, place + 20, 40), fill=(colour, 0, 0))
    return image


def test_a_drawing_that_equals_a_held_out_one_is_left_out() -> None:
    tolerance = emoji_pictures.TOLERANCE
    drawn = {
        "near": picture(100 + tolerance),
        "far": picture(100 + tolerance + 1),
        "moved": picture(100, 21),
        "blank": Image.new("RGB", (64, 64), "white"),
    }
    kept, out = build_drawings.leave_out(drawn, {"noto/other": picture(0, 5), "noto/it": picture(100)})
    assert list(kept) == ["far", "moved"]
    assert out == {"near": ["noto/it"], "blank": []}


def test_equal_pairs_of_one_style_are_found() -> None:
    drawings = {"a": picture(100), "b": picture(0), "c": picture(104)}
    assert emoji_pictures.same_pictures(drawings) == [("a", "c", 4)]


def test_the_table_has_the_columns_of_the_built_in_drawings() -> None:
    facts = emoji.emoji()
    first, second = facts["id"].to_pylist()[:2]
    made = build_drawings.drawing_table(facts, {"b": {second: picture(1), first: picture(2)}, "a": {}})
    shipped = emoji.drawings()
    assert made.schema.equals(shipped.schema)
    assert made["id"].to_pylist() == [f"b/{first}", f"b/{second}"]
    assert not any(made["held_out"].to_pylist())
    assert Image.open(io.BytesIO(made["image"][0].as_py())).convert("RGB").tobytes() == picture(2).tobytes()
    same = shipped.filter([row == second for row in shipped["emoji_id"].to_pylist()])
    for column in ("name", "keywords", "year", "subgroup", "shared"):
        assert made[column][1] == same[column][0]


def archive(folder: Path, content: bytes) -> build_drawings.Source:
    source = build_drawings.Source("@sets/one", "1.0.0", "", "CC0-1.0", "nobody")
    path = folder / "sets-one-1.0.0.tgz"
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo("package/icons.json")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return build_drawings.dataclasses.replace(source, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_changed_archive_is_refused(tmp_path: Path) -> None:
    content = icons(["cat"], {})
    source = archive(tmp_path, json.dumps(content).encode())
    assert build_drawings.read_icons(tmp_path, source) == content
    path = tmp_path / source.file
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="expected " + source.sha256):
        build_drawings.read_icons(tmp_path, source)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="--fetch"):
        build_drawings.read_icons(tmp_path, source)
