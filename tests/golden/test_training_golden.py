"""Losses, schedules and merging against stored numbers of the reference implementations."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from everclip.contracts import Progress
from everclip.methods.losses import class_cross_entropy, contrastive, sigmoid_contrastive, squared_distance
from everclip.methods.merge import RunningMean, interpolate
from everclip.methods.penalties.answers import Answers
from everclip.methods.penalties.base import StepView
from everclip.methods.penalties.lwf import Lwf, LwfSettings
from everclip.methods.penalties.mod_x import ModX, ModXSettings, kept_divergence
from everclip.registry import method_entry
from everclip.training.schedules import learning_rate

HERE = Path(__file__).parent


def load(name: str) -> dict[str, Any]:
    with np.load(HERE / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(value) if value.ndim else value.item() for key, value in file.items()}


def close(found: torch.Tensor, stored: Any, atol: float = 1e-5, rtol: float = 1e-4) -> bool:
    return torch.allclose(found, torch.as_tensor(stored, dtype=found.dtype), atol=atol, rtol=rtol)


# -- schedules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["mtil", "cil"])
def test_the_schedule_of_the_mtil_protocol(stream: str) -> None:
    stored = load("lr_schedule")
    base, warmup, steps = (stored[f"{stream}_{key}"] for key in ("base", "warmup", "steps"))
    found = [learning_rate(step, steps, base, "cosine", warmup) for step in range(steps + 1)]
    assert found == pytest.approx(stored[f"{stream}_lr"].tolist(), rel=1e-9, abs=1e-18)


@pytest.mark.parametrize(
    ("key", "schedule", "warmup", "cooldown"),
    [
        ("cosine_warm10", "cosine", 10, 0),
        ("cosine_warm10", "cosine", 0.1, 0),
        ("cosine_warm0", "cosine", 0, 0),
        ("const_warm10", "constant", 10, 0),
        ("const_cooldown20", "constant-cooldown", 10, 20),
        ("const_cooldown20", "constant-cooldown", 0.1, 0.2),
    ],
)
def test_the_schedules_of_open_clip(key: str, schedule: str, warmup: float, cooldown: float) -> None:
    stored = load("lr_schedules")[key].tolist()
    found = [learning_rate(step, 100, 1e-3, schedule, warmup, cooldown) for step in range(100)]
    assert found == pytest.approx(stored, rel=1e-9, abs=1e-18)


# -- losses ---------------------------------------------------------------------------------------------------


def test_the_sigmoid_loss_of_siglip() -> None:
    stored = load("open_clip_losses")
    image, text = (F.normalize(stored[key], dim=1) for key in ("img", "txt"))
    scale, bias = (torch.tensor(float(stored[f"siglip_{key}"])) for key in ("scale", "bias"))
    assert close(sigmoid_contrastive(image, text, scale, bias), stored["siglip_loss"])
    # Written out pair by pair, with the first two pictures equal and the last two captions too.
    same = torch.tensor([[0, 0, 2, 3, 4], [0, 1, 2, 3, 3]])
    total = 0.0
    for i in range(5):
        for j in range(5):
            positive = i == j or any(int(key[i]) == int(key[j]) for key in same)
            logit = float(scale * image[i] @ text[j] + bias) * (1 if positive else -1)
            total += float(np.log1p(np.exp(-logit))) if logit > -30 else -logit
    assert close(sigmoid_contrastive(image, text, scale, bias, *same), total / 5)


def test_without_repeats_the_contrastive_loss_is_open_clips_with_its_gradients() -> None:
    stored = load("open_clip_losses")
    image, text = (stored[key].clone().requires_grad_() for key in ("img", "txt"))
    loss = contrastive(image, text, torch.tensor(stored["scale"]), torch.arange(5), torch.arange(5) + 5)
    loss.backward()
    assert close(loss, stored["clip_loss"])
    assert close(image.grad, stored["clip_grad_img"])
    assert close(text.grad, stored["clip_grad_txt"])


def test_keys_that_all_differ_change_nothing() -> None:
    stored = load("open_clip_losses")
    plain = contrastive(stored["img"], stored["txt"], torch.tensor(20.0))
    keyed = contrastive(stored["img"], stored["txt"], torch.tensor(20.0), torch.arange(5), torch.arange(5))
    assert torch.equal(plain, keyed)


def test_several_positives_as_in_cll_clip_with_gradients() -> None:
    """Our definition is the reference's: each row's target is even over the columns of the same picture.

    The reference normalises inside and trains 1 * mse + 0.01 * contrastive, so its gradient is compared as a whole.
    """
    stored = load("cll_losses")
    text = stored["preds"].clone().requires_grad_()
    temperature = torch.tensor(stored["temp"], requires_grad=True)
    unit_text, unit_image = F.normalize(text, dim=1), F.normalize(stored["labels_image_teacher"], dim=1)
    loss = contrastive(unit_image, unit_text, 1 / temperature, image_key=stored["vision_ids"])
    assert close(loss, stored["contrastive_crossmodal_multi_positive"])
    total = F.mse_loss(text, stored["labels_text_teacher"]) + 0.01 * loss
    total.backward()
    assert close(total, stored["total_1_001"])
    assert close(text.grad, stored["grad_total_wrt_preds"])
    assert close(temperature.grad, stored["grad_total_wrt_temp"])


def brute_force(image: torch.Tensor, text: torch.Tensor, scale: float, same: list[list[bool]]) -> float:
    """Both directions, row by row, positive by positive, in float64."""
    cosines = (image.double() @ text.double().T * scale).tolist()
    n = len(cosines)
    total = 0.0
    for matrix in (cosines, [list(column) for column in zip(*cosines, strict=True)]):
        for i in range(n):
            top = max(matrix[i])
            log_sum = top + np.log(sum(np.exp(v - top) for v in matrix[i]))
            positives = [j for j in range(n) if same[i][j]]
            total += sum(log_sum - matrix[i][j] for j in positives) / len(positives) / n
    return total / 2


@pytest.mark.parametrize("seed", range(6))
def test_several_positives_by_picture_or_by_caption_equal_brute_force(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    n = 7
    image, text = (F.normalize(torch.randn(n, 5, generator=draw), dim=1) for _ in range(2))
    image_key, text_key = (torch.randint(0, 4, (n,), generator=draw) for _ in range(2))
    for ik, tk in ((image_key, text_key), (image_key, None), (None, text_key), (image_key * 0, text_key)):
        same = [
            [
                i == j or (ik is not None and ik[i] == ik[j]) or (tk is not None and tk[i] == tk[j])
                for j in range(n)
            ]
            for i in range(n)
        ]
        found = contrastive(image, text, torch.tensor(14.3), ik, tk)
        assert float(found) == pytest.approx(brute_force(image, text, 14.3, same), rel=1e-5)


def test_cross_entropy_with_label_smoothing() -> None:
    stored = load("ce_label_smoothing")
    # Unit pictures along the axes turn the bank into the stored logits.
    logits = stored["logits"]
    for smoothing, key in ((stored["ls"], "loss"), (0.0, "loss_no_smoothing")):
        found = class_cross_entropy(torch.eye(5), logits.T, stored["labels"], torch.tensor(1.0), smoothing)
        assert close(found, stored[key])
    scaled = class_cross_entropy(torch.eye(5), logits.T / 50, stored["labels"], torch.tensor(50.0))
    assert close(scaled, stored["loss_no_smoothing"])


# -- merging --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_weight_interpolation(alpha: float) -> None:
    stored = load("weight_interpolation")
    before, after = ({k: stored[f"theta{i}_{k}"] for k in "ab"} for i in (0, 1))
    merged = interpolate(before, after, alpha)
    for key in "ab":
        assert close(merged[key], stored[f"plain_{alpha}_{key}"], atol=1e-6, rtol=1e-6)


def test_weight_ensemble_wise_ft_and_weight_constraint() -> None:
    stored = load("weight_ensemble")
    start, snapshots = stored["theta_init"], stored["theta_snapshots"]
    mean = RunningMean({"w": start})
    for snapshot, count, expected in zip(snapshots, stored["counts"], stored["we_sequence"], strict=True):
        mean.add({"w": snapshot})
        assert mean.count == count
        assert close(mean.mean["w"], expected, atol=1e-6)
    last = {"w": snapshots[-1]}
    assert close(
        interpolate({"w": start}, last, stored["wiseft_alpha"])["w"], stored["wiseft_merged"], atol=1e-6
    )
    assert close(squared_distance(last, {"w": start}), stored["l2_loss"])


# -- distillation ---------------------------------------------------------------------------------------------


class StoredTeachers:
    """The stored embeddings of the reference's teacher, in place of a model."""

    def __init__(self, stored: dict[str, Any]) -> None:
        self._stored = stored

    def image(self, *asked: Any) -> torch.Tensor:
        return self._stored["ref_image"]

    def bank(self, *asked: Any, short: bool) -> torch.Tensor:
        return self._stored["ref_text"]

    def scale(self, *asked: Any) -> torch.Tensor:
        return torch.as_tensor(self._stored["logit_scale_log"]).exp()


def lwf(stored: dict[str, Any], image: torch.Tensor, **settings: Any) -> torch.Tensor:
    columns = {"image": stored["ref_image"], "label": 0, "class_tokens": 0}
    place: Any = Progress(0, "train", 0, 0, 1, 0)
    teachers: Any = StoredTeachers(stored)
    nothing: Any = None
    view = StepView({"main": columns}, place, nothing, image, stored["ref_text"], {}, {}, teachers)
    return Lwf("lwf", LwfSettings(**settings)).loss(view)


def test_distillation_of_answers() -> None:
    stored = load("zscl_distillation")
    raw = stored["current_image_raw"].clone().requires_grad_()
    image = F.normalize(raw, dim=1)
    assert close(image, stored["current_image"])
    published = {"form": "cross-entropy", "temperature": stored["T"]}
    for direction, name in (("image-to-text", "image"), ("text-to-image", "text")):
        loss = lwf(stored, image, directions=direction, **published)
        assert close(loss, stored[f"{name}_loss"])
        assert close(lwf(stored, image, directions=direction), stored[f"kl_{name}_times_T2"])
        assert close(
            lwf(stored, stored["ref_image"], directions=direction, **published), stored[f"self_{name}_loss"]
        )
    total = lwf(stored, image, **published)
    assert close(total, stored["total"])
    (gradient,) = torch.autograd.grad(total, raw, retain_graph=True)
    assert close(gradient, stored["grad_current_image_raw"])
    (floored,) = torch.autograd.grad(lwf(stored, image, weight=5), raw)
    assert close(floored, 5 * stored["grad_current_image_raw"], atol=5e-5)
    assert close(lwf(stored, stored["ref_image"]), 0.0)


def test_distillation_of_a_batch_as_in_open_clip() -> None:
    """TiC-CLIP's LwF: each model with its own scale, the mean of both directions (`DistillClipLoss`)."""
    stored = load("open_clip_losses")
    answers = Answers(
        stored["img"],
        stored["teacher_img"],
        stored["txt"],
        stored["teacher_txt"],
        torch.tensor(stored["teacher_scale"]),
        1.0,
        "cross-entropy",
        shared=True,
        student_scale=torch.tensor(stored["scale"]),
    )
    assert close((answers.over_texts() + answers.over_images()) / 2, stored["distill_ce"])
    settings = method_entry("lwf-tic").settings["penalties"]["lwf"]
    expected = {"weight": 0.5, "temperature": 1.0, "form": "cross-entropy", "text": "student", "scale": "own"}
    assert settings == expected, "the preset is this loss"


def test_mod_x_against_the_reference_code() -> None:
    stored = load("modx_distill")
    raw = [stored[f"{side}_new"].clone().requires_grad_() for side in ("img", "txt")]
    image, text = (F.normalize(leaf, dim=1) for leaf in raw)
    teachers: Any = SimpleNamespace(
        image=lambda *_: F.normalize(stored["img_old"], dim=1),
        text=lambda *_: F.normalize(stored["txt_old"], dim=1),
    )
    main = {"image": image, "tokens": text, "image_key": torch.arange(6), "text_key": torch.arange(6)}
    nothing: Any = None
    view = StepView({"main": main}, Progress(0, "train", 0, 0, 1, 0), nothing, image, text, {}, {}, teachers)
    assert close(ModX("mod-x", ModXSettings(weight=1)).loss(view), stored["distill"])
    plain = contrastive(image, text, torch.tensor(stored["logit_scale"]))
    assert close(plain, stored["contrastive"])
    total = plain + ModX("mod-x", ModXSettings()).loss(view)
    assert close(total, stored["total"])
    for found, side in zip(torch.autograd.grad(total, raw), ("img", "txt"), strict=True):
        assert close(found, stored[f"grad_{side}_new"])
    for name, cosines in (("i2t", image @ text.T), ("t2i", text @ image.T)):
        rows = kept_divergence(stored[f"sim_old_{name}"], cosines, torch.eye(6, dtype=torch.bool))
        assert close(rows.sum(), stored[f"kl_{name}_sum"])
        assert torch.equal(rows != 0, stored[f"row_kept_{name}"])
