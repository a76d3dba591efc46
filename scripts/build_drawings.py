"""Build further drawings of the emoji known up to 2015: they train builtin:tiny and are not shipped.

Sources, as `npm pack` delivers them into one folder, each checked by its SHA-256 (`SOURCES`):
`@iconify-json/emojione` 1.2.3, `@iconify-json/emojione-v1` 1.2.3, `@iconify-json/noto-v1` 1.2.5 and
`@iconify-json/fxemoji` 1.2.2. `drawing_names.py` says which emoji a drawing shows.

Needs `resvg_py` 0.5.0 (`pip install -c constraints.txt -e '.[build]'`).

    python scripts/build_drawings.py --sources build/drawing-sources --fetch --out build/drawings.parquet

The table has the columns of `everclip.data.builtin.emoji.drawings()`, and nothing is held out. A drawing that
equals a held-out drawing of builtin:emoji is left out: the held-out drawings measure what training has not
seen. The counts, sources, licences and what is left out stand in a JSON file beside the table. The same
sources and the same library versions give the same bytes.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import importlib.metadata
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from drawing_names import NEWEST, EmojiNames
from emoji_pictures import SVG_SIZE, TOLERANCE, encode, equal_drawings, fit, rasterise
from PIL import Image, ImageOps

from everclip.data.builtin import emoji as builtin_emoji

IconSet = Mapping[str, Any]  # the parsed icons.json of one package
Drawn = dict[str, Image.Image]  # emoji id -> drawing


@dataclasses.dataclass(frozen=True)
class Source:
    """One package of drawings."""

    package: str
    version: str
    sha256: str
    licence: str
    author: str

    @property
    def file(self) -> str:
        """The name that `npm pack` gives the archive."""
        return f"{self.package.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


SOURCES = {
    "emojione": Source(
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0",
        "Emoji One",
    ),
    "emojione-v1": Source(
        "@iconify-json/emojione-v1",
        "1.2.3",
        "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
        "CC-BY-SA-4.0",
        "Emoji One",
    ),
    "fxemoji": Source(
        "@iconify-json/fxemoji",
        "1.2.2",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "Apache-2.0",
        "Mozilla",
    ),
    "noto-v1": Source(
        "@iconify-json/noto-v1",
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0",
        "Google Inc",
    ),
}


def fetch(folder: Path) -> None:
    """Download the source packages with npm."""
    folder.mkdir(parents=True, exist_ok=True)
    packages = [f"{source.package}@{source.version}" for source in SOURCES.values()]
    subprocess.run(["npm", "pack", *packages], cwd=folder, check=True)


def read_icons(folder: Path, source: Source) -> IconSet:
    """Read the drawings of one package from its archive.

    Raises:
        FileNotFoundError: If the archive is missing.
        ValueError: If the archive is not the one that is pinned here.
    """
    path = folder / source.file
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; try --fetch")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != source.sha256:
        raise ValueError(f"{path}: found SHA-256 {found}, expected {source.sha256}; fetch it again")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        file = archive.extractfile("package/icons.json")
        if file is None:
            raise ValueError(f"{path}: package/icons.json is no file")
        icons: IconSet = json.load(file)
    return icons


def choose_icons(
    icons: IconSet, style: str, names: EmojiNames
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Choose one drawing of each emoji: the name found most surely, a drawing before its second name.

    Returns:
        Emoji id -> name of the drawing; and why the other names are not used -> these names. A name whose
        drawing is used under another name is in neither.
    """
    candidates: dict[str, list[tuple[int, int, str]]] = collections.defaultdict(list)
    unused: dict[str, list[str]] = collections.defaultdict(list)
    aliases = icons.get("aliases", {})
    for name in [*icons["icons"], *aliases]:
        drawing, second = _resolve(icons, name)
        found = names.find(style, name)
        if not drawing:
            unused["is a turned or missing drawing"].append(name)
        elif found.emoji_id:
            candidates[found.emoji_id].append((found.rank, second, drawing))
        else:
            unused[found.reason].append(name)
    chosen = {}
    for emoji_id, entries in candidates.items():
        best = min(entries)[:2]
        drawings = {drawing for *key, drawing in entries if tuple(key) == best}
        if len(drawings) == 1:
            chosen[emoji_id] = drawings.pop()
        else:
            unused["is one of several drawings of an emoji"] += sorted(drawings)
    used = set(chosen.values())
    rest = {
        reason: [n for n in found if _resolve(icons, n)[0] not in used] for reason, found in unused.items()
    }
    return chosen, {reason: found for reason, found in rest.items() if found}


def _resolve(icons: IconSet, name: str) -> tuple[str, int]:
    """Return the drawing behind a name (empty if it is turned or missing), and 1 for a second name, else 0."""
    if name in icons["icons"]:
        return name, 0
    alias = icons.get("aliases", {})[name]
    parent = alias["parent"]
    plain = set(alias) == {"parent"} and parent in icons["icons"]
    return (parent if plain else ""), 1


def draw_icon(icons: IconSet, name: str) -> Image.Image:
    """Draw one icon at 64x64 on white."""
    icon = icons["icons"][name]
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    tall = int(SVG_SIZE * height / width)
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SVG_SIZE}" height="{tall}" '
        f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">{icon["body"]}</svg>'
    )
    return fit(rasterise(svg, SVG_SIZE, tall), 0.0)


def leave_out(drawn: Drawn, held_out: Mapping[str, Image.Image]) -> tuple[Drawn, dict[str, list[str]]]:
    """Leave out blank drawings and drawings that equal a held-out one.

    Args:
        drawn: emoji id -> drawing.
        held_out: id -> held-out drawing of builtin:emoji, of any emoji.

    Returns:
        The drawings to keep; and what was left out: emoji id -> held-out drawings that it equals (none: blank).
    """
    ids = list(held_out)
    equal = dict(zip(drawn, equal_drawings(list(drawn.values()), list(held_out.values())), strict=True))
    out = {
        emoji_id: [ids[place] for place in equal[emoji_id]]
        for emoji_id, image in drawn.items()
        if equal[emoji_id] or ImageOps.invert(image).getbbox() is None
    }
    return {emoji_id: image for emoji_id, image in drawn.items() if emoji_id not in out}, out


def drawing_table(facts: pa.Table, styles: Mapping[str, Drawn]) -> pa.Table:
    """Make the table of all drawings, style after style, in each the order of builtin:emoji."""
    rows = {row["id"]: row for row in facts.to_pylist()}
    places = [(style, i) for style, drawn in styles.items() for i in rows if i in drawn]
    ids = pa.array([f"{style}/{i}" for style, i in places])

    def column(name: str) -> pa.Array:
        return pa.array([rows[i][name] for _, i in places], facts.schema.field(name).type)

    return pa.table(
        {
            "id": ids,
            "image_id": ids,
            "emoji_id": pa.array([i for _, i in places]),
            "image": pa.array([encode(styles[style][i]) for style, i in places], pa.binary()),
            "style": pa.array([style for style, _ in places]),
            "held_out": pa.array([False] * len(places)),
            **{name: column(name) for name in ("shared", "release", "year", "group", "subgroup")},
            "language": pa.array(["en"] * len(places)),
            "name": column("name_en"),
            "keywords": column("keywords_en"),
        }
    )


def held_out_drawings() -> dict[str, Image.Image]:
    """Return all held-out drawings of builtin:emoji."""
    rows = builtin_emoji.drawings().select(["id", "image", "held_out"]).to_pylist()
    return {row["id"]: Image.open(io.BytesIO(row["image"])).convert("RGB") for row in rows if row["held_out"]}


def build(folder: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Read the sources and return the table and its card."""
    facts = builtin_emoji.emoji()
    names = EmojiNames(facts.select(["id", "codepoints", "year", "name_en"]).to_pylist())
    held_out = held_out_drawings()
    styles: dict[str, Drawn] = {}
    card: dict[str, Any] = {"drawings": 0, "newest_year": NEWEST, "tolerance": TOLERANCE, "styles": {}}
    for style, source in SOURCES.items():
        icons = read_icons(folder, source)
        chosen, unused = choose_icons(icons, style, names)
        drawn = {emoji_id: draw_icon(icons, name) for emoji_id, name in chosen.items()}
        styles[style], out = leave_out(drawn, held_out)
        card["drawings"] += len(styles[style])
        card["styles"][style] = {
            "drawings": len(styles[style]),
            "equal_to_held_out": {i: same for i, same in out.items() if same},
            "blank": [i for i, same in out.items() if not same],
            "unused_names": {reason: len(found) for reason, found in sorted(unused.items())},
            "source": dataclasses.asdict(source),
        }
        report(style, card["styles"][style], unused)
    card["built_with"] = {p: importlib.metadata.version(p) for p in ("pillow", "pyarrow", "resvg_py")}
    return drawing_table(facts, styles), card


def report(style: str, counts: Mapping[str, Any], unused: Mapping[str, Sequence[str]]) -> None:
    """Print what one style gives and which names are not used."""
    print(
        f"{style}: {counts['drawings']} drawings; left out: {len(counts['equal_to_held_out'])} equal to a "
        f"held-out drawing, {len(counts['blank'])} blank"
    )
    for reason, names in sorted(unused.items()):
        shown = "" if reason == "has a skin tone" else ": " + " ".join(names)
        print(f"  {len(names)} times, a name {reason}{shown}")


def main() -> None:
    """Build the table and its card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sources", type=Path, required=True, help="folder of the downloaded packages")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--fetch", action="store_true", help="download the packages into --sources first")
    arguments = parser.parse_args()
    if arguments.fetch:
        fetch(arguments.sources)
    table, card = build(arguments.sources)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    # Dictionaries do not help columns of distinct values, and pictures are compressed already.
    pq.write_table(table, arguments.out, compression="zstd", use_dictionary=["style", "group", "subgroup"])
    text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
    arguments.out.with_suffix(".json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
