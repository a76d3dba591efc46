"""Settings for single tasks: names are found whatever their case, and what a preset says of other streams is told."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from everclip.contracts import Phase
from everclip.errors import ConfigError
from everclip.methods.settings import TaskTraining
from everclip.methods.task_training import check_names, unused, with_task_training
from everclip.run import Run
from everclip.training.progress import Progress


def tasks(*names: str) -> Any:
    return [SimpleNamespace(name=name) for name in names]


def rate(name: str, *keys: str) -> float | None:
    settings = {key: TaskTraining(lr=0.1 * (1 + number)) for number, key in enumerate(keys)}
    return with_task_training(Phase("train", {}), tasks(name)[0], settings).lr


def test_a_name_is_found_whatever_its_case_and_the_exact_one_wins() -> None:
    assert rate("mnist", "MNIST") == rate("MNIST", "MNIST") == 0.1
    assert rate("mnist", "MNIST", "mnist") == 0.2
    assert rate("stra\u00dfe", "STRASSE") == 0.1
    assert rate("mnist-m", "MNIST") is None
    check_names(["MNIST"], tasks("mnist", "dtd"))
    check_names(["mnist", "MNIST"], tasks("mnist", "MNIST"))
    assert unused(["MNIST", "Aircraft"], tasks("mnist", "dtd")) == ["Aircraft"]


@pytest.mark.parametrize(
    ("keys", "names", "said"),
    [
        (["MNIST", "mnist"], ["MNIST"], "'MNIST' and 'mnist' differ only in case"),
        (["MNIST"], ["mnist", "MNIST"], "'MNIST' fits the tasks 'MNIST' and 'mnist'"),
        (["Mnist"], ["mnist", "MNIST"], "'Mnist' fits the tasks 'MNIST' and 'mnist'"),
        (["mnits"], ["mnist", "dtd"], "'mnits' is not a task of this stream.*mnist"),
    ],
)
def test_a_name_that_is_no_tasks_or_may_be_two_is_refused(
    keys: list[str], names: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_names(keys, tasks(*names), preset=["MNIST"])


def test_what_a_preset_says_of_tasks_of_other_streams_is_told_once_and_recorded(
    micro_config: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = micro_config("classes", "method=lwf-mtil", "training.epochs=null", "training.steps=1")
    kept = [e for e in Run.of(config, Progress()).execute().events if e.kind == "per task"]
    assert len(kept) == 1
    assert "Aircraft, MNIST" in kept[0].message
    said = capsys.readouterr()
    assert (said.out + said.err).count("note: per task: method.per_task sets rates") == 1
    plain = micro_config("classes", "training.steps=1", output="plain")
    assert not [e for e in Run.of(plain, Progress(quiet=True)).execute().events if e.kind == "per task"]
