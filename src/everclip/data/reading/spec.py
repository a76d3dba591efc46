"""The `data:` block: the sources of samples and their columns, validated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from everclip.config import Frozen
from everclip.data.pictures.background import AUTO, check_colour
from everclip.data.reading.name_pattern import checked_pattern
from everclip.data.reading.quarantine import Archives
from everclip.data.reading.settings import Reading, known_encoding, known_separator

CANONICAL = (
    "id",
    "image_id",
    "image",
    "pair",
    "caption",
    "keywords",
    "class_key",
    "class_name",
    "concept",
    "language",
    "time",
    "split",
)
"""The columns that everclip uses; others can be used in conditions (`where`)."""


class DataSpec(Frozen):
    """The `data:` block: the sources of samples and how to read them.

    Attributes:
        source: `builtin:emoji`; `catalog:NAME` (a public data set, `everclip ls datasets`);
            `hub:OWNER/NAME[@revision]`; a folder of class folders, of images with a metadata file, of `.parquet` files
            or of `.tar` shards; a `.csv`, `.tsv`, `.jsonl`, `.json`, `.txt`, `.parquet` or `.tar` file; a pattern with
            `*`; several of these. `${VAR}` and `~` are expanded.
        columns: canonical names to those of the source, or to their numbers from 1; others are guessed if
            exactly one fits.
        encoding: of CSV, TSV, JSON and text files (`utf-8`, `cp1252`, `utf-16`...); default: detected.
        separator: between the cells of a CSV, TSV or text table (`,`, `;`, `|`, `tab`...); default: detected.
        header: whether the first line of a CSV, TSV or text table names the columns; default: detected.
        language: of the texts, where no column says it.
        languages: those to read, of data that say the language of each caption; of `builtin:emoji`: one row per drawing
            and language, in place of `language`.
        styles: of `builtin:emoji`.
        split: the split of a hub data set; all of them, named in the column `split`, if not given.
        root: folder that image paths are relative to and may not leave; default: the folder of the table. For
            `catalog:NAME`: the folder that holds the data sets; default: the environment variable EVERCLIP_DATA.
        place: where the data set of `catalog:NAME` is, if not below the root: a folder, a table, `hub:OWNER/NAME`.
        counts: whether an incomplete `catalog:NAME` is refused or noted.
        damaged_archives: whether damaged `.tar` and `.parquet` files are `refused`, or their intact part is read and
            the damage noted: always (`noted`), or if at most the share `quarantine_limit` of all files is damaged
            (`limited`).
        downloads: folder with the downloaded files of URLs.
        background: behind transparent images: a colour, or `auto` (white, or black if an image would vanish on
            white).
        bits: how many bits of a value are used in images with more than 8; default: guessed from the values.
            Not used for floating-point values up to 1.
        class_in_name: pattern of the class in each image's name: `{class}_#` reads `cat_001.jpg`; `#` is a number, `*`
            anything.
        quarantine_limit: above this share of unusable rows reading stops.
    """

    source: str | tuple[str, ...]
    columns: dict[str, str] = Field(default_factory=dict)
    encoding: str | None = None
    separator: str | None = None
    header: bool | None = None
    language: str | None = None
    languages: list[str] | None = Field(None, min_length=1)
    styles: list[str] | None = None
    split: str | None = None
    root: str | None = None
    place: str | None = None
    counts: Literal["required", "noted"] = "required"
    damaged_archives: Archives = "refused"
    downloads: str | None = None
    background: Annotated[str, AfterValidator(check_colour)] = AUTO
    bits: int | None = Field(None, ge=8, le=32)
    class_in_name: Annotated[str, AfterValidator(checked_pattern)] | None = None
    quarantine_limit: float = Field(0.01, ge=0, le=1)

    @field_validator("columns", mode="before")
    @classmethod
    def _nothing_is_none(cls, value: Any) -> Any:
        """Convert `columns.time=` and `{time: }` to `{time: ""}` (no such column), and column numbers to text."""
        if not isinstance(value, dict):
            return value
        return {k: "" if v is None else str(v) if type(v) is int else v for k, v in value.items()}

    @field_validator("encoding")
    @classmethod
    def _a_known_encoding(cls, value: str | None) -> str | None:
        return None if value is None else known_encoding(value)

    @field_validator("separator")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        return None if value is None else known_separator(value)

    @property
    def reading(self) -> Reading:
        """The settings for tables and text files."""
        return Reading(self.encoding, self.separator, self.header)

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources as a tuple, also if there is only one."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def is_catalog(self) -> bool:
        """Whether the source is a public data set with its own split."""
        return isinstance(self.source, str) and self.source.startswith("catalog:")

    @property
    def label(self) -> str:
        """The name of the data in messages."""
        return ", ".join(self.sources)
