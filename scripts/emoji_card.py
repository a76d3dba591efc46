"""Cards, licences and attributions of `builtin:emoji`; `build_emoji.py` calls this."""

from __future__ import annotations

import collections
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

APACHE = Path("/usr/share/common-licenses/Apache-2.0")  # Debian's own copy; its packages only point to it
LICENCES = {
    "noto": "Apache-2.0 (drawings), OFL-1.1 (font)",
    "openmoji": "CC-BY-SA-4.0",
    "twemoji": "CC-BY-4.0",
    "unicode": "Unicode-DFS-2016",
}
CARD = """\
# builtin:emoji

{emoji} emoji of Unicode 15.0 without skin-tone variants, drawn in three styles ({drawings} drawings, 64x64
RGB on white, lossless WebP or PNG), with year of release, group, and names and keywords in {language_count}
languages. These are real, dated, multilingual image-text data in several styles, small enough to ship inside
the package.

`scripts/build_emoji.py` builds them; the same sources and library versions give the same bytes. `card.json`
also holds the numbers below.

## Files

* `emoji.parquet`: `id` (lower-case hex code points joined by `-`, without fe0f), `emoji`, `codepoints`,
  `release`, `year`, `group`, `subgroup`, `shared`, `shared_with`, and per language `name_<code>`,
  `keywords_<code>`;
* `drawings-<style>.parquet`: `id` (`<style>/<emoji id>`), `emoji_id`, `style`, `image`, `held_out`.

Rows follow the order of Unicode's emoji-test.txt. Relative sizes are kept within a style (a small square
stays smaller than a large one): the canvas of the style is scaled to 60 pixels and gets a margin of 2.
OpenMoji's blank border is cut off first.

## Emoji per year

The year of a release is the year in which Unicode published it (E0.6: the set of 2010, E0.7: 2014).

| year | emoji |
|---|---|
{years}
## Drawings per style

| style | drawings | held out | missing | equal pairs | nearly equal pairs | licence |
|---|---|---|---|---|---|---|
{style_rows}
**Split by drawing.** Each emoji has exactly one held-out drawing, in the style chosen by
`{split}`.
A model that is trained on the other drawings is tested on a new image of a concept whose name it has seen.

**Shared images.** Two emoji share an image if no pixel differs by more than {shared_tolerance} of 255 in some
style (flags of territories that use the flag of their country, people whose neutral and male form look the
same). Each then fits the other's name. All {shared_emoji} such emoji have `shared` set, on all their drawings, even if
another style tells them apart. In retrieval, two names fit the same image, and chance decides which one ranks
first. `shared_with` lists the partners. Filter on `shared` before you score retrieval, or count a partner as
correct.

## Names per language

{listed}

The names come from CLDR 41, which is older than Unicode 15.0: the emoji of 2022 have only English names (from
emoji-test.txt) and no keywords. Missing names and keywords are null. Languages with fewer than 1,500 named
emoji, and regional or script variants, are left out. CLDR's names are used unchanged ("flag: Norway").

## What to keep in mind

Names and keywords are dictionary entries by Unicode's contributors and volunteers. Their quality differs
between languages; many are translations from English. Flags, family forms and gender forms follow Unicode's
choices. In this version, Noto draws families as grey silhouettes, the other two draw people. Any pretrained
CLIP probably knows emoji from before 2015: "new since" holds only for a model trained on this set alone.

## Sources and licences

| package | sha256 |
|---|---|
{source_rows}
Licence texts and attributions: `LICENSE-noto` (drawings Apache-2.0, font OFL-1.1), `LICENSE-twemoji` (CC BY
4.0), `LICENSE-openmoji` (CC BY-SA 4.0), `LICENSE-unicode` (names, keywords, releases, groups). The npm
package of Twemoji states MIT, which covers its packaging; the art is CC BY 4.0. If you change
`drawings-openmoji.parquet` and pass it on, you must keep it under CC BY-SA 4.0.
"""
TWEMOJI_NOTICE = """\
The drawings in drawings-twemoji.parquet are the graphics of Twemoji 15.0.0,
Copyright Twitter, Inc and other contributors, continued as jdecked/twemoji by its contributors,
licensed under the Creative Commons Attribution 4.0 International licence (CC BY 4.0):
https://creativecommons.org/licenses/by/4.0/
Changed here: rasterised to 64x64 pixels on a white ground.

They were taken from the npm package @twemoji/svg 15.0.0, whose packaging has this licence:

"""
OPENMOJI_NOTICE = """\
The drawings in drawings-openmoji.parquet are emojis designed by OpenMoji (https://openmoji.org/), the
open-source emoji and icon project, licensed under CC BY-SA 4.0 (text below).
Changed here: rasterised to 64x64 pixels on a white ground. The changed drawings keep the same licence.

"""


def write_licences(roots: Mapping[str, Path], out: Path) -> None:
    """Write licences and attributions, taken from the packages, beside the data."""
    texts: dict[str, list[Path | str]] = {
        "noto": [roots["noto"] / "doc" / "fonts-noto-color-emoji" / "copyright", APACHE],
        "twemoji": [TWEMOJI_NOTICE, roots["twemoji"] / "license"],
        "openmoji": [OPENMOJI_NOTICE, roots["openmoji"] / "LICENSE.txt"],
        "unicode": [roots["unicode"] / "doc" / "unicode-data" / "copyright",
                    roots["cldr"] / "doc" / "unicode-cldr-core" / "copyright"],
    }  # fmt: skip
    for part, pieces in texts.items():
        text = [p.read_text(encoding="utf-8", errors="replace") if isinstance(p, Path) else p for p in pieces]
        (out / f"LICENSE-{part}").write_text("\n".join(text), encoding="utf-8")


def make_card(
    facts: pa.Table,
    drawn: Mapping[str, Sequence[str]],
    held_out: Mapping[str, str],
    pairs: Mapping[str, Sequence[tuple[str, str, int]]],
    archives: Mapping[str, Path],
    rules: Mapping[str, Any],
) -> dict[str, Any]:
    """Count everything that the data card states."""
    held = collections.Counter(held_out.values())
    years = collections.Counter(facts["year"].to_pylist())
    codes = [c.removeprefix("name_") for c in facts.column_names if c.startswith("name_")]
    return {
        "name": "builtin:emoji",
        "version": 1,
        "emoji": facts.num_rows,
        "drawings": sum(map(len, drawn.values())),
        "emoji_per_year": {str(year): years[year] for year in sorted(years)},
        "emoji_per_group": dict(collections.Counter(facts["group"].to_pylist())),
        **rules,
        "styles": {
            style: {
                "drawings": len(ids),
                "held_out": held[style],
                "missing": sorted(set(facts["id"].to_pylist()) - set(ids)),
                "equal_pairs": sum(not worst for _, _, worst in pairs[style]),
                "near_equal_pairs": [[a, b, worst] for a, b, worst in pairs[style] if worst],
                "licence": LICENCES[style],
            }
            for style, ids in drawn.items()
        },
        "shared_emoji": sum(facts["shared"].to_pylist()),
        "languages": {code: facts.num_rows - facts[f"name_{code}"].null_count for code in codes},
        "unicode_licence": LICENCES["unicode"],
        "sources": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(archives.values())
        },
        "built_with": {p: importlib.metadata.version(p) for p in ("numpy", "pillow", "pyarrow", "resvg_py")},
    }


def write_cards(card: Mapping[str, Any], out: Path) -> None:
    """Write the data card for programs (JSON) and for people (Markdown)."""
    (out / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    years = "".join(f"| {year} | {count} |\n" for year, count in card["emoji_per_year"].items())
    styles = "".join(
        f"| {name} | {s['drawings']} | {s['held_out']} | {len(s['missing'])} | {s['equal_pairs']} "
        f"| {len(s['near_equal_pairs'])} | {s['licence']} |\n"
        for name, s in card["styles"].items()
    )
    listed = ", ".join(f"{code} {count}" for code, count in card["languages"].items())
    sources = "".join(f"| {name} | `{digest}` |\n" for name, digest in card["sources"].items())
    values = {
        **card,
        "years": years,
        "style_rows": styles,
        "language_count": len(card["languages"]),
        "listed": listed,
        "source_rows": sources,
    }
    (out / "CARD.md").write_text(CARD.format_map(values), encoding="utf-8")
