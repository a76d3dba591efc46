"""Online EWC: its Fisher information and its pull against twins written out; checkpoints and grown tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from test_cll_clip import language

from everclip.contracts import Batch, ClassEntry, Progress, Task
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.learner import Learner
from everclip.methods.base import Method
from everclip.methods.gradient_pass import MEASURE
from everclip.methods.penalties.oewc import Oewc, _grown
from everclip.models.modules.token_rows import embedding_of

STEPS = {"steps": 2, "batch_size": 5, "lr": 1e-3, "threads": 1, "augment": None}
Batches = list[tuple[Batch, Progress]]


def tasks_of(micro_folder: Path, labels: bool) -> list[Task]:
    data = Table(pq.read_table(micro_folder / "data.parquet"))
    names = list(dict.fromkeys(data.column("class_key")))
    classes = tuple(ClassEntry(k, k.replace("-", " ")) for k in names) if labels else None
    parts = data.select(range(0, 12)), data.select(range(30, 42))
    return [Task(i, f"part {i}", part, None, classes) for i, part in enumerate(parts)]


def finetuned(micro_folder: Path, **options: Any) -> Learner:
    return Learner.create(str(micro_folder / "model"), "finetune", STEPS, penalties={"oewc": options})


def watched(model: Learner) -> Batches:
    """Return a list that every batch of the measuring pass is added to."""
    seen: Batches = []
    inner = model.method.forward

    def forward(batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        if progress.phase == MEASURE:
            seen.append((batch, progress))
        return inner(batch, progress)

    model.method.forward = forward  # type: ignore[method-assign]
    return seen


def twin(method: Method, seen: Batches, names: list[str]) -> dict[str, torch.Tensor]:
    """Return the mean over batches of the squared gradient of the task's own loss, at the present weights."""
    found = {name: torch.zeros_like(method.get_parameter(name)) for name in names}
    batches = list(seen)  # `forward` adds what it sees
    method.eval()
    for name in names:
        method.get_parameter(name).requires_grad_(True)
    for batch, progress in batches:
        loss = sum(method.forward(batch, progress).values())
        assert isinstance(loss, torch.Tensor)
        grads = torch.autograd.grad(loss, [method.get_parameter(name) for name in names])
        for name, grad in zip(names, grads, strict=True):
            found[name] += grad**2 / len(batches)
    return found


def fisher_of(method: Any) -> dict[str, torch.Tensor]:
    (penalty,) = method._keeping.penalties if hasattr(method, "_keeping") else method.penalties
    assert isinstance(penalty, Oewc)
    return penalty._fisher


@pytest.mark.parametrize("labels", [False, True])
def test_the_information_is_the_mean_square_of_batch_gradients_and_decays(
    micro_folder: Path, labels: bool
) -> None:
    model = finetuned(micro_folder, decay=0.5)
    first, second = tasks_of(micro_folder, labels)
    seen = watched(model)
    model.learn(first)
    names = list(model.method.trainable)
    assert len(seen) == 3  # one pass over twelve samples, in full batches of five
    one = twin(model.method, seen, names)
    for name, values in one.items():
        assert torch.allclose(fisher_of(model.method)[name], values, rtol=1e-4, atol=1e-10), name
    seen.clear()
    model.learn(second)
    two = twin(model.method, seen, names)
    for name, values in two.items():
        assert torch.allclose(
            fisher_of(model.method)[name], 0.5 * one[name] + values, rtol=1e-4, atol=1e-10
        ), name


def test_it_pulls_to_the_weights_before_the_task_by_information(micro_folder: Path) -> None:
    model = finetuned(micro_folder, weight=3.0)
    first, second = tasks_of(micro_folder, labels=False)
    method = model.method
    model.learn(first)
    known = {name: tensor.clone() for name, tensor in fisher_of(method).items()}
    seen: Batches = []
    inner = method.forward
    method.forward = lambda b, p: (seen.append((b, p)), inner(b, p))[1]  # type: ignore[method-assign,func-returns-value]
    method.begin_task(second, model.past())
    start = {name: method.get_parameter(name).detach().clone() for name in method.trainable}
    phase = model.plan(second)[0]
    model.engine.run(method, phase, 1)
    batch, progress = seen[-1]
    losses = method.forward(batch, progress)
    moved = {name: method.get_parameter(name) for name in method.trainable}
    expected = 3.0 * sum((known[n] * (w - start[n]) ** 2).sum() for n, w in moved.items())
    assert losses["oewc"].item() > 0
    assert torch.allclose(losses["oewc"], expected, rtol=1e-5)
    grads = torch.autograd.grad(losses["oewc"], list(moved.values()))
    for (name, weight), grad in zip(moved.items(), grads, strict=True):
        assert torch.allclose(grad, 6.0 * known[name] * (weight - start[name]), rtol=1e-4, atol=1e-12), name


def test_the_first_task_is_learned_as_without_it_and_measuring_moves_nothing(micro_folder: Path) -> None:
    (task, _) = tasks_of(micro_folder, labels=False)
    plain = Learner.create(str(micro_folder / "model"), "finetune", STEPS)
    kept = finetuned(micro_folder)
    plain.learn(task)
    kept.learn(task)
    for (name, one), two in zip(plain.method.named_parameters(), kept.method.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert all(parameter.grad is None for parameter in kept.method.parameters())


def test_a_stronger_penalty_keeps_weights_nearer(micro_folder: Path) -> None:
    first, second = tasks_of(micro_folder, labels=False)
    moved = []
    for weight in (0.0, 1e6):
        model = Learner.create(
            str(micro_folder / "model"),
            "finetune",
            {**STEPS, "steps": 6, "optimiser": "sgd", "lr": 1e-4},
            penalties={"oewc": {"weight": weight}} if weight else {},
        )
        model.learn(first)
        before = model.method.weights()
        model.learn(second)
        names = model.method.trainable
        moved.append(sum(float((model.method.weights()[n] - before[n]).square().sum()) for n in names))
    assert moved[1] < 0.9 * moved[0]


def test_information_on_rows_is_kept_for_the_whole_table(micro_folder: Path, tmp_path: Path) -> None:
    settings = {"penalties": {"oewc": {"decay": 1.0}}}
    model = Learner.create(str(micro_folder / "model"), "cll-clip", STEPS, **settings)
    seen = watched(model)
    model.learn(language(0, "de"))
    method = model.method
    (rows,) = (n for n in method.trainable if n.endswith(".rows"))
    embedding: Any = embedding_of(method.backbone.clip)
    places = (embedding.slots >= 0).nonzero()[:, 0]
    one = twin(method, seen, [rows])[rows]
    table = fisher_of(method)[rows].clone()
    assert len(table) == len(embedding.weight)
    assert torch.allclose(table[places], one, rtol=1e-4, atol=1e-12)
    assert float(table.abs().sum()) == pytest.approx(float(table[places].abs().sum()))
    assert set(fisher_of(method)) == {rows}  # not the temperature

    model.save(tmp_path / "saved")
    again = Learner.load(tmp_path / "saved")
    for learner in (model, again):
        learner.method.begin_task(language(1, "de"), learner.past())
    view = model.method._keeping  # type: ignore[attr-defined]
    assert torch.equal(fisher_of(again.method)[rows], table)
    now = method.get_parameter(rows)
    with torch.no_grad():
        now.add_(0.1)
    places = (embedding_of(method.backbone.clip).slots >= 0).nonzero()[:, 0]  # type: ignore[union-attr]
    old = places[places < len(table)]
    losses = view.losses(
        method,
        {},
        Progress(1, "train", 0, 0, 1, 0),
        method.backbone,
        now,
        model.method.teachers,  # type: ignore[attr-defined]
    )
    assert losses["oewc"].item() == pytest.approx(1000 * 0.01 * float(table[old].sum()), rel=1e-3)
    assert losses["oewc"].item() > 0


def test_cll_clip_refuses_penalties_that_need_images(micro_folder: Path) -> None:
    with pytest.raises(ConfigError, match="takes the penalty oewc only"):
        Learner.create(str(micro_folder / "model"), "cll-clip", STEPS, penalties={"lwf": {}})


def test_added_rows_are_free_and_another_shape_is_refused() -> None:
    known = torch.ones(3, 2)
    assert _grown(known, (3, 2), "w") is known
    grown = _grown(known, (5, 2), "w")
    assert grown.tolist() == [[1, 1]] * 3 + [[0, 0]] * 2
    for shape in ((2, 2), (3, 4), (6,)):
        with pytest.raises(ConfigError, match=r"w has the shape .* had \(3, 2\)"):
            _grown(known, shape, "w")
