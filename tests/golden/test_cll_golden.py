"""TEIR's factors, counts and initialisation, and CLL-CLIP's losses, against stored numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from everclip.methods.cll_clip.losses import masked_mse, to_fixed
from everclip.methods.cll_clip.rows import factors, new_counts, new_rows

HERE = Path(__file__).parent
KINDS = {
    "current": "used",
    "current_reciprocal": "reciprocal",
    "unique": "unique",
    "current_reciprocal_rescale": "rescaled",
    "current_reciprocal_rescale_log2": "rescaled-log2",
    "fixed_4": "fixed",
    "addend_2": "addend",
}


def load(name: str) -> dict[str, Any]:
    with np.load(HERE / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(value) if value.ndim else value.item() for key, value in file.items()}


@pytest.mark.parametrize("task", range(3))
@pytest.mark.parametrize("key", KINDS)
def test_the_factors_of_rows(task: int, key: str) -> None:
    stored = load("cll_teir_scales")
    counts = stored[f"t{task}_freq_before"]
    used = torch.zeros(len(counts), dtype=torch.bool)
    used[stored[f"t{task}_tokens"]] = True
    found = factors(KINDS[key], used, counts, 2 if key == "addend_2" else 4)
    assert torch.allclose(found[:, None], stored[f"t{task}_scale_{key}"], atol=1e-6)
    if key == "current_reciprocal":
        used[stored["special_ids"]] = False
        without = stored[f"t{task}_scale_current_reciprocal_excl_special"]
        assert torch.allclose(factors("reciprocal", used, counts)[:, None], without, atol=1e-7)


def test_counts_over_three_languages() -> None:
    stored = load("cll_teir_scales")
    counts = torch.ones(len(stored["t0_old_weight"]))
    for task in range(3):
        counts = new_counts(counts, len(stored[f"t{task}_new_weight"]) - len(counts), task == 0)
        assert torch.equal(counts, stored[f"t{task}_freq_before"])
        counts[stored[f"t{task}_tokens"]] += 1
        assert torch.equal(counts, stored[f"t{task}_freq_after"])


@pytest.mark.parametrize("task", range(3))
def test_new_rows_have_the_mean_and_deviation_of_the_table(task: int) -> None:
    stored = load("cll_teir_scales")
    table, mean, deviation = (stored[f"t{task}_{key}"] for key in ("old_weight", "mean", "std"))
    count = 20_000
    rows = new_rows(table, count, "teir", torch.Generator().manual_seed(0)).double()
    assert abs(float(rows.mean()) - mean) < 5 * deviation / (count * table.shape[1]) ** 0.5
    assert float(rows.std()) / deviation == pytest.approx(1, abs=0.01)
    # Up to the draw, they are an exact affine map: the unbiased deviation, not the biased one.
    draw = torch.randn(count, table.shape[1], generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(rows, mean + deviation * draw, atol=1e-6)
    fixed = new_rows(table, count, "fixed", torch.Generator().manual_seed(0))
    assert torch.equal(fixed, new_rows(table, count, 0.02, torch.Generator().manual_seed(0)))
    assert torch.equal(fixed, 0.02 * draw.float())


def test_the_losses_with_gradients() -> None:
    stored = load("cll_losses")
    student = stored["preds"].clone().requires_grad_()
    temperature = torch.tensor(float(stored["temp"]), requires_grad=True)
    text, image = stored["labels_text_teacher"], stored["labels_image_teacher"]
    mse = to_fixed("mse", student, text, temperature)
    contrast = to_fixed("contrastive", student, image, temperature, stored["vision_ids"])
    total = mse + 0.01 * contrast
    assert mse.item() == pytest.approx(stored["mse_crosslingual"], rel=1e-5)
    assert contrast.item() == pytest.approx(stored["contrastive_crossmodal_multi_positive"], rel=1e-5)
    assert total.item() == pytest.approx(stored["total_1_001"], rel=1e-5)
    total.backward()
    assert student.grad is not None
    assert temperature.grad is not None
    assert torch.allclose(student.grad, stored["grad_total_wrt_preds"], atol=1e-5)
    assert float(temperature.grad) == pytest.approx(stored["grad_total_wrt_temp"], rel=1e-4)
    other = to_fixed("contrastive", student, text, temperature)
    assert other.item() == pytest.approx(stored["contrastive_crosslingual"], rel=1e-5)
    assert to_fixed("mse", student, image, temperature).item() == pytest.approx(
        stored["mse_image_teacher"], rel=1e-5
    )


def test_rows_without_a_target_count_in_no_mean() -> None:
    stored = load("cll_losses")
    target = stored["labels_text_teacher"].clone()
    target[stored["mask"] == 0] = torch.nan
    student = stored["preds"].clone().requires_grad_()
    loss = masked_mse(student, target)
    assert loss.item() == pytest.approx(stored["mse_masked_rows"], rel=1e-5)
    loss.backward()
    assert student.grad is not None
    assert (student.grad.abs().sum(dim=1) > 0).tolist() == (stored["mask"] == 1).tolist()
    none = masked_mse(student, torch.full_like(target, torch.nan))
    assert none.item() == 0
    contrast = to_fixed("contrastive", student, target, torch.tensor(0.07))
    assert torch.isfinite(contrast)
    (gradient,) = torch.autograd.grad(contrast, student)
    assert (gradient.abs().sum(dim=1) > 0).tolist() == (stored["mask"] == 1).tolist()


def test_equal_targets_are_all_right_answers_and_different_ones_are_infonce() -> None:
    stored = load("cll_losses")
    student, image = stored["preds"], stored["labels_image_teacher"]
    temperature = torch.tensor(0.07)
    cosines = F.normalize(student, dim=1) @ F.normalize(image, dim=1).T / 0.07
    same = to_fixed("contrastive", student, image, temperature, torch.zeros(6, dtype=torch.int64))
    uniform = -0.5 * (cosines.log_softmax(1).mean() + cosines.log_softmax(0).mean())
    assert float(same) == pytest.approx(float(uniform), rel=1e-5)
    apart = to_fixed("contrastive", student, image, temperature, torch.arange(6))
    answers = torch.arange(6)
    plain = 0.5 * (F.cross_entropy(cosines, answers) + F.cross_entropy(cosines.T, answers))
    assert float(apart) == pytest.approx(float(plain), rel=1e-5)


def test_rows_without_a_target_weigh_as_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    student, target = torch.randn(8, 5), torch.randn(8, 5)
    target[[0, 1, 2, 6]] = torch.nan  # one of the first four rows has a target, three of the others
    whole = masked_mse(student, target)
    monkeypatch.setattr("everclip.methods.cll_clip.losses.mean", lambda own: torch.tensor((1 + 3) / 2))
    halves = [masked_mse(student[part], target[part]) for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)
