"""RAIL against the paper's numbers, and the arithmetic by itself: expansions, widths, probabilities."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rail_fixtures import (
    apart,
    feed,
    unit,
)

from everclip.methods.rail.base import Ridge
from everclip.methods.rail.dual import Dual
from everclip.methods.rail.expand import Expansion
from everclip.methods.rail.fuse import as_cosines, fuse
from everclip.methods.rail.primal import Recursive, Sums
from everclip.methods.rail.settings import RailSettings

GOLDEN = Path(__file__).parents[1] / "golden" / "rail.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    """The reference's numbers."""
    with np.load(GOLDEN) as found:
        return {k: torch.from_numpy(np.atleast_1d(found[k])) for k in found}


def golden_head(golden: dict[str, torch.Tensor], kind: type[Sums] | type[Recursive]) -> Ridge:
    expansion = Expansion("relu", 6, 20, 0.1, seed=0)
    expansion.matrix.copy_(golden["proj_w"])
    return kind(expansion, 20, float(golden["ridge"]))


def test_recursion_is_the_references(golden: dict[str, torch.Tensor]) -> None:
    head, size = golden_head(golden, Recursive), int(golden["batch"])
    assert isinstance(head, Recursive)
    head.widen(3)
    feed(head, unit(golden["x_task0"]), golden["y_task0"], size)
    assert torch.allclose(head.inverse.float(), golden["R_task0"], atol=1e-4, rtol=1e-4)
    assert torch.allclose(head.weights.float(), golden["W_task0"], atol=1e-5, rtol=1e-4)
    head.widen(5)
    feed(head, unit(golden["x_task1"]), golden["y_task1"] + 3, size)
    assert torch.allclose(head.inverse.float(), golden["R_task1"], atol=1e-4, rtol=1e-4)
    assert torch.allclose(head.weights.float(), golden["W_task1"], atol=1e-5, rtol=1e-4)
    assert torch.allclose(head.weights, golden["W_joint"], atol=1e-5)


def test_sums_are_the_references_joint_solution(golden: dict[str, torch.Tensor]) -> None:
    head = golden_head(golden, Sums)
    head.widen(5)
    feed(head, unit(golden["x_task0"]), golden["y_task0"], 7)
    feed(head, unit(golden["x_task1"]), golden["y_task1"] + 3, 50)
    assert torch.allclose(head.weights, golden["W_joint"], atol=1e-5)


def test_dual_predicts_as_the_reference(golden: dict[str, torch.Tensor]) -> None:
    head = Dual(6, 0, float(golden["krr_lambda"]), float(golden["krr_gamma"]), 100)
    head.widen(3)
    feed(head, unit(golden["x_task0"]), golden["y_task0"], 10)
    head.widen(5)
    feed(head, unit(golden["x_task1"]), golden["y_task1"] + 3, 10)
    found = head.outputs(unit(golden["x_query"]), torch.arange(5))
    # The reference solves in single precision, with 54 samples and a ridge of 0.001.
    assert torch.allclose(found, golden["krr_pred"].double(), atol=2e-4)


def test_fusion_is_the_references(golden: dict[str, torch.Tensor]) -> None:
    share, seen = float(golden["fusion"]), int(golden["num_seen"])
    probabilities = golden["zero_shot_prob"]
    outputs = torch.zeros_like(probabilities)
    outputs[:, :seen] = golden["krr_pred"]
    learned = torch.arange(7) < seen
    found = fuse(probabilities, outputs, learned, share)
    alone = probabilities.argmax(dim=1) >= seen
    assert 0 < int(alone.sum()) < len(alone)
    assert torch.equal(found[alone], probabilities[alone])
    assert torch.allclose(found, golden["fused"], atol=1e-6)


def test_fourier_features_come_near_the_kernel() -> None:
    draw = torch.Generator().manual_seed(0)
    x = unit(torch.randn(40, 16, generator=draw))
    kernel = torch.exp(-0.5 * torch.cdist(x.double(), x.double()) ** 2)
    errors = []
    for width in (64, 4096):
        phi = Expansion("fourier", 16, width, 0.5, seed=0)(x)
        errors.append(float((phi @ phi.T - kernel).abs().max()))
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.08


def test_the_width_follows_the_data_and_the_ridge_the_width() -> None:
    settings = RailSettings()
    assert [settings.width(n, 512) for n in (1, 128, 129, 1600, 10**6)] == [256, 256, 512, 4096, 8192]
    assert RailSettings(expansion="none").width(1600, 512) == 512
    assert RailSettings(dimension=15000).penalty(15000) == 0.1
    # The same kernel machine at every width: outputs hardly change with it, which a fixed ridge would make them do.
    draw = torch.Generator().manual_seed(0)
    x, labels = unit(torch.randn(60, 16, generator=draw)), torch.arange(60) % 3
    found = {}
    for width in (300, 1200):
        for scaled in (True, False):
            ridge = settings.penalty(width) if scaled else 0.1
            head = Sums(Expansion("relu", 16, width, 0.1, seed=1), width, ridge)
            head.widen(3)
            feed(head, x, labels, 60)
            found[width, scaled] = head.outputs(x, torch.arange(3))
    assert apart(found[300, True], found[1200, True]) < apart(found[300, False], found[1200, False]) / 2


def test_cosines_come_back_from_their_own_probabilities() -> None:
    cosines = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)).double() / 5
    for scale in (14.3, 100.0):
        # What is hardly possible at all is only kept in order.
        found = as_cosines(torch.softmax(scale * cosines, dim=1), cosines, scale)
        likely = torch.softmax(scale * cosines, dim=1) > 1e-3
        assert torch.allclose(found[likely], cosines[likely], atol=1e-5)
    wild = torch.tensor([[-0.4, -0.1, 0.0, 1e-9, 0.3, 1.2]]).double()
    found = as_cosines(wild, torch.zeros(1, 6), 100.0).float()
    assert (found.diff(dim=1) > 0).all()
    assert (found.abs() <= 1.01).all()


SOLVE = """
import sys, torch
from everclip.methods.rail.dual import Dual
torch.set_num_threads(1)

def peak():
    return next(int(x.split()[1]) << 10 for x in open("/proc/self/status") if x.startswith("VmHWM"))

def extra(n):
    head = Dual(8, n, 0.1, 0.1, n)
    head.samples = torch.nn.functional.normalize(torch.randn(n, 8), dim=1)
    head.widen(2)
    before = peak()
    head.solve()
    return (peak() - before) / n**2

extra(100)
print(extra(1600))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peaks are read from Linux")
def test_solving_the_dual_takes_the_bytes_that_its_refusal_says() -> None:
    done = subprocess.run([sys.executable, "-c", SOLVE], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 11  # 8 n^2, and what does not grow with the square


def test_solving_leaves_the_sums_as_they_are() -> None:
    head = Sums(Expansion("none", 6, 6, 0.1, 0), 6, 0.1)
    head.widen(3)
    x = unit(torch.randn(20, 6, generator=torch.Generator().manual_seed(0)))
    head.add(x, torch.arange(20) % 3)
    sums = head.gram.clone()
    head.solve()
    first = head.weights.clone()
    head.solve()
    assert torch.equal(head.gram, sums)
    assert torch.equal(head.weights, first)
    left = (sums + 0.1 * torch.eye(6, dtype=torch.float64)) @ first
    assert torch.allclose(left, head.targets, rtol=0, atol=1e-12)


def test_an_expansion_follows_the_matrix_that_is_loaded_into_it() -> None:
    one, two = (Expansion("relu", 4, 8, 0.1, seed) for seed in (0, 1))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(one(x), two(x))
    assert one.state_dict().keys() == {"matrix"}
    one.load_state_dict(two.state_dict())
    assert torch.equal(one(x), two(x))
    assert torch.equal(one.to(torch.float64)(x), two(x))
