"""Answers to questions about several images: brute-force twins, permutations, ties, and the fit of thresholds."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from everclip.data.sampling.multi_image import MultiImageTask
from everclip.evaluation.multi_image import (
    TIE,
    analogy_score,
    best_texts,
    choose,
    cosines,
    count,
    decide,
    decide_by_texts,
    fit_threshold,
    least_similarity,
    odd_scores,
    order_scores,
    retrieve_scores,
)
from everclip.evaluation.multi_image_answers import answer_questions, in_development

SEEDS = st.integers(0, 10_000)


def unit(rows: int, seed: int, width: int = 7) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(rows, width))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@settings(max_examples=25)
@given(SEEDS, st.integers(1, 4), st.integers(2, 6))
def test_cosines_are_dot_products_and_torch_gives_the_same(seed: int, rows: int, others: int) -> None:
    a, b = unit(rows, seed), unit(others, seed + 1)
    found = cosines(a, b)
    assert np.allclose(found, a @ b.T, atol=1e-7)
    assert np.array_equal(found, cosines(torch.from_numpy(a), torch.from_numpy(b)))


@settings(max_examples=30)
@given(SEEDS, st.integers(3, 6), st.data())
def test_permuting_images_permutes_the_odd_one_and_the_first_one(
    seed: int, size: int, data: st.DataObject
) -> None:
    images, order = unit(size, seed), data.draw(st.permutations(range(size)))
    gold = data.draw(st.integers(0, size - 1))
    values = [2010.0, 2014.0, 2020.0]
    for scores in (odd_scores, lambda held: order_scores(held, unit(3, seed + 1), values)):
        plain, mixed = choose(scores(images), gold), choose(scores(images[order]), order.index(gold))
        assert mixed.correct == plain.correct
        assert mixed.margin == plain.margin
        assert plain.prediction != TIE
        assert order[mixed.prediction] == plain.prediction


@settings(max_examples=30)
@given(SEEDS, st.integers(2, 6), st.integers(1, 3), st.data())
def test_permuting_candidates_permutes_the_prediction_and_queries_do_not_matter(
    seed: int, size: int, queries: int, data: st.DataObject
) -> None:
    candidates, given_ones = unit(size, seed), unit(queries, seed + 1)
    order = data.draw(st.permutations(range(size)))
    turned = data.draw(st.permutations(range(queries)))
    gold = data.draw(st.integers(0, size - 1))
    plain = choose(retrieve_scores(given_ones, candidates), gold)
    mixed = choose(retrieve_scores(given_ones[turned], candidates[order]), order.index(gold))
    assert order[mixed.prediction] == plain.prediction
    assert (mixed.correct, mixed.margin) == (plain.correct, plain.margin)


@settings(max_examples=30)
@given(SEEDS, st.integers(3, 6))
def test_odd_scores_are_those_of_the_brute_force_twin(seed: int, size: int) -> None:
    images = unit(size, seed)
    expected = [-np.mean([images[i] @ images[j] for j in range(size) if j != i]) for i in range(size)]
    assert np.allclose(odd_scores(images), expected, atol=1e-6)
    pairs = [images[i] @ images[j] for i, j in itertools.combinations(range(size), 2)]
    assert least_similarity(images) == pytest.approx(min(pairs), abs=1e-6)


@settings(max_examples=25)
@given(SEEDS, st.floats(0.5, 3.0), st.floats(-2, 2))
def test_order_does_not_depend_on_unit_or_origin_of_the_scale(seed: int, unit_: float, origin: float) -> None:
    images, texts, values = unit(4, seed), unit(3, seed + 1), [1.0, 4.0, 5.0]
    scores = order_scores(images, texts, values)
    assert np.array_equal(
        np.argsort(scores), np.argsort(order_scores(images, texts, [unit_ * v + origin for v in values]))
    )
    turned = order_scores(images, texts, [-v for v in values])
    assert np.allclose(turned, -scores, atol=1e-7)
    early, late = texts[:1], texts[2:]
    two = order_scores(images, np.concatenate([early, late]), [0.0, 1.0])
    assert np.allclose(4 * two, (images @ early.T - images @ late.T)[:, 0], atol=1e-6)


@pytest.mark.parametrize("width", [1, 7, 512])
def test_equal_images_tie_and_a_tie_is_wrong(width: int) -> None:
    same = np.repeat(unit(1, 3, width), 4, axis=0)
    query = unit(1, 4, width)
    for gold in range(4):
        assert choose(odd_scores(same), gold) == choose(retrieve_scores(query, same), gold)
        found = choose(odd_scores(same), gold)
        assert (found.prediction, found.correct, found.margin) == (TIE, False, 0)
    assert choose(order_scores(same, unit(2, 5, width), [0, 1]), 0).prediction == TIE
    assert best_texts(query, same)[0] == [TIE]
    for gold in (0, 1):
        assert decide_by_texts(same, same, None, gold).correct is False
        assert count(same, same, [0, 1, 2, 3], gold).correct is False
        assert decide(0.25, 0.25, gold).correct is False


def test_a_tie_among_wrong_candidates_leaves_the_right_one_right() -> None:
    found = choose(np.array([0.1, 0.9, 0.1], np.float32), 1)
    assert (found.prediction, found.correct) == (1, True)
    assert found.margin == pytest.approx(0.8)
    assert choose(np.array([0.9, 0.9, 0.1], np.float32), 1).correct is False


def test_an_answer_that_is_no_candidate_is_never_chosen() -> None:
    found = choose(np.array([0.1, 0.9], np.float32), 2)
    assert (found.prediction, found.correct, found.margin) == (1, False, -math.inf)


def test_yes_and_no_by_texts_compare_the_best_texts_of_all_images() -> None:
    texts = np.eye(3)
    images = np.array([[0.9, 0.1, 0.0], [0.8, 0.0, 0.2]])
    assert decide_by_texts(images, texts, None, 1).correct
    assert decide_by_texts(images, texts, 0, 1).correct
    assert decide_by_texts(images, texts, 1, 0).correct  # the same text, but not that one
    assert decide_by_texts(np.eye(3)[:2], texts, None, 0).correct
    assert decide_by_texts(np.eye(3)[:2], texts, None, 1).margin == -1


def test_counting_adds_up_the_best_numbers() -> None:
    found = count(np.eye(3)[[1, 2]], np.eye(3), [0, 1, 2], 3)
    assert (found.prediction, found.correct, found.margin) == (3, True, 1)
    assert not count(np.eye(3)[[1, 2]], np.eye(3), [0, 1, 2], 2).correct


def test_an_analogy_is_the_cosine_of_the_changes() -> None:
    a, b, step = unit(1, 1)[0], unit(1, 2)[0], unit(1, 3)[0]
    assert analogy_score(np.stack([a, a + step, b, b + step])) == pytest.approx(1)
    assert analogy_score(np.stack([a, a + step, b, b - step])) == pytest.approx(-1)
    assert analogy_score(np.stack([a, a, b, b + step])) == 0
    with pytest.raises(ValueError, match="3 images"):
        analogy_score(unit(3, 1))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=12), st.randoms())
def test_no_threshold_is_better_than_the_fitted_one(
    items: list[tuple[int, bool]], random: np.random.Generator
) -> None:
    assume({right for _, right in items} == {True, False})
    scores, gold = [s / 4 for s, _ in items], [int(right) for _, right in items]
    found = fit_threshold(scores, gold)

    def accuracy(cut: float) -> float:
        return sum((s > cut) == bool(g) for s, g in zip(scores, gold, strict=True)) / len(gold)

    assert found.value not in scores
    assert found.accuracy == accuracy(found.value)
    assert found.accuracy >= max(accuracy(cut / 8) for cut in range(-10, 11))
    order = random.sample(range(len(items)), len(items))
    assert fit_threshold([scores[i] for i in order], [gold[i] for i in order]) == found


@pytest.mark.parametrize("gold", [[1, 1], [0, 0]])
def test_a_threshold_needs_both_answers(gold: list[int]) -> None:
    with pytest.raises(ValueError, match="both answers"):
        fit_threshold([0.1, 0.2], gold)


@pytest.mark.parametrize("bad", [np.zeros(3), np.array([[np.nan, 1.0]])])
def test_other_shapes_and_infinite_values_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected|not finite"):
        cosines(bad, np.eye(2))
    with pytest.raises(ValueError, match="cannot be compared"):
        cosines(np.eye(3), np.eye(2))


def pairs(number: int) -> list[MultiImageTask]:
    """Return questions whether two images are the same."""
    return [
        MultiImageTask(
            f"q{i}", "same", "same_different", (2 * i, 2 * i + 1), i % 2, choices=2, content=f"c{i}"
        )
        for i in range(number)
    ]


def test_the_threshold_comes_from_the_development_part_alone() -> None:
    questions = pairs(60)
    images = torch.from_numpy(unit(120, 0)).float()
    found = answer_questions(questions, images, {})
    develop = [q for q in questions if in_development(q, 0)]
    assert found.thresholds["same"].n == len(develop)
    assert not {q.id for q in develop} & {q.id for q in found.questions}
    assert len(develop) + len(found.questions) == 60
    changed = images.clone()
    for question in found.questions:  # other images in the test part
        changed[list(question.images)] = torch.from_numpy(unit(2, 99)).float()
    assert answer_questions(questions, changed, {}).thresholds == found.thresholds
    mixed = answer_questions(questions[::-1], images, {})
    assert mixed.thresholds == found.thresholds
    assert sorted((q.id, c.correct) for q, c in zip(mixed.questions, mixed.choices, strict=True)) == sorted(
        (q.id, c.correct) for q, c in zip(found.questions, found.choices, strict=True)
    )
    other = answer_questions(questions, images, {}, seed=1)
    assert {q.id for q in other.questions} != {q.id for q in found.questions}


def test_a_task_whose_development_part_lacks_an_answer_is_left_out_and_never_0() -> None:
    questions = [*pairs(1), MultiImageTask("o", "odd", "compare", (0, 1, 2), 0, choices=3)]
    found = answer_questions(questions, torch.from_numpy(unit(3, 0)), {})
    assert found.names == ["odd"]
    assert "lacks yes or no" in found.left_out["same"]
    assert found.task_mean() == found.accuracy()
    all_fit = [question for question in pairs(60) if in_development(question, 0)][:2]
    found = answer_questions(all_fit, torch.from_numpy(unit(120, 0)), {})
    assert found.left_out == {"same": "its development part takes all of its 2 questions"}


def test_means_weigh_tasks_and_categories_alike_and_leave_weak_tasks_out() -> None:
    images = torch.eye(4)[[0, 0, 1, 2, 3]].double()
    shown = {"a": (0, 1, 2), "b": (0, 2, 3)}  # 2 is odd in the first; the second is a tie
    questions = [
        MultiImageTask(f"{name}{i}", name, "compare", shown[kind], 2, choices=3, category=category, weak=weak)
        for name, kind, number, category, weak in (
            ("one", "a", 3, "x", False),
            ("two", "b", 1, "x", False),
            ("three", "b", 5, "y", False),
            ("four", "a", 9, "y", True),
        )
        for i in range(number)
    ]
    found = answer_questions(questions, images, {})
    assert [found.of_task(name).accuracy() for name in ("one", "two", "three", "four")] == [1, 0, 0, 1]
    strong = found.strong
    assert strong.accuracy() == 3 / 9
    assert strong.task_mean() == pytest.approx(1 / 3)
    assert strong.category_mean() == pytest.approx(1 / 4)
    assert strong.guessing() == pytest.approx(1 / 3)
    assert found.ambiguous == 6
