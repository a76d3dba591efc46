"""What replay stores: uniform, balanced, bounded, and the same after a restart."""

import json
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everclip.data.table import Table
from everclip.errors import CheckpointError
from everclip.training.buffer import Buffer

Make = Callable[..., Table]
Item = tuple[str, str, str]


def groups_of(buffer: Buffer) -> Counter[str]:
    return Counter(group for _, _, group in buffer.items)


# -- reservoir ------------------------------------------------------------------------------------------------


def test_a_reservoir_holds_every_sample_equally_often(table: Make) -> None:
    parts = [(f"task {i}", table(10, f"{i}x")) for i in range(4)]
    held: Counter[str] = Counter()
    runs, size = 400, 10
    for seed in range(runs):
        buffer = Buffer("reservoir", size, seed)
        for origin, part in parts:
            buffer.offer(origin, part)
        assert len(buffer) == size
        held.update(name for _, name, _ in buffer.items)
    expected = runs * size / 40
    # Chi-square with 39 degrees of freedom: 72.1 is the 99.9 % point; the seeds are fixed.
    assert sum((held[f"{i}x{j}"] - expected) ** 2 / expected for i in range(4) for j in range(10)) < 72.1
    assert abs(sum(held[f"0x{j}"] for j in range(10)) - sum(held[f"3x{j}"] for j in range(10))) < 250


@given(
    st.integers(1, 12), st.lists(st.integers(0, 9), max_size=5), st.sampled_from(["reservoir", "balanced"])
)
def test_the_bound_is_kept_and_filled(size: int, counts: list[int], kind: str) -> None:
    import pyarrow as pa

    buffer = Buffer(kind, size, 0)
    for number, count in enumerate(counts):
        ids = [f"{number}-{i}" for i in range(count)]
        buffer.offer(
            f"task {number}", Table(pa.table({"id": pa.array(ids, pa.string()), "image": [b""] * count}))
        )
    assert len(buffer) == min(size, sum(counts))
    assert buffer.seen == sum(counts)
    assert len({name for _, name, _ in buffer.items}) == len(buffer), "nothing is held twice"


def test_all_keeps_everything_whatever_the_size(table: Make) -> None:
    buffer = Buffer("all", 3, 0)
    buffer.offer("a", table(5))
    buffer.offer("b", table(4, "t"))
    assert len(buffer) == 9


def test_other_seeds_keep_other_samples(table: Make) -> None:
    def kept(seed: int) -> list[Item]:
        buffer = Buffer("reservoir", 5, seed)
        buffer.offer("a", table(30))
        return buffer.items

    assert kept(0) == kept(0)
    assert kept(0) != kept(1)


# -- balanced -------------------------------------------------------------------------------------------------


def test_small_groups_are_kept_whole_and_leave_their_rest_to_the_others(table: Make) -> None:
    buffer = Buffer("balanced", 20, 0)
    for origin, count in (("small", 2), ("middle", 5), ("large", 100)):
        buffer.offer(origin, table(count, origin))
    assert groups_of(buffer) == {"small": 2, "middle": 5, "large": 13}


def test_groups_share_equally_where_all_are_large(table: Make) -> None:
    buffer = Buffer("balanced", 10, 0)
    for i in range(3):
        buffer.offer(f"task {i}", table(50, f"{i}x"))
        assert max(groups_of(buffer).values()) - min(groups_of(buffer).values()) <= 1
        assert len(buffer) == 10


def test_classes_are_the_groups_where_the_stream_has_them(table: Make) -> None:
    buffer = Buffer("balanced", 9, 0).by_class()
    buffer.offer("task 0", table(30))
    assert groups_of(buffer) == {"c0": 3, "c1": 3, "c2": 3}


# -- rows and state -------------------------------------------------------------------------------------------


def test_rows_finds_the_samples_again(table: Make) -> None:
    tables = {"task 0": table(20), "task 1": table(20, "t")}
    buffer = Buffer("reservoir", 8, 0)
    for origin, part in tables.items():
        buffer.offer(origin, part)
    rows = buffer.rows(tables)
    assert rows is not None
    assert sorted(rows.ids) == sorted(name for _, name, _ in buffer.items)
    assert rows.value("caption", 0) == f"thing {rows.ids[0]}"
    assert Buffer("reservoir", 8, 0).rows(tables) is None


def test_data_that_are_gone_are_named(table: Make) -> None:
    buffer = Buffer("all", 1, 0)
    buffer.offer("task 0", table(3))
    with pytest.raises(CheckpointError, match="data of 'task 0' are missing"):
        buffer.rows({})
    with pytest.raises(CheckpointError, match="1 stored samples are no longer in 'task 0'"):
        buffer.rows({"task 0": table(2)})


@pytest.mark.parametrize("kind", ["reservoir", "balanced", "all"])
@pytest.mark.parametrize("by_class", [False, True])
def test_a_restored_buffer_goes_on_as_if_nothing_had_happened(table: Make, kind: str, by_class: bool) -> None:
    def fresh() -> Buffer:
        buffer = Buffer(kind, 7, 3)
        return buffer.by_class() if by_class else buffer

    whole = fresh()
    whole.offer("task 0", table(20))
    # A restart builds the buffer from its settings alone; what the first task told it must come from the state.
    again = Buffer(kind, 7, 3)
    again.restore(json.loads(json.dumps(whole.state())))
    assert again.items == whole.items
    for buffer in (whole, again):
        buffer.offer("task 1", table(20, "t"))
    assert (again.items, again.seen) == (whole.items, whole.seen)
