"""Batches: a pure function of (stream, step), however they are asked for."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from everclip.config import AugmentConfig, CaptionConfig
from everclip.contracts import ClassEntry, Source, Stream
from everclip.data.pictures.images import ImageStore, PixelFormat
from everclip.data.sampling.batches import BatchMaker, stream_size
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError

Make = Callable[..., Table]
PIXELS = PixelFormat(8, (0.5,) * 3, (0.25,) * 3)
CLASSES = tuple(ClassEntry(f"c{i}", f"class {i}", ("a {}", "{}")) for i in range(3))


def tokenise(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[len(t), sum(map(ord, t))] for t in texts])


def maker(rank: int = 0, world: int = 1, seed: int = 0) -> BatchMaker:
    augment = AugmentConfig(crop_min=0.4, flip=0.5, colour=0.5)
    captions = CaptionConfig(templates=("a {}",), template_probability=0.5)
    return BatchMaker(
        PIXELS, lambda p: PIXELS.tensor(p.resize((8, 8))), tokenise, augment, captions, seed, ImageStore(),
        rank, world,
    )  # fmt: skip


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[k], two[k]) for k in one)
    return torch.equal(one, two) if torch.is_tensor(one) else one == two


@pytest.fixture
def stream(table: Make) -> Stream:
    """Two tables mixed three to one, with pictures, captions and labels."""
    sources = (Source(table(10), 0.75), Source(table(7, "old"), 0.25))
    return Stream(sources, 8, columns=("image", "tokens", "label"), classes=CLASSES)


def test_a_step_asked_alone_equals_the_step_in_sequence(stream: Stream) -> None:
    whole = [b["main"] for b in maker().batches({"main": stream}, "0/train/0", 0, 6, 0)]
    for step in (5, 0, 3):
        assert equal(whole[step], maker().batch(stream, "0/train/0/main", step))
    late = [b["main"] for b in maker().batches({"main": stream}, "0/train/0", 4, 6, 0)]
    assert all(equal(a, b) for a, b in zip(late, whole[4:], strict=True))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(stream: Stream, workers: int) -> None:
    streams = {"main": stream, "other": stream}
    alone = list(maker().batches(streams, "s", 0, 7, 0))
    ahead = list(maker().batches(streams, "s", 0, 7, workers))
    assert len(ahead) == 7
    assert all(equal(a, b) for a, b in zip(alone, ahead, strict=True))
    assert not equal(alone[0]["main"], alone[0]["other"]), "two streams of one phase draw differently"


def test_workers_can_be_left_in_the_middle(stream: Stream) -> None:
    batches = maker().batches({"main": stream}, "s", 0, 1000, 3)
    next(batches)
    batches.close()  # type: ignore[attr-defined]


def test_an_error_in_a_worker_reaches_the_loop(table: Make) -> None:
    broken = table(4).with_column("image", [b"x"] * 4)
    batches = maker().batches({"main": Stream((Source(broken),), 2)}, "s", 0, 5, 2)
    with pytest.raises(DataError, match="not a readable image"):
        next(batches)


@pytest.mark.parametrize("world", [2, 4])
def test_the_slices_of_all_processes_make_the_global_batch(stream: Stream, world: int) -> None:
    for step in (0, 2):
        whole = maker().batch(stream, "s", step)
        parts = [maker(rank, world).batch(stream, "s", step) for rank in range(world)]
        for name in ("image", "tokens", "text_key", "image_key", "label"):
            assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])
        assert [i for part in parts for i in part["id"]] == whole["id"]


def test_a_window_order_resumes_in_its_middle_with_other_workers_and_processes(table: Make) -> None:
    streams = {"main": Stream((Source(table(70), 0.75), Source(table(9, "old"), 0.25)), 8)}
    windowed = [replace(maker(rank, 2), window=16) for rank in (0, 1)]
    whole = [b["main"]["id"] for b in replace(maker(), window=16).batches(streams, "s", 0, 24, 0)]
    later = [
        [b["main"]["id"] for b in half.batches(streams, "s", 5, 24, workers)]
        for half, workers in zip(windowed, (1, 3), strict=True)
    ]
    assert [one + two for one, two in zip(*later, strict=True)] == whole[5:]
    drawn = [i for ids in whole for i in ids]
    assert sum(i.startswith("old") for i in drawn) == len(drawn) // 4, "exact shares, also of a small source"
    first = [i for i in drawn if not i.startswith("old")][:70]
    assert sorted(first) == sorted(table(70).ids), "every sample once per epoch"
    full = [b["main"]["id"] for b in maker().batches(streams, "s", 0, 24, 0)]
    assert whole != full


def test_a_batch_that_cannot_be_shared_equally_is_refused(stream: Stream) -> None:
    with pytest.raises(ConfigError, match=r"training\.batch_size: a batch of 8 .* multiple of 3"):
        maker(0, 3).batch(stream, "s", 0)


def test_mixing_keeps_the_shares(stream: Stream) -> None:
    ids = [i for step in range(10) for i in maker().batch(stream, "s", step)["id"]]
    assert sum(i.startswith("old") for i in ids) == 20
    assert stream_size(stream) == 17


def test_every_sample_is_seen_once_per_epoch(table: Make) -> None:
    stream = Stream((Source(table(10)),), 5)
    ids = [i for step in range(4) for i in maker().batch(stream, "s", step)["id"]]
    assert sorted(ids[:10]) == sorted(ids[10:]) == sorted(table(10).ids)
    assert ids[:10] != ids[10:]


def test_one_pass_stops_at_the_last_sample(table: Make) -> None:
    stream = Stream((Source(table(7)),), 4, view="eval", order="once")
    assert [maker().batch(stream, "s", step)["id"] for step in (0, 1)] == [
        ["s0", "s1", "s2", "s3"],
        ["s4", "s5", "s6"],
    ]


def test_the_evaluation_view_neither_augments_nor_draws_captions(table: Make) -> None:
    stream = Stream((Source(table(3)),), 3, view="eval", order="cycle", columns=("image", "tokens"))
    one, two = (maker(seed=seed).batch(stream, "s", step) for seed, step in ((0, 0), (9, 4)))
    assert equal(one, two)
    assert one["caption"] == ["thing s0", "thing s1", "thing s2"]
    assert torch.equal(one["image"][0], PIXELS.tensor(ImageStore().get(table(3), 0).resize((8, 8))))


@pytest.mark.parametrize("other", [{"seed": 1}, {"scope": "t"}, {"step": 1}])
def test_draws_depend_on_seed_scope_and_step(table: Make, other: dict[str, Any]) -> None:
    # Every step takes the same samples in the same order, so only the draws can differ.
    stream = Stream((Source(table(8)),), 8, order="cycle", columns=("image", "tokens"))

    def batch(seed: int = 0, scope: str = "s", step: int = 0) -> dict[str, Any]:
        return maker(seed=seed).batch(stream, scope, step)

    assert equal(batch(), batch())
    assert batch()["id"] == batch(**other)["id"]
    assert not torch.equal(batch()["image"], batch(**other)["image"])
    assert batch()["caption"] != batch(**other)["caption"]


# -- columns --------------------------------------------------------------------------------------------------


def test_equal_captions_and_equal_concepts_share_a_key(table: Make) -> None:
    data = table(4, concept=["x", "y", "x", None]).with_column("caption", ["p", "p", "q", "r"])
    stream = Stream((Source(data),), 4, view="eval", order="cycle", columns=("tokens",))
    batch = maker().batch(stream, "s", 0)
    same = lambda keys: [[int(a == b) for b in keys.tolist()] for a in keys.tolist()]  # noqa: E731
    assert same(batch["text_key"]) == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert same(batch["image_key"]) == [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    assert "image" not in batch


def test_labels_are_positions_in_the_streams_classes(table: Make) -> None:
    order = (CLASSES[2], CLASSES[0], CLASSES[1])
    stream = Stream((Source(table(4)),), 4, order="cycle", columns=("label",), classes=order)
    batch = maker().batch(stream, "s", 0)
    assert batch["label"].tolist() == [1, 2, 0, 1]
    assert torch.equal(batch["class_tokens"], tokenise(["a class 2", "a class 0", "a class 1"]))


def test_a_class_the_stream_does_not_know_is_named_with_the_sample(table: Make) -> None:
    stream = Stream((Source(table(3)),), 3, order="cycle", columns=("label",), classes=CLASSES[:2])
    with pytest.raises(DataError, match="toy, id s2: class 'c2' is not one of the stream's"):
        maker().batch(stream, "s", 0)


def test_a_sample_without_a_caption_is_named(table: Make) -> None:
    data = table(2).with_column("caption", ["x", None]).with_column("class_name", ["class 0", None])
    with pytest.raises(DataError, match="toy, id s1: there is no caption to train on"):
        maker().batch(Stream((Source(data),), 2, order="cycle", columns=("tokens",)), "s", 0)


# -- fixed crops ----------------------------------------------------------------------------------------------


def test_fixed_crops_are_the_same_at_every_step_of_a_phase(table: Make) -> None:
    views = [bytes_of(i) for i in range(4)]
    data = table(4, image=views)
    drawn, fixed = (
        replace(maker(), augment=AugmentConfig(crop_min=0.3, fixed=still)) for still in (False, True)
    )
    stream = Stream((Source(data),), 4, order="cycle")

    def images(made: BatchMaker, scope: str, step: int) -> torch.Tensor:
        found: torch.Tensor = made.batch(stream, scope, step)["image"]
        return found

    assert torch.equal(images(fixed, "0/train/0/main", 0), images(fixed, "0/train/0/main", 5))
    assert not torch.equal(images(drawn, "0/train/0/main", 0), images(drawn, "0/train/0/main", 5))
    # Another task or phase crops anew, and no two pictures are cropped alike.
    assert not torch.equal(images(fixed, "0/train/0/main", 0), images(fixed, "1/train/0/main", 0))
    # Captions are drawn anew all the same.
    assert len({tuple(fixed.batch(stream, "0/train/0/main", step)["caption"]) for step in range(8)}) > 1


def bytes_of(number: int) -> bytes:
    """Return an encoded picture whose every place looks different."""
    x, y = np.meshgrid(np.arange(24), np.arange(24))
    pixels = np.stack([x * 10, y * 10, np.full_like(x, number * 50)], axis=2).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
