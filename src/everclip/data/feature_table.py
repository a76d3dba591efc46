"""Feature tables: features that any model has computed, by the key of their image or text; a Parquet file.

Columns: `key` (text) and `feature` (a list of floats; all lists are equally long).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from everclip.errors import ConfigError, DataError, did_you_mean
from everclip.files import disk_errors, sync_and_rename, user_path

KEY, FEATURE = "key", "feature"
_ROWS = 8192  # at a time
# A few kilobytes can decompress to any number of equal rows.
_LEAST_UNPACKED = 1 << 30
_MOST_TIMES = 100

Floats = npt.NDArray[Any]


@dataclass(frozen=True)
class FeatureTable:
    """The features of a table in memory.

    Attributes:
        path: its file.
        features: `(M, W)`, float16 or float32.
        positions: key -> position among the features.
    """

    path: Path
    features: Floats
    positions: dict[str, int]

    @property
    def width(self) -> int:
        """The length of a feature."""
        return int(self.features.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of keys and features."""
        digest = hashlib.sha256("\0".join(self.positions).encode())
        digest.update(np.ascontiguousarray(self.features).data)
        return digest.hexdigest()[:16]

    def find(self, keys: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the position of each key's feature `(N,)`; -1 for a key that the table lacks."""
        return np.array([self.positions.get(key, -1) for key in keys], dtype=np.int64)


def write_feature_table(
    path: str | os.PathLike[str],
    keys: Sequence[str],
    features: Any,
    dtype: Literal["float16", "float32"] = "float16",
) -> Path:
    """Write a table of features, as the penalty `table-distill` reads it.

    Args:
        path: the Parquet file; an existing one is replaced.
        keys: `image_id`s of images, or texts.
        features: `(N, W)`, one row per key: a tensor, an array or lists.
        dtype: the type of the stored values.

    Returns:
        The path.

    Raises:
        ConfigError: for an unusable path or `dtype`.
        DataError: if keys and features do not fit together, a key has two different features, or a feature is not
            finite or zero.

    Example:
        >>> everclip.write_feature_table("features.parquet", ["cat.png", "dog.png"], [[0.1, 0.9], [0.8, 0.2]])
    """
    target, where = user_path(path, "write_feature_table: path"), "write_feature_table"
    if dtype not in ("float16", "float32"):
        raise ConfigError(f"{where}: dtype is {dtype!r}; expected 'float16' or 'float32'.")
    with np.errstate(over="ignore"):
        values = _array(features, where).astype(dtype)
    if len(keys) != len(values):
        raise DataError(f"{where}: {len(keys)} keys for {len(values)} features; give one key to each.")
    reader = _Reader(where)
    # The stored values are checked: a small number can become 0 as float16, and a large one infinite.
    reader.add(list(keys), values)
    table = reader.table(target)
    offsets = pa.array(np.arange(0, table.features.size + 1, table.width, dtype=np.int64))
    lists = pa.LargeListArray.from_arrays(offsets, pa.array(table.features.ravel()))
    columns = pa.table({KEY: pa.array(list(table.positions), pa.string()), FEATURE: lists})
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            pq.write_table(columns, temporary, compression="zstd", row_group_size=_ROWS)
            sync_and_rename(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return target


def read_feature_table(path: Path, where: str) -> FeatureTable:
    """Read a table of features.

    Args:
        path: the Parquet file.
        where: the setting that names it, for errors.

    Raises:
        ConfigError: if there is no such file.
        DataError: if it cannot be read, or a key or feature is unusable; names file, row and key.
    """
    if not path.is_file():
        raise ConfigError(
            f"{where}: there is no file {path}; compute the features once and write them with "
            "everclip.write_feature_table."
        )
    reader = _Reader(f"{where}: {path}")
    try:
        with pq.ParquetFile(path, memory_map=False, pre_buffer=False) as file:
            _require_columns(file.schema_arrow, reader.where)
            for keys, features in _batches(file, path, reader):
                reader.add(keys, features)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{reader.where}: not a readable Parquet file ({str(error)[:200]}).") from error
    return reader.table(path)


def _array(features: Any, where: str) -> Floats:
    """Return features as an array `(N, W)`."""
    if hasattr(features, "detach"):  # a tensor of torch, also one of bfloat16 or on a GPU
        features = features.detach().cpu().float().numpy()
    try:
        values = np.asarray(features, dtype=None if isinstance(features, np.ndarray) else np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: features are not numbers in rows of one length ({error}); expected (N, W)."
        ) from error
    if values.ndim != 2 or not values.size or values.dtype.kind not in "fiu":
        raise DataError(
            f"{where}: features have the shape {values.shape} and the type {values.dtype}; expected numbers (N, W)."
        )
    return values


def _require_columns(schema: pa.Schema, where: str) -> None:
    """Refuse a table without the two columns, or with columns of other types."""
    for name in (KEY, FEATURE):
        if name not in schema.names:
            raise DataError(
                f"{where}: no column {name!r}; expected the columns {KEY!r} (text) and {FEATURE!r} (lists of floats)."
                f"{did_you_mean(name, schema.names)}"
            )
    key, feature = schema.field(KEY).type, schema.field(FEATURE).type
    if pa.types.is_dictionary(key):
        key = key.value_type
    if not (pa.types.is_string(key) or pa.types.is_large_string(key)):
        raise DataError(f"{where}: column {KEY!r} holds {key}; expected text.")
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(of(feature) for of in lists) or not pa.types.is_floating(feature.value_type):
        raise DataError(f"{where}: column {FEATURE!r} holds {feature}; expected lists of floats.")


def _batches(file: pq.ParquetFile, path: Path, reader: _Reader) -> Iterator[tuple[list[Any], Floats]]:
    """Yield keys and features `(n, W)` of some rows at a time."""
    unpacked, most = 0, max(_LEAST_UNPACKED, _MOST_TIMES * path.stat().st_size)
    for batch in file.iter_batches(_ROWS, columns=[KEY, FEATURE], use_threads=False):
        unpacked += batch.nbytes
        if unpacked > most:
            raise DataError(
                f"{path}: unpacks to more than {most:,} bytes, {most // path.stat().st_size:,} times its size."
            )
        keys, lists = batch.column(KEY).to_pylist(), batch.column(FEATURE)
        if len(keys):
            yield keys, reader.rows_of(keys, lists)


class _Reader:
    """Collects the rows of a table and checks them.

    Args:
        where: setting and file, for errors.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._parts: list[Floats] = []
        self._positions: dict[str, int] = {}
        self._rows: list[int] = []
        self._done = 0
        self._width: int | None = None

    def rows_of(self, keys: Sequence[Any], lists: pa.Array) -> Floats:
        """Return a column of lists as an array `(n, W)`."""
        sizes = pc.list_value_length(lists).to_pylist()
        self._width = sizes[0] if self._width is None else self._width
        for i, size in enumerate(sizes):
            if size is None or not size or size != self._width:
                found = "no feature" if not size else f"a feature of {size} values"
                expected = f"{self._width} values, as in row 1" if self._width else "at least one value"
                raise self._refused(i, keys[i], f"{found}; expected {expected}")
        values = lists.flatten()
        if values.null_count:
            i = int(np.flatnonzero(np.asarray(values.is_null()))[0]) // int(self._width or 1)
            raise self._refused(i, keys[i], "an empty value in its feature; expected numbers")
        array = values.to_numpy(zero_copy_only=False)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        rows: Floats = array.reshape(len(keys), -1)
        return rows

    def add(self, keys: Sequence[Any], features: Floats) -> None:
        """Add rows; of rows with equal keys and features, the first stays."""
        self._check(keys, features)
        kept: list[int] = []
        for i, key in enumerate(keys):
            known = self._positions.setdefault(key, len(self._rows))
            if known == len(self._rows):
                kept.append(i)
                self._rows.append(self._done + i + 1)
            elif not np.array_equal(self._feature(known, features, kept), features[i]):
                raise self._refused(
                    i, key, f"another feature than row {self._rows[known]} has for this key; keep one of them"
                )
        self._parts.append(features[kept])
        self._done += len(keys)

    def _feature(self, position: int, current: Floats, kept: Sequence[int]) -> Floats:
        """Return the feature at a position, also among the rows of `current` that are being added."""
        for part in (*self._parts, current[kept]):
            if position < len(part):
                found: Floats = part[position]
                return found
            position -= len(part)
        raise AssertionError("every position belongs to a row")

    def _check(self, keys: Sequence[Any], features: Floats) -> None:
        """Refuse keys that are no texts, and features that are zero or not finite."""
        for i, key in enumerate(keys):
            if not isinstance(key, str) or not key:
                raise self._refused(i, key, "no key; expected text")
        finite = np.asarray(np.isfinite(features).all(axis=1))
        usable = np.asarray(finite & (features != 0).any(axis=1))
        if not usable.all():
            i = int(np.flatnonzero(~usable)[0])
            found = "only zeros in its feature" if finite[i] else "NaN or an infinite value in its feature"
            raise self._refused(i, keys[i], f"{found}; leave the row out, or compute the feature again")

    def _refused(self, i: int, key: Any, what: str) -> DataError:
        return DataError(f"{self.where}, row {self._done + i + 1}, key {key!r}: {what}.")

    def table(self, path: Path) -> FeatureTable:
        """Return the table of all rows."""
        if not self._positions:
            raise DataError(f"{self.where}: the table has no rows; expected one per image or text.")
        return FeatureTable(path, np.concatenate(self._parts), self._positions)
