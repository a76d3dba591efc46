"""`text-ridge` on unusual data: classes that return, equal texts, several captions per image, many texts, failures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_text_ridge import WIDTH, Array, captioned, in_a_plane, learned, learner, of, pictures, solved, units
from torch.nn.functional import normalize, one_hot

from everclip.contracts import UNNUMBERED, ClassEntry, Reference, Task
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.methods.text_ridge import regression as module
from everclip.methods.text_ridge.method import TextRidge
from everclip.methods.text_ridge.regression import TextRegression
from micro import of_classes

CLASSES, TEMPLATES, DRAWINGS = 6, 5, 8


def returned() -> tuple[TextRegression, Array, Array]:
    """Return a regression whose classes return with more templates, in another style, with its images and marks."""
    texts = units(CLASSES * TEMPLATES, 0, 32)
    regression = TextRegression(32)
    regression.widen(texts)
    own = torch.arange(CLASSES).repeat_interleave(DRAWINGS)
    style, centres, noise = units(2, 1, 32), units(CLASSES, 2, 32), 0.05 * units(2 * len(own), 3, 32)
    images, marks = [], []
    for number, templates in enumerate((1, TEMPLATES)):
        part = noise[number * len(own) :][: len(own)]
        images.append(normalize(centres[own] + 0.7 * style[number] + part, dim=1))
        mark = torch.zeros(len(own), CLASSES, TEMPLATES)
        mark[:, :, :templates] = one_hot(own, CLASSES)[:, :, None]
        marks.append(mark.reshape(len(own), -1).bool())
        regression.add(images[-1], marks[-1])
    return regression, torch.cat(images).double().numpy(), torch.cat(marks).double().numpy()


def test_a_class_that_returns_with_other_templates_has_a_covariance() -> None:
    """It once had negative variances: some texts pointed away from their images."""
    regression, images, marks = returned()
    shares = marks / marks.sum(axis=1, keepdims=True)
    expected, free = np.zeros((32, 32)), 0.0
    for text in range(marks.shape[1]):
        rest = images - images[marks[:, text] > 0].mean(axis=0)
        expected += (shares[:, text, None] * rest).T @ rest
        free += shares[:, text].sum() * (1 - 1 / marks[:, text].sum())
    found = regression._spread_within(regression.counts > 0)
    assert found is not None
    assert found.numpy() == pytest.approx(expected / free, abs=1e-9)
    assert torch.linalg.eigvalsh(found).min() > -1e-12


def test_rivals_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all texts at once, this took twice the memory of the solution."""
    texts, images, own = units(7, 0), units(28, 1), torch.arange(28) % 7
    whole = solved(learned(texts, images, own, units(3, 2)))
    monkeypatch.setattr(module, "CHUNK", 2)
    assert solved(learned(texts, images, own, units(3, 2))) == whole


def test_a_solution_that_fails_leaves_the_one_before() -> None:
    texts = units(4, 0)
    regression = learned(torch.cat([texts[:2], texts[:2]]), units(8, 1), torch.arange(8) % 4)
    solved(regression)
    before = regression.moved(texts, 4.0)
    regression.widen(texts[2:])
    regression.add(units(4, 2), one_hot(4 + torch.arange(4) % 2, 6).bool())
    with pytest.raises(ConfigError, match=r"method.ridge: 1e-300 .* raise it"):
        solved(regression, ridge=1e-300)
    assert torch.equal(regression.moved(texts, 4.0), before)


def test_a_batch_costs_the_texts_that_it_holds(micro_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All texts once moved at every batch, to report a distance: with 5,000 texts, seconds per batch."""
    made = learner(micro_folder)
    made.learn(captioned(micro_folder, 0, 64))
    sizes, plain = [], TextRegression.moved

    def moved(self: TextRegression, texts: torch.Tensor, gamma: float) -> torch.Tensor:
        sizes.append(len(texts))
        return plain(self, texts, gamma)

    monkeypatch.setattr(TextRegression, "moved", moved)
    made.learn(captioned(micro_folder, 64, 96))
    assert len(sizes) == 4  # batches of 8
    assert max(sizes) <= 8


def test_a_reference_text_that_the_model_reads_as_a_learned_one_is_not_held(micro_folder: Path) -> None:
    """Held at the same place, it pulled the learned text back."""
    task = of_classes(pictures(micro_folder), 0, 0, 1)
    plain, made = learner(micro_folder), learner(micro_folder)
    made.reference = Reference(texts=("A Class 0",))
    for each in (plain, made):
        each.learn(task)
    found = [each.encode([], ["a class 0"])["texts"] for each in (plain, made)]
    assert torch.equal(*found)


def test_a_class_without_images_leaves_its_reference_text_held(micro_folder: Path) -> None:
    task = of_classes(pictures(micro_folder), 0, 0, 1)
    assert task.classes is not None
    empty = ClassEntry("class-9", "nothing", ("a {}",), (0,))
    made = learner(micro_folder)
    made.reference = Reference(texts=("a nothing",))
    made.learn(Task(0, "one is empty", task.train, classes=(*task.classes, empty)))
    assert made.method.notes["text-ridge"]["anchors"] == 1


def several_captions(micro_folder: Path, images: int, captions: int) -> Table:
    """Return pictures with several captions each, all different."""
    columns = pictures(micro_folder).select(range(images)).arrow()
    rows = [
        {**row, "id": f"{row['id']}#{number}", "caption": f"{number} of {row['id']}"}
        for row in columns.to_pylist()
        for number in range(captions)
    ]
    return Table(pa.Table.from_pylist(rows, schema=columns.schema))


def test_further_captions_of_an_image_are_no_further_images(micro_folder: Path) -> None:
    """Few images leave many directions free that further images use, however many captions they have."""
    table = several_captions(micro_folder, images=20, captions=5)
    made = learner(micro_folder)
    made.learn(Task(UNNUMBERED, "captions", table))
    regression = of(made).regression
    assert regression is not None
    assert float(regression.moment[-1, 0]) == 20
    assert float(regression.moment[:-1].trace()) == pytest.approx(100)
    assert not regression.spare.any()  # 20 images of 32 dimensions are too few


def test_the_level_needs_the_second_moment_whatever_the_number_of_captions() -> None:
    texts, images, own = in_a_plane(4, 0), in_a_plane(40, 1), torch.arange(40) % 4
    once, thrice = learned(texts, images, own), TextRegression(WIDTH)
    thrice.widen(texts)
    thrice.add(images.repeat(3, 1), one_hot(own.repeat(3), 4).bool())
    thrice.moment[-1, 0] -= 80
    for each in (once, thrice):
        solved(each)
    assert once.spare.any()
    assert thrice.spare.numpy() == pytest.approx(once.spare.numpy(), abs=1e-9)


def test_a_checkpoint_without_shared_sums_is_completed(micro_folder: Path) -> None:
    """They were added later; with the same templates everywhere, they follow from the rest."""
    made, loaded = learner(micro_folder), learner(micro_folder)
    made.learn(of_classes(pictures(micro_folder), 0, 0, 1, 2, templates=("a {}", "one {}")))
    structure = json.loads(json.dumps(made.method.structure()))
    del structure["regression"]["format"]
    state = {k: v for k, v in made.method.state_dict().items() if not k.endswith("shared_sums")}
    loaded.method.grow(structure)
    assert loaded.method.state_dict().keys() == state.keys()
    loaded.method.load_state_dict(state)
    loaded.method.load_extra({}, {"notes": {}})
    assert isinstance(loaded.method, TextRidge)
    first, second = of(made).regression, of(loaded).regression
    assert first is not None
    assert second is not None
    assert second.shared_sums.numpy() == pytest.approx(first.shared_sums.numpy(), abs=1e-12)
    assert second.state_dict().keys() == first.state_dict().keys()
