"""The built-in benchmarks hold the very samples, in the very order, that their published numbers were measured on."""

import hashlib
from collections.abc import Iterable

import pytest

from everclip.data.table import Table
from presets import builtin_benchmarks, builtin_scenario


def digest(parts: Iterable[object]) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def ids(table: Table | None) -> str:
    return "none" if table is None else digest(table.ids)


# name -> ids of tasks (training and validation), of evaluation sets (with kind, group and classes), of the base.
SAMPLES = {
    "emoji-base": ("b5e6661604e98b5d", "670b41689781831a", "16ef5e7846219ad3"),
    "emoji-classes": ("f95a663e2fd27599", "f1e80124c341eae2", "16ef5e7846219ad3"),
    "emoji-names": ("e5cde92eb40ac4dc", "b27db9eea6ec2966", "0ffa2e451e164833"),
    "emoji-online": ("4a9d0167972411a9", "3f8b6d4c3ef02f9e", "16ef5e7846219ad3"),
    "emoji-styles": ("bb78c65e8adc99f9", "f94a7b9d7a70bdaa", "16ef5e7846219ad3"),
    "emoji-time": ("8f2925e546ae55d9", "3ba19d515c6250f2", "ad611966915ba97b"),
}


@pytest.mark.parametrize("name", builtin_benchmarks())
def test_samples_order_and_splits_are_those_that_were_published(name: str) -> None:
    scenario = builtin_scenario(name)
    tasks = digest(
        (t.index, t.name, t.time, t.language, ids(t.train), ids(t.val), [c.key for c in t.classes or ()])
        for t in scenario.tasks
    )
    sets = digest(
        (s.name, s.kind, s.group, s.task, ids(s.data), [(c.key, c.prompts()) for c in s.classes or ()])
        for s in scenario.eval_sets
    )
    assert (tasks, sets, digest([ids(scenario.base), ids(scenario.base_val)])) == SAMPLES[name]


@pytest.mark.parametrize("name", builtin_benchmarks())
def test_no_measured_drawing_is_byte_identical_to_a_training_drawing(name: str) -> None:
    scenario = builtin_scenario(name)
    trained = {data for task in scenario.tasks for data in task.train.column("image")}
    trained |= set(scenario.base.column("image")) if scenario.base else set()
    measured = {data for s in scenario.eval_sets for data in s.data.column("image")}
    measured |= {data for task in scenario.tasks if task.val for data in task.val.column("image")}
    assert not trained & measured
