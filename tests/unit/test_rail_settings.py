"""What RAIL's settings refuse by name, the ridge and width they come to, and what an export is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rail_fixtures import FORMS, head_of, maker, pictures, unit

from everclip.data.table import Table
from everclip.learner import Learner
from everclip.methods.rail.fuse import fuse
from everclip.methods.rail.method import Rail
from everclip.methods.rail.settings import RailSettings
from micro import of_classes


@pytest.fixture(scope="module")
def data(micro_folder: Path) -> Table:
    return pictures(micro_folder)


@pytest.fixture
def make(micro_folder: Path) -> Callable[..., Learner]:
    return maker(micro_folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trainable", ["image"]),
        ("replay", {"kind": "all"}),
        ("penalties", {"lwf": {}}),
        ("merge", {"kind": "wise-ft"}),
        ("loss", "captions"),
        ("label_smoothing", 0.1),
        ("contrast", "sigmoid"),
        ("lr_scale", 2.0),
    ],
)
def test_what_trains_by_gradient_is_no_setting(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=rf"(?s){name}\n.*Extra inputs are not permitted"):
        RailSettings(**{name: value})


def test_passes_and_dimensions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="passes: 2 passes over the same features"):
        RailSettings(passes=2)
    assert RailSettings(passes=2, augmented=True).passes == 2
    with pytest.raises(ValidationError, match="dimension: expected `auto` or at least 1, found 0"):
        RailSettings(dimension=0)
    assert RailSettings(dimension=1).dimension == 1
    fields = RailSettings()
    assert (fields.form, fields.update, fields.expansion, fields.dimension) == (
        "primal",
        "sums",
        "relu",
        "auto",
    )
    assert (fields.gamma, fields.fusion, fields.augmented, fields.passes) == (0.1, 0.8, False, 1)


def test_the_ridge_is_that_of_the_published_width() -> None:
    for settings, width, ridge in (
        ({}, 15_000, 0.1),
        ({}, 300, 0.002),
        ({"ridge": 5.0}, 3_000, 1.0),
        ({"expansion": "none"}, 300, 0.1),
        ({"expansion": "fourier"}, 300, 0.001),
        ({"expansion": "fourier", "ridge": 5.0}, 300, 5.0),
        ({"form": "dual"}, 300, 0.001),
        ({"form": "dual", "ridge": 5.0}, 300, 5.0),
    ):
        assert RailSettings(**settings).penalty(width) == pytest.approx(ridge)  # type: ignore[arg-type]


def test_the_automatic_width_is_a_power_of_two_of_at_least_twice_the_samples() -> None:
    settings = RailSettings()
    for samples, width in (
        (1, 256),
        (128, 256),
        (129, 512),
        (200, 512),
        (256, 512),
        (257, 1024),
        (99_999, 8192),
    ):
        assert settings.width(samples, 7) == width
    assert RailSettings(expansion="none").width(9, 7) == 7
    assert RailSettings(dimension=11).width(9, 7) == 11


@pytest.mark.parametrize("form", FORMS)
def test_an_export_is_given_what_its_reader_needs(
    make: Callable[..., Learner], data: Table, form: str
) -> None:
    learner = make({}, **FORMS[form])
    method = learner.method
    assert isinstance(method, Rail)
    assert method.class_head() is None
    for index in range(2):
        learner.learn(of_classes(data, index, 2 * index, 2 * index + 1))
    given, head = method.class_head(), head_of(learner)
    assert given is not None
    settings = method.settings
    names = [key for key, *_ in method.structure()["classes"]]
    wanted: dict[str, Any] = {
        "format": 1,
        "kind": "ridge regression fused with zero-shot (RAIL, arXiv 2406.18868)",
        "features": "kernel" if form == "dual" else settings.expansion,
        "fusion": settings.fusion,
        "templates": list(given.entries[0].templates),
        "classes": [{"key": e.key, "name": e.name, "templates": list(e.templates)} for e in given.entries],
    }
    assert [e.key for e in given.entries] == names
    assert given.rule == wanted | ({"gamma": 0.1} if form == "dual" else {})
    assert torch.equal(given.tensors["weights"], head.weights)
    assert given.tensors["weights"].shape[1] == 4
    if form == "dual":
        assert given.tensors.keys() == {"weights", "samples"}
        assert torch.equal(given.tensors["samples"], head.samples)
    else:
        buffers = dict(head.expansion.named_buffers())
        assert given.tensors.keys() == {"weights", *buffers}
        assert all(torch.equal(given.tensors[name], tensor) for name, tensor in buffers.items())
    draw = torch.Generator().manual_seed(0)
    bank, asked = unit(torch.randn(4, 32, generator=draw)), unit(torch.randn(5, 32, generator=draw))
    zero_shot = torch.softmax(float(method.backbone.logit_scale.detach()) * (asked @ bank.T).double(), dim=1)
    outputs = head.outputs(asked, torch.arange(4)).double()
    fused = fuse(zero_shot, outputs, torch.ones(4, dtype=torch.bool), settings.fusion)
    assert torch.equal(given.answers(asked, bank), fused)
    assert given.answers(asked, bank).dtype == torch.float64


@pytest.mark.parametrize("settings", [{"passes": 2}, {"passes": 2, "form": "dual"}])
def test_passes_without_augmented_pictures_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="passes: "):
        RailSettings(**settings)
    RailSettings(passes=2, augmented=True)


def test_a_second_pass_over_equal_features_is_left_out(make: Callable[..., Learner], data: Table) -> None:
    task, found = of_classes(data, 0, 0, 1), []
    for passes in (1, 2):
        learner = make({"augment": "none"}, dimension=20, augmented=True, passes=passes)
        learner.learn(task)
        found.append(head_of(learner).weights)
    assert torch.equal(*found)
