"""Captions that are objects with a text per language: `{"en": "a dog", "de": "ein Hund"}`."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa

from everclip.data.table import replaced

_LANGUAGES = (
    "ar bg bn ca cs da de el en es et eu fa fi fr gl he hi hr hu it ja ko lt lv ms nb nl nn no pl pt ro ru sk sl "
    "sr sv sw ta te th tr uk ur vi zh"
)


def are_languages(names: Sequence[str]) -> bool:
    """Whether all names are language codes, with or without a country: `en`, `pt-BR`."""
    known = set(_LANGUAGES.split())
    return bool(names) and all(re.split(r"[-_]", name.lower(), maxsplit=1)[0] in known for name in names)


def by_language(columns: pa.Table) -> pa.Table:
    """Convert captions that are structs of languages into lists of (text, language).

    Args:
        columns: with canonical names.
    """
    kind = columns.schema.field("caption").type if "caption" in columns.column_names else None
    if kind is None or not pa.types.is_struct(kind):
        return columns
    fields = [kind.field(i) for i in range(kind.num_fields)]
    texts = all(pa.types.is_string(f.type) or pa.types.is_large_string(f.type) for f in fields)
    if not texts or not are_languages([f.name for f in fields]):
        return columns
    lists = [
        [{"text": text, "language": name} for name, text in (given or {}).items() if text is not None]
        for given in columns.column("caption").to_pylist()
    ]
    one = pa.struct([("text", pa.string()), ("language", pa.string())])
    return replaced(columns, "caption", pa.array(lists, pa.list_(one)))
