"""Experts in two processes: taken by samples of one rank alone, taken by nobody, and with dropout of each its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pair
import pytest
import torch

from everclip.config import RunConfig
from everclip.learner import Cursor
from everclip.models.modules.expert_bank import TENSORS
from everclip.models.modules.experts import experts_in
from everclip.run import Run
from everclip.training.progress import Progress

MOE = ("scenario.per_task=3", "method=moe-adapters", "method.selector=none", "evaluation.examples=0")
ONE_STEP = (
    "method.experts={count: 12, active: 2, width: 4, dropout: 0}",
    "training.steps=1",
    "training.optimiser=sgd",
    "training.schedule=constant",
    "training.warmup=0",
    "training.clip_norm=null",
)
# With steps and a scale so large that dropout sends texts to other experts on each rank.
DROPPING = (
    "method.experts={count: 16, active: 2, width: 4, scale: 100}",
    "method.freeze=1",
    "training.steps=8",
    "training.lr=0.3",
)


def _picked(method: Any) -> dict[str, list[int]]:
    """Return how many of this process's samples took each expert of each block since the last step."""
    return {
        f"backbone.clip.{name}.bank": e.new_counts.tolist()
        for name, e in experts_in(method.backbone.clip)
        if e.new_counts is not None
    }


def one_step(config: RunConfig) -> dict[str, Any]:
    """Learn one step in double precision with experts that say something; return gradients and who was taken."""
    run = Run.of(config, Progress(quiet=True))
    method, found = run.learner.method.double(), {}
    begin, inner, after = method.begin_task, method.forward, method.after_step

    def begin_task(task: Any, past: Any) -> None:
        begin(task, past)
        for number, (_, experts) in enumerate(experts_in(method.backbone.clip)):
            draw = torch.Generator().manual_seed(number)
            experts.bank.up.data.normal_(generator=draw)  # at the start what is below it has no gradient

    def forward(batch: Any, progress: Any) -> Any:
        found["id"] = batch["main"]["id"]
        return inner({"main": batch["main"] | {"image": batch["main"]["image"].double()}}, progress)

    def after_step(progress: Any) -> None:
        found["picked"] = _picked(method)
        found["gradients"] = {
            n: None if p.grad is None else p.grad.numpy() for n, p in method.named_parameters()
        }
        after(progress)

    method.begin_task, method.forward, method.after_step = begin_task, forward, after_step
    run.learner.learn(run.tasks[0], Cursor())
    return found


def dropping_run(config: RunConfig) -> dict[str, Any]:
    """Run to the end; return what this process holds, whom its samples took, and the counts after each step."""
    run = Run.of(config, Progress(quiet=True))
    method, picked, counts = run.learner.method, [], []
    after = method.after_step

    def after_step(progress: Any) -> None:
        picked.append(_picked(method))
        after(progress)
        counts.append([e.counts.tolist() for _, e in experts_in(method.backbone.clip)])

    method.after_step = after_step  # type: ignore[method-assign]
    values = run.execute().matrix.values
    state = {name: tensor.numpy() for name, tensor in method.state_dict().items()}
    return {
        "values": values,
        "state": state,
        "structure": method.structure(),
        "picked": picked,
        "counts": counts,
    }


def test_an_expert_of_one_rank_has_the_gradient_of_the_whole_batch_and_that_of_nobody_is_zero(
    micro_config: Callable[..., Any],
) -> None:
    config = micro_config("classes", *MOE, *ONE_STEP)
    ((first, second),) = pair.Pair((one_step, (config,))).results()
    one = one_step(config)
    assert one["id"] == first["id"] + second["id"]
    assert len(one["picked"]) == 4
    for bank, both in one["picked"].items():
        own, other, joint = (
            np.array(counts) for counts in (first["picked"][bank], second["picked"][bank], both)
        )
        alone, nobody = (own > 0) & (other == 0), (own == 0) & (other == 0)
        if ".visual." in bank:  # every process has the same texts
            assert (own + other == joint).all()
            assert alone.any()
        assert nobody.any()
        for tensor in TENSORS:
            wanted, found, same = (r["gradients"][f"{bank}.{tensor}"] for r in (one, first, second))
            assert wanted.shape[0] == 12
            assert np.abs(found - wanted).max() < 1e-9 * np.abs(wanted).max(), (bank, tensor)
            assert (found == same).all()
            assert not found[nobody].any()
            assert not wanted[nobody].any()
            assert all(row.any() for row in found[alone]), (bank, tensor)


@pytest.mark.slow
def test_dropout_of_its_own_leaves_both_ranks_with_the_same_weights_and_frozen_experts(
    micro_config: Callable[..., Any],
) -> None:
    config = micro_config("classes", *MOE, *DROPPING)
    ((first, second),) = pair.Pair((dropping_run, (config,))).results()
    assert all(one != two for one, two in zip(first["picked"], second["picked"], strict=True))
    assert first["counts"] == second["counts"]
    assert first["structure"] == second["structure"]
    assert all(block["frozen"] for block in first["structure"]["blocks"].values())
    assert first["state"].keys() == second["state"].keys()
    assert all((second["state"][name] == values).all() for name, values in first["state"].items())
    assert first["values"] == second["values"]
