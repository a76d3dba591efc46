"""Row scales inside the optimiser against stored numbers of CLL-CLIP's AdamW, and what must hold of any optimiser."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from everclip.config import TrainingConfig
from everclip.contracts import ParamGroup, Phase, RowScale
from everclip.errors import ConfigError
from everclip.training.optim import build_optimiser, load_optimiser, optimiser_tensors, set_rate

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    with np.load(HERE / "cll_teir_adamw.npz", allow_pickle=False) as file:
        return dict(file)


class Rows(nn.Module):
    def __init__(self, start: Any, scale: Any) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(start))
        self.register_buffer("factors", torch.tensor(scale))


def trajectory(
    stored: dict[str, Any], on: set[str] | None, kind: str = "adamw", scale: Any = None, repeats: int = 1
) -> torch.Tensor:
    module = Rows(stored["p0"], stored["scale"] if scale is None else scale)
    row_scale = None if on is None else RowScale("factors", frozenset(on))  # type: ignore[arg-type]
    phase = Phase("rows", {}, (ParamGroup(("table",), row_scale=row_scale),))
    betas = tuple(float(b) for b in stored["betas"])
    config = TrainingConfig(
        epochs=1,
        optimiser=kind,
        betas=betas,
        eps=float(stored["eps"]),
        weight_decay=float(stored["weight_decay"]),
    )
    optimiser = build_optimiser(module, phase, config)
    set_rate(optimiser, float(stored["lr"]))
    found = []
    for gradient in [*stored["grads"]] * repeats:
        module.table.grad = torch.tensor(gradient)
        optimiser.step()
        found.append(module.table.detach().clone())
    return torch.stack(found)


@pytest.mark.parametrize(
    ("key", "on"),
    [
        ("traj_none", None),
        ("traj_grad", {"gradient"}),
        ("traj_decay", {"decay"}),
        ("traj_grad_decay", {"gradient", "decay"}),
    ],
)
def test_the_trajectories_of_teir(stored: dict[str, Any], key: str, on: set[str] | None) -> None:
    assert torch.allclose(trajectory(stored, on), torch.tensor(stored[key]), atol=1e-7, rtol=0)


@pytest.mark.parametrize("on", [{"gradient"}, {"decay"}, {"gradient", "decay"}, {"update", "decay"}])
def test_a_factor_of_one_is_plain_adamw(stored: dict[str, Any], on: set[str]) -> None:
    ones = np.ones_like(stored["scale"])
    plain = torch.tensor(stored["traj_torch_adamw"])
    assert torch.allclose(trajectory(stored, on, scale=ones), plain, atol=1e-7, rtol=0)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("on", [{"gradient", "decay"}, {"update", "decay"}])
def test_a_row_with_factor_0_keeps_its_bits(stored: dict[str, Any], on: set[str], kind: str) -> None:
    end = trajectory(stored, on, kind, repeats=34)[-1]
    start, scale = torch.tensor(stored["p0"]), stored["scale"][:, 0]
    assert torch.equal(end[scale == 0], start[scale == 0])
    assert not torch.isclose(end[scale > 0], start[scale > 0]).any()


def test_with_scaled_gradients_alone_such_a_row_decays(stored: dict[str, Any]) -> None:
    end = trajectory(stored, {"gradient"}, repeats=34)
    rows = stored["scale"][:, 0] == 0
    shrunk = (1 - float(stored["lr"]) * float(stored["weight_decay"])) ** len(end)
    assert torch.allclose(end[-1][rows], torch.tensor(stored["p0"])[rows] * shrunk, rtol=1e-5)


def test_a_constant_factor_hardly_changes_adam_but_scales_its_update(stored: dict[str, Any]) -> None:
    plain, on_gradient = trajectory(stored, None), trajectory(stored, {"gradient"})
    on_update = trajectory(stored, {"update"})
    half = stored["scale"][:, 0] == 0.5
    start = torch.tensor(stored["p0"])[half]
    assert float((on_gradient - plain)[:, half].abs().max()) < 1e-5
    decayed = start * (1 - float(stored["lr"]) * float(stored["weight_decay"]))
    first = plain[0][half] - decayed
    assert torch.allclose(on_update[0][half], decayed + 0.5 * first, atol=1e-6)


def test_sgd_scales_gradient_and_decay(stored: dict[str, Any]) -> None:
    scaled = trajectory(stored, {"gradient", "decay"}, "sgd")[0]
    rate, decay = float(stored["lr"]), float(stored["weight_decay"])
    start, gradient = torch.tensor(stored["p0"]), torch.tensor(stored["grads"][0])
    expected = start - rate * torch.tensor(stored["scale"]) * (gradient + decay * start)
    assert torch.allclose(scaled, expected, atol=1e-7)


def test_the_state_of_a_scaled_group_is_stored_and_restored(stored: dict[str, Any]) -> None:
    module = Rows(stored["p0"], stored["scale"])
    scale = RowScale("factors", frozenset({"update"}))
    phase = Phase("rows", {}, (ParamGroup(("table",), row_scale=scale),))
    config = TrainingConfig(epochs=1, weight_decay=0.05)
    ends = []
    for stop in (None, 1):
        module.table.data.copy_(torch.tensor(stored["p0"]))
        optimiser = build_optimiser(module, phase, config)
        for step, gradient in enumerate(stored["grads"]):
            if step == stop:
                kept = {k: v.clone() for k, v in optimiser_tensors(optimiser).items()}
                assert set(kept) == {"table|step", "table|exp_avg", "table|exp_avg_sq"}
                optimiser = build_optimiser(module, phase, config)
                load_optimiser(optimiser, kept)
            module.table.grad = torch.tensor(gradient)
            set_rate(optimiser, 0.01)
            optimiser.step()
        ends.append(module.table.detach().clone())
    assert torch.equal(*ends)


def test_factors_must_fit_the_rows(stored: dict[str, Any]) -> None:
    module = Rows(stored["p0"], stored["scale"][:3])
    scale = RowScale("factors", frozenset({"decay"}))
    phase = Phase("rows", {}, (ParamGroup(("table",), row_scale=scale),))
    with pytest.raises(ConfigError, match=r"phase 'rows': 3 factors for the 8 rows of 'table'"):
        build_optimiser(module, phase, TrainingConfig(epochs=1))
