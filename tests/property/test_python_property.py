"""Whatever Python gives a learner, `execute` or `read_rows`: it works, or an error of everclip says what is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import micro
from everclip import Learner, execute, load_backbone, load_scenario, make_task, resolve_config
from everclip.data.reading.sources import read_rows
from everclip.errors import EverclipError

PNG = micro.picture((1, 2, 3), 0, np.random.default_rng(0))
ODD: tuple[Callable[[], Any], ...] = tuple(
    lambda value=value: value
    for value in (
        None, True, 0, 1, -1, 3.5, float("nan"), 10**30, "", "x", "a.png", "data.parquet", b"", b"x", PNG, [], [[]], {},
        {"a": 1}, {1: 2}, {"x"}, object(), np.zeros(3), np.zeros((4, 4, 3), np.uint8), torch.zeros(3),
        torch.zeros(3, 8, 8), Path("a.png"), Path(), str, range(3), "\udcff", "a\0b", "x" * 5000, np.str_("x"),
        np.int64(3), ["x", None], [{"image": PNG}], {"source": "data.parquet"}, {"image": PNG}, "{}", ["a {}"],
        {"steps": 1}, {"lr": "x"}, {"kind": "x"}, "~nobody-at-all/x",
    )
)  # fmt: skip
odd = st.sampled_from(ODD).map(lambda make: make())
rows = st.lists(
    st.dictionaries(st.sampled_from(["image", "caption", "class_name", "split", "id", 3]), odd, max_size=4),
    max_size=3,
)
TINY = {"device": "cpu", "threads": 1, "steps": 1, "batch_size": 4}


@pytest.fixture(scope="module")
def model(micro_folder: Path) -> Path:
    return micro_folder / "model"


@pytest.fixture(scope="module")
def learner(model: Path) -> Learner:
    return Learner.create(model, training=TINY)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory, micro_folder: Path) -> Any:
    """Work where `a.png` and `data.parquet` lie."""
    place, before = tmp_path_factory.mktemp("given"), Path.cwd()
    (place / "a.png").write_bytes(PNG)
    (place / "data.parquet").write_bytes((micro_folder / "data.parquet").read_bytes())
    os.chdir(place)
    yield place
    os.chdir(before)


CALLS: dict[str, Callable[[Learner, Path, Any, Any, Any], object]] = {
    "encode": lambda learner, model, a, b, r: learner.encode(a, b),
    "encode several": lambda learner, model, a, b, r: learner.encode([PNG, a], ["a", b]),
    "classify": lambda learner, model, a, b, r: learner.classify(a, b),
    "templates": lambda learner, model, a, b, r: learner.classify(PNG, ["a", "b"], a),
    "top": lambda learner, model, a, b, r: learner.classify(PNG, ["a", "b"], top=a),
    "evaluate": lambda learner, model, a, b, r: learner.evaluate(a, b),
    "evaluate rows": lambda learner, model, a, b, r: learner.evaluate(r, templates=b),
    "learn": lambda learner, model, a, b, r: Learner.create(model, training=TINY).learn(a),
    "make_task": lambda learner, model, a, b, r: make_task(a, name=b),
    "make_task rows": lambda learner, model, a, b, r: make_task(r, validation=b),
    "make_task number": lambda learner, model, a, b, r: make_task(r, index=a, templates=b),
    "learn rows": lambda learner, model, a, b, r: Learner.create(model, training=TINY).learn(
        make_task(r), show=a
    ),
    "read_rows": lambda learner, model, a, b, r: read_rows(r, columns=a, root=b),
    "read_rows named": lambda learner, model, a, b, r: read_rows(r, name=a, quarantine_limit=b),
    "create": lambda learner, model, a, b, r: Learner.create(a, training=b),
    "create with": lambda learner, model, a, b, r: Learner.create(model, seed=a, trainable=b),
    "training": lambda learner, model, a, b, r: Learner.create(model, training={"lr": a, "augment": b}),
    "load": lambda learner, model, a, b, r: Learner.load(a),
    "save": lambda learner, model, a, b, r: learner.save(a),
    "resolve_config": lambda learner, model, a, b, r: resolve_config(a, b),
    "settings": lambda learner, model, a, b, r: resolve_config("emoji-time", [], {"seed": a, "guard": b}),
    "execute": lambda learner, model, a, b, r: execute("none.yaml", a, seed=b),
    "load_scenario": lambda learner, model, a, b, r: load_scenario(a),
    "load_backbone": lambda learner, model, a, b, r: load_backbone(a),
}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(a=odd, b=odd, given_rows=rows)
@pytest.mark.parametrize("name", CALLS)
def test_whatever_is_given_is_answered(
    learner: Learner, model: Path, name: str, a: Any, b: Any, given_rows: list[dict[Any, Any]]
) -> None:
    said = "fine"
    try:
        CALLS[name](learner, model, a, b, given_rows)
    except EverclipError as error:
        said = str(error)
    assert said
