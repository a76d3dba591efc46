"""Representation metrics against direct formulas, invariances and degenerate input."""

import inspect
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from everclip.config import EvaluationConfig
from everclip.evaluation import disorder
from everclip.evaluation import representation as p


@pytest.fixture(autouse=True)
def strict() -> None:
    warnings.simplefilter("error")  # what is not announced by `pytest.warns` must not warn


def cloud(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.linspace(1, 3, d) + 1


def orthogonal(d: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(7)))[0]


def unit(x: torch.Tensor) -> np.ndarray:
    rows = x.double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def direct_unbiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    n, ones = len(x), np.ones(len(x))

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        middle = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        return float((np.trace(k @ m) + middle - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3)))

    k, m = (x @ x.T, y @ y.T)
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize("n", [4, 50])
def test_unbiased_cka_needs_no_gram_matrix(n: int) -> None:
    x, y = cloud(n, 6), cloud(n, 9, seed=1)
    assert p.unbiased_cka(x, y) == pytest.approx(direct_unbiased_cka(unit(x), unit(y)), abs=1e-10)


def test_unbiased_cka_is_unbiased() -> None:
    """Unrelated spaces with N = D: the biased form gives about 0.5, the unbiased one about 0."""
    x, y = (torch.randn(200, 200, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    biased, unbiased = p.linear_cka(x, y), p.unbiased_cka(x, y)
    assert biased is not None
    assert unbiased is not None
    assert biased > 0.4
    assert abs(unbiased) < 0.05


def test_identity() -> None:
    x, y = cloud(60, 8), cloud(60, 8, seed=1)
    values = p.measure(x, y, (x, y), (x, y))
    for since in ("", "_since_last"):
        for side in ("image", "text"):
            assert values[f"{side}_rotation{since}_deg"] == 0
            assert values[f"{side}_self_angle_change{since}_deg"] == 0
        assert values[f"pair_angle_change{since}_deg"] == 0
        assert values[f"procrustes_deviation{since}"] == pytest.approx(0, abs=1e-9)
    for side in ("image", "text"):
        for name in ("cka", "cka_unbiased", "rsa_pearson", "rsa_spearman"):
            assert values[f"{side}_{name}"] == pytest.approx(1, abs=1e-12)
    assert p.modality_gap(x, x) == 0
    assert p.alignment(x, x) == 0


def test_a_common_rotation_moves_rows_and_nothing_else() -> None:
    x, y = cloud(60, 8).double(), cloud(60, 8, seed=1).double()
    turn = orthogonal(8).double()
    before, after = p.measure(x, y, (x, y)), p.measure(x @ turn, y @ turn, (x, y))
    moved = {"image_rotation_deg", "text_rotation_deg"}
    for name in before.keys() - moved:
        assert after[name] == pytest.approx(before[name], abs=1e-5), name
    assert all((after[name] or 0) > 1 for name in moved)


def test_the_norm_of_rows_does_not_matter() -> None:
    x, y = cloud(40, 5), cloud(40, 5, seed=1)
    factor = torch.linspace(0.1, 100, 40)[:, None]
    assert p.measure(x * factor, y, (y, x)) == pytest.approx(p.measure(x, y, (y, x * factor)), abs=1e-5)


@pytest.mark.parametrize("degrees", [0.0, 1e-5, 30.0, 90.0, 180.0])
def test_rotation_angles_are_exact_at_both_ends(degrees: float) -> None:
    angle = math.radians(degrees)
    before = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    after = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    angles = p.rotation_angles(before, 5 * after)
    assert angles is not None
    assert float(angles) == pytest.approx(degrees, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_pairwise_metrics_in_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p, "_BLOCK", block)
    x, y = cloud(30, 5), cloud(30, 5, seed=1)
    upper = np.triu_indices(30, k=1)
    a, b = ((unit(z) @ unit(z).T)[upper] for z in (x, y))
    assert p.uniformity(x) == pytest.approx(math.log(np.exp(-2 * (2 - 2 * a)).mean()))
    assert p.rsa_pearson(x, y) == pytest.approx(np.corrcoef(a, b)[0, 1])
    ranks = [np.argsort(np.argsort(z)) for z in (a, b)]
    assert p.rsa_spearman(x, y) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    change = p.self_angle_change(x, y)
    assert change is not None
    assert p.mean_self_angle_change(x, y) == pytest.approx(float(change.numpy()[upper].mean()))


def test_spearman_gives_ties_their_mean_rank() -> None:
    values = torch.tensor([3.0, 1.0, 3.0, 3.0, 2.0]).double()
    assert p.mean_ranks(values).tolist() == [4, 1, 4, 4, 2]


def test_effective_dimensions_of_a_known_spectrum() -> None:
    # +-e_i: centred already, singular values sqrt(2) each.
    cross = torch.cat([torch.eye(5), -torch.eye(5)])
    assert p.effective_rank(cross) == pytest.approx(5)
    assert p.participation_ratio(cross) == pytest.approx(5)
    line = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
    assert p.effective_rank(line) == pytest.approx(1)
    assert p.participation_ratio(line) == pytest.approx(1)


def test_alpha_and_t() -> None:
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert p.alignment(x, y, alpha=1) == pytest.approx(math.sqrt(2))
    assert p.uniformity(torch.eye(2), t=3) == pytest.approx(-6)


def test_subsamples_are_seeded_and_recorded() -> None:
    rows = p.probe_rows(1000, 50, seed=3)
    assert len(rows) == len(set(rows.tolist())) == 50
    assert rows.tolist() == sorted(rows.tolist()) == p.probe_rows(1000, 50, seed=3).tolist()
    assert rows.tolist() != p.probe_rows(1000, 50, seed=4).tolist()
    assert p.probe_rows(40, 50, seed=3).tolist() == list(range(40))
    x = cloud(300, 6)
    assert p.uniformity(x, sample=50, seed=3) == p.uniformity(x[p.probe_rows(300, 50, 3)])
    assert p.measure(x, x, sample=50)["pairwise_rows"] == 50
    assert p.measure(x, x, sample=None)["pairwise_rows"] == p.measure(x, x)["rows"] == 300


def test_names_are_stable() -> None:
    x = cloud(20, 4)
    without, with_start = p.measure(x, x), p.measure(x, x, (x, x), (x, x))
    assert without.keys() == with_start.keys()
    assert all(value is not None for value in with_start.values())
    assert without["image_rotation_deg"] is None


def test_spaces_of_different_width_can_be_compared() -> None:
    x, y = cloud(20, 4), cloud(20, 7)
    assert p.linear_cka(x, y) == pytest.approx(p.linear_cka(y, x))
    with pytest.raises(ValueError, match="rows must match"):
        p.rotation_angles(x, y)


def test_identical_rows() -> None:
    same, other = torch.full((20, 33), 0.37), cloud(20, 33)
    assert p.uniformity(same) == pytest.approx(0, abs=1e-12)
    for metric in (p.effective_rank, p.participation_ratio):
        with pytest.warns(RuntimeWarning, match="all rows are the same"):
            assert metric(same) is None
    for compare in (p.linear_cka, p.unbiased_cka, p.rsa_pearson, p.rsa_spearman):
        with pytest.warns(RuntimeWarning, match="the same"):
            assert compare(same, other) is None
        with pytest.warns(RuntimeWarning, match="the same"):
            assert compare(other, same) is None


def test_zero_rows_and_too_few_rows() -> None:
    zero = cloud(10, 4)
    zero[3] = 0
    with pytest.warns(RuntimeWarning, match="row 3 is zero"):
        assert p.modality_gap(cloud(10, 4), zero) is None
    with pytest.warns(RuntimeWarning, match="1 rows, at least 2"):
        assert p.uniformity(cloud(1, 4)) is None
    with pytest.warns(RuntimeWarning, match="3 rows, at least 4"):
        assert p.unbiased_cka(cloud(3, 4), cloud(3, 4)) is None
    with pytest.warns(RuntimeWarning, match="2 rows, at least 3"):
        assert p.rsa_pearson(cloud(2, 4), cloud(2, 4)) is None
    with pytest.warns(RuntimeWarning, match="0 rows"):
        assert p.rotation_angles(cloud(0, 4), cloud(0, 4)) is None
    with pytest.warns(RuntimeWarning, match="underflows"):
        assert p.uniformity(torch.eye(3), t=1e6) is None


def test_a_run_of_degenerate_features_still_gives_a_row() -> None:
    same = torch.ones(5, 3)
    with pytest.warns(RuntimeWarning):
        values = p.measure(same, same, (same, same))
    assert all(value is None or math.isfinite(value) for value in values.values())
    assert values["image_rotation_deg"] == 0


def test_non_finite_features_are_refused() -> None:
    broken = cloud(5, 3)
    broken[2, 1] = math.nan
    with pytest.raises(ValueError, match="row 2"):
        p.measure(cloud(5, 3), broken)
    with pytest.raises(ValueError, match="rows must match"):
        p.alignment(cloud(5, 3), cloud(4, 3))
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        p.uniformity(torch.ones(3))


def test_values_that_differ_by_rounding_share_a_rank() -> None:
    near = torch.tensor([0.5, 0.5 + 3e-13, 0.5 + 3e-12, 0.1], dtype=torch.float64)
    assert p.mean_ranks(near).tolist() == [2.5, 2.5, 4, 1]


PAIRED = (
    "modality_gap",
    "alignment",
    "rotation_angles",
    "self_angle_change",
    "mean_self_angle_change",
    "linear_cka",
    "unbiased_cka",
    "rsa_pearson",
    "rsa_spearman",
)


@pytest.mark.parametrize("name", [*PAIRED, "uniformity", "effective_rank", "participation_ratio"])
def test_each_metric_names_itself_where_it_is_undefined_or_refuses(name: str) -> None:
    count = 2 if name in PAIRED else 1
    metric, flat, zero, broken = getattr(p, name), torch.ones(5), cloud(9, 4), cloud(9, 4)
    zero[3], broken[2, 1] = 0, math.nan
    with pytest.raises(ValueError, match=rf"^{name} needs \(N, D\) features, got \(5,\)"):
        metric(*[flat] * count)
    with pytest.raises(ValueError, match=f"^{name}: row 2 has a feature that is not finite"):
        metric(*[broken] * count)
    with pytest.warns(RuntimeWarning, match=f"{name}.*row 3 is zero"):
        assert metric(*[zero] * count) is None


def test_a_row_is_what_each_metric_says_with_the_same_sample() -> None:
    images, texts, old_images, old_texts = (cloud(60, 5, seed) for seed in range(4))
    last_images, last_texts = cloud(20, 5, 4), cloud(20, 5, 5)
    found = p.measure(images, texts, (old_images, old_texts), (last_images, last_texts), sample=20, seed=3)
    part: dict[str, Any] = {"sample": 20, "seed": 3}
    rows = p.probe_rows(60, 20, 3)
    then, now = (old_images[rows], old_texts[rows]), (images[rows], texts[rows])
    last = last_images, last_texts
    expected = {
        "rows": 60,
        "pairwise_rows": 20,
        "modality_gap": p.modality_gap(images, texts),
        "alignment": p.alignment(images, texts),
        "pair_angle_change_deg": disorder.pair_angle_change(then, now),
        "pair_angle_change_since_last_deg": disorder.pair_angle_change(last, now),
        "procrustes_deviation": disorder.procrustes_deviation(then, now),
        "procrustes_deviation_since_last": disorder.procrustes_deviation(last, now),
    }
    for index, (side, whole, old) in enumerate((("image", images, old_images), ("text", texts, old_texts))):
        angles, recent = p.rotation_angles(old, whole), p.rotation_angles(last[index], now[index])
        assert angles is not None
        assert recent is not None
        expected |= {
            f"{side}_rotation_since_last_deg": float(recent.mean()),
            f"{side}_self_angle_change_since_last_deg": p.mean_self_angle_change(last[index], now[index]),
            f"{side}_uniformity": p.uniformity(whole, **part),
            f"{side}_effective_rank": p.effective_rank(whole),
            f"{side}_participation_ratio": p.participation_ratio(whole),
            f"{side}_rotation_deg": float(angles.mean()),
            f"{side}_self_angle_change_deg": p.mean_self_angle_change(old, whole, **part),
            f"{side}_cka": p.linear_cka(old, whole),
            f"{side}_cka_unbiased": p.unbiased_cka(old, whole),
            f"{side}_rsa_pearson": p.rsa_pearson(old, whole, **part),
            f"{side}_rsa_spearman": p.rsa_spearman(old, whole, **part),
        }
    assert found == expected
    everything = p.measure(images, texts, (old_images, old_texts), sample=None)
    sampled = ("uniformity", "self_angle_change_deg", "rsa_pearson", "rsa_spearman")
    assert all(
        everything[f"{side}_{name}"] != found[f"{side}_{name}"]
        for side in ("image", "text")
        for name in sampled
    )


def test_unbiased_cka_says_what_is_missing() -> None:
    same, orthogonal = torch.ones(5, 3), torch.eye(4)
    with pytest.warns(RuntimeWarning, match="^unbiased_cka is undefined: all rows are the same$"):
        assert p.unbiased_cka(same, cloud(5, 3)) is None
    with pytest.warns(RuntimeWarning, match="^unbiased_cka is undefined: a space has no unbiased variance$"):
        assert p.unbiased_cka(cloud(4, 2), orthogonal) is None
    with pytest.warns(RuntimeWarning, match="^unbiased_cka is undefined: 3 rows, at least 4 are needed$"):
        assert p.unbiased_cka(cloud(3, 2), cloud(3, 2)) is None


def test_opposite_items_whose_cosine_rounds_below_minus_one_have_an_angle() -> None:
    half = cloud(300, 7)
    both = torch.cat([half, -half])
    units = torch.nn.functional.normalize(both.double(), dim=1)
    assert float((units @ units.T).min()) < -1  # else this test shows nothing
    for before, after in ((both, cloud(600, 7, 1)), (cloud(600, 7, 1), both)):
        found = p.mean_self_angle_change(before, after)
        whole = p.self_angle_change(before, after)
        assert found is not None
        assert whole is not None
        upper = torch.triu_indices(600, 600, offset=1)
        assert found == pytest.approx(float(whole[upper[0], upper[1]].mean()), abs=1e-9)


def test_a_row_is_measured_on_as_many_samples_by_default_as_runs_do() -> None:
    asked = inspect.signature(p.measure).parameters["sample"].default
    assert asked == EvaluationConfig().representation_samples
