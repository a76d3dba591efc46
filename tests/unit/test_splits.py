"""Splits by hash: which rows a part gets, that rows do not move, and that captions of one picture stay together."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.data.sampling.splits import carve
from everclip.data.table import Table
from micro import picture

Make = Callable[..., Table]


def test_a_split_is_a_partition_in_order(table: Make) -> None:
    rest, carved = carve(table(200), 0.25)
    assert sorted(rest.ids + carved.ids) == sorted(table(200).ids)
    order = {name: i for i, name in enumerate(table(200).ids)}
    for part in (rest, carved):
        assert [order[i] for i in part.ids] == sorted(order[i] for i in part.ids)
    assert 30 <= len(carved) <= 70


def test_adding_or_removing_rows_never_moves_a_row(table: Make) -> None:
    _, small = carve(table(60), 0.3)
    _, large = carve(Table.concat([table(40, "new"), table(60)]), 0.3)
    _, half = carve(table(60).select(range(0, 60, 2)), 0.3)
    assert [i for i in large.ids if not i.startswith("new")] == small.ids
    assert set(half.ids) == set(small.ids) & {f"s{i}" for i in range(0, 60, 2)}


def test_a_larger_share_only_adds(table: Make) -> None:
    parts = [set(carve(table(100), share)[1].ids) for share in (0.0, 0.1, 0.4, 1.0)]
    assert parts[0] == set()
    assert len(parts[3]) == 100
    for small, large in pairwise(parts):
        assert small <= large


def test_test_and_validation_splits_are_independent(table: Make) -> None:
    _, test = carve(table(400), 0.5, salt="everclip-test-v1")
    _, both = carve(test, 0.5)
    assert 70 <= len(both) <= 130  # a shared salt would carve all or nothing of what is left


def test_captions_of_one_picture_go_to_one_side_of_a_split(table: Make) -> None:
    pictures = [f"p{i // 5}" for i in range(500)]
    rest, carved = carve(table(500, image_id=pictures), 0.3)
    assert carved.identities()
    assert rest.identities()
    assert not set(rest.identities()) & set(carved.identities())


def test_captions_with_ids_of_their_own_still_belong_to_one_picture(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    pictures = [picture((i, 90, 30), i, draw) for i in range(40)]
    images = [data for data in pictures for _ in range(5)]
    path = tmp_path / "captions.parquet"
    ids = [str(i) for i in range(200)]
    pq.write_table(pa.table({"id": ids, "image": pa.array(images, pa.binary()), "caption": ids}), path)
    rest, carved = carve(read(DataSpec(source=str(path))).table, 0.3)
    assert len(carved)
    assert not set(rest.column("image")) & set(carved.column("image"))
