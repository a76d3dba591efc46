"""Settings that convert the images of a data set to RGB with 8 bits: background and range of values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from everclip.data.pictures.background import AUTO
from everclip.data.pictures.bit_depth import HighBitImage
from everclip.data.pictures.value_range import Range, common_range

COLUMN = "_rendering"
"""Column of a table that holds the rendering of each image, where it is not the default."""


@dataclass(frozen=True)
class Rendering:
    """The settings of the conversion that the file does not decide itself.

    Attributes:
        background: `auto` or a colour.
        bits: of the values, as `data.bits` says.
        common: the range of values of the data set; used for images whose values fit into it.
    """

    background: str = AUTO
    bits: int | None = None
    common: Range | None = None

    def __str__(self) -> str:
        return f"{self.background}|{self.bits or ''}|{self.common or ''}"

    @classmethod
    def parse(cls, text: str | None) -> Rendering:
        """Return the rendering that `str` wrote; the default for `None`."""
        if not text:
            return DEFAULT
        background, bits, common = text.split("|")
        return cls(background, int(bits) if bits else None, Range.parse(common) if common else None)

    def span_of(self, deep: HighBitImage) -> Range:
        """Return the range of values with which an image is read."""
        own = deep.span(self.bits)
        return self.common if self.common is not None and not own.stated and self.common.holds(own) else own


DEFAULT = Rendering()


def renderings(
    ranges: Sequence[str], backgrounds: Sequence[str], background: str, bits: int | None
) -> tuple[list[str | None], list[str]]:
    """Return the rendering of each image of a data set, and lines about what was guessed.

    Args:
        ranges: of each image by its own values (`Range` as text), empty for 8 bits.
        backgrounds: of each image; empty if nothing is transparent.
        background, bits: as the data block says.

    Returns:
        Renderings as text, `None` for the default; lines for people.
    """
    parsed = [Range.parse(text) if text else None for text in ranges]
    guessed: dict[str, list[Range]] = {}
    for own in parsed:
        if own is not None and not own.stated:
            guessed.setdefault(own.kind, []).append(own)
    common = {kind: common_range(found) for kind, found in guessed.items()}
    chosen: list[str | None] = []
    for own, laid in zip(parsed, backgrounds, strict=True):
        mine = Rendering(
            background if laid else AUTO,
            bits if own is not None else None,
            common[own.kind] if own is not None and not own.stated else None,
        )
        chosen.append(None if mine == DEFAULT else str(mine))
    return chosen, [*_range_lines(common, guessed), *_background_lines(backgrounds, background)]


def _range_lines(common: dict[str, Range], guessed: dict[str, list[Range]]) -> list[str]:
    lines = []
    for kind, span in common.items():
        larger = Counter(own.words for own in guessed[kind] if not span.holds(own))
        rest = "".join(f"; {count:,} with larger values as {words}" for words, count in larger.items())
        number = len(guessed[kind]) - sum(larger.values())
        lines.append(
            f"{number:,} images with more than 8 bits are read with values from {span.words}{rest} "
            "(guessed from the values; data.bits=N decides)"
        )
    return lines


def _background_lines(backgrounds: Sequence[str], background: str) -> list[str]:
    laid = Counter(name for name in backgrounds if name)
    if background != AUTO or set(laid) <= {"white"}:
        return []
    listed = ", ".join(f"{count:,} on {name}" for name, count in laid.most_common())
    return [
        f"images with transparency are laid {listed} (guessed from what stays visible; "
        "data.background=COLOUR decides)"
    ]
