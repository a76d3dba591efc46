"""What a suggestion is for: the task that would be learned first, the model, and what the stream says of training."""

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
class Given:
    """What is learned, with what, and from where that is known.

    Attributes:
        task: what would be learned first.
        stream: whether a stream was named, which says the rest itself.
        backbone: the model.
        named: what of the model a command must name: all for a source, what was given for a stream.
        training: the stream's training settings.
        scenario: the stream, which also holds the base's data and what a guard may look at; `None` for a source.
        guard: what the stream says of the guard.
        method: the preset that the stream names, with its settings: a run with that preset takes them.
    """

    task: Task
    stream: bool
    backbone: BackboneConfig
    named: Mapping[str, Any]
    training: Mapping[str, Any]
    scenario: ListScenario | None = None
    guard: Mapping[str, Any] = field(default_factory=dict)
    method: MethodConfig | None = None


def given_by(data: str, model: Mapping[str, Any], block: Mapping[str, Any]) -> Given:
    """Read what a user named.

    Args:
        data: a source of data, or a stream (a YAML file or a benchmark).
        model: settings of the backbone that were given; they lie over the stream's.
        block: settings of the `data:` block, for a source.

    Raises:
        ConfigError: for data or settings that do not exist.
        DataError: for data from which nothing can be learned.
    """
    if data.endswith((".yaml", ".yml")) or data.partition("@")[0] in benchmarks():
        if block:
            raise ConfigError(f"suggest: {data} is a stream; settings of a data block belong into it.")
        config = resolve_config(data, settings={"backbone": model} if model else {})
        scenario = load_scenario(config.scenario)
        training = config.training.model_dump(exclude_unset=True)
        guard = config.guard.model_dump(exclude_unset=True)
        return Given(
            scenario.tasks[0], True, config.backbone, model, training, scenario, guard, config.method
        )
    chosen = validated(BackboneConfig, {"name": "builtin:tiny", **model}, "backbone")
    spec = validated(DataSpec, {"source": data, **block}, "data")
    named = chosen.model_dump(mode="json", exclude_unset=True)
    return Given(make_task(spec, index=0), False, chosen, named, {})
