"""Tables of features: what is written is read, and what cannot be used is named by file, row and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import everclip
from everclip.data import feature_table
from everclip.data.feature_table import read_feature_table
from everclip.errors import ConfigError, DataError

WHERE = "method.penalties.table-distill.image"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    "form", [list, np.asarray, torch.tensor, lambda v: torch.tensor(v, dtype=torch.bfloat16)]
)
def test_what_is_written_is_read(tmp_path: Path, dtype: Any, form: Any) -> None:
    values = [[0.5, -1.0], [2.0, 0.0], [0.25, 8.0]]
    path = everclip.write_feature_table(tmp_path / "new" / "f.parquet", ["b", "a", "ü"], form(values), dtype)
    table = read_feature_table(path, WHERE)
    assert table.features.dtype == dtype
    assert table.features.tolist() == values
    assert table.width == 2
    assert table.find(["a", "?", "ü", "b", "a"]).tolist() == [1, -1, 2, 0, 1]
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    assert [p.name for p in path.parent.iterdir()] == ["f.parquet"]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 2)]
)
@pytest.mark.parametrize("key", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_tables_of_other_tools_are_read(tmp_path: Path, kind: pa.DataType, key: pa.DataType) -> None:
    columns = {"more": [1, 2], "key": pa.array(["a", "b"], key), "feature": pa.array([[1, 2], [3, 4]], kind)}
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    assert read_feature_table(tmp_path / "f.parquet", WHERE).features.tolist() == [[1, 2], [3, 4]]


def test_equal_rows_with_one_key_count_once(tmp_path: Path) -> None:
    path = everclip.write_feature_table(tmp_path / "f.parquet", ["a", "b", "a"], [[1, 2], [3, 4], [1, 2]])
    table = read_feature_table(path, WHERE)
    assert table.features.tolist() == [[1, 2], [3, 4]]
    assert table.find(["b"]).tolist() == [1]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("keys", "features", "match"),
    [
        (["a", "b", "a"], [[1, 2], [3, 4], [1, 3]], r"row 3, key 'a': another feature than row 1"),
        (["a", "b"], [[1, 2], [3]], r"row 2, key 'b': a feature of 1 values; expected 2 values, as in row 1"),
        (["a", "b"], [[1, 2], None], r"row 2, key 'b': no feature"),
        (["a"], [[]], r"row 1, key 'a': no feature; expected at least one value"),
        (["a", "b"], [[1, 2], [3, None]], r"row 2, key 'b': an empty value"),
        (["a", "b"], [[1, 2], [3, float("nan")]], r"row 2, key 'b': NaN or an infinite value"),
        (["a", "b"], [[1, 2], [3, float("inf")]], r"row 2, key 'b': NaN or an infinite value"),
        (["a", "b"], [[1, 2], [0, 0]], r"row 2, key 'b': only zeros"),
        (["a", None], [[1, 2], [1, 2]], r"row 2, key None: no key"),
        (["a", ""], [[1, 2], [1, 2]], r"row 2, key '': no key"),
        ([], [], r"the table has no rows"),
    ],
)
def test_an_unusable_row_is_named(
    tmp_path: Path, keys: Any, features: Any, match: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_table, "_ROWS", rows)
    columns = {"key": pa.array(keys, pa.string()), "feature": pa.array(features, pa.list_(pa.float32()))}
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    with pytest.raises(DataError, match=match) as caught:
        read_feature_table(tmp_path / "f.parquet", WHERE)
    assert str(caught.value).startswith(f"{WHERE}: {tmp_path / 'f.parquet'}")


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"keys": ["a"], "feature": [[1.0]]}, "no column 'key'.*Did you mean 'keys'"),
        ({"key": ["a"]}, "no column 'feature'"),
        ({"key": [1], "feature": [[1.0]]}, "column 'key' holds int64; expected text"),
        ({"key": ["a"], "feature": [1.0]}, "column 'feature' holds double; expected lists of floats"),
        ({"key": ["a"], "feature": [[1]]}, "expected lists of floats"),
    ],
)
def test_unusable_columns_are_named(tmp_path: Path, columns: Any, match: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    with pytest.raises(DataError, match=match):
        read_feature_table(tmp_path / "f.parquet", WHERE)


def test_an_unusable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file .*f\.parquet; compute the features"):
        read_feature_table(tmp_path / "f.parquet", WHERE)
    (tmp_path / "f.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_feature_table(tmp_path / "f.parquet", WHERE)


def test_a_table_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_table, "_LEAST_UNPACKED", 1000)
    keys = [f"{i:06}" for i in range(30_000)]
    path = everclip.write_feature_table(tmp_path / "f.parquet", keys, np.ones((len(keys), 600)))
    with pytest.raises(DataError, match="unpacks to more than"):
        read_feature_table(path, WHERE)


@pytest.mark.parametrize(
    ("keys", "features", "dtype", "error", "match"),
    [
        (["a"], [[1, 2], [3, 4]], "float16", DataError, "1 keys for 2 features"),
        (["a", "b"], [[1, 2], [3]], "float16", DataError, "rows of one length"),
        (["a"], [1, 2], "float16", DataError, r"shape \(2,\)"),
        (["a"], [["x"]], "float16", DataError, "not numbers"),
        (["a"], [[1e9]], "float16", DataError, "row 1, key 'a': NaN or an infinite value"),
        (["a"], [[1e-9]], "float16", DataError, "row 1, key 'a': only zeros"),
        ([7], [[1.0]], "float16", DataError, "row 1, key 7: no key; expected text"),
        (["a", "a"], [[1], [2]], "float16", DataError, "row 2, key 'a': another feature than row 1"),
        (["a"], [[1.0]], "int8", ConfigError, "expected 'float16' or 'float32'"),
    ],
)
def test_what_cannot_be_written_is_answered_and_nothing_is_left(
    tmp_path: Path, keys: Any, features: Any, dtype: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        everclip.write_feature_table(tmp_path / "f.parquet", keys, features, dtype)
    assert not list(tmp_path.iterdir())
