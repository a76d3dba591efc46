"""The learner of a run, and whether it fits the tasks: checked before the first step."""

from __future__ import annotations

from collections.abc import Sequence

from everclip.config import RunConfig
from everclip.contracts import Task
from everclip.data.sampling.batches import share_of
from everclip.errors import ConfigError
from everclip.learner.core import Learner
from everclip.learner.learnable import require_learnable
from everclip.methods.build import build_method
from everclip.methods.task_training import check_names
from everclip.models.backbone import load_backbone
from everclip.registry import method_entry
from everclip.scenarios.base import ListScenario
from everclip.training.guard import watchable
from everclip.training.processes import start_processes

_COLUMNS = {"labels": "class names", "captions": "captions"}


def learner_for(config: RunConfig, scenario: ListScenario) -> Learner:
    """Build the learner of a run."""
    accelerator = start_processes(config.training)
    backbone = load_backbone(config.backbone, config.seed)
    method = build_method(config.method, backbone, config.seed)
    learner = Learner(method, config.training, config.seed, accelerator)
    learner.follow(scenario)
    if config.guard.max_drop is not None:
        learner.watch(watchable(scenario), config.guard)
    return learner


def check_fit(learner: Learner, tasks: Sequence[Task]) -> tuple[str, ...]:
    """Check before the first step that method and scenario fit, and that there is something to learn.

    Returns:
        What people should know.

    Raises:
        DataError: if a task leaves nothing to tell apart.
        ConfigError: if the method needs labels, captions or validation pictures that the tasks do not have, or the
            processes cannot share a batch equally.
    """
    share_of(learner.training.batch_size, learner.accelerator.num_processes)
    _check_reference(learner)
    if learner.method.per_task:
        brought = method_entry(learner.method.preset).settings.get("per_task", {})
        check_names(learner.method.per_task, tasks, brought)
    for task in tasks:
        if learner.method.chooses_on_validation and not (task.val is not None and len(task.val)):
            raise ConfigError(
                f"method.merge.alpha: `sweep` chooses on validation pictures, but task {task.name!r} has none; "
                "raise scenario.split.validation, or set a fixed method.merge.alpha."
            )
        labels = learner.method.uses_labels(task)
        if labels and task.classes is None:
            raise ConfigError(
                f"method.loss: `labels` needs classes, but task {task.name!r} has none; use captions."
            )
        if not labels and not task.train.has("caption"):
            raise ConfigError(
                f"method.loss: `captions` needs a column `caption`, but task {task.name!r} has none."
            )
        wanted = "labels" if labels else "captions"
        if wanted not in learner.method.needs.supervision:
            raise ConfigError(
                f"method: {learner.method.preset} cannot learn from {wanted} (task {task.name!r}); it needs "
                f"{' or '.join(sorted(_COLUMNS[kind] for kind in learner.method.needs.supervision))}."
            )
    return require_learnable(learner.method, tasks, learner.training.batch_size, base=learner.base).notes


def _check_reference(learner: Learner) -> None:
    """Refuse a method that asks a teacher about data that the scenario does not name.

    Raises:
        ConfigError: with the key to set.
    """
    method, given = learner.method, learner.reference
    wanted = set(method.reference_needs)
    if given is not None:
        wanted -= {"images"} if given.images is not None and len(given.images) else set()
        wanted -= {"texts"} if given.texts else set()
    if wanted:
        keys = " and ".join(f"scenario.reference.{name}.source" for name in sorted(wanted))
        raise ConfigError(
            f"method: {method.preset} distils on reference data that belong to no task, and the scenario names none; "
            f"set {keys} (a folder, a table, a .txt file of texts)."
        )
