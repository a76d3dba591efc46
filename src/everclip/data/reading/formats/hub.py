"""Read data sets of the Hugging Face hub with `datasets`; from the cache without a network. Their code is not run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa

from everclip.data.reading.formats.parquet import with_class_names
from everclip.data.reading.formats.raw import Raw
from everclip.errors import ConfigError, DataError

_WORD = r"\w[\w.-]*"
_NAME = re.compile(
    rf"hub:(?P<owner>{_WORD})/(?P<name>{_WORD})(/(?P<config>{_WORD}))?(@(?P<revision>[\w./-]+))?", re.ASCII
)


def read_hub(source: str, split: str | None) -> list[Raw]:
    """Read `hub:OWNER/NAME[/CONFIGURATION][@REVISION]`.

    Args:
        source: the name.
        split: the split to read; default: all.

    Raises:
        ConfigError: if the name, the configuration or the split does not exist, or the cache is empty.
    """
    found = _NAME.fullmatch(source)
    if found is None:
        raise ConfigError(
            f"data.source: {source!r}: expected hub:OWNER/NAME, hub:OWNER/NAME@REVISION or "
            "hub:OWNER/NAME/CONFIGURATION."
        )
    name, config, revision = f"{found['owner']}/{found['name']}", found["config"], found["revision"]
    snapshot = snapshot_folder(name, revision)
    parts = _load(source, snapshot, name, config, revision)
    if split is not None:
        if split not in parts:
            raise ConfigError(f"data.split: {source} has no split {split!r}; it has {', '.join(parts)}.")
        parts = {split: parts[split]}
    return [
        Raw(f"{name} ({key})", with_class_names(_columns(part)), split=key if len(parts) > 1 else None)
        for key, part in parts.items()
    ]


def snapshot_folder(name: str, revision: str | None) -> Path | None:
    """Return the folder of a data set in the hub's cache, filled by `hf download --repo-type dataset`."""
    from huggingface_hub.constants import HF_HUB_CACHE

    place = Path(os.environ.get("HF_HUB_CACHE", HF_HUB_CACHE)) / f"datasets--{name.replace('/', '--')}"
    reference = place / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = place / "snapshots" / commit if commit else None
    return folder if folder is not None and folder.is_dir() and any(folder.iterdir()) else None


def _load(
    source: str, snapshot: Path | None, name: str, config: str | None, revision: str | None
) -> dict[str, Any]:
    """Return the splits, from the snapshot if there is one."""
    import datasets
    from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    where = str(snapshot) if snapshot is not None else name
    try:
        loaded = datasets.load_dataset(where, config, revision=None if snapshot is not None else revision)
    # `datasets` raises many kinds of errors for missing data; each says what it searched.
    except (DatasetsError, OSError, ValueError, RuntimeError, ConnectionError, KeyError) as error:
        raise ConfigError(_help(source, name, revision, snapshot, error)) from error
    return dict(loaded)


def _help(source: str, name: str, revision: str | None, snapshot: Path | None, error: Exception) -> str:
    from datasets import config as settings
    from huggingface_hub.constants import HF_HUB_CACHE

    pinned = f" --revision {revision}" if revision else ""
    cause = str(error).strip().splitlines() or [type(error).__name__]
    return (
        f"data.source: {source} cannot be read ({cause[0][:300]}). Looked for: "
        f"{snapshot or Path(HF_HUB_CACHE) / ('datasets--' + name.replace('/', '--'))} (files), "
        f"{Path(settings.HF_DATASETS_CACHE) / name.replace('/', '___')} (prepared), then the hub. Ways on: on a "
        f"machine with a network run `hf download --repo-type dataset {name}{pinned}` and copy that folder into the "
        "cache; or download its files anywhere and give their folder as data.source; or unset HF_HUB_OFFLINE if "
        "there is a network."
    )


def _columns(part: Any) -> pa.Table:
    """Return the rows of a split, memory-mapped, with encoded images."""
    import datasets

    for column, feature in part.features.items():
        if isinstance(feature, datasets.Image):
            part = part.cast_column(column, datasets.Image(decode=False))
    table = part.data.table
    if part._indices is not None:
        raise DataError("rows of a data set from the hub are not in their own order.")
    return table.replace_schema_metadata(part.features.arrow_schema.metadata)
