"""The joint space of builtin:photo: places of names, of texts between them, and of images."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = str(Path(__file__).resolve().parents[2] / "scripts")
sys.path.insert(0, SCRIPTS)
import joint_space  # noqa: E402

sys.path.remove(SCRIPTS)

CLASSES, LABELS, EACH = 6, 2, 5


@pytest.fixture(scope="module")
def parts() -> dict[str, np.ndarray]:
    """A classifier of six classes; two further labels lie near classes 0 and 1 in images and in names."""
    random = np.random.default_rng(0)
    classifier = random.normal(size=(CLASSES, 12)).astype(np.float32)
    read = random.normal(size=(CLASSES, 9)).astype(np.float32)
    labels = np.repeat(np.arange(LABELS), EACH)
    features = (classifier[labels] + 0.1 * random.normal(size=(len(labels), 12))).astype(np.float32)
    read_labels = read[:LABELS] + 0.1 * random.normal(size=(LABELS, 9)).astype(np.float32)
    return {
        "classifier": classifier,
        "read": read,
        "features": features,
        "labels": labels,
        "read_labels": read_labels,
    }


def test_attention_is_a_softmax_over_the_keys() -> None:
    found = joint_space.attention(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]]), 0.5)
    assert found == pytest.approx(np.array([[np.exp(2), 1.0]]) / (np.exp(2) + 1))


def test_names_come_first_then_labels_and_all_have_unit_length(parts: dict[str, np.ndarray]) -> None:
    space = joint_space.make_space(**parts, width=4)
    assert space.bank.shape == (CLASSES + LABELS, 4)
    assert np.linalg.norm(space.bank, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert joint_space.named(space.of_images(parts["features"]), space.bank[CLASSES:], parts["labels"]) == 1.0


def test_a_text_lies_near_the_classes_with_like_names(parts: dict[str, np.ndarray]) -> None:
    space = joint_space.make_space(**parts, width=4)
    texts = space.of_texts(parts["read"])
    assert joint_space.named(texts, space.bank[:CLASSES], np.arange(CLASSES)) == 1.0
    assert joint_space.named(space.of_images(parts["features"]), texts[:LABELS], parts["labels"]) == 1.0


def test_images_without_a_label_change_nothing(parts: dict[str, np.ndarray]) -> None:
    space = joint_space.make_space(**parts, width=4)
    more = dict(parts)
    more["features"] = np.concatenate([parts["features"], np.ones((1, 12), np.float32)])
    more["labels"] = np.append(parts["labels"], -1)
    assert joint_space.make_space(**more, width=4).bank == pytest.approx(space.bank)


def test_a_label_without_images_is_refused(parts: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"labels: found no image of \[1\]"):
        joint_space.make_space(**(parts | {"labels": np.zeros_like(parts["labels"])}), width=4)


def test_whitening_makes_the_shrunk_covariance_the_identity() -> None:
    rest = np.random.default_rng(1).normal(size=(500, 3)) @ np.diag([5.0, 1.0, 0.1])
    whiten, colour = joint_space.whitening(rest, joint_space.SHRINKAGE)
    covariance = rest.T @ rest / len(rest)
    covariance += joint_space.SHRINKAGE * np.trace(covariance) / 3 * np.eye(3)
    assert np.allclose(whiten @ covariance @ whiten, np.eye(3))
    assert np.allclose(whiten @ colour, np.eye(3))
