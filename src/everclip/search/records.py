"""What an index writes down: columns, vector spaces, and which of them answers. One file, one rename per change."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from everclip.sealing import read_sealed

FORMAT = 1
FOLDER, SERVING = "index", "serving"
EXACT_BELOW = 20_000
"""Up to so many vectors, every query is compared with all of them."""

Kind = Literal["text", "list", "int", "float", "bool", "time"]
Storage = Literal["float32", "float16"]


class Record(BaseModel):
    """A part of an index's document."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(Record):
    """A column of metadata.

    Attributes:
        name: as users write it.
        kind: of its values; `time` is in UTC.
        also: another name of it, such as the source's own name of a canonical column.
    """

    name: str
    kind: Kind
    also: str | None = None


class Recall(Record):
    """How many of the true nearest vectors a search finds.

    Attributes:
        at: the number of nearest vectors.
        images, texts: mean share found, of queries by image and by text; `None` if not measured.
        queries: of both kinds together.
    """

    at: int
    images: float | None
    texts: float | None
    queries: int

    @property
    def least(self) -> float:
        """The smaller of both shares."""
        return min(share for share in (self.images, self.texts, 1.0) if share is not None)


class Ann(Record):
    """An approximate index of a space's vectors.

    Attributes:
        kind: LanceDB's name of it.
        rows: vectors when it was built; later ones are compared one by one.
        partitions: parts that the vectors are divided into.
        probes: parts that a query looks into.
        refine: so many times more candidates are compared again with their full vectors.
        recall: against the exact search.
        seconds: to build it.
    """

    kind: str
    rows: int
    partitions: int
    probes: int
    refine: int
    recall: Recall
    seconds: float


class SideBySide(Record):
    """The answers of two spaces to the same queries.

    Attributes:
        against: the version of the other space.
        queries: number of them; `by` says what they are.
        overlap: mean share of the first `at` results that both give.
        flips: queries whose first result is another one.
    """

    against: str
    queries: int
    by: Literal["text", "image"]
    at: int
    overlap: float
    flips: int


class Space(Record):
    """The vectors of one image encoder.

    Attributes:
        key: of the encoder: weights, architecture, transform, rules of decoding. Neither device nor library.
        version: the store's version that encodes its queries.
        tower: the fingerprint of its image tower.
        width: of a vector.
        storage: of a number.
        table: the name of its table.
        at: the version of its table that holds.
        how: the way its vectors were made.
        made: when it was begun.
        ann: its approximate index, if there are enough vectors.
        compared: with the space that answered before it.
        set_aside: id of an item -> why it has no vector here.
        note: what a way wants to remember.
    """

    key: str
    version: str
    tower: str
    width: int
    storage: Storage = "float32"
    table: str
    at: int
    how: str = "reembed"
    made: str
    ann: Ann | None = None
    compared: SideBySide | None = None
    set_aside: dict[str, str] = Field(default_factory=dict)
    note: dict[str, str] = Field(default_factory=dict)


class Serving(Record):
    """The state of an index.

    Attributes:
        items: the version of the table of items that holds.
        columns: of metadata; column `i` is stored as `m<i>`.
        spaces: by key.
        serving: the key of the space that answers; `None` before the first item.
        before: keys of spaces that answered before it, newest last.
        exact_below: up to so many vectors, search is exact.
        roots: short name -> absolute folder of images; see `everclip.search.naming`.
    """

    format: int = FORMAT
    items: int
    columns: list[Column] = Field(default_factory=list)
    spaces: dict[str, Space] = Field(default_factory=dict)
    serving: str | None = None
    before: list[str] = Field(default_factory=list)
    exact_below: int = EXACT_BELOW
    roots: dict[str, str] = Field(default_factory=dict)

    @property
    def space(self) -> Space | None:
        """The space that answers."""
        return None if self.serving is None else self.spaces[self.serving]


def versions_needed(store: Path) -> set[str]:
    """Return the versions of a store that its index needs: of spaces that answer, answered before, or are being filled.

    Reads one file, so that a store needs no search library to prune.

    Raises:
        CheckpointError: if the file is damaged.
    """
    path = store / FOLDER / SERVING
    if not path.is_file():
        return set()
    return {space.version for space in read_sealed(path, Serving).spaces.values()}
