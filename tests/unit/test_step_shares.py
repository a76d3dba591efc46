"""Buffers that keep a stated part of every earlier time step, and batches with exact shares of each (TiC-CLIP)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everclip.contracts import Past
from everclip.data.sampling.order import share
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.learner import Learner
from everclip.scenarios.load import load_scenario
from everclip.training.buffer import Buffer
from everclip.training.step_shares import kept_volumes

GOLDEN = Path(__file__).parents[1] / "golden" / "tic_replay.npz"
RULES = {"exponential": "exp", "equal": "equal"}
Make = Callable[..., Table]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("times", [1, 2])
def test_volumes_are_the_published_ones(rule: str, times: int) -> None:
    with np.load(GOLDEN) as stored:
        expected = stored[f"{RULES[rule]}_volume_B{times}"]
        share = stored[f"{RULES[rule]}_share_B{times}"]
    for step in range(1, len(expected)):
        found = kept_volumes(rule, [1] * step, times)
        assert found == pytest.approx(expected[step, :step].tolist(), abs=1e-12)
        weights = np.array([*found, 1.0]) / (sum(found) + 1)
        assert weights == pytest.approx(share[step, : step + 1], abs=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_fifty_steps_stay_within_the_buffer_and_never_need_a_dropped_sample(rule: str, table: Make) -> None:
    buffer = Buffer(rule, 64, seed=3)
    before: dict[str, set[str]] = {}
    for step in range(50):
        part = table(40, f"{step}x")
        buffer.offer(f"task {step}", part)
        assert len(buffer) <= 64
        kept: dict[str, set[str]] = {}
        for origin, name, _ in buffer.items:
            kept.setdefault(origin, set()).add(name)
        assert all(kept[origin] <= before[origin] for origin in kept.keys() & before.keys())
        before = {**before, **kept}
        counts = Counter(origin for origin, _, _ in buffer.items)
        expected = kept_volumes(rule, [40] * (step + 1), 64)
        assert [counts[f"task {i}"] for i in range(step + 1)] == [int(v) for v in expected]


def test_the_order_of_rows_does_not_decide_what_is_kept(table: Make) -> None:
    part = table(30, "x")
    turned = part.select(range(len(part) - 1, -1, -1))
    kept = []
    for rows in (part, turned):
        buffer = Buffer("equal", 10, seed=0)
        buffer.offer("task 0", rows)
        kept.append(buffer.items)
    assert kept[0] == kept[1]


def test_a_buffer_of_one_step_follows_the_size_of_the_last_one(table: Make) -> None:
    buffer = Buffer("exponential", 1, seed=0, times=1.0)
    for number, size in enumerate((40, 8, 20)):
        buffer.offer(f"task {number}", table(size, f"{number}x"))
    assert Counter(origin for origin, _, _ in buffer.items) == {"task 0": 4, "task 1": 4, "task 2": 10}


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=50), st.integers(0, 5000))
def test_shares_are_exact_up_to_a_few_samples_at_every_position(weights: list[int], start: int) -> None:
    """Each halving rounds once: with k sources, a share is off by less than ceil(log2 k) samples, or k = 2 by one."""
    levels = max(1, math.ceil(math.log2(len(weights))))
    total = sum(weights)
    counts = Counter(share(position, weights)[0] for position in range(200))
    for source, weight in enumerate(weights):
        assert abs(counts[source] - 200 * weight / total) < levels
    source, place = share(start, weights)
    assert abs(place - start * weights[source] / total) < levels, "also far from the beginning"


def test_the_positions_of_a_source_follow_each_other() -> None:
    weights, seen = [5, 1, 3, 3, 9, 1, 1], Counter[int]()
    for position in range(1000):
        source, place = share(position, weights)
        assert place == seen[source]
        seen[source] += 1


def test_a_phase_takes_from_every_step_what_the_buffer_keeps(
    micro_folder: Path, micro_config: Callable[..., Any]
) -> None:
    training = {"steps": 9, "batch_size": 8, "threads": 1, "device": "cpu"}
    learner = Learner.create(str(micro_folder / "model"), "cumulative-exp", training)
    tasks = load_scenario(micro_config("time").scenario).tasks
    for task in tasks[:2]:
        learner.method.store(task, Past())
        learner.tasks.append(task)
        learner.learned.add(task.index)
    (phase,) = learner.plan(tasks[2])
    sources = phase.streams["main"].sources
    own, last = len(tasks[2].train), len(tasks[1].train)
    assert [len(source.table) for source in sources] == [own, last // 2, last // 2]
    weights = [source.weight / sum(s.weight for s in sources) for source in sources]
    assert weights == pytest.approx([size / (own + 2 * (last // 2)) for size in (own, last // 2, last // 2)])


def test_settings_that_do_not_fit_are_refused(micro_folder: Path, micro_config: Callable[..., Any]) -> None:
    def create(**replay: Any) -> Learner:
        return Learner.create(str(micro_folder / "model"), "replay", replay=replay)

    with pytest.raises(ConfigError, match="only `exponential` and `equal` count in tasks"):
        create(kind="reservoir", times=2.0)
    once = replace(load_scenario(micro_config("time").scenario).tasks[0], once=True)
    with pytest.raises(ConfigError, match="a stream that is seen once"):
        create(kind="equal", size=8).plan(once)
