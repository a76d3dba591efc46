"""How RAIL predicts: zero-shot where nothing was learned, and the fused row where something was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rail_fixtures import (
    FORMS,
    features,
    head_of,
    maker,
    of_classes,
    pictures,
    scored,
    spaces,
)

from everclip.contracts import ClassEntry, LabelSpace
from everclip.data.table import Table
from everclip.learner import Learner
from everclip.methods.rail.fuse import fuse


@pytest.fixture(scope="module")
def data(micro_folder: Path) -> Table:
    """See `rail_fixtures.pictures`."""
    return pictures(micro_folder)


@pytest.fixture
def make(micro_folder: Path) -> Callable[..., Learner]:
    """See `rail_fixtures.maker`."""
    return maker(micro_folder)


@pytest.mark.parametrize("form", FORMS)
def test_without_fusion_it_is_zero_shot_bit_for_bit(
    make: Callable[..., Learner], data: Table, form: str
) -> None:
    learner = make(**FORMS[form], fusion=0.0)
    learner.learn(of_classes(data, 0, 0, 1, 2))
    space, _ = spaces(data)
    found, cosines = scored(learner, features(learner, data), space)
    assert torch.equal(found, cosines)


@pytest.mark.parametrize("form", FORMS)
def test_rows_whose_winner_was_not_learned_are_untouched_and_others_are_the_fused_row(
    make: Callable[..., Learner], data: Table, form: str
) -> None:
    learner = make(**FORMS[form])
    learner.learn(of_classes(data, 0, 0, 1, 2))
    space, learned = spaces(data)
    x = features(learner, data)
    # Untrained names all lie on one side of the pictures; with pictures for names every class wins somewhere.
    keys = data.column("class_key")
    names = x[[keys.index(key) for key in space.keys]]
    found, cosines = scored(learner, x, space, names)
    touched = learned[cosines.argmax(dim=1)]
    assert 0 < int(touched.sum()) < len(touched)
    assert torch.equal(found[~touched], cosines[~touched])
    scale = float(learner.method.backbone.logit_scale)
    probabilities = torch.softmax(scale * cosines.double(), dim=1)
    outputs = torch.zeros_like(probabilities)
    outputs[:, :3] = head_of(learner).outputs(x, torch.arange(3))
    expected = fuse(probabilities, outputs, learned, 0.8)
    assert torch.equal(found[touched].argsort(dim=1), expected[touched].argsort(dim=1))
    confident = torch.softmax(scale * found[touched].double(), dim=1)
    positive = expected[touched].clamp(min=0)
    assert torch.allclose(confident, positive / positive.sum(dim=1, keepdim=True), atol=1e-4)


def test_what_a_label_space_does_not_offer_plays_no_part(make: Callable[..., Learner], data: Table) -> None:
    learner = make(**FORMS["sums"])
    learner.learn(of_classes(data, 0, 0, 1, 2))
    x = features(learner, data)
    new = LabelSpace(tuple(e for e in spaces(data)[0].entries if e.key in ("class-4", "class-5")))
    found, cosines = scored(learner, x, new)
    assert torch.equal(found, cosines)
    own = LabelSpace(tuple(e for e in spaces(data)[0].entries if e.key in ("class-0", "class-2")))
    found, _ = scored(learner, x, own)
    mine = [i for i, key in enumerate(data.column("class_key")) if key in ("class-0", "class-2")]
    right = torch.tensor([("class-0", "class-2").index(data.column("class_key")[i]) for i in mine])
    assert float((found[mine].argmax(dim=1) == right).double().mean()) > 0.9


def test_classes_are_known_by_key_and_a_typed_name_by_its_name(
    make: Callable[..., Learner], data: Table
) -> None:
    learner = make(**FORMS["sums"])
    learner.learn(of_classes(data, 0, 0, 1))
    x = features(learner, data)
    typed = LabelSpace(
        (ClassEntry("class 0", "class 0", ("a {}",)), ClassEntry("class 1", "class 1", ("a {}",)))
    )
    keyed = LabelSpace(of_classes(data, 0, 0, 1).classes or ())
    other = LabelSpace(tuple(replace(e, key=f"other/{e.key}", tasks=(3,)) for e in keyed.entries))
    assert torch.equal(scored(learner, x, typed)[0], scored(learner, x, keyed)[0])
    assert not torch.equal(*scored(learner, x, keyed))
    assert torch.equal(*scored(learner, x, other))
