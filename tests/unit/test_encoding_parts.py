"""How measurement encodes: in order, one batch ahead, equal texts once, with nothing marked; and how a gate chooses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from everclip.features.encoding import decoded, encode_images, encode_prompts, joined, measuring
from everclip.models.modules.routing import LEAST, Logits, Router, imbalance, smooth_load, unevenness


class Encodes(torch.nn.Module):
    """A method whose embedding of a picture is its mean, and of a text its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
        self.asked: list[Any] = []
        tokens = lambda texts: torch.tensor([[len(text), ord(text[0])] for text in texts])  # noqa: E731
        self.backbone = SimpleNamespace(tokenise=tokens)

    def encode_images(self, pixels: torch.Tensor, **told: Any) -> Any:
        self.asked.append((len(pixels), told, torch.is_inference_mode_enabled(), self.weight.requires_grad))
        return {"embedding": pixels.flatten(1).mean(dim=1, keepdim=True).double()}

    def encode_texts(self, tokens: torch.Tensor) -> Any:
        self.asked.append((len(tokens), torch.is_inference_mode_enabled(), self.weight.requires_grad))
        return {"embedding": tokens.double(), "other": tokens[:, :1].half()}


def fails_inside(method: Encodes) -> None:
    with measuring(method):
        assert torch.is_inference_mode_enabled()
        assert not method.weight.requires_grad
        raise KeyError


def test_measuring_marks_nothing_and_puts_back_what_was_marked() -> None:
    method = Encodes()
    with pytest.raises(KeyError):
        fails_inside(method)
    assert method.weight.requires_grad
    assert not method.frozen.requires_grad
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("sizes", [[3, 1, 2], [1], []])
def test_batches_come_in_order_and_at_most_one_is_decoded_ahead(workers: int, sizes: list[int]) -> None:
    taken: list[int] = []

    def batches() -> Any:
        for number, size in enumerate(sizes):
            taken.append(number)
            yield [10 * number + i for i in range(size)]

    found = []
    for number, batch in enumerate(decoded(batches(), lambda place: torch.tensor([place, -place]), workers)):
        assert taken == list(range(min(len(sizes), number + (2 if workers else 1))))
        found.append(batch.tolist())
    assert found == [[[10 * n + i, -(10 * n + i)] for i in range(size)] for n, size in enumerate(sizes)]


def test_pictures_are_encoded_without_gradient_and_told_a_task_only_where_there_is_one() -> None:
    pixels = torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for known, told in ((None, {}), (0, {"known_task": 0}), (4, {"known_task": 4})):
        method = Encodes()
        found = encode_images(method, pixels, known)
        assert method.asked == [(3, told, True, False)]
        assert found["embedding"].dtype == torch.float32
        assert torch.allclose(found["embedding"], pixels.flatten(1).mean(dim=1, keepdim=True))


def test_parts_are_joined_in_order_and_one_may_lack_some() -> None:
    one, two, three = (torch.full((n, 2), float(n)) for n in (1, 2, 3))
    found = joined([{"a": one}, {"b": two, "a": three}, {}])
    assert list(found) == ["a", "b"]
    assert found["a"].tolist() == [*one.tolist(), *three.tolist()]
    assert torch.equal(found["b"], two)
    assert joined([]) == {}


@pytest.mark.parametrize("block", [1, 2, 256])
def test_equal_texts_are_encoded_once_and_each_stands_in_its_place(block: int) -> None:
    method, texts = Encodes(), ["bb", "a", "bb", "ccc", "a"]
    found = encode_prompts(method, texts, block)
    assert found["embedding"].tolist() == [[len(t), ord(t[0])] for t in texts]
    assert found["other"].tolist() == [[len(t)] for t in texts]
    assert {values.dtype for values in found.values()} == {torch.float32}
    sizes = {1: [1, 1, 1], 2: [2, 1], 256: [3]}[block]
    assert method.asked == [(size, True, False) for size in sizes]


# -- gates ----------------------------------------------------------------------------------------------------


def test_a_gate_takes_the_best_and_of_equals_the_first() -> None:
    noisy = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    logits = Logits(noisy, noisy, None)
    chosen, gates = logits.top(2)
    assert chosen.tolist() == [[1, 2], [0, 1]]
    assert torch.allclose(gates, torch.full((2, 2), 0.5))
    assert logits.top(3)[0].tolist() == [[1, 2, 0], [0, 1, 2]]
    assert torch.allclose(logits.top(3)[1][0], torch.tensor([3.0, 3.0, 1.0]).softmax(dim=0))
    spread = logits.scatter(chosen, gates)
    assert spread.tolist() == [[0, 0.5, 0.5, 0], [0.5, 0.5, 0, 0]]


def test_a_router_is_noisy_only_where_it_is_given_a_draw() -> None:
    draw = torch.Generator().manual_seed(0)
    router, quiet = (Router(3, 4, noisy, torch.zeros(1)) for noisy in (True, False))
    for made in (router, quiet):
        with torch.no_grad():
            for parameter in made.parameters():
                assert not parameter.any()
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
    token, given = torch.randn(5, 3, generator=draw), torch.randn(5, 6, generator=draw)
    clean = token @ router.gate
    plain = router(token)
    assert torch.equal(plain.noisy, clean)
    assert plain.spread is None
    found = router(token, given)
    spread = torch.nn.functional.softplus(token @ router.noise) + LEAST
    assert torch.allclose(found.spread, spread)
    assert torch.allclose(found.noisy, clean + given[:, :4] * spread)
    assert torch.equal(found.clean, clean)
    assert quiet.noise is None
    assert torch.equal(quiet(token, given).noisy, token @ quiet.gate)
    assert quiet(token, given).spread is None


@pytest.mark.parametrize("active", [1, 2, 4, 6])
@pytest.mark.parametrize("noisy", [False, True])
def test_the_load_is_expected_under_noise_and_counted_without(active: int, noisy: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    clean, noise = torch.randn(7, 4, generator=draw).double(), torch.randn(7, 4, generator=draw).double()
    spread = 0.1 + torch.rand(7, 4, generator=draw).double()
    logits = Logits(clean + noise * spread if noisy else clean, clean, spread if noisy else None)
    found = smooth_load(logits, active)
    wanted = torch.zeros(4, dtype=torch.float64)
    for row in range(7):
        order = logits.noisy[row].argsort(descending=True).tolist()
        for e in range(4):
            if not noisy or active >= 4:
                wanted[e] += e in order[:active]
                continue
            rest = [o for o in order if o != e]
            bar = logits.noisy[row, rest[active - 1]]
            wanted[e] += torch.special.ndtr((clean[row, e] - bar) / spread[row, e])
    assert torch.allclose(found, wanted)
    gates = logits.scatter(*logits.top(min(active, 4)))
    parts = (gates.sum(dim=0), found)
    uneven = sum(float(p.var() / (p.mean() ** 2 + 1e-10)) for p in parts)
    for shared in (False, True):
        assert float(imbalance(logits, gates, active, shared)) == pytest.approx(uneven)
    assert float(unevenness(torch.tensor([3.0]))) == 0
    assert float(unevenness(torch.tensor([1.0, 3.0]))) == pytest.approx(2 / 4)
