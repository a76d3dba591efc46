"""Duplicates: the index finds what comparing all with all finds; what counts as the same; what crosses the split."""

import io
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from everclip.data.reading.facts import difference_hash
from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec
from everclip.prepare.check import duplicates
from everclip.prepare.check.duplicates import DISTANCE, find_duplicates
from everclip.prepare.check.neighbours import Forest, bit_count, near_pairs
from everclip.prepare.check.similarity import alike, sketch

Load = Callable[..., Loaded]


def photo(seed: int, side: int = 96) -> Image.Image:
    """A smooth random picture: like a photograph, it survives being saved again."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return a function (pictures, **columns) -> what reading them gives."""
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "cache"))

    def make(pictures: Sequence[bytes], **columns: Sequence[Any]) -> Loaded:
        given_: dict[str, Any] = {"image": pa.array(pictures, pa.binary()), **columns}
        if "caption" not in given_ and "class_name" not in given_:
            given_["caption"] = [f"picture {i}" for i in range(len(pictures))]
        path = tmp_path / f"{len(list(tmp_path.glob('*.parquet')))}.parquet"
        pq.write_table(pa.table(given_), path)
        return read(DataSpec(source=str(path)))

    return make


# -- the index against all pairs ------------------------------------------------------------------------------


def all_pairs(hashes: np.ndarray, distance: int) -> set[tuple[int, int]]:
    values = [int(h) for h in hashes]
    return {
        (i, j)
        for i, j in combinations(range(len(values)), 2)
        if (values[i] ^ values[j]).bit_count() <= distance
    }


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.lists(st.integers(0, 63), max_size=9)), max_size=40),
    st.integers(0, 8),
)
@settings(max_examples=150, deadline=None)
def test_near_pairs_are_those_of_a_comparison_of_all_with_all(
    bases: list[int], changes: list[tuple[int, list[int]]], distance: int
) -> None:
    values = list(bases)
    for which, bits in changes:
        value = bases[which % len(bases)]
        for bit in bits:
            value ^= 1 << bit
        values.append(value)
    hashes = np.array(values, dtype=np.uint64)
    found = [(int(i), int(j)) for block in near_pairs(hashes, distance) for i, j in block]
    assert len(found) == len(set(found)), "a pair was given twice"
    assert set(found) == all_pairs(hashes, distance)


def test_hashes_with_few_informative_bits_and_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures on a plain ground: most bits are zero, many keys agree, blocks overflow."""
    monkeypatch.setattr("everclip.prepare.check.neighbours._BLOCK", 50)
    draw = np.random.default_rng(0)
    hashes = np.unique(draw.integers(0, 2**64, 300, dtype=np.uint64) & np.uint64(0x3C3C0000))
    found = {(int(i), int(j)) for block in near_pairs(hashes, 4) for i, j in block}
    assert found == all_pairs(hashes, 4)


def test_far_fewer_comparisons_than_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    original = bit_count

    def counting(values: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(values)
        return original(values)

    monkeypatch.setattr("everclip.prepare.check.neighbours.bit_count", counting)
    hashes = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)
    assert not list(near_pairs(hashes, 6))
    assert compared < 20_000 * 19_999 / 2 / 500


def test_bit_count() -> None:
    values = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)
    assert bit_count(values).tolist() == [int(v).bit_count() for v in values]
    assert bit_count(np.array([0, 2**64 - 1], dtype=np.uint64)).tolist() == [0, 64]


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
@settings(max_examples=100, deadline=None)
def test_forest_joins_like_sets(count: int, pairs: list[tuple[int, int]]) -> None:
    forest = Forest(count)
    sets = [{i} for i in range(count)]
    for one, other in ((a % count, b % count) for a, b in pairs):
        merged = sets[one] | sets[other]
        for member in merged:
            sets[member] = merged
    array = np.array([(a % count, b % count) for a, b in pairs], dtype=np.int64).reshape(-1, 2)
    forest.join(array[:, 0], array[:, 1])
    expected = sorted({tuple(sorted(s)) for s in sets if len(s) > 1})
    assert sorted(tuple(int(i) for i in g) for g in forest.groups()) == expected


# -- what is the same -----------------------------------------------------------------------------------------


def pair(one: Image.Image, other: Image.Image) -> float | None:
    hashes = np.array([difference_hash(one), difference_hash(other)], dtype=np.uint64)
    found, difference = alike([sketch(one), sketch(other)], hashes, DISTANCE)
    return float(difference[0]) if len(found) else None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "change",
    [
        lambda p: Image.open(io.BytesIO(encoded(p, "JPEG", quality=30))).convert("RGB"),
        lambda p: p.resize((48, 48), Image.Resampling.BICUBIC),
        lambda p: p.resize((130, 130), Image.Resampling.BICUBIC),
        lambda p: p.point(lambda v: min(255, int(1.05 * v))),
    ],
    ids=["jpeg-30", "half", "larger", "brighter"],
)
def test_a_picture_saved_anew_is_near(seed: int, change: Callable[[Any], Any]) -> None:
    difference = pair(photo(seed), change(photo(seed)))
    assert difference is not None
    assert 0 <= difference < 10


def test_equal_pixels_in_other_files_and_different_pictures() -> None:
    assert pair(photo(0), Image.open(io.BytesIO(encoded(photo(0), "BMP"))).convert("RGB")) == -1
    assert pair(photo(0), photo(1)) is None


def test_equal_hashes_are_not_enough() -> None:
    """Plain colours, and a pointer that moved: the difference hash is the same, the pictures are not."""
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    assert difference_hash(red) == difference_hash(blue)
    assert pair(red, blue) is None

    def clock(end: tuple[int, int]) -> Image.Image:
        picture = photo(3).convert("RGB")
        ImageDraw.Draw(picture).line((48, 48, *end), "black", 5)
        return picture

    assert pair(clock((48, 20)), clock((48, 76))) is None


# -- whole data sets ------------------------------------------------------------------------------------------


def test_groups_are_those_of_a_comparison_of_all_with_all(load: Load) -> None:
    pictures = []
    for seed in range(25):
        base = photo(seed)
        pictures.append(encoded(base))
        if seed % 2:
            pictures.append(encoded(base, "JPEG", quality=50))
        if seed % 3 == 0:
            pictures.append(encoded(base.resize((60, 60), Image.Resampling.BICUBIC)))
        if seed % 5 == 0:
            pictures.append(encoded(base, "BMP"))
    loaded = load(pictures)
    hashes = np.array(
        [difference_hash(Image.open(io.BytesIO(p)).convert("RGB")) for p in pictures], np.uint64
    )
    pairs, _ = alike([sketch(Image.open(io.BytesIO(p)).convert("RGB")) for p in pictures], hashes, DISTANCE)
    forest = Forest(len(pictures))
    forest.join(pairs[:, 0], pairs[:, 1])
    expected = {tuple(int(i) for i in group) for group in forest.groups()}
    found = find_duplicates(loaded.table, loaded.facts)
    near = {group.rows for group in found.groups if group.kind == "near"}
    pixels = {group.rows for group in found.groups if group.kind == "pixels"}
    assert len(pixels) == 5
    assert near | {p for p in pixels if not any(set(p) <= set(n) for n in near)} == expected
    assert found.surplus["pixels"] == 5
    assert found.surplus["near"] == 12 + 9  # the JPEGs and the small ones


def test_captions_of_one_picture_are_no_duplicates_but_repeated_rows_are_named(load: Load) -> None:
    one, other = encoded(photo(0)), encoded(photo(1))
    loaded = load([one, one, one, other, other], caption=["a", "b", "c", "d", "d"])
    found = find_duplicates(loaded.table, loaded.facts)
    assert (found.groups, found.repeated) == ([], [4])
    assert found.surplus == {"bytes": 0, "pixels": 0, "near": 0}
    assert found.pictures == 2


def test_a_file_that_stands_twice_in_its_class_is_a_copy(load: Load) -> None:
    one, other = encoded(photo(0)), encoded(photo(1))
    loaded = load([one, other, one, one], class_name=["cat", "dog", "cat", "cat"])
    found = find_duplicates(loaded.table, loaded.facts)
    assert [(g.kind, g.rows) for g in found.groups] == [("bytes", (0, 2, 3))]
    assert (found.surplus["bytes"], found.repeated) == (2, [])


def test_the_same_picture_in_two_files_is_a_copy_whatever_its_captions(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(encoded(photo(name == "c.png")))
    (tmp_path / "list.csv").write_text("image,caption\na.png,one\na.png,two\nb.png,three\nc.png,four\n")
    loaded = read(DataSpec(source=str(tmp_path / "list.csv")))
    found = find_duplicates(loaded.table, loaded.facts)
    assert [(g.kind, g.rows) for g in found.groups] == [("bytes", (0, 1, 2))]
    assert found.surplus["bytes"] == 1
    assert Path(loaded.table.origin(2)).name == "b.png"


def test_the_same_file_under_two_ids_of_its_own_is_one_picture_with_several_captions(load: Load) -> None:
    one = encoded(photo(0))
    loaded = load([one, one, one], caption=["a", "b", "c"], image_id=["x", "x", "y"])
    assert any("another image_id" in line and "counts as one" in line for line in loaded.guesses)
    assert loaded.table.identities() == ["x", "x", "x"]
    assert find_duplicates(loaded.table, loaded.facts).surplus.get("bytes", 0) == 0


def test_equal_pictures_under_two_classes_conflict(load: Load) -> None:
    one, other = photo(0), photo(1)
    pictures = [encoded(one), encoded(one, "BMP"), encoded(other), encoded(other), encoded(photo(2))]
    loaded = load(pictures, class_name=["cat", "dog", "cat", "dog", "cat"])
    found = find_duplicates(loaded.table, loaded.facts)
    assert found.conflicts == [(0, 1), (2, 3)]


def test_leaks_strongest_first_and_each_held_out_picture_once(load: Load) -> None:
    pictures = [
        encoded(photo(0)),  # train
        encoded(photo(1)),  # train
        encoded(photo(2)),  # train
        encoded(photo(2), "JPEG", quality=60),  # test, near
        encoded(photo(1), "BMP"),  # test, pixels
        encoded(photo(0)),  # test, bytes, in train twice over
        encoded(photo(0), "BMP"),  # train
        encoded(photo(3)),  # test, clean
        encoded(photo(2)),  # val: leaks from train, and into test (near) only as a second choice
    ]
    sides = ["train", "train", "train", "test", "test", "test", "train", "test", "val"]
    loaded = load(pictures)
    found = find_duplicates(loaded.table, loaded.facts, sides)
    got = [(leak.row, leak.other, leak.side, leak.other_side, leak.kind) for leak in found.leaks]
    assert got == [
        (5, 0, "test", "train", "bytes"),
        (4, 1, "test", "train", "pixels"),
        (3, 2, "test", "train", "near"),
        (8, 2, "val", "train", "bytes"),
    ]


def test_without_a_split_nothing_leaks(load: Load) -> None:
    loaded = load([encoded(photo(0))] * 2)
    assert find_duplicates(loaded.table, loaded.facts, [None, "test"]).leaks == []
    assert find_duplicates(loaded.table, loaded.facts).leaks == []


def test_a_crowd_of_look_alikes_is_compared_with_its_nearest_and_that_is_said(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain pictures of different colours share one hash; their copies are found all the same."""
    monkeypatch.setattr(duplicates, "_LARGEST_COMPONENT", 16)
    monkeypatch.setattr(duplicates, "_STRIDE", 12)
    colours = [(i * 37 % 256, i * 91 % 256, i * 53 % 256) for i in range(40)]
    pictures = [encoded(Image.new("RGB", (32, 32), colour)) for colour in colours]
    extra = [pictures[0], encoded(photo(0)), encoded(photo(0), "BMP")]
    loaded = load([*pictures, *extra], class_name=["x"] * 43)
    ticks: list[tuple[int, int]] = []
    found = find_duplicates(loaded.table, loaded.facts, tick=lambda done, total: ticks.append((done, total)))
    assert found.loosely_checked == 40
    assert ("bytes", (0, 40)) in [(g.kind, g.rows) for g in found.groups]
    assert ("pixels", (41, 42)) in [(g.kind, g.rows) for g in found.groups]
    assert ticks[-1] == (42, 42)


def test_every_member_of_a_cut_crowd_is_in_a_window() -> None:
    for count in (1024, 1025, 1792, 1793, 5000):
        hashes = np.zeros(count, dtype=np.uint64)
        windows = duplicates.windows(np.arange(count), hashes)
        assert set(np.concatenate(windows).tolist()) == set(range(count))
        assert max(map(len, windows)) <= 1024
