"""Experts inside a model: identity at the start, a route per sample, threads, and what does not fit."""

from __future__ import annotations

import copy
import threading
from typing import Any

import module_models as models
import pytest
import torch
from expert_fixtures import SMALL, model, shaken, through

from everclip.errors import ConfigError
from everclip.models.modules import grown, insert, remove
from everclip.models.modules.experts import Experts, experts_in
from everclip.models.modules.routing import Pass, passing
from everclip.models.modules.settings import ExpertsSettings


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", models.CASES)
def test_identity_at_the_start_and_out_without_a_trace(name: str, batch_first: bool) -> None:
    if name == "custom blocks" and not batch_first:
        pytest.skip("open_clip's custom blocks are always batch first")
    plain = models.build(name, batch_first)
    before, weights = models.embeddings(plain), models.state(plain)
    clip = model(name, batch_first)
    for training in (False, True):
        clip.train(training)
        wanted = models.embeddings(plain.train(training))  # attention has another kernel in each mode
        for route in (0, 1, torch.tensor([0, 1, 1, 0, 1])) if not training else (0, 1):
            assert models.same(through(clip, route), wanted)
    clip = shaken(name, batch_first)
    assert models.same(models.embeddings(clip), before)  # nobody told the experts to act
    assert models.same(through(clip, 0), before)
    for one, two in zip(through(clip), before, strict=True):
        assert (one - two).abs().amax(dim=1).min() > 1e-3
    remove(clip)
    assert grown(clip) == {}
    assert models.same(models.embeddings(clip), before)
    assert models.state(clip).keys() == weights.keys()


@pytest.mark.parametrize("name", ["vit", "custom text, no mask, last"])
def test_each_sample_goes_its_own_way_whatever_else_is_in_the_batch(name: str) -> None:
    clip = shaken(name, routers=("0", "1"))
    pixels, _ = models.inputs(clip)
    uniform = [through(clip, r)[0] for r in (0, 1, 2)]
    route = torch.tensor([2, 0, 1, 1, 0])
    mixed, _ = through(clip, route)
    for n, r in enumerate(route.tolist()):
        assert torch.allclose(mixed[n], uniform[r][n], atol=1e-6)
    assert torch.equal(mixed[route == 0], uniform[0][route == 0])
    names = ("0", "1")
    with passing({"image": Pass(names, route[2:3])}), torch.no_grad():
        assert torch.allclose(clip.encode_image(pixels[2:3]), mixed[2:3], atol=1e-6)


def test_routes_may_be_decided_from_the_tokens_that_enter_the_first_block() -> None:
    clip = shaken(routers=("0", "1"))
    seen = []

    def decide(tokens: torch.Tensor) -> torch.Tensor:
        seen.append(tokens.shape)
        return torch.tensor([2, 0, 1, 1, 0])

    told = Pass(("0", "1"), decide=decide)
    with passing({"image": told}), torch.no_grad():
        found = clip.encode_image(models.inputs(clip)[0])
    assert torch.equal(found, through(clip, torch.tensor([2, 0, 1, 1, 0]))[0])
    assert seen == [(5, 5, 32)]
    chosen = torch.stack(told.chosen, dim=1)
    assert chosen.shape == (5, 2, 2)
    assert ((chosen == -1).all(dim=(1, 2)) == torch.tensor([False, True, False, False, True])).all()


def test_a_router_never_takes_experts_that_came_after_it() -> None:
    clip = shaken()
    before = through(clip)
    for _, experts in experts_in(clip):
        experts.bank.grow(9)
        experts.add_router("1")
        experts.routers["1"].gate.data.normal_(generator=torch.Generator().manual_seed(1))
    names = ("0", "1")
    with passing({"image": Pass(names, torch.ones(5, dtype=torch.int64))}), torch.no_grad():
        assert torch.allclose(clip.encode_image(models.inputs(clip)[0]), before[0], atol=1e-6)
    assert models.same(through(clip), before)


@pytest.mark.parametrize("name", ["vit", "custom text", "custom text, eos", "custom text, class token"])
def test_texts_of_a_causal_tower_share_one_gate(name: str) -> None:
    clip = shaken(name)
    _, ids = models.inputs(clip)
    every, one = Pass(("0",)), Pass(("0",), same=True)
    with torch.no_grad():
        with passing({"text": every}):
            texts = clip.encode_text(ids)
        with passing({"text": one}):
            assert torch.allclose(clip.encode_text(ids), texts, atol=1e-6)
    for chosen in every.chosen:
        assert (chosen == chosen[0]).all()
    assert all(torch.equal(a, b) for a, b in zip(every.chosen, one.chosen, strict=True))


def test_two_threads_and_a_copy_do_not_meet() -> None:
    clip = shaken(routers=("0", "1"))
    twin = copy.deepcopy(clip)
    pixels, _ = models.inputs(clip)
    wanted = [through(clip, r)[0] for r in (1, 2)]
    found: dict[int, list[torch.Tensor]] = {1: [], 2: []}

    def work(route: int) -> None:
        for _ in range(10):
            with passing({"image": Pass(("0", "1"), route)}), torch.no_grad():
                found[route].append(clip.encode_image(pixels))

    threads = [threading.Thread(target=work, args=(route,)) for route in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for route in (1, 2):
        assert all(torch.equal(f, wanted[route - 1]) for f in found[route])
    for _, experts in experts_in(clip):
        experts.bank.up.data.zero_()
        experts.bank.up_bias.data.zero_()
    assert torch.equal(through(twin, 2)[0], wanted[1])
    remove(clip)
    assert torch.equal(through(twin, 2)[0], wanted[1])


def test_what_experts_read_may_be_normed() -> None:
    raw, normed = (shaken(input=kind) for kind in ("raw", "normed"))
    block = normed.visual.transformer.resblocks[1]
    seen: dict[str, torch.Tensor] = {}
    block.ln_2.register_forward_hook(lambda m, i, o: seen.update(normed=o))
    inner = block.experts.bank.grouped
    block.experts.bank.grouped = lambda tokens, *rest: seen.update(given=tokens) or inner(tokens, *rest)
    assert not torch.allclose(through(raw)[0], through(normed)[0], atol=1e-3)
    assert torch.equal(seen["given"], seen["normed"])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="`active` experts of 1"):
        ExpertsSettings(count=1, active=2)
    clip = model()
    with pytest.raises(ConfigError, match="two entries `experts` for the image tower"):
        insert(clip, "experts", SMALL)
    with pytest.raises(ConfigError, match=r"image tower.*not open_clip's own transformer"):
        insert(models.build("resnet"), "experts", SMALL)
    assert sum(isinstance(m, Experts) for m in clip.modules()) == 4


def test_what_is_counted_in_training_is_what_evaluation_collects() -> None:
    clip = shaken(routers=("0",))
    for training in (False, True):
        clip.train(training)
        for _, experts in experts_in(clip):
            experts.reset_counts()
            experts.new_counts = None
        passes: dict[Any, Pass] = {side: Pass(("0",), 1) for side in ("image", "text")}
        with passing(passes):
            models.embeddings(clip)
        if not training:
            chosen = {side: list(told.chosen) for side, told in passes.items()}
            assert all(experts.new_counts is None for _, experts in experts_in(clip))
            continue
        for side in ("image", "text"):
            blocks = [experts for _, experts in experts_in(clip, side)]
            assert len(blocks) == len(chosen[side]) == 2
            assert passes[side].chosen == []
            for experts, taken in zip(blocks, chosen[side], strict=True):
                assert taken.shape == (5, 2)
                assert experts.new_counts is not None
                assert experts.new_counts.tolist() == torch.bincount(taken.flatten(), minlength=5).tolist()
        counted = [experts.new_counts for _, experts in experts_in(clip)]
        for counts, times in ((False, 1), (True, 2)):
            with passing({side: Pass(("0",), 1, counts=counts) for side in passes}):
                models.embeddings(clip)
            for (_, experts), once in zip(experts_in(clip), counted, strict=True):
                assert once is not None
                assert experts.new_counts is not None
                assert torch.equal(experts.new_counts, times * once)
