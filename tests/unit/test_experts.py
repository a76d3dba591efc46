"""A mixture of experts against the reference's numbers and a loop over experts; identity, freezing, routes."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import module_models as models
import numpy as np
import pytest
import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch.utils._python_dispatch import TorchDispatchMode

from everclip.errors import ConfigError
from everclip.models.modules import grown, insert, remove
from everclip.models.modules.base import Context
from everclip.models.modules.expert_bank import TENSORS, Bank
from everclip.models.modules.experts import Experts, experts_in
from everclip.models.modules.experts import insert as put
from everclip.models.modules.routing import Pass, Router, imbalance, passing, smooth_load, unevenness
from everclip.models.modules.settings import ExpertsSettings

FOLDER = Path(__file__).parents[1] / "golden"
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
SMALL = ExpertsSettings(count=5, active=2, width=4, dropout=0.0)


def golden(name: str) -> dict[str, torch.Tensor]:
    with np.load(FOLDER / f"{name}.npz") as found:
        return {k: torch.from_numpy(np.atleast_1d(found[k])) for k in found}


def bank(settings: ExpertsSettings = SMALL, width: int = 6, shake: bool = True) -> Bank:
    made = Bank(width, settings, lambda e: torch.Generator().manual_seed(e), torch.zeros(1))
    draw = torch.Generator().manual_seed(9)
    if shake:
        for parameter in made.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=draw))
    return made.eval()


def router_of(found: dict[str, torch.Tensor], experts: int = 5) -> Router:
    made = Router(16, experts, True, torch.zeros(1))
    made.gate.data.copy_(found["w_gate"][:, :experts])
    assert made.noise is not None
    made.noise.data.copy_(found["w_noise"][:, :experts])
    return made


def model(name: str = "vit", batch_first: bool = True, routers: tuple[str, ...] = ("0",), **more: Any) -> Any:
    clip = models.build(name, batch_first)
    insert(clip, "experts", SMALL.model_copy(update=more))
    for _, experts in experts_in(clip):
        for router in routers:
            experts.add_router(router)
    return clip


def shaken(*given: Any, **more: Any) -> Any:
    clip = model(*given, **more)
    models.shake(clip, tuple(n for n, _ in clip.named_parameters() if ".experts." in n))
    return clip


def through(clip: Any, route: Any = 1, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    names = tuple(next(experts_in(clip))[1].routers)
    with passing({"image": Pass(names, route, **more), "text": Pass(names, route, **more)}):
        return models.embeddings(clip)


# -- the reference's numbers ----------------------------------------------------------------------------------


def test_gates_are_those_of_the_reference() -> None:
    found = golden("moe_gating")
    for experts, suffix in ((5, ""), (2, "_two_experts")):
        logits = router_of(found, experts)(found["x"])
        gates = logits.scatter(*logits.top(2))
        assert torch.allclose(gates, found[f"gates_eval{suffix}"], **CLOSE)
        assert torch.equal(smooth_load(logits, 2), found[f"load_eval{suffix}"].float())
    zero = Router(16, 5, True, torch.zeros(1))(found["x"])
    gates = zero.scatter(*zero.top(2))
    assert torch.equal(gates.sort(dim=1).values[:, -2:], torch.full((7, 2), 0.5))
    assert ((gates != 0).sum(dim=1) == 2).all()


def test_noise_load_and_balance_are_those_of_the_reference() -> None:
    found = golden("moe_gating")
    logits = router_of(found)(found["x"], found["noise_normal"])
    assert logits.spread is not None
    assert torch.allclose(logits.spread, found["noise_std"], **CLOSE)
    assert torch.allclose(logits.noisy, found["noisy_logits"], **CLOSE)
    gates = logits.scatter(*logits.top(2))
    assert torch.allclose(gates, found["gates_train"], **CLOSE)
    load = smooth_load(logits, 2)
    assert torch.allclose(load, found["load_train"], **CLOSE)
    assert torch.allclose(unevenness(load), found["cv2_load"][0], **CLOSE)
    assert torch.allclose(unevenness(gates.sum(dim=0)), found["cv2_importance"][0], **CLOSE)
    both = 0.01 * imbalance(logits, gates, 2, shared=False)
    assert torch.allclose(both, found["aux_loss_unused"][0], **CLOSE)
    both.backward()  # type: ignore[no-untyped-call]


def test_one_expert_is_that_of_the_reference() -> None:
    found = golden("moe_expert")
    made = bank(ExpertsSettings(count=1, active=1), 16)
    for name, source in (("down", "down_weight"), ("down_bias",) * 2, ("up_bias",) * 2):
        made.get_parameter(name).data[0] = found[source]
    made.up.data[0] = found["up_weight"].T
    first, whole = torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1)
    for out in (made.grouped(found["x"], first, whole), made.dense(found["x"], whole)):
        assert torch.allclose(out, found["out"], **CLOSE)
    fresh = bank(ExpertsSettings(count=1, active=1), 16, shake=False)
    assert torch.equal(fresh.grouped(found["x"], first, whole), found["out_at_init"])


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_block_is_that_of_the_reference(batch_first: bool) -> None:
    found = golden("moe_block_image")
    block = ResidualAttentionBlock(32, 4, act_layer=QuickGELU, batch_first=batch_first).eval()
    names = {"ln_1": "ln1", "ln_2": "ln2", "attn.in_proj": "attn_in", "attn.out_proj": "attn_out"}
    names |= {"mlp.c_fc": "fc", "mlp.c_proj": "proj"}
    with torch.no_grad():
        for ours, theirs in names.items():
            joint = "_" if ours.endswith("in_proj") else "."
            for ending in ("weight", "bias"):
                block.get_parameter(f"{ours}{joint}{ending}").copy_(found[f"{theirs}_{ending[0]}"])
    tower: Any = SimpleNamespace(side="image", blocks=(block,), width=32, batch_first=batch_first)
    put(tower, ExpertsSettings(count=6), Context(0))
    experts: Any = block.experts
    experts.add_router("3")

    def run() -> torch.Tensor:
        x = found["x"] if batch_first else found["x"].transpose(0, 1)
        with passing({"image": told}), torch.no_grad():
            out = block(x)
        return out if batch_first else out.transpose(0, 1)

    told = Pass(("3",))
    assert torch.equal(run(), found["out_frozen_block"]) or torch.allclose(run(), found["out_init"], **CLOSE)
    with torch.no_grad():
        experts.routers["3"].gate.copy_(found["router"])
        for name in ("down_w", "down_b", "up_b"):
            source = found[f"exp_{name}"]
            experts.bank.get_parameter(name[:-2] + ("" if name.endswith("w") else "_bias")).copy_(source)
        experts.bank.up.copy_(found["exp_up_w"].transpose(1, 2))
    told = Pass(("3",))
    assert torch.allclose(run(), found["out"], **CLOSE)
    counted = (told.chosen[0][..., None] == torch.arange(6)).sum(dim=(0, 1))
    assert torch.equal(counted.float(), found["expert_counts"])
    logits = experts.routers["3"](found["router_token"])
    assert torch.allclose(logits.scatter(*logits.top(2)), found["gates"], **CLOSE)


def test_the_experts_that_freeze_are_those_of_the_reference() -> None:
    found = golden("moe_freeze_selection")
    clip = model(count=22)
    experts = next(experts_in(clip))[1]
    for counts, wanted in zip(found["counts"], found["frozen_indices"], strict=True):
        experts.counts = counts.long()
        assert sorted(experts.most_taken(2)) == sorted(wanted.tolist())
    experts.counts = torch.zeros(22, dtype=torch.int64)
    assert experts.most_taken(2) == []


# -- dispatch -------------------------------------------------------------------------------------------------


def looped(made: Bank, tokens: torch.Tensor, chosen: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """One sample and one expert at a time."""
    out = torch.zeros_like(tokens)
    down, down_bias, up, up_bias = (made.whole(name) for name in TENSORS)
    for n in range(len(tokens)):
        for e, g in zip(chosen[n].tolist(), gates[n], strict=True):
            hidden = torch.relu(tokens[n] @ down[e].T + down_bias[e])
            out[n] += g * 0.1 * (hidden @ up[e] + up_bias[e])
    return out


@pytest.mark.parametrize("frozen", [(), (1, 3), (0, 1, 2, 3, 4)])
def test_grouped_dense_and_a_loop_agree(frozen: tuple[int, ...]) -> None:
    made = bank()
    before = {name: made.whole(name) for name in TENSORS}
    made.freeze(frozen)
    assert all(torch.equal(made.whole(name), before[name]) for name in TENSORS)
    assert made.free == 5 - len(frozen)
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randn(7, 3, 6, generator=draw)
    gates, chosen = torch.rand(7, 5, generator=draw).topk(2, dim=1)
    spread = torch.zeros(7, 5).scatter(1, chosen, gates)
    wanted = looped(made, tokens, chosen, gates)
    assert torch.allclose(made.grouped(tokens, chosen, gates), wanted, atol=1e-5)
    assert torch.allclose(made.dense(tokens, spread), wanted, atol=1e-5)
    same = made.grouped(tokens, chosen[:1], gates[:1])
    assert torch.allclose(
        same, looped(made, tokens, chosen[:1].expand(7, 2), gates[:1].expand(7, 2)), atol=1e-5
    )


@pytest.mark.parametrize("frozen", [(), (1, 3)])
def test_gradients_agree_and_are_zero_not_missing_for_experts_that_nobody_took(
    frozen: tuple[int, ...],
) -> None:
    chosen = torch.tensor([[0, 1], [1, 4], [3, 0]])
    tokens = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(2))
    found = []
    for dense in (False, True):
        made, gates = bank(), torch.tensor([[0.3, 0.7], [0.6, 0.4], [0.5, 0.5]], requires_grad=True)
        made.freeze(frozen)
        spread = torch.zeros(3, 5).scatter(1, chosen, gates)
        out = made.dense(tokens, spread) if dense else made.grouped(tokens, chosen, gates)
        out.square().sum().backward()  # type: ignore[no-untyped-call]
        found.append([*(made.get_parameter(name).grad for name in TENSORS), gates.grad])
    for one, two in zip(*found, strict=True):
        assert one is not None
        assert torch.allclose(one, two, atol=1e-5)
    live = [e for e in range(5) if e not in frozen]
    for grad in found[0][:4]:
        unused = live.index(2)
        assert not grad[unused].any()
        assert all(grad[i].any() for i in range(len(live)) if i != unused)


def test_experts_that_are_added_leave_the_others_as_they_were() -> None:
    made = bank()
    made.freeze([4])
    before = {name: made.whole(name) for name in TENSORS}
    made.grow(7)
    assert (made.count, made.free, made.frozen) == (7, 6, (4,))
    assert all(torch.equal(made.whole(name)[:5], before[name]) for name in TENSORS)
    assert not made.whole("up")[5:].any()
    assert made.whole("down")[5:].any()
    twin = bank()
    twin.reshape(7, [4])
    twin.load_state_dict(made.state_dict())
    assert all(torch.equal(twin.whole(name), made.whole(name)) for name in TENSORS)


class Waits(TorchDispatchMode):
    """Notes the operations for which a host waits for its device."""

    NAMES = (
        "_local_scalar_dense",
        "item",
        "nonzero",
        "masked_select",
        "is_nonzero",
        "unique",
        "bincount",
        "equal",
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name.startswith("index") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool
            for a in args
            if isinstance(a, list | tuple)
            for i in a
        )
        if name in self.NAMES or masked:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_a_device() -> None:
    clip = shaken(routers=("0", "1")).train()
    for _, experts in experts_in(clip):
        experts.bank.freeze([1])
    pixels, ids = models.inputs(clip)
    draws = torch.randn(5, 2, 5)
    with Waits() as waits:
        noisy = {
            "image": Pass(("1",), noise=draws, balance=True),
            "text": Pass(("1",), noise=draws, shared=True),
        }
        with passing(noisy):
            loss = clip.encode_image(pixels).sum() + clip.encode_text(ids).sum()
        loss = loss + torch.stack(noisy["image"].imbalances).sum()
        loss.backward()
        clip.eval()
        with passing({"image": Pass(("0", "1"), decide=lambda tokens: (tokens[:, 0, 0] > 0).long())}):
            clip.encode_image(pixels)
    own = [name for name in waits.found if name not in _plain_waits(clip, pixels, ids)]
    assert own == []
    with Waits() as waits:  # or the mode sees nothing
        torch.ones(2).sum().item()
    assert waits.found


def _plain_waits(clip: Any, pixels: torch.Tensor, ids: torch.Tensor) -> list[str]:
    with Waits() as waits, torch.no_grad():
        clip.encode_image(pixels)
        clip.encode_text(ids)
    return waits.found


def test_sums_are_kept_in_float32_under_autocast() -> None:
    made = bank()
    tokens = torch.randn(3, 4, 6)
    gates, chosen = torch.rand(3, 5).topk(2, dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        out = made.grouped(tokens, chosen, gates)
    assert out.dtype == torch.float32
    assert torch.allclose(out, looped(made, tokens, chosen, gates), atol=0.05)


# -- in a model -----------------------------------------------------------------------------------------------


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
    with pytest.raises(ConfigError, match="two `experts` in the image tower"):
        insert(clip, "experts", SMALL)
    with pytest.raises(ConfigError, match=r"image tower.*no transformer of"):
        insert(models.build("resnet"), "experts", SMALL)
    assert sum(isinstance(m, Experts) for m in clip.modules()) == 4
