"""The built-in data set of emoji: images in three styles, with release years and names by language.

`emoji()` gives the facts, one row per emoji; `drawings()` gives the images with the facts of their emoji.
`CARD.md` beside this file says where everything comes from and under which licences;
`scripts/build_emoji.py` in the repository makes the files.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["STYLES", "card", "drawings", "emoji", "languages"]

STYLES = ("noto", "openmoji", "twemoji")
_FACTS = ("shared", "release", "year", "group", "subgroup")


def card() -> dict[str, Any]:
    """Return the data card: counts, sources with their hashes, licences, the rule of the split."""
    text = resources.files(__name__).joinpath("card.json").read_text(encoding="utf-8")
    return cast(dict[str, Any], json.loads(text))


def languages() -> tuple[str, ...]:
    """Return the codes of the languages that have names, sorted."""
    return tuple(card()["languages"])


def emoji() -> pa.Table:
    """Return one row per emoji, in Unicode's order.

    Columns: `id`, `emoji` (the characters), `codepoints`, `release`, `year`, `group`, `subgroup`, `shared`,
    `shared_with`, and per language `name_<code>` (string) and `keywords_<code>` (list of strings).
    """
    return _read("emoji.parquet")


def drawings(
    language: str = "en", styles: Sequence[str] | None = None, *, named_only: bool = False
) -> pa.Table:
    """Return one row per drawing, joined with the facts of its emoji.

    Args:
        language: Language of `name` and `keywords`, one of `languages()`.
        styles: Styles in the order wanted; all of `STYLES` if None. Only their files are opened.
        named_only: Leave out drawings whose emoji has no name in `language` (else `name` is null there).

    Returns:
        Columns `id`, `image_id` (the same), `emoji_id`, `image` (WebP or PNG bytes, 64x64 RGB), `style`,
        `held_out`, `shared`, `release`, `year`, `group`, `subgroup`, `language`, `name`, `keywords`;
        style after style, in each the order of `emoji()`.

    Raises:
        ValueError: If a language or style is unknown, or no style is asked for.
    """
    _check("language", language, languages())
    chosen = STYLES if styles is None else tuple(dict.fromkeys(styles))
    for style in chosen:
        _check("style", style, STYLES)
    if not chosen:
        raise ValueError(f"styles: found none, expected at least one of {', '.join(STYLES)}")

    import pyarrow as pa
    import pyarrow.compute as pc

    name, keywords = f"name_{language}", f"keywords_{language}"
    facts = _read("emoji.parquet", ["id", *_FACTS, name, keywords])
    pictures = pa.concat_tables([_read(f"drawings-{style}.parquet") for style in chosen])
    matched = facts.take(pc.index_in(pictures["emoji_id"], value_set=facts["id"]))
    columns = {
        "id": pictures["id"],
        "image_id": pictures["id"],
        **{column: pictures[column] for column in ("emoji_id", "image", "style", "held_out")},
        **{column: matched[column] for column in _FACTS},
        "language": pa.array([language] * len(pictures)),
        "name": matched[name],
        "keywords": matched[keywords],
    }
    table = pa.table(columns)
    return table.filter(pc.is_valid(table["name"])) if named_only else table


def _read(file: str, columns: list[str] | None = None) -> pa.Table:
    """Read a table that lies beside this module."""
    import pyarrow.parquet as pq

    # as_file: an installed package may be a zip archive, and parquet needs a seekable file.
    with resources.as_file(resources.files(__name__).joinpath(file)) as path:
        return pq.ParquetFile(path).read(columns=columns)


def _check(kind: str, found: str, expected: Sequence[str]) -> None:
    """Raise a `ValueError` that helps, if `found` is not among `expected`."""
    if found in expected:
        return
    close = difflib.get_close_matches(found, expected)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(f"unknown {kind}: found {found!r}, expected one of {', '.join(expected)}{hint}")
