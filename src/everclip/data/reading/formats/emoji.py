"""The built-in emoji in canonical columns."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError

USUAL = {
    "caption": "name",
    "concept": "emoji_id",
    "time": "year",
    "class_key": "subgroup",
    "class_name": "subgroup_name",
}
"""Canonical names to columns of the drawings, unless `data.columns` says otherwise."""


def read_emoji(source: str, spec: DataSpec) -> Raw:
    """Read `builtin:emoji`.

    Raises:
        ConfigError: for an unknown language or style, or a setting that does not apply.
    """
    from everclip.data.builtin import emoji

    for name in ("split", "root", "downloads", "encoding", "separator", "header"):
        if getattr(spec, name):
            raise ConfigError(
                f"data.{name}: does not apply to {source}; its keys are source, language, languages, styles and "
                "columns."
            )
    if spec.languages is not None and spec.language is not None:
        raise ConfigError("data: give `language` or `languages`, not both.")
    try:
        parts = [
            emoji.drawings(name, spec.styles, named_only=True)
            for name in dict.fromkeys(spec.languages or [spec.language or "en"])
        ]
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error
    if spec.languages is not None:
        parts = [
            _with_ids(part, name) for part, name in zip(parts, dict.fromkeys(spec.languages), strict=True)
        ]
    columns = pa.concat_tables(parts)
    columns = columns.append_column("subgroup_name", _words(columns.column("subgroup")))
    # Two emoji with one drawing (flags of territories) stay separate images: their facts differ.
    known = {"image_id": "image_id"}
    if spec.columns:  # by their names in the source, so that a misspelt one is told what there is
        return Raw(source, columns, known={**known, **_unsaid(spec.columns)})
    usual = {column: wanted for wanted, column in USUAL.items()}
    return Raw(source, columns.rename_columns([usual.get(c, c) for c in columns.column_names]), known=known)


def _with_ids(columns: pa.Table, language: str) -> pa.Table:
    """Make ids unique among languages; `image_id` stays that of the drawing."""
    ids = pc.binary_join_element_wise(columns.column("id"), language, "-")
    return columns.set_column(columns.column_names.index("id"), "id", ids)


def _words(subgroups: pa.ChunkedArray) -> pa.Array:
    """Return Unicode's subgroups in words: `face-smiling` is `face smiling`."""
    return pa.array([str(key).replace("-", " ").replace(" & ", " and ") for key in subgroups.to_pylist()])


def _unsaid(chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the canonical names that keep their usual column; key and name of a class come from one choice."""
    classes = {"class_key", "class_name"}
    said = {*chosen, *(classes if classes & set(chosen) else ())}
    return {wanted: column for wanted, column in USUAL.items() if wanted not in said}
