"""The result of `everclip check` as a typed document: counts, duplicates, leaks and findings."""

from __future__ import annotations

from typing import Literal

from everclip.config import Frozen
from everclip.data.reading.quarantine import Archives

SCHEMA_VERSION = 1


class Row(Frozen):
    """One row for people: its id, its file, its text, its class and its side."""

    id: str
    origin: str
    text: str
    label: str | None = None
    split: str | None = None


class Spread(Frozen):
    """Smallest, median and largest of a number that every image has."""

    low: float
    median: float
    high: float


class Named(Frozen):
    """A name and its number of images."""

    name: str
    count: int


class Classes(Frozen):
    """Images per class.

    Attributes:
        counts: images per class, the largest first.
        imbalance: largest count divided by the smallest.
        effective: exp of the entropy: the number of equally large classes with the same entropy.
        single: number of classes with one image.
        not_trained: classes on the test side that are not on the training side.
        not_tested: classes on the training side that are not on the test side.
        same_text: groups of classes whose names have equal tokens.
        not_validated: classes on the training side without a validation row, if there are validation rows.
    """

    counts: tuple[Named, ...]
    imbalance: float
    effective: float
    single: int
    unlabelled: int
    not_trained: tuple[str, ...] = ()
    not_tested: tuple[str, ...] = ()
    same_text: tuple[tuple[str, ...], ...] = ()
    not_validated: tuple[str, ...] = ()


class Captions(Frozen):
    """Texts against the model's tokenizer.

    Attributes:
        source: `captions`, or `class names` if there are no captions.
        distinct: number of texts with different tokens.
        learned: of these, the texts of training rows; `None` if no side is marked.
        written: number of different texts as written.
        same_text: examples of different texts with equal tokens.
        wordless: rows whose text has the tokens of an empty text.
        per_picture: captions per image.
        tokens: length in tokens, with the start and end token.
        context: limit of the model in tokens; longer texts are cut off.
        cut: rows with a longer text.
        longest: examples, the longest first: tokens and text.
        ambiguous: texts of more than one image (or `concept`, if the data have that column).
        ambiguous_share: share of rows with such a text.
        most_shared: texts with the most images.
    """

    source: Literal["captions", "class names"]
    count: int
    distinct: int
    learned: int | None = None
    written: int = 0
    same_text: tuple[tuple[str, ...], ...] = ()
    wordless: int = 0
    missing: int
    per_picture: Spread
    tokenizer: str
    tokens: Spread
    context: int
    cut: int
    longest: tuple[Named, ...]
    ambiguous: int
    ambiguous_share: float
    most_shared: tuple[Named, ...]


class Time(Frozen):
    """Rows over time; `counts` per `period` in order of time."""

    first: str
    last: str
    period: Literal["year", "month", "day", "value"]
    counts: dict[str, int]
    missing: int


class Sizes(Frozen):
    """Images as files.

    Attributes:
        width, height: in pixels, upright.
        bytes: of the file; `total` of all.
        small: images with a side shorter than the model's input.
        side: the model's input in pixels, and the model's name.
        animated: images with more than one frame; the first is used.
        blank: images that show nothing after conversion to RGB with 8 bits; `blanks`: some of them.
    """

    width: Spread
    height: Spread
    bytes: Spread
    total: int
    small: int
    side: int
    model: str
    formats: dict[str, int]
    modes: dict[str, int]
    animated: int
    blank: int = 0
    blanks: tuple[Row, ...] = ()


class Copies(Frozen):
    """Equal or nearly equal images; `kind` is the degree of equality."""

    kind: Literal["bytes", "pixels", "near"]
    rows: tuple[Row, ...]


class Duplicated(Frozen):
    """Duplicates: surplus images per kind, and groups of them, the largest first.

    `repeated` counts rows with the same image and text as an earlier row; `mislabelled` are pairs of near
    duplicates with different classes, the most alike first.
    """

    files: int
    repeated: int
    surplus: dict[str, int]
    group_counts: dict[str, int]
    groups: tuple[Copies, ...]
    conflicts: tuple[Copies, ...]
    conflict_count: int
    loosely_checked: int
    mislabelled: tuple[Copies, ...] = ()
    mislabelled_count: int = 0


class Leaking(Frozen):
    """A held-out image that is also on another side."""

    kind: Literal["bytes", "pixels", "near"]
    difference: float
    same_text: bool
    held_out: Row
    other: Row


class Leaks(Frozen):
    """Images that cross the split.

    Attributes:
        held_out: images on that side.
        counts: leaking images per kind; near duplicates only if their texts are equal, too.
        share: all of these as a share of `held_out`; above `limit` the scores are not valid.
        alike: near duplicates with different texts; they may show different things.
    """

    side: Literal["test", "val"]
    held_out: int
    counts: dict[str, int]
    share: float
    limit: float
    alike: int
    examples: tuple[Leaking, ...]


class SetAside(Frozen):
    """Rows that cannot be used."""

    total: int
    count: int
    share: float
    limit: float
    reasons: dict[str, int]
    examples: dict[str, tuple[str, ...]]
    archives: Archives = "refused"
    archives_stop: bool = False


class Finding(Frozen):
    """One finding for the user; level `stop`: training is pointless or its scores are not valid."""

    level: Literal["stop", "mend", "note"]
    code: str
    message: str
    remedy: str


class Check(Frozen):
    """The whole result of `everclip check`."""

    schema_version: int = SCHEMA_VERSION
    source: str
    columns: dict[str, str]
    guesses: tuple[str, ...]
    rows: int
    pictures: int
    splits: dict[str, int]
    languages: dict[str, int]
    classes: Classes | None
    captions: Captions | None
    time: Time | None
    sizes: Sizes | None
    duplicates: Duplicated
    leaks: tuple[Leaks, ...]
    quarantine: SetAside
    findings: tuple[Finding, ...]

    @property
    def stops(self) -> tuple[Finding, ...]:
        """The findings that make training pointless or its scores invalid."""
        return tuple(finding for finding in self.findings if finding.level == "stop")
