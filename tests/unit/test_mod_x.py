"""Mod-X against a twin written out row by row, and what must hold of it (its golden numbers: tests/golden)."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from everclip.contracts import Progress
from everclip.errors import ConfigError
from everclip.methods.penalties.base import StepView
from everclip.methods.penalties.build import build
from everclip.methods.penalties.mod_x import ModX, ModXSettings, kept_divergence

N, D = 7, 5
Given = dict[str, torch.Tensor]


def batch(seed: int = 0) -> Given:
    """Unit embeddings by student and teacher; the teacher matches most pairs."""
    draw = torch.Generator().manual_seed(seed)
    image, old_image = torch.randn(2, N, D, generator=draw, dtype=torch.float64)
    given = {"image": image, "old_image": old_image, "text": torch.randn(N, D, generator=draw).double()}
    given["old_text"] = old_image + 0.7 * torch.randn(N, D, generator=draw).double()
    given = {name: F.normalize(rows, dim=1).float() for name, rows in given.items()}
    return given | {"image_key": torch.arange(N), "text_key": torch.arange(N)}


def penalty(given: Given, **settings: Any) -> torch.Tensor:
    teachers: Any = SimpleNamespace(
        image=lambda *_: given["old_image"],
        text=lambda *_: given["old_text"],
        bank=lambda *_, **__: given["old_text"],
    )
    labelled = "label" in given
    keys = {name: given[name] for name in ("label", "class_same", "image_key", "text_key") if name in given}
    main = {"image": given["image"], "class_tokens" if labelled else "tokens": given["text"], **keys}
    model: Any = None
    at = Progress(0, "train", 0, 0, 1, 0)
    view = StepView({"main": main}, at, model, given["image"], given["text"], {}, {}, teachers)
    return ModX("mod-x", ModXSettings(**settings)).loss(view)


def with_gradient(given: Given) -> Given:
    return given | {name: given[name].clone().requires_grad_() for name in ("image", "text")}


def gradients(given: Given, **settings: Any) -> tuple[torch.Tensor, ...]:
    leaves = with_gradient(given)
    return torch.autograd.grad(penalty(leaves, **settings), (leaves["image"], leaves["text"]))


def twin(given: Given, right: list[set[int]], turned: bool, temperature: float) -> tuple[float, int]:
    """The divergence of one direction element by element, and the number of rows with a right answer."""
    sides = ("text", "image") if turned else ("image", "text")
    rows, columns = ([given[f"{old}{side}"].double() for old in ("old_", "")] for side in sides)
    total = 0.0
    for i, positives in enumerate(right):
        cosines = [[float(rows[m][i] @ other) for other in columns[m]] for m in (0, 1)]
        if not positives or max(range(len(cosines[0])), key=cosines[0].__getitem__) not in positives:
            continue
        p, q = (
            [math.exp(c / temperature) / sum(math.exp(d / temperature) for d in line) for c in line]
            for line in cosines
        )
        total += temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total, sum(bool(positives) for positives in right)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("kind", ["pairs", "repeats", "classes"])
def test_it_is_the_sum_of_the_rows_that_the_teacher_matches(
    kind: str, temperature: float, reduce: str
) -> None:
    given = batch(3)
    forth = [{i} for i in range(N)]
    back = forth
    if kind == "repeats":
        given["image_key"] = torch.tensor([0, 1, 2, 0, 4, 5, 6])
        given["text_key"] = torch.tensor([0, 1, 2, 3, 2, 5, 6])
        forth = back = [{0, 3}, {1}, {2, 4}, {0, 3}, {2, 4}, {5}, {6}]
    if kind == "classes":
        labels = [0, 2, 2, 0, 1, 5, 1]  # no image of class 3, 4 and 6
        given["label"] = torch.tensor(labels)
        forth = [{label} for label in labels]
        back = [{i for i, label in enumerate(labels) if label == c} for c in range(N)]
    parts = [twin(given, forth, False, temperature), twin(given, back, True, temperature)]
    expected = sum(v / n if reduce == "mean" else v for v, n in parts) / 2 * 3
    assert expected > 0
    found = penalty(given, weight=3, temperature=temperature, reduce=reduce).item()
    assert found == pytest.approx(expected, rel=1e-4)


def test_classes_with_the_same_text_are_one_answer() -> None:
    given = batch(1)
    copied = given | {name: given[name][[0, 1, 1, 2, 3]] for name in ("text", "old_text")}
    copied["class_same"] = torch.tensor([0, 1, 1, 3, 4])
    copied["label"] = torch.tensor([0, 2, 1, 3, 4, 4, 0])
    single = given | {name: given[name][:4] for name in ("text", "old_text")}
    single["label"] = torch.tensor([0, 1, 1, 2, 3, 3, 0])
    assert torch.equal(penalty(copied), penalty(single))


def test_equal_models_differ_by_nothing_and_feel_nothing() -> None:
    given = batch()
    given |= {"image": given["old_image"], "text": given["old_text"]}
    assert abs(penalty(given, weight=1).item()) < 1e-6
    assert max(float(g.abs().max()) for g in gradients(given, weight=1)) < 1e-6


def test_a_teacher_that_matches_no_pair_has_no_say() -> None:
    given = batch()
    given["old_text"] = -given["old_image"]
    assert penalty(given).item() == 0
    assert all(bool((g == 0).all()) for g in gradients(given))


def test_a_row_that_the_teacher_does_not_match_changes_nothing_however_the_student_sees_it() -> None:
    given = batch()
    # Only image 0 is not matched, and no text: of all that the student says, its row alone does not count.
    given["old_image"] = torch.eye(D)[[1, 1, 2]]
    given["old_text"] = F.normalize(
        torch.tensor([[1.0, 0.5, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]), dim=1
    )
    given |= {name: given[name][:3] for name in ("image", "text", "image_key", "text_key")}
    cosines = with_gradient(given)["image"] @ given["text"].T
    eye = torch.eye(3, dtype=torch.bool)
    rows = kept_divergence(given["old_image"] @ given["old_text"].T, cosines, eye)
    assert (rows != 0).tolist() == [False, True, True]
    (pull,) = torch.autograd.grad(rows.sum(), cosines)
    assert (pull[0] == 0).all()
    assert (pull[1:] != 0).all()


def test_the_two_directions_are_judged_apart() -> None:
    # Text 0 of the teacher lies nearer to image 1 than to its own: only its row of the text side is lost.
    given = batch()
    given["old_image"] = torch.eye(D)[:3]
    given["old_text"] = F.normalize(
        torch.tensor([[0.6, 0.7, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1.0, 0, 0]]), dim=1
    )
    given |= {name: given[name][:3] for name in ("image", "text", "image_key", "text_key")}
    whole = [{0}, {1}, {2}]
    forth, _ = twin(given, whole, False, 1.0)
    back, _ = twin(given, [set(), {1}, {2}], True, 1.0)
    assert penalty(given, weight=2).item() == pytest.approx(forth + back, rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_rotation_of_both_towers_and_the_order_of_the_batch_change_nothing(seed: int) -> None:
    given = batch(seed)
    value = penalty(given).item()
    turn, _ = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(seed)))
    turned = given | {"image": given["image"] @ turn, "text": given["text"] @ turn}
    assert penalty(turned).item() == pytest.approx(value, rel=1e-4)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    assert penalty({name: rows[order] for name, rows in given.items()}).item() == pytest.approx(
        value, rel=1e-5
    )


def test_copies_of_a_pair_count_as_right_whichever_comes_first() -> None:
    given = batch()
    twice = torch.tensor([0, 0, 2, 3, 4, 5, 6])
    for name in ("image", "text", "old_image", "old_text"):
        given[name] = given[name][twice]
    given["old_text"] = given["old_image"]  # the teacher matches every pair; the first two are equal
    given |= {"image_key": twice, "text_key": twice}
    forth = [{0, 1}, {0, 1}, *({i} for i in range(2, N))]
    expected = sum(twin(given, forth, turned, 1.0)[0] for turned in (False, True)) / 2
    assert penalty(given, weight=1).item() == pytest.approx(expected, rel=1e-4)
    # Without the keys the copies tie with a right answer: still kept, in any order.
    apart = given | {"image_key": torch.arange(N), "text_key": torch.arange(N)}
    assert penalty(apart).item() == penalty(given).item()


def test_the_mean_does_not_depend_on_the_size_of_the_batch_and_the_sum_doubles() -> None:
    given = batch()
    twice = {name: torch.cat([rows, rows]) for name, rows in given.items()}
    # Every column appears twice, so a row's divergence stays, and there are twice as many rows.
    assert penalty(twice, reduce="mean").item() == pytest.approx(
        penalty(given, reduce="mean").item(), rel=1e-4
    )
    assert penalty(twice).item() == pytest.approx(2 * penalty(given).item(), rel=1e-4)


def test_autocast_does_not_make_the_cosines_coarse() -> None:
    given = batch()
    with torch.autocast("cpu", torch.bfloat16):
        found = penalty(given).item()
    assert found == penalty(given).item()


@pytest.mark.parametrize(("key", "value"), [("temperature", 0), ("weight", -1), ("reduce", "max")])
def test_settings_without_a_meaning_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"method.penalties.mod-x.*{key}"):
        build({"mod-x": {key: value}})
