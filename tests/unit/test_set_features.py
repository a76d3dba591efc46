"""What is remembered of evaluation sets: the same pictures under the same model, and nothing of another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from everclip.config import MethodConfig
from everclip.contracts import ClassEntry, EvalSet, LabelSpace
from everclip.data.pictures.images import ImageStore
from everclip.data.table import Table
from everclip.evaluation.set_features import SetFeatures
from everclip.features import service as module
from everclip.features.encoder import image_encoder
from everclip.features.service import FeatureService
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
        EvalSet("first", "retrieval", table.select(range(8)), 0),
        EvalSet("second", "retrieval", table.select([6, 4, 12, 5, 7]), 1),
    ]


Make = Callable[..., tuple[SetFeatures, FeatureService]]


@pytest.fixture
def make(sets: list[EvalSet]) -> Make:
    """Return a function (sets, shared folder) -> features of evaluation sets, and the service behind them."""

    def made(
        given: list[EvalSet] | None = None, cache: Path | None = None, together: bool = False
    ) -> tuple[SetFeatures, FeatureService]:
        service = FeatureService(ImageStore())
        service.folders.shared = cache
        return SetFeatures(given or sets, service, 3, together), service

    return made


def tick(done: int, total: int) -> None:
    """Progress that nobody looks at."""


def test_a_picture_of_two_sets_is_encoded_once_and_each_set_has_its_own_order(
    method: Any, sets: list[EvalSet], make: Make
) -> None:
    one, service = make()
    seen: list[tuple[int, int]] = []
    found = one.images(method, method.encoder_keys(), lambda done, total: seen.append((done, total)))
    assert service.encoded == 9
    assert seen == [(3, 9), (6, 9), (9, 9)]
    for s in sets:
        pixels = torch.stack(
            [method.backbone.preprocess(ImageStore().get(s.data, i)) for i in range(len(s.data))]
        )
        with torch.no_grad():
            alone = method.encode_images(pixels)["embedding"]
        assert torch.allclose(found[s.name]["embedding"], alone, atol=1e-6)


def test_what_is_remembered_depends_on_weights_architecture_transform_method_and_decoding(
    method: Any, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = method.encoder_keys()
    one, service = make()
    one.images(method, keys, tick)
    one.images(method, keys, tick)
    assert service.encoded == 9
    others = {**keys, "image": "other weights"}
    one.images(method, others, tick)
    assert service.encoded == 18
    assert len(service.cached()) == 1, "what other weights made is forgotten"
    # The same keys, but another architecture.
    monkeypatch.setattr(type(method.backbone.clip), "extra_repr", lambda self: "another activation")
    one.images(method, others, tick)
    assert service.encoded == 27
    # The same keys, but other rules of decoding.
    with monkeypatch.context() as patch:
        patch.setattr("everclip.features.encoder.RULES", 0)
        one.images(method, others, tick)
    assert service.encoded == 36
    # The same keys, but another class of methods.
    other = type("Other", (type(method),), {"forward": type(method).forward})
    with monkeypatch.context() as patch:
        patch.setattr(method, "__class__", other)
        one.images(method, others, tick)
    assert service.encoded == 45
    # The same keys, but another transform; and what the first one shared serves a third service.
    counts = []
    for turned in (False, True, False):
        two, service = make(cache=tmp_path)
        plain = method.backbone.preprocess
        with monkeypatch.context() as patch:
            if turned:
                patch.setattr(method.backbone, "preprocess", lambda p, plain=plain: plain(p.rotate(90)))
            two.images(method, keys, tick)
        counts.append(service.encoded)
    assert counts == [9, 9, 0]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_processes_share_the_blocks_of_one_process(
    method: Any, make: Make, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process encodes its turn of the same blocks, so that the bits are those of one process."""
    alone, service = make()
    keys = method.encoder_keys()
    expected = alone.images(method, keys, tick)
    encoder, parts = image_encoder(method, keys), []
    monkeypatch.setattr(module, "world", lambda: world)
    for rank in range(world):
        monkeypatch.setattr(module, "rank", lambda rank=rank: rank)
        parts.append(module._Parts(9, 3, together=True))
    assert {one.rounds for one in parts} == {-(-3 // world)}
    assert [one.progress(1) for one in parts] == [(min(9, 3 * world), 9)] * world
    blocks = {}
    for one in parts:
        made = list(service._encode(encoder, alone._pictures, one.mine))
        blocks |= {part.start: features["embedding"] for part, features in zip(one.mine, made, strict=True)}
    joined = torch.cat([blocks[start] for start in (0, 3, 6)])
    assert torch.equal(joined[alone._rows["second"]], expected["second"]["embedding"])


def test_a_task_that_is_told_gets_its_own_sets_and_features(method: Any, make: Make) -> None:
    one, _ = make()
    told: list[int | None] = []
    encode = method.encode_images
    method.encode_images = lambda pixels, known_task=None: (
        told.append(known_task) or encode(pixels, known_task)
    )
    found = one.images(method, method.encoder_keys(), tick, known_task=1)
    assert list(found) == ["second"]
    assert found["second"]["embedding"].shape[0] == 5
    assert set(told) == {1}
    assert one.images(method, method.encoder_keys(), tick, known_task=7) == {}


def test_texts_of_all_sets_are_encoded_once_under_their_tower(
    method: Any, sets: list[EvalSet], make: Make
) -> None:
    one, service = make()
    asked: list[int] = []
    encode = method.encode_texts
    method.encode_texts = lambda tokens: asked.append(len(tokens)) or encode(tokens)
    keys = method.encoder_keys()
    captions = {s.name: [str(c) for c in s.data.column("caption")] for s in sets}
    every = list(dict.fromkeys(c for own in captions.values() for c in own))
    # Two spaces share a class, and the name of a class is also a caption.
    entries = [ClassEntry(name, name, ("{}", "a picture of {}")) for name in ("a dog", "a house", every[0])]
    spaces = [LabelSpace(tuple(entries[:2])), LabelSpace(tuple(entries[1:]))]
    first = one.texts(method, keys, spaces)
    distinct = len(every) + 5
    assert asked == [distinct]
    for s in sets:
        rows = encode(method.backbone.tokenise(captions[s.name]))["embedding"]
        assert torch.allclose(first.captions(s.name)["embedding"], rows, atol=1e-6)
    banks = [first.bank(space)["embedding"] for space in spaces]
    assert asked == [distinct]
    for space, bank in zip(spaces, banks, strict=True):
        assert torch.allclose(bank, method.class_bank(space)["embedding"], atol=1e-6)
    del asked[1:]
    again = one.texts(method, keys, spaces)
    assert all(
        torch.equal(again.captions(s.name)["embedding"], first.captions(s.name)["embedding"]) for s in sets
    )
    assert torch.equal(again.bank(spaces[0])["embedding"], banks[0])
    assert asked == [distinct]
    one.texts(method, {**keys, "text": "other weights"}, spaces)
    assert asked == [distinct, distinct]
    assert len(service.cached()) == 1


def test_without_captions_and_prompts_no_text_is_encoded(
    method: Any, sets: list[EvalSet], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = make([EvalSet("none", "retrieval", sets[0].data.select([]), 0)])
    monkeypatch.setattr(method, "encode_texts", None)
    found = one.texts(method, method.encoder_keys())
    assert found.captions("none")["embedding"].shape == (0, 0)


def test_banks_of_a_methods_own_making_are_remembered_by_space_as_long_as_the_text_tower_stays(
    method: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = make()
    made: list[LabelSpace] = []
    method.class_bank = lambda space: made.append(space) or {"embedding": torch.ones(1)}
    assert method.own_bank
    a, b, c = (LabelSpace((ClassEntry(name, name),)) for name in "abc")
    keys, other = ({**method.encoder_keys(), "text": text} for text in ("tower", "other"))

    def ask(keys: dict[str, str], *spaces: LabelSpace) -> None:
        texts = one.texts(method, keys, spaces)
        for space in spaces:
            texts.bank(space)

    ask(keys, a, b, a)
    assert made == [a, b]
    ask(other, b)
    assert made == [a, b, b]
    monkeypatch.setattr(module, "BANKS", 4)
    ask(other, c, b, c)
    assert made == [a, b, b, c, b, c]


def test_a_set_without_pictures_has_features_without_rows(
    method: Any, sets: list[EvalSet], make: Make
) -> None:
    none = EvalSet("none", "classification", sets[0].data.select([]), 2)
    one, service = make([sets[0], none])
    found = one.images(method, method.encoder_keys(), tick)
    assert (len(found["first"]["embedding"]), len(found["none"]["embedding"]), service.encoded) == (8, 0, 8)


def test_where_a_batch_decides_a_told_task_is_remembered_apart(
    method: Any, make: Make, monkeypatch: pytest.MonkeyPatch
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
    one, service = make()
    keys = method.encoder_keys()
    plain = one.images(method, keys, tick)
    assert plain.keys() == {"first", "second"}
    for task, name in enumerate(plain):
        known = one.images(method, keys, tick, known_task=task)
        assert known.keys() == {name}
        assert torch.allclose(known[name]["embedding"], (2 + task) * plain[name]["embedding"])
    assert service.encoded == 2 * (8 + 5)
    assert set(told) == {None, 0, 1}
    again = one.images(method, keys, tick)
    assert all(torch.equal(again[name]["embedding"], plain[name]["embedding"]) for name in plain)
    assert one.images(method, keys, tick, known_task=7) == {}


def test_a_method_of_ones_own_is_never_answered_from_what_it_was(
    micro_folder: Path, make: Make, tmp_path: Path
) -> None:
    source = """
import torch
from everclip.methods.slots import SlotMethod

class Turned(SlotMethod):
    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.turn = torch.nn.Parameter(torch.ones(()))

    def encode_images(self, pixels, known_task=None):
        return {"embedding": SIGN * self.turn * super().encode_images(pixels)["embedding"]}

    def class_bank(self, space):
        return {"embedding": self.turn * super().class_bank(space)["embedding"]}
"""
    file = tmp_path / "turned.py"

    def built(sign: int) -> Any:
        file.write_text(source.replace("SIGN", str(sign)))
        config = MethodConfig(name=f"{file}:Turned")
        return build_method(config, load_backbone(str(micro_folder / "model"))).eval()

    def asked(one: SetFeatures, method: Any) -> torch.Tensor:
        return one.images(method, method.encoder_keys(), tick)["first"]["embedding"]

    cache, first = tmp_path / "cache", built(1)
    one, service = make(cache=cache)
    before = asked(one, first)
    space = LabelSpace((ClassEntry("a", "a"),))

    def bank_of(method: Any) -> torch.Tensor:
        return one.texts(method, method.encoder_keys(), [space]).bank(space)["embedding"].clone()

    bank = bank_of(first)
    with torch.no_grad():
        first.turn.fill_(-1)
    assert torch.equal(asked(one, first), -before)
    assert torch.equal(bank_of(first), -bank)
    # Another file, or the same one after an edit, with the same name of the class.
    two, _ = make(cache=cache)
    assert torch.equal(asked(two, built(-1)), -before)
    assert service.encoded > 0
