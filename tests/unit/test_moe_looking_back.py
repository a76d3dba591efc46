"""What MoE-Adapters looks back on: each expert's own start, routers as they were, counts that all processes share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from everclip.contracts import Past, Progress
from everclip.data.table import Table
from everclip.learner import Learner
from everclip.methods.moe_adapters.method import PREFIX, MoeAdapters, shape
from everclip.methods.penalties.teachers import INITIAL, TASK_START
from everclip.methods.trainable import decay_groups
from everclip.models.modules.expert_bank import TENSORS
from everclip.models.modules.experts import experts_in
from everclip.models.same_kernels import same_kernels_as_training
from micro import of_classes

EXPERTS = {"count": 4, "active": 2, "width": 4, "dropout": 0.0}
Make = Callable[..., tuple[Learner, MoeAdapters]]


@pytest.fixture(scope="module")
def data(micro_folder: Path) -> Table:
    """96 pictures of 6 classes."""
    return Table(pq.read_table(micro_folder / "data.parquet"))


@pytest.fixture
def make(micro_folder: Path) -> Make:
    """Return a function: method settings -> learner and method on the two-layer CLIP."""

    def build(**settings: Any) -> tuple[Learner, MoeAdapters]:
        training = {"steps": 2, "batch_size": 8, "lr": 0.05, "warmup": 0, "device": "cpu", "threads": 1}
        given = {"experts": EXPERTS, "selector": None, **settings}
        learner = Learner.create(str(micro_folder / "model"), "moe-adapters", training, **given)
        assert isinstance(learner.method, MoeAdapters)
        return learner, learner.method

    return build


def pixels(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


# -- the start of each expert ---------------------------------------------------------------------------------


def test_an_expert_is_held_to_its_own_start_whatever_froze_and_grew(make: Make, data: Table) -> None:
    learner, method = make(
        penalties={"weight-constraint": {"reference": "initial", "weight": 0.01}}, freeze=2
    )
    clip = method.backbone.clip
    starts: dict[tuple[str, int, str], torch.Tensor] = {}
    compared = moved = 0
    for index in range(3):
        task = of_classes(data, index, 2 * index, 2 * index + 1)
        method.begin_task(task, learner.past())
        method.teachers.end_task()
        for name, experts in experts_in(clip):
            live = [e for e in range(experts.bank.count) if e not in experts.bank.frozen]
            for tensor in TENSORS:
                whole = experts.bank.whole(tensor)
                for row, expert in enumerate(live):
                    start = starts.setdefault((name, expert, tensor), whole[expert].clone())
                    anchor = method.extra_tensors()[f"anchor.{INITIAL}.{PREFIX}{name}.bank.{tensor}"][row]
                    assert torch.equal(anchor, start), (index, name, expert, tensor)
                    compared, moved = compared + 1, moved + (not torch.equal(whole[expert], start))
        with torch.no_grad():  # as training would, and who was taken differs from block to block
            for number, (_, experts) in enumerate(experts_in(clip)):
                for tensor in TENSORS:
                    experts.bank.get_parameter(tensor).add_(0.1 * (1 + index))
                experts.counts[(number + index) % 4] = 9
                experts.counts[(number + index + 1) % 4] = 8
        method.end_task(task, learner.past(), dict)
        learner.tasks.append(task)
    assert compared > moved > 0
    counts = [bank["count"] for bank in shape.structure(clip).values()]
    assert max(counts) > 4  # equal numbers of rows came from freezing some and growing others


def test_merging_moves_no_frozen_expert_by_a_single_bit(make: Make, data: Table) -> None:
    learner, method = make(merge={"kind": "wise-ft", "alpha": 0.3, "reference": "initial"})
    learner.learn(of_classes(data, 0, 0, 1))
    held = {
        (name, t): experts.bank.whole(t)[list(experts.bank.frozen)]
        for name, experts in experts_in(method.backbone.clip)
        for t in TENSORS
    }
    rows = {name: list(e.bank.frozen) for name, e in experts_in(method.backbone.clip)}
    learner.learn(of_classes(data, 1, 2, 3))
    assert any(rows.values())
    for name, experts in experts_in(method.backbone.clip):
        for t in TENSORS:
            assert torch.equal(experts.bank.whole(t)[rows[name]], held[name, t])


# -- the routers of a teacher ---------------------------------------------------------------------------------


@pytest.mark.parametrize("routers", ["per-task", "one"])
def test_a_teacher_answers_as_the_model_did_before_the_task_made_room(
    make: Make, data: Table, routers: str
) -> None:
    learner, method = make(routers=routers, penalties={"lwf": {"weight": 1.0}}, freeze=1)
    tokens = method.backbone.tokenise(["a class 4", "a cat"])
    for index in range(2):
        method.eval()
        with same_kernels_as_training():
            before = method.encode_images(pixels())["embedding"], method.encode_texts(tokens)["embedding"]
        task = of_classes(data, index, 2 * index, 2 * index + 1)
        method.begin_task(task, learner.past())
        with torch.no_grad():  # the student moves on, router and all
            for parameter in method.parameters():
                if parameter.requires_grad:
                    parameter.add_(
                        torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
                    )
        told: list[tuple[torch.Tensor, torch.Tensor]] = []
        student = method.backbone

        def loss(step: Any, told: Any = told, student: Any = student) -> torch.Tensor:
            told.append(
                (
                    step.teachers.image(TASK_START, pixels(), student),
                    step.teachers.text(TASK_START, tokens, student),
                )
            )
            return step.image.sum() * 0

        method.penalties[0].loss = loss  # type: ignore[method-assign]
        batch = {
            "main": learner.engine.maker.batch(method.phases(task, learner.past())[0].streams["main"], "x", 0)
        }
        method.train()(batch, Progress(index, "train", 0, 0, 1, 0))
        teacher = method.teacher_of(TASK_START)  # as what is cached asks it: outside of any pass
        with same_kernels_as_training():
            told.append((teacher.encode_image(pixels()), teacher.encode_text(tokens)))
        for image, text in told:
            assert torch.allclose(image, before[0], atol=1e-6)
            assert torch.allclose(text, before[1], atol=1e-6)
        method.eval()
        with same_kernels_as_training():
            assert not torch.allclose(
                method.encode_images(pixels(), index)["embedding"], before[0], atol=1e-3
            )
        method.end_task(task, learner.past(), dict)
        learner.tasks.append(task)


@pytest.mark.parametrize("routers", ["per-task", "one"])
def test_what_a_penalty_encodes_of_the_student_takes_the_tasks_router_and_is_not_counted(
    make: Make, data: Table, routers: str
) -> None:
    learner, method = make(routers=routers, penalties={"lwf": {"images": "own"}})
    for index in range(2):
        task = of_classes(data, index, 2 * index, 2 * index + 1)
        method.begin_task(task, learner.past())
        with torch.no_grad():
            for number, parameter in enumerate(p for p in method.parameters() if p.requires_grad):
                draw = torch.Generator().manual_seed(number)
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
        streams = method.phases(task, learner.past())[0].streams
        batch = {name: learner.engine.maker.batch(stream, name, 0) for name, stream in streams.items()}
        batch["lwf"]["image"] = pixels()
        encoded: list[torch.Tensor] = []
        inner = method.penalties[0].loss

        def loss(step: Any, encoded: Any = encoded, inner: Any = inner) -> Any:
            before = [e.counts.clone() for _, e in experts_in(step.backbone.clip)]
            encoded.append(step.backbone.encode_image(pixels()).detach())
            found = inner(step)
            after = [e.counts for _, e in experts_in(step.backbone.clip)]
            assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(method.penalties[0], "loss", loss)
            losses = method.train()(batch, Progress(index, "train", 0, 0, 1, 0))
        assert losses.keys() == {"labels", "lwf"}
        losses["lwf"].backward()
        own = [p for n, p in method.named_parameters() if ".routers." in n and p.requires_grad]
        assert own
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in own)
        method.zero_grad()
        method.eval()
        with torch.no_grad():
            wanted = method.encode_images(pixels(), index)["embedding"]
        assert torch.allclose(encoded[0], wanted, atol=1e-5)
        method.end_task(task, learner.past(), dict)
        learner.tasks.append(task)


# -- what several processes share -----------------------------------------------------------------------------


def test_texts_that_dropout_sent_elsewhere_are_counted_alike_in_all_processes(
    make: Make, data: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for rank in (0, 1):
        _, method = make()
        method.begin_task(of_classes(data, 0, 0, 1), Past())
        blocks = [e for _, e in experts_in(method.backbone.clip, "text")]
        picked = [torch.tensor([[3, 1, 0, 0], [1, 3, 0, 0]])[r].repeat(len(blocks)) for r in (rank, 1 - rank)]
        for experts, own in zip(blocks, torch.split(picked[0], 4), strict=True):
            experts.new_counts = own
        monkeypatch.setattr(shape, "world", lambda: 2)
        monkeypatch.setattr(shape, "mean", lambda values, other=picked[1]: (values + other) / 2)
        shape.reduce_counts(method.backbone.clip, shared_texts=True)
        found.append([experts.counts.tolist() for experts in blocks])
    assert found[0] == found[1] == [[2, 2, 0, 0]] * len(found[0])  # once, not once per process


# -- weight decay ---------------------------------------------------------------------------------------------


def test_weight_decay_reaches_no_bias_of_an_expert(make: Make, data: Table) -> None:
    _, method = make()
    method.begin_task(of_classes(data, 0, 0, 1), Past())
    decayed, plain = decay_groups(method.trainable, method)
    assert decayed.weight_decay is None
    assert plain.weight_decay == 0
    assert any(name.endswith("up_bias") for name in plain.names)
    assert not any(name.endswith("bias") for name in decayed.names)
    assert any(name.endswith("bank.down") for name in decayed.names)
