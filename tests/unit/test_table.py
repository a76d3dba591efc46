"""Tables: views, joins, fingerprints."""

from collections.abc import Callable

import pyarrow as pa
import pytest

from everclip.data.table import Table
from everclip.errors import DataError

Make = Callable[..., Table]


def test_select_keeps_the_order_asked_for_and_counts_within_the_view(table: Make) -> None:
    view = table(10).select([7, 2, 2, 5])
    assert view.ids == ["s7", "s2", "s2", "s5"]
    assert view.select([3, 0]).ids == ["s5", "s7"]
    assert view.value("caption", 3) == "thing s5"
    assert view.column("class_key") == ["c1", "c2", "c2", "c2"]
    assert len(view) == 4


def test_selecting_nothing_gives_an_empty_table_that_still_has_its_columns(table: Make) -> None:
    empty = table(3).select([])
    assert (len(empty), empty.ids, empty.column("caption")) == (0, [], [])
    assert empty.has("image")


def test_where_keeps_rows_in_order(table: Make) -> None:
    kept = table(7).where("class_key", lambda v: v == "c0")
    assert kept.ids == ["s0", "s3", "s6"]


def test_an_unknown_column_is_answered_with_close_names(table: Make) -> None:
    with pytest.raises(DataError, match=r"toy: no column 'captoin'\. Did you mean 'caption'"):
        table(3).column("captoin")


def test_selecting_does_not_copy_the_columns(table: Make) -> None:
    whole = table(50)
    before = pa.total_allocated_bytes()
    parts = [whole.select([1]), whole.select(range(40)), Table.concat([whole.select([1]), whole.select([0])])]
    # Rows are numbers of 8 bytes; the pictures alone take more than 60 bytes each.
    assert pa.total_allocated_bytes() - before <= 8 * sum(map(len, parts)) + 1024
    assert [part.ids[0] for part in parts] == ["s1", "s0", "s1"]


def test_concat_joins_in_order_and_fills_what_only_some_have(table: Make) -> None:
    joined = Table.concat([table(2).select([1, 0]), table(2, "t", extra=["x", "y"])], "both")
    assert joined.ids == ["s1", "s0", "t0", "t1"]
    assert joined.column("extra") == [None, None, "x", "y"]
    assert joined.name == "both"


def test_concat_of_views_of_one_table_equals_concat_of_copies(table: Make) -> None:
    whole = table(6)
    views = [whole.select([5, 1]), whole.select([0])]
    copies = [view.with_column("class_key", view.column("class_key")) for view in views]
    assert Table.concat(views).fingerprint == Table.concat(copies).fingerprint


def test_concat_of_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to join"):
        Table.concat([])


def test_with_column_adds_and_replaces_without_touching_the_original(table: Make) -> None:
    view = table(4).select([3, 1])
    assert view.with_column("mark", [1, 2]).column("mark") == [1, 2]
    replaced = view.with_column("caption", ["a", "b"])
    assert replaced.column("caption") == ["a", "b"]
    assert replaced.ids == ["s3", "s1"]
    assert view.column("caption") == ["thing s3", "thing s1"]


def test_the_fingerprint_is_of_the_data_not_of_how_it_is_held(table: Make) -> None:
    whole = table(5)
    view = whole.select([4, 2])
    copy = view.with_column("caption", view.column("caption"))
    assert view.fingerprint == copy.fingerprint == view.renamed("other").fingerprint


@pytest.mark.parametrize("column", ["id", "image_id", "caption", "class_key", "class_name", "image"])
def test_the_fingerprint_changes_with_every_column_that_counts(table: Make, column: str) -> None:
    whole = table(5)
    values = whole.column(column)
    values[3] = b"other" if column == "image" else "other"
    kind = pa.binary() if column == "image" else None
    assert whole.with_column(column, values, kind).fingerprint != whole.fingerprint


def test_the_fingerprint_changes_with_order_and_count(table: Make) -> None:
    whole = table(5)
    prints = {t.fingerprint for t in (whole, whole.select([1, 0, 2, 3, 4]), whole.select(range(4)))}
    assert len(prints) == 3


def test_a_fingerprint_depends_on_every_column(table: Make) -> None:
    assert table(3, keywords=["a"] * 3).fingerprint != table(3, keywords=["b"] * 3).fingerprint
