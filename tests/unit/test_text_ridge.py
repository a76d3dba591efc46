"""`text-ridge` against a brute-force twin, and what it promises: images, distant texts and lengths stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import normalize

from everclip.config import MethodConfig, TrainingConfig
from everclip.contracts import UNNUMBERED, Progress, Reference, Task
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.learner import Learner
from everclip.methods.build import build_method
from everclip.methods.text_ridge.method import TextRidge
from everclip.methods.text_ridge.regression import TextRegression, directions_of
from everclip.models.backbone import load_backbone
from micro import of_classes

WIDTH = 6
Array = npt.NDArray[np.float64]


def units(rows: int, seed: int, width: int = WIDTH) -> torch.Tensor:
    return normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def learned(
    texts: torch.Tensor, images: torch.Tensor, own: torch.Tensor, anchors: torch.Tensor | None = None
) -> TextRegression:
    """Return a regression with these texts and images, not solved."""
    regression = TextRegression(texts.shape[1])
    if anchors is not None:
        regression.anchors = anchors
    regression.widen(texts)
    regression.add(images, torch.nn.functional.one_hot(own, len(texts)).bool())
    return regression


def solved(
    regression: TextRegression,
    gamma: float = 4.0,
    ridge: float = 0.1,
    level: float = 0.85,
    shrinkage: float = 1.0,
) -> dict[str, float | None]:
    held = torch.ones(len(regression.anchors), dtype=torch.bool)
    return regression.solve(gamma, ridge, level, shrinkage, held)


def test_texts_move_as_a_brute_force_kernel_regression_says() -> None:
    texts, anchors, images = units(5, 0), units(3, 1), units(20, 2)
    own = torch.arange(20) % 5
    regression = learned(texts, images, own, anchors)
    solved(regression)
    assert not regression.spare.any()  # random images use every direction: learned texts have full length
    support: Array = torch.cat([texts, anchors]).double().numpy()
    means = np.stack([images[own == i].double().numpy().sum(axis=0) for i in range(5)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    wanted = np.concatenate([means - support[:5], np.zeros((3, WIDTH))])

    def kernel(a: Array, b: Array) -> Array:
        return np.exp(-4.0 * ((a[:, None] - b[None]) ** 2).sum(axis=2))

    alpha = np.linalg.inv(kernel(support, support) + 0.1 * np.eye(8)) @ wanted
    asked: Array = units(7, 3).double().numpy()
    expected = asked + kernel(asked, support) @ alpha
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert regression.moved(units(7, 3), 4.0).numpy() == pytest.approx(expected, abs=1e-6)


def test_a_distant_text_stays_to_the_bit() -> None:
    texts, images = units(2, 0, 64), units(8, 1, 64)
    regression = learned(texts, images, torch.arange(8) % 2)
    solved(regression, gamma=200.0)
    far = units(50, 2, 64)
    assert torch.equal(regression.moved(far, 200.0), far)
    assert not torch.allclose(regression.moved(texts, 200.0), texts, atol=0.1)


def test_before_the_first_solution_nothing_moves() -> None:
    regression = learned(units(2, 0), units(4, 1), torch.tensor([0, 1, 0, 1]))
    asked = units(3, 2)
    assert torch.equal(regression.moved(asked, 4.0), asked)


def test_texts_without_images_do_not_move() -> None:
    regression = TextRegression(WIDTH)
    regression.widen(units(3, 0))
    assert solved(regression)["texts"] == 0
    assert torch.equal(regression.moved(units(3, 0), 4.0), units(3, 0))
    regression.add(units(2, 1), torch.tensor([[True, False, False], [True, False, False]]))
    assert solved(regression)["texts"] == 1  # a single text has no rival
    assert not torch.equal(regression.moved(units(3, 0), 4.0)[0], units(3, 0)[0])


def test_the_sums_do_not_depend_on_order_or_batches() -> None:
    texts, images, own = units(3, 0), units(12, 1), torch.arange(12) % 3
    marks = torch.nn.functional.one_hot(own, 3).bool()
    whole = learned(texts, images, own)
    parts = TextRegression(WIDTH)
    parts.widen(texts)
    for row in reversed(range(12)):
        parts.add(images[row : row + 1], marks[row : row + 1])
    parts.add(images[:0], marks[:0])
    for regression in (whole, parts):
        solved(regression)
    assert parts.moved(texts, 4.0).numpy() == pytest.approx(whole.moved(texts, 4.0).numpy(), abs=1e-7)


def in_a_plane(rows: int, seed: int) -> torch.Tensor:
    """Return unit embeddings whose last two values are 0: images leave these directions free."""
    images = units(rows, seed)
    images[:, -2:] = 0
    return normalize(images, dim=1)


def test_the_level_decides_the_score_that_a_learned_text_gets_and_its_embedding_keeps_unit_length() -> None:
    texts, images, own = in_a_plane(4, 0), in_a_plane(40, 1), torch.arange(40) % 4
    images = normalize(images + 2 * in_a_plane(4, 5)[own], dim=1)  # the images of a text are alike
    found = {}
    for level in (0.4, 0.8):
        regression = learned(texts, images, own)
        solved(regression, gamma=50.0, ridge=1e-9, level=level)
        moved = regression.moved(texts, 50.0)
        assert moved.norm(dim=1).numpy() == pytest.approx(np.ones(4), abs=1e-6)
        assert (images @ regression.spare.float()).abs().max() < 0.01
        found[level] = (images * moved[own]).sum(dim=1)
    assert found[0.4].numpy() == pytest.approx(found[0.8].numpy() / 2, abs=0.01)


def test_texts_that_lie_opposite_of_all_images_do_not_move() -> None:
    """A share of a negative score would point learned texts away from their images."""
    apart = torch.zeros(WIDTH)
    apart[0] = 2
    texts, images = normalize(in_a_plane(4, 0) - apart, dim=1), normalize(in_a_plane(40, 1) + apart, dim=1)
    regression = learned(texts[:2], images, torch.arange(40) % 2, anchors=texts[2:])
    figures = solved(regression)
    assert regression.spare.any()
    assert figures["rival_score"] is not None
    assert figures["rival_score"] < 0
    assert figures["length"] is None
    assert torch.equal(regression.moved(texts, 4.0), texts)
    near = learned(normalize(texts[:2] + 2 * apart, dim=1), images, torch.arange(40) % 2)
    assert solved(near)["length"] is not None


def test_the_rival_of_a_text_is_the_best_other_one_and_not_a_template_of_the_same_class() -> None:
    texts, images = units(6, 0), units(24, 1)
    marks = torch.nn.functional.one_hot(torch.arange(24) % 3, 3).bool().repeat_interleave(2, dim=1)
    regression = TextRegression(WIDTH)
    regression.widen(texts)
    regression.add(images, marks)  # texts 0 and 1 have the same images, 2 and 3, 4 and 5
    found = solved(regression)["rival_score"]
    best = []
    for row in range(6):
        centre = images[marks[:, row]].mean(dim=0)
        best.append(max(float(centre @ texts[other]) for other in range(6) if other // 2 != row // 2))
    assert found == pytest.approx(np.mean(best), abs=1e-4)


def simulated(texts: int, images: int, seed: int = 0) -> Array:
    """Return embeddings `(texts, images, 8)` whose spread within a text is large in the first two directions."""
    draw = np.random.default_rng(seed)
    noise = draw.normal(0, [1.0, 1.0, *[0.2] * 6], (texts, images, 8))
    raw = draw.normal(0, 1, (texts, 1, 8)) + noise
    found: Array = raw / np.linalg.norm(raw, axis=2, keepdims=True)
    return found


@pytest.mark.parametrize("shrinkage", [1.0, 0.3])
def test_the_score_of_further_images_is_foreseen(shrinkage: float) -> None:
    images = torch.from_numpy(simulated(300, 40))
    first, further = images[:, :3], images[:, 3:]
    means = first.mean(dim=1)
    rest = (first - means[:, None]).reshape(-1, 8)
    directions, foreseen = directions_of(
        means, torch.full((300,), 3.0).double(), rest.T @ rest / 600, shrinkage
    )
    measured = torch.einsum("tnd,td->tn", further, directions).mean()
    assert foreseen == pytest.approx(float(measured), abs=0.01)
    in_sample = torch.einsum("tnd,td->tn", first, directions).mean()
    assert float(in_sample) > foreseen + 0.02  # what it must not be


def test_a_discriminant_finds_further_images_that_the_mean_does_not() -> None:
    images = torch.from_numpy(simulated(100, 20, seed=1))
    right = {}
    for shrinkage in (1.0, 0.1):
        texts = normalize(torch.randn(100, 8, generator=torch.Generator().manual_seed(0)), dim=1)
        own = torch.arange(100).repeat_interleave(4)
        regression = learned(texts, images[:, :4].reshape(-1, 8).float(), own)
        solved(regression, gamma=500.0, ridge=1e-9, shrinkage=shrinkage)
        moved = regression.moved(texts, 500.0).double()
        best = (images[:, 4:].reshape(-1, 8) @ moved.T).argmax(dim=1)
        right[shrinkage] = float((best == torch.arange(100).repeat_interleave(16)).double().mean())
    assert right[0.1] > right[1.0] + 0.05


def test_the_spread_within_a_text_counts_images_of_two_templates_once() -> None:
    images = torch.from_numpy(simulated(5, 4)).reshape(-1, 8)
    own = torch.arange(5).repeat_interleave(4)
    regression = TextRegression(8)
    regression.widen(units(10, 0, 8))
    regression.add(images.float(), torch.nn.functional.one_hot(own, 5).bool().repeat(1, 2))
    found = regression._spread_within(regression.counts > 0)
    assert found is not None
    rest = images - torch.stack([images[own == i].mean(dim=0) for i in range(5)])[own]
    assert found.numpy() == pytest.approx((rest.T @ rest / 15).numpy(), abs=1e-6)
    alone = learned(units(3, 0), units(3, 1), torch.arange(3))
    assert alone._spread_within(alone.counts > 0) is None


def test_copies_of_an_image_have_no_spread() -> None:
    """They once ended in an inversion of zero."""
    copies = learned(units(4, 0), units(4, 1).repeat(5, 1), torch.arange(20) % 4)
    once = learned(units(4, 0), units(4, 1), torch.arange(4))
    assert copies._spread_within(copies.counts > 0) is None
    found = [solved(each, shrinkage=0.5, level=10.0) for each in (copies, once)]
    assert found[0] == found[1]


# -- as a method ------------------------------------------------------------------------------------------------


def learner(micro_folder: Path, **settings: object) -> Learner:
    backbone = load_backbone(str(micro_folder / "model"))
    method = build_method(MethodConfig(name="text-ridge", settings=settings), backbone)
    return Learner(method, TrainingConfig(steps=1, batch_size=8, device="cpu"))


def of(made: Learner) -> TextRidge:
    assert isinstance(made.method, TextRidge)
    return made.method


def pictures(micro_folder: Path) -> Table:
    return Table(pq.read_table(micro_folder / "data.parquet"))


def captioned(micro_folder: Path, start: int, stop: int) -> Task:
    """Return a task of pictures with captions."""
    return Task(UNNUMBERED, f"from {start}", pictures(micro_folder).select(range(start, stop)))


def test_image_embeddings_and_backbone_stay_to_the_bit(micro_folder: Path) -> None:
    made = learner(micro_folder)
    table = pictures(micro_folder)
    before = made.method.backbone.fingerprints()
    made.learn(of_classes(table, 0, 0, 1, 2))
    assert made.method.backbone.fingerprints() == before
    assert made.method.encoder_keys()["image"] == before["image"]
    assert made.method.encoder_keys()["text"] != before["text"]


def test_learned_texts_find_their_images(micro_folder: Path) -> None:
    made = learner(micro_folder, gamma=100.0, shrinkage=1.0)
    made.learn(captioned(micro_folder, 0, 48))
    regression = of(made).regression
    assert regression is not None
    means = normalize(regression.sums, dim=1)
    texts = made.encode([], list(made.method.structure()["texts"]))["texts"].double()
    assert (texts * means).sum(dim=1).min() > 0.9


def test_two_tasks_give_what_both_at_once_give(micro_folder: Path) -> None:
    table = pictures(micro_folder)
    apart, together = learner(micro_folder), learner(micro_folder)
    apart.learn(of_classes(table, 0, 3, 4))
    apart.learn(of_classes(table, 1, 0, 1))
    together.learn(of_classes(table, 0, 0, 1, 3, 4))
    names = sorted(together.method.structure()["texts"])
    found = [made.encode([], names)["texts"].numpy() for made in (apart, together)]
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_reference_texts_are_held_unless_a_task_learns_them(micro_folder: Path) -> None:
    table = pictures(micro_folder)
    made = learner(micro_folder)
    task = of_classes(table, 0, 0, 1)
    assert task.classes is not None
    prompt = task.classes[0].prompts()[0]
    made.reference = Reference(texts=("a thing", prompt, "a thing"))
    made.learn(task)
    regression = of(made).regression
    assert regression is not None
    assert made.method.structure()["anchors"] == ["a thing", prompt]
    learned_rows = int((regression.counts > 0).sum())
    assert len(regression.support) == learned_rows + 1  # the prompt was learned, so it is no longer held


def test_too_many_texts_are_refused_before_anything_is_learned(micro_folder: Path) -> None:
    made = learner(micro_folder, limit=3)
    with pytest.raises(ConfigError, match=r"method.limit: .* exceed 3\. Raise it"):
        made.learn(captioned(micro_folder, 0, 48))


def test_a_task_beyond_the_limit_leaves_the_learner_as_it_was(micro_folder: Path) -> None:
    first, second = captioned(micro_folder, 0, 8), captioned(micro_folder, 8, 24)
    count = len(set(first.train.column("caption")))
    made, other = (learner(micro_folder, limit=count + 1) for _ in range(2))
    made.reference = other.reference = Reference(texts=("held",))  # reference texts count, too
    for each in (made, other):
        each.learn(first)
    with pytest.raises(ConfigError, match=rf"exceed {count + 1}\. Raise it"):
        made.learn(second)
    assert made.method.structure() == other.method.structure()
    state = other.method.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in made.method.state_dict().items())
    made.learn(captioned(micro_folder, 0, 8))  # the same texts: no new row


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["image", "text"])
def test_embeddings_that_are_not_finite_are_refused_with_their_number_and_task(
    micro_folder: Path, monkeypatch: pytest.MonkeyPatch, side: str, value: float
) -> None:
    made = learner(micro_folder)
    made.learn(captioned(micro_folder, 0, 8))
    encode = getattr(made.method.backbone, f"encode_{side}")

    def broken(*given: Any, **how: Any) -> torch.Tensor:
        found: torch.Tensor = encode(*given, **how).clone()
        found[:3, 0] = value
        return found

    monkeypatch.setattr(made.method.backbone, f"encode_{side}", broken)
    second = captioned(micro_folder, 8, 40)
    new = len(set(second.train.column("caption")) - set(made.method.structure()["texts"]))
    assert new > 3
    what = "3 of 8 images of a batch" if side == "image" else f"3 of {new} texts"
    with pytest.raises(DataError, match=f"task 'from 8': the embeddings of {what} hold NaN or infinite"):
        made.learn(second)
    regression = of(made).regression
    assert regression is not None
    assert all(tensor.isfinite().all() for tensor in regression.buffers())


@pytest.mark.parametrize("kind", ["classes", "captions"])
def test_a_saved_learner_predicts_and_goes_on_as_before(
    micro_folder: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "captions":
        first, second = captioned(micro_folder, 0, 40), captioned(micro_folder, 40, 80)
    else:
        first, second = (of_classes(pictures(micro_folder), i, 2 * i, 2 * i + 1) for i in (0, 1))
    made = learner(micro_folder)
    made.learn(first)
    made.save(tmp_path / "saved")
    loaded = Learner.load(tmp_path / "saved")
    names = list(made.method.structure()["texts"])
    assert torch.equal(made.encode([], names)["texts"], loaded.encode([], names)["texts"])
    for each in (made, loaded):
        each.learn(second)
    names = list(made.method.structure()["texts"])
    assert torch.equal(made.encode([], names)["texts"], loaded.encode([], names)["texts"])


def test_a_task_of_classes_resumes_inside_its_pass(micro_folder: Path) -> None:
    """A resumed task does not begin again, so what a label stands for must be in the state."""
    table = pictures(micro_folder)
    made, resumed = learner(micro_folder), learner(micro_folder)
    made.learn(of_classes(table, 0, 3, 4))
    task = of_classes(table, 1, 4, 0, 1, templates=("a {}", "one {}"))
    made.method.begin_task(task, made.past())
    resumed.method.grow(json.loads(json.dumps(made.method.structure())))
    resumed.method.load_state_dict(made.method.state_dict())
    (phase,) = resumed.method.phases(task, resumed.past())
    entries = phase.streams["main"].classes
    assert entries is not None
    keys = [entry.key for entry in entries]
    assert keys == ["class-3", "class-4", "class-0", "class-1"]
    batch = {"label": torch.tensor([1, 2]), "image_embedding": units(2, 0, 32)}
    for each in (made, resumed):
        each.method.forward({"main": batch}, Progress(1, "regress", 0, 0, 1, 0))
    regression = of(resumed).regression
    assert regression is not None
    rows = {text: float(count) for text, count in zip(of(resumed)._rows, regression.counts, strict=True)}
    earlier = {"a class 3": 18, "a class 4": 13, "one class 4": 1}
    assert {t: n for t, n in rows.items() if n} == earlier | {"a class 0": 1, "one class 0": 1}
    first = of(made).regression
    assert first is not None
    assert torch.equal(first.sums, regression.sums)
