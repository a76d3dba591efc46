"""What is measured once and compared later is measured as it is compared: in full precision, by the same kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from everclip.contracts import ClassEntry, Task
from everclip.data.table import Table
from everclip.learner import Learner
from everclip.learner.fit import learner_for
from everclip.methods.selectors.base import quantiles
from everclip.scenarios.load import load_scenario
from micro import REFERENCE

ROUTED = f"{Path(__file__).parent / 'routed.py'}:Routed"


@pytest.fixture
def task(micro_folder: Path) -> Task:
    """40 pictures of 4 classes."""
    data = Table(pq.read_table(micro_folder / "data.parquet")).select(range(40))
    keys = sorted(set(data.column("class_key")))
    return Task(0, "first", data, classes=tuple(ClassEntry(k, k, ("a {}",), (0,)) for k in keys))


def learned(folder: Path, task: Task, precision: str, method: str, **settings: Any) -> Learner:
    training = {"steps": 2, "batch_size": 8, "precision": precision, "device": "cpu", "threads": 1}
    learner = Learner.create(str(folder / "model"), method, training, **settings)
    learner.learn(task)
    return learner


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("rail", {}),
        ("rail", {"augmented": True}),
        (ROUTED, {"selector": {"kind": "gaussian"}}),
        (ROUTED, {"selector": {"kind": "energy"}}),
    ],
    ids=["rail, cached", "rail", "gaussian", "energy"],
)
def test_what_no_gradient_fits_does_not_depend_on_the_precision_of_training(
    micro_folder: Path, task: Task, method: str, settings: dict[str, Any]
) -> None:
    one, two = (
        learned(micro_folder, task, p, method, **settings).method.state_dict() for p in ("fp32", "bf16")
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(two[name], tensor) for name, tensor in one.items())


def test_a_threshold_is_the_quantile_of_distances_as_prediction_measures_them(
    micro_folder: Path, task: Task
) -> None:
    settings = {"kind": "autoencoder", "steps": 4}
    learner = learned(micro_folder, task, "bf16", ROUTED, selector=settings)
    selector: Any = learner.method.selector
    _, held = selector.parts(task)
    preprocess = learner.method.backbone.preprocess
    pixels = torch.stack([preprocess(learner.store.get(held, i)) for i in range(len(held))])
    far = selector.distances(selector.features(learner.method.backbone, pixels))[:, 1]
    expected = quantiles(far, selector.settings.quantile)
    assert torch.allclose(selector.limits[1, :2], expected, rtol=1e-6, atol=0)


def test_a_teacher_says_the_same_ahead_of_time_as_in_a_step(micro_config: Callable[..., Any]) -> None:
    config = micro_config("classes", "method=zscl", REFERENCE)
    scenario = load_scenario(config.scenario)
    learner = learner_for(config, scenario)
    task = next(iter(scenario.tasks))
    learner.method.begin_task(task, learner.past())
    streams = learner.plan(task)[0].streams
    learner.engine.columns.prepare(learner.method, streams)
    table = streams["zscl"].sources[0].table
    held = learner.engine.columns._tables["image_embedding@initial", id(table)].values.numpy()
    preprocess = learner.method.backbone.preprocess
    pixels = torch.stack([preprocess(learner.store.get(table, i)) for i in range(len(table))])
    asked = learner.method.teachers.image("initial", pixels, learner.method.backbone)
    assert np.array_equal(held, asked.numpy())  # the same block: 20 pictures
    learner.method.train()
    student = learner.method.backbone.encode_image(pixels)  # as a step compares it: nothing lost at the start
    assert np.array_equal(held, student.detach().numpy())
