"""What `everclip check` says, as a typed document: what was read, how it is spread, and what should be mended."""

from __future__ import annotations

from typing import Literal

from everclip.config import Frozen

SCHEMA_VERSION = 1


class Row(Frozen):
    """One row as a person finds it again: its id, where it was read from, its text, its class and split."""

    id: str
    origin: str
    text: str
    label: str | None = None
    split: str | None = None


class Spread(Frozen):
    """Of a number that every picture has: smallest, median, largest."""

    low: float
    median: float
    high: float


class Named(Frozen):
    """A name and how many pictures it has."""

    name: str
    count: int


class Classes(Frozen):
    """How pictures are spread over classes.

    Attributes:
        counts: pictures per class, the largest first.
        imbalance: largest by smallest.
        effective: exp of the entropy: how many equally large classes would be as varied.
        single: classes with one picture.
        not_trained: classes that stand on the test side and not on the training side.
        not_tested: the reverse.
        same_text: groups of classes whose names the model reads the same.
        not_validated: classes of the training side without a row on the validation side, where there is one.
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
        source: `captions`, or `class names` where there are no captions.
        distinct: texts that the model reads as different: those with equal tokens are one.
        learned: of these, the ones of rows marked for training; `None` where no side is marked.
        written: texts that are written differently.
        same_text: examples of texts that are written differently and read the same.
        wordless: rows whose text the model reads as an empty one.
        per_picture: captions per picture.
        tokens: length in tokens, with the start and end token.
        context: what the model reads; the rest of a longer text is cut off.
        cut: rows whose text is longer.
        longest: examples, the longest first: tokens and text.
        ambiguous: texts that stand for more than one picture (or `concept`, where the data have that column).
        ambiguous_share: the share of rows that have such a text.
        most_shared: texts with the most pictures.
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
    """How rows are spread over time; `counts` per `period` in order of time."""

    first: str
    last: str
    period: Literal["year", "month", "day", "value"]
    counts: dict[str, int]
    missing: int


class Sizes(Frozen):
    """Pictures as files.

    Attributes:
        width, height: in pixels, upright.
        bytes: of the file; `total` of all.
        small: pictures with a side shorter than the model's input.
        side: the model's input in pixels, and the model's name.
        animated: pictures with more than one frame; the first is used.
        blank: pictures of which nothing is left to see as RGB with 8 bits, and `blanks`, some of them.
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
    """Pictures that stand more than once: `kind` says how equal they are."""

    kind: Literal["bytes", "pixels", "near"]
    rows: tuple[Row, ...]


class Duplicated(Frozen):
    """Duplicates: how many pictures are too many per kind, and groups of them, the largest first.

    `repeated` counts rows that say the same of the same picture as an earlier row; `mislabelled` are pairs of near
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
    """A held-out picture that the other side holds too."""

    kind: Literal["bytes", "pixels", "near"]
    difference: float
    same_text: bool
    held_out: Row
    other: Row


class Leaks(Frozen):
    """Pictures that cross the split.

    Attributes:
        held_out: pictures on that side.
        counts: leaking pictures per kind; near duplicates only where their texts are equal too.
        share: all of these as a share of `held_out`; above `limit` they make numbers dishonest.
        alike: near duplicates with another text: perhaps the same picture, perhaps not.
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
    archives: Literal["refused", "noted"] = "refused"


class Finding(Frozen):
    """One thing that a user should know: `stop` makes training pointless or numbers dishonest."""

    level: Literal["stop", "mend", "note"]
    code: str
    message: str
    remedy: str


class Check(Frozen):
    """All that `everclip check` says about a data set."""

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
        """What makes training pointless or its numbers dishonest."""
        return tuple(finding for finding in self.findings if finding.level == "stop")
