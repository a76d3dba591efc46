"""Maps of vectors: exact where the answer is known, not worse than a simpler map, only between their two spaces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from everclip.errors import CheckpointError, ConfigError, DataError
from everclip.search import map_mlp
from everclip.search.map_choosing import (
    Kept,
    Searched,
    choose_map,
    judge,
    kept,
    measure,
    shares_kept,
)
from everclip.search.map_fitting import Pairs, fit_map
from everclip.search.map_linear import Linear, mean_cosine, ridge, rotation
from everclip.search.vector_map import KINDS, VectorMap


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_mlp, "EPOCHS", 12)
    monkeypatch.setattr(map_mlp, "WIDTH", 32)


def units(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def turned(width: int, into: int, seed: int = 9) -> torch.Tensor:
    square = torch.randn(max(width, into), max(width, into), generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(square.double()).Q[:width, :into].float()


def bent(x: torch.Tensor, seed: int = 3) -> torch.Tensor:
    """A map that no affine map follows."""
    draw = torch.Generator().manual_seed(seed)
    inside = 3 * torch.randn(x.shape[1], 12, generator=draw)
    return normalize(x + 0.6 * (x @ inside).abs() @ torch.randn(12, x.shape[1], generator=draw) / 12, dim=1)


@pytest.mark.parametrize(("width", "into"), [(12, 12), (8, 12), (12, 8)])
def test_a_known_rotation_is_recovered(width: int, into: int) -> None:
    x, turn = units(300, min(width, into)), turned(width, into)
    x = torch.nn.functional.pad(x, (0, width - x.shape[1])) if width > into else x
    turn = turn if width <= into else torch.nn.functional.pad(turned(into, into), (0, 0, 0, width - into))
    y = x @ turn
    found = fit_map(Pairs(x, y), "orthogonal")
    assert found.widths == (width, into)
    assert torch.allclose(found(x), y, atol=1e-5)
    assert found.settings["pull"] == 0


def test_orthogonal_weights_are_orthonormal_even_with_fewer_pairs_than_dimensions() -> None:
    x = units(20, 32)
    found = fit_map(Pairs(x, x @ turned(32, 32)), "orthogonal").tensors["weight"]
    assert torch.allclose(found @ found.T, torch.eye(32), atol=1e-5)


def test_without_a_penalty_the_affine_map_is_least_squares() -> None:
    x, y = units(80, 10).double(), units(80, 6, 1).double()
    found = ridge(x, y, Linear(torch.zeros(10, 6).double(), torch.zeros(6).double()), 0.0)
    twin = np.linalg.lstsq(np.hstack([x.numpy(), np.ones((80, 1))]), y.numpy(), rcond=None)[0]
    np.testing.assert_allclose(found.weight.numpy(), twin[:-1], atol=1e-10)
    np.testing.assert_allclose(found.bias.numpy(), twin[-1], atol=1e-10)


def test_the_ridge_is_the_solution_of_its_normal_equations() -> None:
    x, y, penalty = units(30, 10).double(), units(30, 6, 1).double(), 0.3
    start = Linear(turned(10, 6).double(), torch.zeros(6).double())
    found = ridge(x, y, start, penalty)
    xc, yc = (v.numpy() - v.numpy().mean(axis=0) for v in (x, y))
    gram = xc.T @ xc
    penalised = gram + penalty * np.trace(gram) / 10 * np.eye(10)
    change = np.linalg.solve(penalised, xc.T @ (yc - xc @ start.weight.numpy()))
    np.testing.assert_allclose(found.weight.numpy(), start.weight.numpy() + change, atol=1e-10)


def test_a_truncated_residual_has_its_rank_and_the_best_fit_of_that_rank() -> None:
    x, start = units(200, 16).double(), Linear(torch.eye(16).double(), torch.zeros(16).double())
    y = x + x @ (0.5 * turned(16, 16)[:, :4].double() @ turned(16, 16, 2)[:4].double())
    found = ridge(x, y, start, 0.0, rank=0.25)
    assert torch.linalg.matrix_rank(found.weight - start.weight, atol=1e-8) == 4
    assert torch.allclose(found.of(x), y, atol=1e-8)


def test_from_few_pairs_a_map_is_not_worse_than_no_map() -> None:
    x = units(400, 64)
    y = normalize(x + 0.1 * units(400, 64, 5), dim=1)
    few, rest = torch.arange(30), torch.arange(30, 400)
    same = measure(plain_map(torch.eye(64)), Pairs(x, y).select(rest)).value
    for kind in ("orthogonal", "affine"):
        assert measure(fit_map(Pairs(x, y).select(few), kind), Pairs(x, y).select(rest)).value > same - 0.02
    free = rotation(x[few].double(), y[few].double(), 0.0, False)
    assert measure(plain_map(free.weight.float()), Pairs(x, y).select(rest)).value < same - 0.2


def plain_map(weight: torch.Tensor) -> VectorMap:
    return VectorMap("affine", "source", "target", {"weight": weight, "bias": torch.zeros(weight.shape[1])})


def test_a_kernel_follows_what_an_affine_map_cannot_and_an_mlp_is_not_worse() -> None:
    x = units(500, 8)
    pairs = Pairs(x, bent(x))
    fit, test = pairs.parted(0.3, 1)
    found = {kind: measure(fit_map(pairs.select(fit), kind), pairs.select(test)) for kind in KINDS[1:]}
    assert found["kernel"].low > found["affine"].high
    assert found["mlp"].value > found["affine"].value - 0.01


def test_training_an_mlp_brings_it_nearer_to_its_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_mlp, "OUTSIDE_RATE", 1e-3)
    x = units(400, 8)
    y = bent(x)
    affine, mlp = (fit_map(Pairs(x, y), kind)(x) for kind in ("affine", "mlp"))
    assert mean_cosine(mlp, y) > mean_cosine(affine, y) + 0.005


def test_an_mlp_is_the_affine_map_where_nothing_is_left() -> None:
    x = units(200, 8)
    pairs = Pairs(x, x @ turned(8, 8))
    affine, mlp = (fit_map(pairs, kind) for kind in ("affine", "mlp"))
    assert torch.allclose(affine(x), mlp(x), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_pairs_and_seed_give_the_same_map_and_a_file_keeps_it(kind: str, tmp_path: Path) -> None:
    x = units(120, 8)
    pairs = Pairs(x, bent(x), "one", "two")
    first, again = fit_map(pairs, kind, seed=4), fit_map(pairs, kind, seed=4)
    assert all(torch.equal(first.tensors[name], again.tensors[name]) for name in first.tensors)
    first.save(tmp_path / "map.safetensors")
    loaded = VectorMap.load(tmp_path / "map.safetensors", "one", "two")
    assert torch.equal(loaded(x), first(x))
    assert (loaded.kind, loaded.settings) == (first.kind, first.settings)


def test_a_map_is_refused_between_other_spaces_and_for_other_widths(tmp_path: Path) -> None:
    x = units(40, 8)
    found = fit_map(Pairs(x, x, "one", "two"), "affine")
    found.save(tmp_path / "map")
    with pytest.raises(ConfigError, match="leads from space one to two"):
        VectorMap.load(tmp_path / "map", "one", "three")
    with pytest.raises(ConfigError, match="leads from space one to two"):
        found.require("two", "one")
    with pytest.raises(ConfigError, match="width 8"):
        found(units(3, 9))
    assert found(torch.empty(0, 8)).shape == (0, 8)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path, x = tmp_path / "map", units(40, 8)
    fit_map(Pairs(x, x), "affine").save(path)
    whole = path.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[: len(whole) // 2], b"", b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="map"):
            VectorMap.load(path)


def test_recall_kept_equals_brute_force() -> None:
    queries, old, new = units(30, 8, 1), units(50, 8, 2), units(50, 8, 3)
    found = shares_kept(Searched(queries, old), Searched(queries, new), 5)
    for query, share in zip(queries, found, strict=True):
        best = [sorted(range(50), key=lambda i, v=v, q=query: -float(v[i] @ q))[:5] for v in (old, new)]
        assert share == len(set(best[0]) & set(best[1])) / 5


def test_an_item_that_asks_is_not_its_own_answer() -> None:
    items = units(40, 8)
    own = torch.arange(40)
    rows = Searched(items, items).nearest(5, own)
    assert not (rows == own[:, None]).any()
    assert kept(Searched(items, items), Searched(items, items), 5, own=own).value == 1.0


def test_judging_passes_fails_or_cannot_tell() -> None:
    def state(value: float, half: float, queries: int = 200) -> str:
        return judge(Kept(value, value - half, value + half, 10, queries, 1000), 0.9).state

    assert state(0.95, 0.02) == "pass"
    assert state(0.8, 0.02) == "fail"
    assert state(0.91, 0.02) == "cannot tell"
    assert state(1.0, 0.0, queries=10) == "cannot tell"
    said = judge(Kept(0.91, 0.89, 0.93, 10, 200, 1000), 0.9).reason
    assert "about 600 more queries would decide" in said


@pytest.mark.parametrize("direction", ["stored", "queries"])
def test_the_best_kind_is_chosen_by_recall(direction: str) -> None:
    x, texts = units(400, 8), units(100, 8, 8)
    chosen = choose_map(
        Pairs(x, bent(x), "old", "new"), Pairs(texts, bent(texts), "old", "new"), direction, seed=2
    )
    by_kind = {one.kind: one.kept.value for one in chosen.tried}
    assert by_kind[chosen.map.kind] == max(by_kind.values())
    assert by_kind["orthogonal"] < by_kind["kernel"]
    ends = (chosen.map.source, chosen.map.target)
    assert ends == (("old", "new") if direction == "stored" else ("new", "old"))


def test_pairs_that_are_none_are_refused() -> None:
    with pytest.raises(DataError, match="as many rows"):
        Pairs(units(10, 4), units(9, 4))
    with pytest.raises(DataError, match="too few"):
        Pairs(units(3, 4), units(3, 4))
    with pytest.raises(DataError, match="not finite"):
        Pairs(units(10, 4) * float("nan"), units(10, 4))
    with pytest.raises(DataError, match="recall among the 10 nearest"):
        shares_kept(Searched(units(3, 4), units(5, 4)), Searched(units(3, 4), units(5, 4)))
