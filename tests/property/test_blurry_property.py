"""Streams with blurry borders, for any shares, parts and classes: no sample is lost, none comes twice."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from everclip.data.sampling.blurry import Blurry, keyed_parts, published_parts

LABELS = st.lists(st.integers(0, 12), min_size=1, max_size=120)
RULES = st.builds(
    Blurry,
    parts=st.integers(1, 9),
    disjoint=st.floats(0, 100),
    leak=st.floats(0, 100),
    cuts=st.sampled_from(["random", "equal"]),
)


@given(LABELS, RULES, st.integers(0, 5), st.booleans())
def test_every_sample_comes_once(labels: list[int], rule: Blurry, seed: int, published: bool) -> None:
    if published:
        parts = published_parts(labels, 13, rule, seed)
    else:
        keys, ids = [f"c{label}" for label in labels], [str(i) for i in range(len(labels))]
        parts = keyed_parts(keys, ids, rule, seed)
    assert len(parts) == rule.parts
    assert sorted(row for part in parts for row in part) == list(range(len(labels)))


@given(LABELS, st.integers(1, 9), st.sampled_from(["random", "equal"]), st.integers(0, 5))
def test_with_disjoint_classes_no_class_is_in_two_parts(
    labels: list[int], parts: int, cuts: Any, seed: int
) -> None:
    rule = Blurry(parts=parts, disjoint=100, leak=50, cuts=cuts)
    keys = [f"c{label}" for label in labels]
    found = keyed_parts(keys, [str(i) for i in range(len(keys))], rule, seed)
    shown = [{keys[row] for row in part} for part in found]
    assert sum(map(len, shown)) == len(set(keys))


@given(st.permutations(list(range(40))), st.integers(0, 3))
def test_the_order_of_rows_does_not_matter(order: list[int], seed: int) -> None:
    rule = Blurry(parts=4, disjoint=30, leak=20)
    keys, ids = [f"c{i % 7}" for i in range(40)], [f"id-{i}" for i in range(40)]
    stream = [[ids[row] for row in part] for part in keyed_parts(keys, ids, rule, seed)]
    moved_keys, moved_ids = [keys[i] for i in order], [ids[i] for i in order]
    moved = keyed_parts(moved_keys, moved_ids, rule, seed)
    assert [[moved_ids[row] for row in part] for part in moved] == stream


@given(RULES, st.integers(1, 40))
def test_what_divides_unequally_is_spread_or_left_out(rule: Blurry, classes: int) -> None:
    disjoint, blurry = rule.sizes(classes)
    assert disjoint + blurry == classes
    dropped = Blurry(parts=rule.parts, disjoint=rule.disjoint, leak=rule.leak, remainder="drop")
    assert all(size % rule.parts == 0 for size in dropped.sizes(classes))
    labels = [label for label in range(classes) for _ in range(3)]
    kept = published_parts(labels, classes, dropped, 0)
    assert len({labels[row] for part in kept for row in part}) <= sum(dropped.sizes(classes))


def test_blurry_classes_leak_into_other_parts_and_seeds_differ() -> None:
    keys, ids = [f"c{i % 10}" for i in range(400)], [str(i) for i in range(400)]
    rule = Blurry(parts=5, disjoint=50, leak=20, cuts="equal")
    parts = keyed_parts(keys, ids, rule, 0)
    times = {key: sum(any(keys[row] == key for row in part) for part in parts) for key in set(keys)}
    assert sorted(times.values())[:5] == [1] * 5
    assert min(sorted(times.values())[5:]) > 1
    assert parts != keyed_parts(keys, ids, rule, 1)
