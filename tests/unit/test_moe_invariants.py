"""What holds for MoE-Adapters at every time: gates of k experts that sum to one, and a route that stays frozen CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import module_models as models
import pyarrow.parquet as pq
import pytest
import torch
from expert_fixtures import shaken
from torch.nn import functional

from everclip.contracts import ClassEntry, LabelSpace
from everclip.data.table import Table
from everclip.features.encoding import measuring
from everclip.learner import Learner
from everclip.methods.moe_adapters.method import MoeAdapters
from everclip.models.backbone import load_backbone
from everclip.models.modules.experts import Experts
from everclip.models.modules.routing import Pass, passing
from micro import of_classes

PICTURES = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SPACE = LabelSpace(tuple(ClassEntry(f"class-{n}", f"class {n}", ("a {}", "the {}")) for n in range(4)))
NOBODY = 77
"""The number of a task that is never learned."""

# -- gates ----------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Collect the gate rows `(N, E)` of every block that runs."""
    found: list[torch.Tensor] = []
    plain = Experts._gate

    def watched(self: Experts, tokens: torch.Tensor, told: Pass) -> Any:
        chosen, gates, logits = plain(self, tokens, told)
        found.append(logits.scatter(chosen, gates).detach())
        return chosen, gates, logits

    monkeypatch.setattr(Experts, "_gate", watched)
    return found


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize(("count", "active"), [(5, 1), (5, 2), (5, 4), (2, 2)])
def test_each_gate_row_has_k_experts_and_sums_to_one(
    rows: list[torch.Tensor], count: int, active: int, noise: bool
) -> None:
    clip = shaken(routers=("0", "1"), count=count, active=active)
    pixels, ids = models.inputs(clip)
    draws = torch.randn(len(pixels), 2, count, generator=torch.Generator().manual_seed(3))
    clip.train(noise)
    told = {"routers": ("0", "1"), "noise": draws if noise else None}
    routes: tuple[Any, ...] = (1, 2) if noise else (1, 2, torch.tensor([1, 2, 2, 1, 1]))
    for route in routes:
        with passing({"image": Pass(route=route, **told), "text": Pass(route=route, **told)}):
            clip.encode_image(pixels)
            clip.encode_text(ids)
    assert len(rows) == 4 * len(routes)
    for gates in rows:
        assert gates.shape == (5, count)
        assert ((gates > 0).sum(dim=1) == active).all()
        assert ((gates == 0).sum(dim=1) == count - active).all()
        assert torch.allclose(gates.sum(dim=1), torch.ones(5), atol=1e-6)
    if active < count:  # routers with weights: samples differ in whom they take
        assert len({tuple(row.nonzero().flatten().tolist()) for gates in rows for row in gates}) > 1


def test_noise_moves_gates_in_training_alone(rows: list[torch.Tensor]) -> None:
    clip = shaken()
    pixels, _ = models.inputs(clip)
    for training in (True, False):
        clip.train(training)
        for seed in (0, 1):
            draws = torch.randn(len(pixels), 2, 5, generator=torch.Generator().manual_seed(seed))
            with passing({"image": Pass(("0",), noise=draws)}), torch.no_grad():
                clip.encode_image(pixels)
    noisy, still = rows[:4], rows[4:]
    assert not torch.equal(noisy[0], noisy[2])
    assert all(torch.equal(one, two) for one, two in zip(still[:2], still[2:], strict=True))


# -- the route without experts --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(micro_folder: Path) -> Table:
    return Table(pq.read_table(micro_folder / "data.parquet"))


def learner_with(micro_folder: Path, selector: Any) -> tuple[Learner, MoeAdapters]:
    training = {"steps": 1, "batch_size": 8, "lr": 0.05, "warmup": 0, "device": "cpu", "threads": 1}
    experts = {"count": 4, "active": 2, "width": 4}
    learner = Learner.create(
        str(micro_folder / "model"), "moe-adapters", training, experts=experts, selector=selector
    )
    assert isinstance(learner.method, MoeAdapters)
    return learner, learner.method


def answers(method: MoeAdapters, known_task: int | None) -> dict[str, torch.Tensor]:
    """Return what is said of the pictures."""
    with measuring(method.eval()):
        images = method.encode_images(PICTURES, known_task)
        scores = method.class_scores(images, SPACE, method.class_bank(SPACE))
    return {**images, "scores": scores}


def frozen_answers(micro_folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return embeddings and scores of the CLIP in which nothing was ever grown."""
    backbone = load_backbone(str(micro_folder / "model"))
    backbone.eval().requires_grad_(False)
    with torch.inference_mode():
        images = backbone.encode_image(PICTURES)
        texts = backbone.encode_text(
            backbone.tokenise([t for entry in SPACE.entries for t in entry.prompts()])
        )
    bank = functional.normalize(texts.unflatten(0, (len(SPACE.entries), 2)).mean(dim=1), dim=1)
    return images, images @ bank.T


@pytest.mark.parametrize("selector", [None, "gaussian"])
def test_the_zero_shot_route_is_the_frozen_clip_bit_for_bit_after_each_of_twelve_tasks(
    micro_folder: Path, data: Table, selector: str | None
) -> None:
    learner, method = learner_with(micro_folder, selector)
    frozen, scores = frozen_answers(micro_folder)
    start = answers(method, NOBODY)["scores"]
    assert torch.allclose(start, scores, atol=1e-6)
    for index in range(12):
        learner.learn(of_classes(data, index, index % 6, (index + 1) % 6))
        told = answers(method, NOBODY)
        assert torch.equal(told["embedding"], frozen), index
        assert torch.equal(told["scores"], start), index
        assert not told["route"].any()
        assert (told["experts"] == -1).all()
        assert (answers(method, index)["embedding"] - frozen).abs().max() > 1e-5, index
        if method.selector is not None:
            method.selector.limits[:, 1] = -torch.inf  # everything is too far from every task
        found = answers(method, None)
        assert torch.equal(found["embedding"], frozen), index
        assert torch.equal(found["scores"], start), index
        assert not found["route"].any()


def test_pictures_without_experts_are_the_frozen_clip_beside_others_that_take_some(
    micro_folder: Path, data: Table
) -> None:
    learner, method = learner_with(micro_folder, "gaussian")
    frozen, _ = frozen_answers(micro_folder)
    start = answers(method, NOBODY)["scores"]
    assert method.selector is not None
    for index in range(3):
        learner.learn(of_classes(data, index, index, index + 1))
        route = torch.tensor([0, 1 + index, 0, 1, 0])
        method.selector.decide = lambda features, route=route: route  # type: ignore[method-assign,misc]
        found = answers(method, None)
        assert torch.equal(found["embedding"][route == 0], frozen[route == 0])
        assert torch.allclose(found["scores"][route == 0], start[route == 0], atol=1e-6)
        assert not torch.allclose(found["embedding"][route > 0], frozen[route > 0], atol=1e-5)
