"""iCaRL: correct herding, a memory that stays bounded, and distillation on it alone."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from everclip.contracts import Task
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.features.encoder import image_encoder
from everclip.features.pictures import Pictures
from everclip.features.service import FeatureService
from everclip.learner.fit import learner_for
from everclip.scenarios.load import load_scenario
from everclip.training.buffer import Buffer
from everclip.training.herding import herd

GOLDEN = Path(__file__).parent.parent / "golden" / "icarl_herding.npz"
Make = Callable[..., Table]


def units(count: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def by_id(table: Table) -> torch.Tensor:
    """Embeddings that depend on a sample's id alone."""
    return torch.cat([units(1, seed=sum(map(ord, name)) * 31 + len(name)) for name in table.ids])


# -- herding --------------------------------------------------------------------------------------------------


def test_herding_is_the_correct_order_and_not_that_of_the_reference_code() -> None:
    stored = np.load(GOLDEN, allow_pickle=False)
    quota = int(stored["memory_size"]) // int(stored["num_sets_including_new"])
    found = herd(F.normalize(torch.from_numpy(stored["features"]), dim=1), quota)
    assert found == stored["order_correct"].tolist()
    assert found != stored["order_reference_buggy"].tolist()
    assert len(set(found)) == quota == int(stored["quota"])


def brute_force(features: torch.Tensor, count: int) -> list[int]:
    rows = features.double().tolist()
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    chosen: list[int] = []
    while len(chosen) < min(count, len(rows)):
        gaps = {}
        for i in set(range(len(rows))) - set(chosen):
            together = [rows[j] for j in [*chosen, i]]
            now = [sum(column) / len(together) for column in zip(*together, strict=True)]
            gaps[i] = sum((a - b) ** 2 for a, b in zip(mean, now, strict=True))
        chosen.append(min(gaps, key=lambda i: (gaps[i], i)))
    return chosen


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 12), st.integers(1, 14), st.integers(0, 99))
def test_herding_is_what_its_definition_says_and_a_cut_list_is_a_herded_list(
    n: int, k: int, seed: int
) -> None:
    assume(n != 2)  # two rows are equally near to their mean: rounding decides
    features = units(n, seed=seed)
    found = herd(features, k)
    assert found == brute_force(features, k)
    assert found[: k // 2] == herd(features, k // 2)


def test_a_diverged_model_chooses_nothing() -> None:
    features = units(4)
    features[2, 1] = torch.nan
    with pytest.raises(DataError, match="NaN"):
        herd(features, 2)


# -- the memory -----------------------------------------------------------------------------------------------


def test_memory_is_bounded_and_old_sets_are_cut_to_their_quota(table: Make) -> None:
    buffer, seen = Buffer("herding", 12, 0), list[list[str]]()
    for task in range(5):
        buffer.offer(f"task {task}", table(20, f"{task}x"), by_id)
        counts = Counter(origin for origin, _, _ in buffer.items)
        assert set(counts.values()) == {12 // (task + 1)}
        assert len(buffer) <= 12
        seen.append([name for origin, name, _ in buffer.items if origin == "task 0"])
    assert all(later == earlier[: len(later)] for earlier, later in itertools.pairwise(seen))
    assert seen[0] == [f"0x{i}" for i in herd(by_id(table(20, "0x")), 12)]


def test_every_class_is_herded_by_itself(table: Make) -> None:
    buffer = Buffer("herding", 9, 0).by_class()
    data = table(20)
    buffer.offer("task 0", data, by_id)
    for group in ("c0", "c1", "c2"):
        places = [i for i, key in enumerate(data.column("class_key")) if key == group]
        expected = [data.ids[places[i]] for i in herd(by_id(data)[places], 3)]
        assert [name for _, name, g in buffer.items if g == group] == expected


def test_a_class_that_comes_back_keeps_samples_of_both_tasks(table: Make) -> None:
    buffer = Buffer("herding", 4, 0).by_class()
    one_class = {"class_key": ["c0"] * 9}
    buffer.offer("task 0", table(9, "a", **one_class), by_id)
    buffer.offer("task 1", table(9, "b", **one_class), by_id)
    assert Counter(origin for origin, _, _ in buffer.items) == {"task 0": 2, "task 1": 2}


def test_more_classes_than_places_stay_within_the_bound(table: Make) -> None:
    buffer = Buffer("herding", 3, 0).by_class()
    for task in range(4):
        buffer.offer(f"task {task}", table(4, f"{task}x", class_key=[f"{task}-{i}" for i in range(4)]), by_id)
        assert len(buffer) == 3
    assert len({group for _, _, group in buffer.items}) == 3


def test_no_more_candidates_are_encoded_than_allowed(table: Make) -> None:
    asked: list[list[str]] = []

    def watched(part: Table) -> torch.Tensor:
        asked.append(part.ids)
        return by_id(part)

    data = table(30)
    buffer = Buffer("herding", 5, 0, candidates=8)
    buffer.offer("task 0", data, watched)
    assert [len(ids) for ids in asked] == [8]
    assert asked[0] == [name for name in data.ids if name in asked[0]], "in the order of the data"
    assert {name for _, name, _ in buffer.items} <= set(asked[0])
    assert asked[0] != data.ids[:8], "chosen by hash, not the first ones"


def test_a_restored_memory_goes_on_as_if_nothing_had_happened(table: Make) -> None:
    whole = Buffer("herding", 7, 3).by_class()
    whole.offer("task 0", table(20), by_id)
    again = Buffer("herding", 7, 3)
    again.restore(json.loads(json.dumps(whole.state())))
    for buffer in (whole, again):
        buffer.offer("task 1", table(20, "t"), by_id)
    assert (again.items, again.seen) == (whole.items, whole.seen)


# -- the method -----------------------------------------------------------------------------------------------


@pytest.fixture
def begin(micro_config: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function (*overrides) -> (learner, tasks) of the stream of classes."""

    def make(*overrides: str, kind: str = "classes") -> Any:
        config = micro_config(kind, "method=icarl", "method.replay.size=7", "training.lr=1e-2", *overrides)
        scenario = load_scenario(config.scenario)
        return learner_for(config, scenario), list(scenario.tasks)

    return make


def test_what_is_kept_is_herded_under_the_model_that_has_just_learned(begin: Callable[..., Any]) -> None:
    learner, tasks = begin("method.replay.per=task")
    learner.learn(tasks[0])
    data = tasks[0].train
    features = learner.past().embed(data)
    kept = [name for _, name, _ in learner.method.buffer.items]
    assert kept == [data.ids[i] for i in herd(features, 7)]
    start, _ = begin("method.replay.per=task")
    assert kept != [data.ids[i] for i in herd(start.past().embed(data), 7)], "the model before the task"
    learner.learn(tasks[1])
    assert [n for origin, n, _ in learner.method.buffer.items if origin == "task 0"] == kept[:3]
    assert len(learner.method.buffer) == 6


def test_exemplars_are_distilled_on_and_not_learned_by_their_labels(begin: Callable[..., Any]) -> None:
    learner, tasks = begin()
    (phase,) = learner.plan(tasks[0])
    assert set(phase.streams) == {"main"}
    learner.learn(tasks[0])
    (phase,) = learner.plan(tasks[1])
    main, memory = phase.streams["main"], phase.streams["memory"]
    assert {name for s in main.sources for name in s.table.ids} == set(tasks[1].train.ids)
    assert main.classes == tasks[1].classes
    assert set(memory.sources[0].table.ids) <= set(tasks[0].train.ids)
    assert (memory.view, memory.columns) == ("eval", ("image",))


def test_both_also_learns_the_exemplars_by_their_labels(begin: Callable[..., Any]) -> None:
    learner, tasks = begin("method.replay.use=both")
    learner.learn(tasks[0])
    (phase,) = learner.plan(tasks[1])
    assert len(phase.streams["main"].classes) == 4
    assert len(phase.streams["main"].sources) == 2
    assert "memory" in phase.streams
    learner.learn(tasks[1])


def test_the_first_task_is_plain_fine_tuning(
    begin: Callable[..., Any], micro_config: Callable[..., Any]
) -> None:
    learner, tasks = begin()
    learner.learn(tasks[0])
    config = micro_config("classes", "method.trainable=[image, text]", "training.lr=1e-2")
    plain = learner_for(config, load_scenario(config.scenario))
    plain.learn(tasks[0])
    state = plain.method.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in learner.method.state_dict().items())
    for task, other in ((learner, plain),):
        task.learn(tasks[1])
        other.learn(tasks[1])
    assert not all(
        torch.equal(v, plain.method.state_dict()[k]) for k, v in learner.method.state_dict().items()
    )


def test_the_teacher_is_the_start_model_or_that_of_the_tasks_start(begin: Callable[..., Any]) -> None:
    for which, changed in (("initial", False), ("task-start", True)):
        learner, tasks = begin(f"method.penalties.lwf.reference={which}")
        start = {k: v.clone() for k, v in learner.method.backbone.state_dict().items()}
        learner.learn(tasks[0])
        learner.method.begin_task(tasks[1], learner.past())
        teacher = learner.method.teacher_of(which).state_dict()
        assert all(torch.equal(v, start[k]) for k, v in teacher.items()) != changed


def test_settings_that_do_not_go_together_are_refused_or_said(
    begin: Callable[..., Any], micro_config: Callable[..., Any]
) -> None:
    with pytest.raises(ConfigError, match="`images: memory` uses stored samples, but there are none"):
        begin("method.replay.kind=none")
    learner, tasks = begin("method.penalties={lwf: {images: batch}}")
    learner.learn(tasks[0])
    (phase,) = learner.plan(tasks[1])
    assert any("no penalty uses the stored samples" in note for note in phase.notes)


def test_published_settings_are_a_preset(micro_config: Callable[..., Any]) -> None:
    config = micro_config("classes", "method=icarl-mtil")
    given = config.method.settings
    assert given["replay"] == {
        "kind": "herding",
        "size": 10000,
        "candidates": 30000,
        "per": "task",
        "use": "distil",
    }
    assert given["label_smoothing"] == 0.2
    assert config.training.lr == 1e-5
    learner_for(config, load_scenario(config.scenario))


def test_order_of_threads_does_not_matter(begin: Callable[..., Any]) -> None:
    learner, tasks = begin()
    data = tasks[0].train
    encoder = image_encoder(learner.method.eval(), learner.method.encoder_keys())
    one, four = (FeatureService(learner.store, workers) for workers in (1, 4))
    alone = one.images(encoder, Pictures.of(data))["embedding"]
    assert torch.equal(alone, four.images(encoder, Pictures.of(data))["embedding"])
    shuffled = data.select(random.Random(0).sample(range(len(data)), len(data)))
    found = dict(zip(shuffled.ids, one.images(encoder, Pictures.of(shuffled))["embedding"], strict=True))
    for name, row in zip(data.ids, alone, strict=True):
        assert torch.allclose(found[name], row, atol=1e-6)
    assert isinstance(tasks[0], Task)
