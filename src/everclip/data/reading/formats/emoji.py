"""The built-in emoji in canonical columns."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError


def read_emoji(source: str, spec: DataSpec) -> Raw:
    """Read `builtin:emoji`.

    Raises:
        ConfigError: for an unknown language or style, or a setting that does not apply.
    """
    from everclip.data.builtin import emoji

    for name in ("columns", "split", "root", "downloads", "encoding", "separator", "header"):
        if getattr(spec, name):
            raise ConfigError(
                f"data.{name}: does not apply to {source}; its keys are source, language and styles."
            )
    try:
        columns = emoji.drawings(spec.language or "en", spec.styles)
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error
    columns = columns.filter(pc.is_valid(columns.column("name")))
    rename = {"name": "caption", "emoji_id": "concept", "year": "time", "subgroup": "class_key"}
    columns = columns.rename_columns([rename.get(name, name) for name in columns.column_names])
    class_names = [
        str(key).replace("-", " ").replace(" & ", " and ") for key in columns.column("class_key").to_pylist()
    ]
    # Two emoji with one drawing (flags of territories) stay separate images: their facts differ.
    known = {"image_id": "image_id"}
    return Raw(source, columns.append_column("class_name", pa.array(class_names)), known=known)
