"""Build the learner of a run, and check before the first step that it fits the tasks."""

from __future__ import annotations

from collections.abc import Sequence

from everclip.config import RunConfig
from everclip.contracts import Task
from everclip.data.sampling.batches import share_of
from everclip.errors import ConfigError
from everclip.learner.core import Learner
from everclip.learner.learnable import require_learnable
from everclip.learner.single_pass import require_one_pass
from everclip.methods.build import build_method
from everclip.methods.task_training import check_names
from everclip.models.backbone import load_backbone
from everclip.registry import method_entry
from everclip.scenarios.base import ListScenario
from everclip.training.guard import watchable
from everclip.training.optim import require_packages
from everclip.training.processes import start_processes

_COLUMNS = {"labels": "class names", "captions": "captions"}


def learner_for(config: RunConfig, scenario: ListScenario) -> Learner:
    """Build the learner of a run."""
    accelerator = start_processes(config.training)
    backbone = load_backbone(config.backbone, config.seed, config.directory)
    method = build_method(config.method, backbone, config.seed)
    learner = Learner(method, config.training, config.seed, accelerator)
    learner.follow(scenario)
    if config.guard.max_drop is not None:
        learner.watch(watchable(scenario), config.guard)
    return learner


def check_fit(learner: Learner, tasks: Sequence[Task]) -> tuple[str, ...]:
    """Check before the first step that method and scenario fit, and that there is something to learn.

    Returns:
        Notes for the user.

    Raises:
        DataError: if a task has only one text or one image, so that there is nothing to learn, or lacks data that the
            method needs.
        ConfigError: if the method needs labels, captions or validation images that the tasks do not have, the
            processes cannot share a batch equally, or the package of the optimiser is not installed.
    """
    share_of(learner.training.batch_size, learner.accelerator.num_processes)
    require_packages(learner.training.optimiser)
    if not learner.method.needs.all_tasks_at_once:
        require_one_pass(learner.training, tasks)
    if any(task.once for task in tasks):
        learner.plan(tasks[0])  # refuses a method that needs several passes
    _check_reference(learner)
    if learner.method.per_task:
        brought = method_entry(learner.method.preset).settings.get("per_task", {})
        check_names(learner.method.per_task, tasks, brought)
    for task in tasks:
        if learner.method.chooses_on_validation and not (task.val is not None and len(task.val)):
            raise ConfigError(
                f"method.merge.alpha: `sweep` chooses on validation images, but task {task.name!r} has none; "
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
        learner.method.check_task(task)
    return require_learnable(learner.method, tasks, learner.training.batch_size, base=learner.base).notes


def _check_reference(learner: Learner) -> None:
    """Refuse a method that distils on reference data if the scenario names none.

    Raises:
        ConfigError: with the key to set.
    """
    method, reference = learner.method, learner.reference
    missing = set(method.reference_needs)
    if reference is not None:
        missing -= {"images"} if reference.images is not None and len(reference.images) else set()
        missing -= {"texts"} if reference.texts else set()
    if missing:
        keys = " and ".join(f"scenario.reference.{name}.source" for name in sorted(missing))
        raise ConfigError(
            f"method: {method.preset} distils on reference data that belong to no task, and the scenario names none; "
            f"set {keys} (a folder, a table, a .txt file of texts)."
        )
