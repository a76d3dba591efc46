"""What choices are made on: each task's own classes where the stream asks so, else all classes so far."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from everclip.contracts import EvalSet, LabelSpace
from everclip.data.table import Table
from everclip.errors import DataError
from everclip.evaluation.validation import correct, recalls, require_pictures, set_score, validation_scores
from everclip.learner import Learner
from everclip.learner.fit import learner_for
from everclip.scenarios.base import merge_entries
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
            learner.features,
        )
        for t in tasks
        if t.val is not None
    ]
    found = validation_scores(learner.method, tasks, None, learner.features, own_classes=True)
    old = sum(score * count for score, count in alone[:2]) / sum(count for _, count in alone[:2])
    assert found == {"old": pytest.approx(old), "new": pytest.approx(alone[2][0])}
    union = validation_scores(learner.method, tasks, None, learner.features)
    assert union["new"] < found["new"]  # six classes to choose from instead of two


def test_a_retrieval_set_scores_the_mean_of_both_recalls(micro_config: Callable[..., Any]) -> None:
    config = micro_config("classes", "method=finetune")
    learner = learner_for(config, load_scenario(config.scenario))
    table = learner_table(micro_config)
    value, count = set_score(learner.method, EvalSet("r", "retrieval", table), learner.features)
    with torch.no_grad():
        method = learner.method.eval()
        pixels = [method.backbone.preprocess(learner.store.get(table, i)) for i in range(len(table))]
        images = method.encode_images(torch.stack(pixels))["embedding"]
        texts = method.encode_texts(method.backbone.tokenise(table.column("caption")))["embedding"]
    cosines = images @ texts.T
    right = torch.arange(len(table))
    both = [(cosines.argmax(dim=1) == right).float().mean(), (cosines.argmax(dim=0) == right).float().mean()]
    assert (value, count) == (pytest.approx(float(sum(both)) / 2), len(table))


def learner_table(micro_config: Callable[..., Any]) -> Table:
    """Return rows with different captions and pictures."""
    table = load_scenario(micro_config("classes").scenario).tasks[0].train
    first = {caption: i for i, caption in reversed(list(enumerate(table.column("caption"))))}
    return table.select(sorted(first.values()))


def test_captions_and_classes_are_measured_apart_and_weighed_by_their_pictures(
    micro_config: Callable[..., Any],
) -> None:
    """The base counts as old where captions are learned, and only if all of it has captions."""
    config = micro_config("classes", "method=finetune")
    scenario = load_scenario(config.scenario)
    learner, tasks = learner_for(config, scenario), list(scenario.tasks)
    table = learner_table(micro_config)
    half = len(table) // 2
    captions = [
        replace(tasks[i], classes=None, val=table.select(range(i * half, (i + 1) * half))) for i in (0, 1)
    ]
    base = learner_table(micro_config).select(range(half, 2 * half))
    method, features = learner.method, learner.features

    def together(*tables: Table) -> list[float]:
        named = {str(i): table for i, table in enumerate(tables)}
        return list(recalls(method, named, features, method.encoder_keys()).values())

    old, new = together(captions[0].val, captions[1].val)  # type: ignore[arg-type]
    assert validation_scores(method, captions, None, features) == {"old": old, "new": new}
    old, new = together(Table.concat([base, captions[0].val], "old"), captions[1].val)  # type: ignore[list-item, arg-type]
    assert validation_scores(method, captions, base, features) == {"old": old, "new": new}
    # Classes first, then captions: the earlier task is measured by its classes, the newest by recall.
    mixed = [tasks[0], captions[1]]
    space = LabelSpace(merge_entries(list(tasks[0].classes or ())))
    right = correct(method, tasks[0].val, space, features).float().mean()  # type: ignore[arg-type]
    (alone,) = together(captions[1].val)  # type: ignore[arg-type]
    assert validation_scores(method, mixed, None, features) == {
        "old": pytest.approx(float(right)),
        "new": alone,
    }
    both = [tasks[0], captions[0], captions[1]]
    old, new = together(captions[0].val, captions[1].val)  # type: ignore[arg-type]
    counts = len(tasks[0].val or ()), len(captions[0].val or ())
    mean = (float(right) * counts[0] + old * counts[1]) / sum(counts)
    assert validation_scores(method, both, None, features) == {"old": pytest.approx(mean), "new": new}
    # No base for classes alone, and no validation pictures of the newest task is an error by its name.
    assert validation_scores(method, tasks[:1], base, features).keys() == {"new"}
    for nothing in (None, base.select([])):
        with pytest.raises(DataError, match=f"task {tasks[1].name!r}: there is no validation image"):
            require_pictures([tasks[0], replace(tasks[1], val=nothing)], base)
    require_pictures([replace(tasks[0], val=None), tasks[1]], None)
