"""Reads the target of a suggestion: the first task, the model, and settings of the stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from everclip.config import BackboneConfig, MethodConfig, resolve_config, validated
from everclip.contracts import Task
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError
from everclip.learner.tasks import make_task
from everclip.registry import benchmarks
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario


@dataclass(frozen=True)
class Target:
    """The target of a suggestion.

    Attributes:
        task: the task to learn first.
        stream: whether the data are a stream, with settings of its own.
        backbone: settings of the model.
        named: settings of the model that a command must name: all for a source, the explicit ones for a stream.
        training: training settings of the stream.
        scenario: the stream, with base data and sets for the guard; `None` for a source.
        guard: guard settings of the stream.
        method: the preset that the stream names, with its settings.
    """

    task: Task
    stream: bool
    backbone: BackboneConfig
    named: Mapping[str, Any]
    training: Mapping[str, Any]
    scenario: ListScenario | None = None
    guard: Mapping[str, Any] = field(default_factory=dict)
    method: MethodConfig | None = None


def read_target(data: str, model: Mapping[str, Any], block: Mapping[str, Any]) -> Target:
    """Read data and settings of a user.

    Args:
        data: a source of data, or a stream (a YAML file or a benchmark).
        model: explicit settings of the backbone; they take precedence over the stream's.
        block: settings of the `data:` block, for a source.

    Raises:
        ConfigError: for data or settings that do not exist.
        DataError: for data that cannot be learned from.
    """
    if data.endswith((".yaml", ".yml")) or data.partition("@")[0] in benchmarks():
        if block:
            raise ConfigError(f"suggest: {data} is a stream; write settings of a data block into it.")
        config = resolve_config(data, settings={"backbone": model} if model else {})
        scenario = load_scenario(config.scenario)
        training = config.training.model_dump(exclude_unset=True)
        guard = config.guard.model_dump(exclude_unset=True)
        return Target(
            scenario.tasks[0], True, config.backbone, model, training, scenario, guard, config.method
        )
    chosen = validated(BackboneConfig, {"name": "builtin:photo", **model}, "backbone")
    spec = validated(DataSpec, {"source": data, **block}, "data")
    named = chosen.model_dump(mode="json", exclude_unset=True)
    return Target(make_task(spec, index=0), False, chosen, named, {})
