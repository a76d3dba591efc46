"""What the encoder of evaluation remembers: the same pictures under the same model, and nothing of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from everclip.config import MethodConfig
from everclip.contracts import EvalSet
from everclip.data.pictures.images import ImageStore
from everclip.data.table import Table
from everclip.evaluation.encode import Encoder
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone


@pytest.fixture
def method(micro_folder: Path) -> Any:
    return build_method(MethodConfig(), load_backbone(str(micro_folder / "model"))).eval()


@pytest.fixture
def sets(micro_folder: Path) -> list[EvalSet]:
    """Two sets that share four of their pictures."""
    table = Table(pq.read_table(micro_folder / "data.parquet"))
    return [
        EvalSet("first", "classification", table.select(range(8)), 0),
        EvalSet("second", "classification", table.select([6, 4, 12, 5, 7]), 1),
    ]


def encoder(method: Any, sets: list[EvalSet], cache: Path | None = None, **options: Any) -> Encoder:
    return Encoder(sets, method.backbone.preprocess, ImageStore(), 3, cache, **options)


def tick(done: int, total: int) -> None:
    """Progress that nobody looks at."""


def test_a_picture_of_two_sets_is_encoded_once_and_each_set_has_its_own_order(
    method: Any, sets: list[EvalSet]
) -> None:
    one, seen = encoder(method, sets), []
    found = one.images(method, method.encoder_keys(), lambda done, total: seen.append((done, total)))
    assert one.encoded == 9
    assert seen == [(3, 9), (6, 9), (9, 9)]
    for s in sets:
        pixels = torch.stack(
            [method.backbone.preprocess(ImageStore().get(s.data, i)) for i in range(len(s.data))]
        )
        with torch.no_grad():
            alone = method.encode_images(pixels)["embedding"]
        assert torch.allclose(found[s.name]["embedding"], alone, atol=1e-6)


def test_what_is_remembered_depends_on_weights_architecture_transform_and_method(
    method: Any, sets: list[EvalSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = method.encoder_keys()
    one = encoder(method, sets)
    one.images(method, keys, tick)
    one.images(method, keys, tick)
    assert one.encoded == 9
    one.images(method, {**keys, "image": "other weights"}, tick)
    assert one.encoded == 18
    # The same keys, but another architecture.
    clip = method.backbone.clip
    monkeypatch.setattr(type(clip), "extra_repr", lambda self: "another activation")
    one.images(method, {**keys, "image": "other weights"}, tick)
    assert one.encoded == 27
    # The same keys, but other rules of decoding.
    with monkeypatch.context() as patch:
        patch.setattr("everclip.evaluation.encode.RULES", 0)
        one.images(method, {**keys, "image": "other weights"}, tick)
    assert one.encoded == 36
    # The same keys, but another class of methods.
    other = type("Other", (type(method),), {"forward": type(method).forward})
    monkeypatch.setattr(method, "__class__", other)
    one.images(method, {**keys, "image": "other weights"}, tick)
    assert one.encoded == 45
    # The same keys, but another transform.
    two = encoder(method, sets, tmp_path)
    two.images(method, keys, tick)
    three = encoder(method, sets, tmp_path)
    three._preprocess = lambda picture: method.backbone.preprocess(picture.rotate(90))
    three.images(method, keys, tick)
    assert (two.encoded, three.encoded) == (9, 9)
    four = encoder(method, sets, tmp_path)
    four.images(method, keys, tick)
    assert four.encoded == 0


def test_processes_share_the_pictures_unless_there_are_few_or_a_batch_decides(
    method: Any, sets: list[EvalSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everclip.evaluation.encode.gather_objects", lambda local: [local])
    monkeypatch.setattr(
        "everclip.evaluation.encode.joined", lambda parts: {**parts[0], "parts": torch.ones(9)}
    )
    counts = {}
    for rank, world in ((0, 2), (1, 2), (0, 9), (0, 10), (0, 1)):
        one = encoder(method, sets, rank=rank, world=world)
        one._encode(method, one._union(["first", "second"]).numpy(), None, tick)
        counts[rank, world] = one.encoded
    assert counts == {(0, 2): 5, (1, 2): 4, (0, 9): 1, (0, 10): 9, (0, 1): 9}
    monkeypatch.setattr(type(method), "batch_dependent", "on purpose")
    one = encoder(method, sets, world=2)
    one._encode(method, one._union(["first", "second"]).numpy(), None, tick)
    assert one.encoded == 9


def test_a_task_that_is_told_gets_its_own_sets_and_features(method: Any, sets: list[EvalSet]) -> None:
    one, told = encoder(method, sets), []
    encode = method.encode_images
    method.encode_images = lambda pixels, known_task=None: (
        told.append(known_task) or encode(pixels, known_task)
    )
    found = one.images(method, method.encoder_keys(), tick, known_task=1)
    assert list(found) == ["second"]
    assert found["second"]["embedding"].shape[0] == 5
    assert set(told) == {1}
    assert one.images(method, method.encoder_keys(), tick, known_task=7) == {}


def test_texts_are_remembered_under_their_tower(method: Any, sets: list[EvalSet], monkeypatch: Any) -> None:
    one, asked = encoder(method, sets), []
    encode = method.encode_texts
    method.encode_texts = lambda *given: asked.append(len(given[0])) or encode(*given)
    keys = method.encoder_keys()
    first = one.texts(method, keys, ["a cat", "a dog", "a cat"])
    assert torch.equal(first["embedding"][0], first["embedding"][2])
    assert not torch.equal(first["embedding"][0], first["embedding"][1])
    again = one.texts(method, keys, ["a dog", "a cow"])
    assert torch.equal(again["embedding"][0], first["embedding"][1])
    assert asked == [2, 1]
    one.texts(method, {**keys, "text": "other weights"}, ["a dog"])
    assert asked == [2, 1, 1]
    assert list(one._texts) == [("other weights", "a dog")]


def test_banks_are_remembered_by_space_for_as_long_as_a_row_asks_for_them(
    sets: list[EvalSet], method: Any
) -> None:
    one, made = encoder(method, sets), []
    method.class_bank = lambda space: made.append(space) or {"embedding": torch.ones(1)}
    keys = {"text": "tower"}
    for space in ("a", "b", "a"):
        one.bank(method, keys, space)
    assert made == ["a", "b"]
    one.begin_row()
    one.bank(method, keys, "a")
    one.begin_row()
    one.bank(method, keys, "b")
    assert made == ["a", "b", "b"]
    one.bank(method, {"text": "other"}, "b")
    assert made == ["a", "b", "b", "b"]


def test_a_set_without_pictures_has_features_without_rows(method: Any, sets: list[EvalSet]) -> None:
    none = EvalSet("none", "classification", sets[0].data.select([]), 2)
    one = encoder(method, [sets[0], none])
    found = one.images(method, method.encoder_keys(), tick)
    assert (len(found["first"]["embedding"]), len(found["none"]["embedding"]), one.encoded) == (8, 0, 8)


def test_where_a_batch_decides_a_told_task_is_remembered_apart(
    method: Any, sets: list[EvalSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each set is then encoded by itself, so that its name alone does not say whether the task was told."""
    told: list[int | None] = []
    inner = method.encode_images

    def encode(pixels: torch.Tensor, known_task: int | None = None) -> Any:
        told.append(known_task)
        found = inner(pixels)
        return {"embedding": found["embedding"] * (1 if known_task is None else 2 + known_task)}

    monkeypatch.setattr(method, "encode_images", encode)
    monkeypatch.setattr(type(method), "batch_dependent", "a reason")
    one, keys = encoder(method, sets), method.encoder_keys()
    plain = one.images(method, keys, tick)
    assert plain.keys() == {"first", "second"}
    for task, name in enumerate(plain):
        known = one.images(method, keys, tick, known_task=task)
        assert known.keys() == {name}
        assert torch.allclose(known[name]["embedding"], (2 + task) * plain[name]["embedding"])
    count = one.encoded
    assert count == 2 * (8 + 5)
    assert set(told) == {None, 0, 1}
    again = one.images(method, keys, tick)
    assert all(torch.equal(again[name]["embedding"], plain[name]["embedding"]) for name in plain)
    assert one.encoded == count
    assert one.images(method, keys, tick, known_task=7) == {}
