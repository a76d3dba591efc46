"""Keep the rows of the languages that `data.languages` names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from everclip.data.reading.one_file import CanonicalFile
from everclip.errors import ConfigError, DataError, did_you_mean


def of_languages(parts: Sequence[CanonicalFile], languages: Sequence[str], label: str) -> list[CanonicalFile]:
    """Return files without the rows of other languages.

    Args:
        parts: all files of a data block.
        languages: those to keep.
        label: of the data block, for messages.

    Raises:
        ConfigError: if no file says the language of its rows.
        DataError: if no row has one of the languages.
    """
    told = [part for part in parts if "language" in part.columns.column_names]
    if not told:
        raise ConfigError(
            f"{label}: data.languages chooses among the values of a column `language`, and there is none; name it with "
            "data.columns.language=NAME, or leave data.languages out."
        )
    known = list(dict.fromkeys(v for part in told for v in part.columns.column("language").to_pylist() if v))
    for language in languages:
        if language not in known:
            raise DataError(
                f"{label}: holds no captions in {language!r} (data.languages).{did_you_mean(language, known)} It has "
                f"{', '.join(known) or 'none'}."
            )
    return [_restricted(part, frozenset(languages)) for part in parts]


def _restricted(part: CanonicalFile, languages: frozenset[str]) -> CanonicalFile:
    told = "language" in part.columns.column_names
    named = part.columns.column("language").to_pylist() if told else []
    kept = [row for row, name in enumerate(named) if name in languages]
    if len(kept) == part.columns.num_rows:
        return part
    return replace(
        part,
        columns=part.columns.take(pa.array(kept, pa.int64())),
        origin=np.asarray(part.origin)[kept].tolist(),
        broken={new: part.broken[old] for new, old in enumerate(kept) if old in part.broken},
    )
