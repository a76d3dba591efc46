"""What choices are made on: each task's own classes where the stream asks so, else all classes so far."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from everclip.contracts import EvalSet
from everclip.evaluation.validation import set_score, validation_scores
from everclip.learner import Learner
from everclip.learner.fit import learner_for
from everclip.scenarios.load import load_scenario


@pytest.mark.parametrize(("shown", "own"), [("own", True), ("seen", False), ("all", False)])
def test_a_stream_that_asks_among_own_classes_is_chosen_for_so(
    micro_config: Callable[..., Any], shown: str, own: bool, tmp_path: Path
) -> None:
    config = micro_config("classes", f"scenario.headline.protocol={shown}", "method=finetune")
    scenario = load_scenario(config.scenario)
    learner = learner_for(config, scenario)
    assert learner.own_classes is own
    learner.learn(scenario.tasks[0])
    learner.save(tmp_path / "saved")
    again = Learner.load(tmp_path / "saved")
    assert again.own_classes is own


def test_own_classes_weigh_each_task_by_its_pictures(micro_config: Callable[..., Any]) -> None:
    config = micro_config("classes", "method=finetune")
    scenario = load_scenario(config.scenario)
    learner = learner_for(config, scenario)
    tasks = list(scenario.tasks[:3])
    assert tasks[0].val is not None
    tasks[0] = replace(tasks[0], val=tasks[0].val.select(range(1)))  # not all tasks of one size
    alone = [
        set_score(
            learner.method,
            EvalSet(t.name, "classification", t.val, t.index, "task", t.classes),
            learner.store,
        )
        for t in tasks
        if t.val is not None
    ]
    found = validation_scores(learner.method, tasks, None, learner.store, own_classes=True)
    old = sum(score * count for score, count in alone[:2]) / sum(count for _, count in alone[:2])
    assert found == {"old": pytest.approx(old), "new": pytest.approx(alone[2][0])}
    union = validation_scores(learner.method, tasks, None, learner.store)
    assert union["new"] < found["new"]  # six classes to choose from instead of two
