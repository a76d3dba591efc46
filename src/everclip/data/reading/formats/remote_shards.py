"""Read shards (`.tar`, `.parquet`) far away: `s3://`, `hf://`, `gs://`, `https://`... through fsspec."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from everclip.data.pictures.remote import RemoteFile, file_system, remote_file
from everclip.data.reading.formats.files import without_rows
from everclip.data.reading.formats.parquet import read_parquet
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.formats.shards import read_shard
from everclip.data.reading.formats.sides import sides_of_names, with_splits
from everclip.data.reading.formats.system_files import is_system_path
from everclip.data.reading.quarantine import DamagedFileError
from everclip.errors import ConfigError
from everclip.urls import brief_error, require_no_secrets

ENDINGS = (".tar", ".parquet")
_TOGETHER = 8  # shards whose heads are asked for at the same time


def read_remote(source: str, encoding: str | None, by_names: bool) -> list[Raw]:
    """Read the shards that a URL names: a file, a folder, or a pattern with `*`.

    The images of `.tar` stay where they are; a `.parquet` is copied to an Arrow file in the cache, as a large local one
    is.

    Args:
        source: the URL.
        encoding: of the texts, as the user says.
        by_names: whether names of files give sides.

    Raises:
        ConfigError: for a URL with a password, of an unknown kind, or that names no shards.
        DataError: if a shard cannot be fetched.
    """
    files = shards_of(source)
    raws = [_read(file, encoding) for file in files]
    sides = sides_of_names(file.name for file in files) if by_names else {}
    raws = with_splits([(raw, sides.get(file.name)) for raw, file in zip(raws, files, strict=True)])
    size = sum(file.size for file in files)
    raws[0].notes.append(
        f"{source}: {len(files):,} shards, {size / 1e9:,.2f} GB far away; blocks that were read stay in the cache. "
        "Set training.shuffle_window=16384, so that a batch does not need a block for every sample"
    )
    return raws


def shards_of(source: str) -> list[RemoteFile]:
    """Return the shards that a URL names, in order.

    Raises:
        ConfigError, DataError: as `read_remote` does.
    """
    url = os.path.expandvars(source)
    require_no_secrets(url, "data.source")
    with ThreadPoolExecutor(_TOGETHER) as pool:
        return list(pool.map(remote_file, _listed(url)))


def _read(file: RemoteFile, encoding: str | None) -> Raw:
    try:
        return read_shard(file, encoding) if file.name.lower().endswith(".tar") else read_parquet(file)
    except DamagedFileError as error:
        return without_rows(file, error)


def _listed(url: str) -> list[str]:
    """Return the URLs of the shards, sorted."""
    system, path = file_system(url)
    try:
        if any(c in path for c in "*?["):
            found = system.glob(path)
        elif path.lower().endswith(ENDINGS):
            found = [path]
        else:
            found = system.find(path)
    except Exception as error:  # not all libraries raise an `OSError`
        raise ConfigError(f"data.source: {url}: cannot be listed ({brief_error(error)}).") from error
    shards = sorted(
        name for name in found if name.lower().endswith(ENDINGS) and not is_system_path(name.lstrip("/"))
    )
    if not shards:
        raise ConfigError(
            f"data.source: {url!r} is a URL; of files far away, shards are read: a file, a folder or a pattern of "
            f"{' or '.join(ENDINGS)}, and none is there. Anything else: download it first and give the file or folder."
        )
    return [str(system.unstrip_protocol(name)) for name in shards]
