"""A mixture of experts against the reference's numbers and a loop over experts: gates, an expert, a block, dispatch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import module_models as models
import numpy as np
import pytest
import torch
from expert_fixtures import SMALL, model, shaken
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch.utils._python_dispatch import TorchDispatchMode

from everclip.models.modules.base import Context
from everclip.models.modules.expert_bank import TENSORS, Bank
from everclip.models.modules.experts import experts_in
from everclip.models.modules.experts import insert as put
from everclip.models.modules.routing import (
    Pass,
    Router,
    imbalance,
    mixed_logits,
    passing,
    smooth_load,
    unevenness,
)
from everclip.models.modules.settings import ExpertsSettings

FOLDER = Path(__file__).parents[1] / "golden"
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


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


def test_of_equal_experts_the_first_are_taken_whether_a_task_is_told_or_selected() -> None:
    """A router that learned nothing yet holds them equal; rows are longer where a later task has more experts."""
    token = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    early, late = (Router(16, count, False, torch.zeros(1)) for count in (5, 9))
    late.gate.data.normal_(generator=torch.Generator().manual_seed(1))
    early.gate.data[:, 0] = 1.0
    for route, router in enumerate((early, late), start=1):
        told, selected = router(token), mixed_logits([early, late], token, torch.full((7,), route))
        for one, other in zip(told.top(3), selected.top(3), strict=True):
            assert torch.equal(one, other)
    best = early(token).top(3)[0]
    assert torch.equal(
        best, torch.where(token.sum(dim=1)[:, None] > 0, *torch.tensor([[0, 1, 2], [1, 2, 3]]))
    )


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
    # Experts start with an output of zero, so the block gives what it gave without them.
    assert torch.allclose(run(), found["out_init"], **CLOSE)
    assert torch.allclose(found["out_init"], found["out_frozen_block"], **CLOSE)
    assert not torch.allclose(found["out"], found["out_init"], atol=1e-2)
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
        assert sorted(experts.most_used(2)) == sorted(wanted.tolist())
    experts.counts = torch.zeros(22, dtype=torch.int64)
    assert experts.most_used(2) == []


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


def test_experts_that_are_added_start_as_their_number_says_and_the_others_stay() -> None:
    def numbered(e: int) -> torch.Generator:
        return torch.Generator().manual_seed(100 + e)

    settings = ExpertsSettings(count=3, active=2, width=4)
    grown, whole = Bank(8, settings, numbered, torch.zeros(1)), None
    with torch.no_grad():
        for name in TENSORS:
            grown.get_parameter(name).add_(1)
    before = {name: grown.whole(name).clone() for name in TENSORS}
    grown.freeze([1])
    grown.grow(5)
    assert (grown.count, grown.frozen, grown.free) == (5, (1,), 4)
    whole = Bank(8, settings.model_copy(update={"count": 5}), numbered, torch.zeros(1))
    assert len({tuple(row.flatten().tolist()) for row in whole.whole("down")}) == 5
    for name in TENSORS:
        assert grown.whole(name).shape == whole.whole(name).shape
        assert torch.equal(grown.whole(name)[:3], before[name])
        assert torch.equal(grown.whole(name)[3:], whole.whole(name)[3:])
    grown.grow(4)  # never fewer
    assert grown.count == 5


@pytest.mark.parametrize("shared", [True, False])
def test_samples_that_all_processes_have_are_balanced_once(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    monkeypatch.setattr(
        "everclip.models.modules.experts.imbalance",
        lambda logits, gates, active, shared: said.append(shared) or torch.zeros(()),
    )
    clip = model(count=4).train()
    experts = next(experts_in(clip))[1]
    experts.add_router("1")
    with passing({experts.side: Pass(("1",), balance=True, shared=shared)}):
        experts(torch.randn(2, 3, experts.bank.width), Pass(("1",), balance=True, shared=shared))
    assert said == [shared]
