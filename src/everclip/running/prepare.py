"""What a run needs before its first step: data, learner, tasks, and what people should know about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from everclip.config import RunConfig
from everclip.contracts import Task
from everclip.evaluation.headline import check_headline
from everclip.learner.core import Learner
from everclip.learner.fit import check_fit, learner_for
from everclip.running import extending, inputs
from everclip.running.place import Place
from everclip.running.precision import settle_precision
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario
from everclip.training import environment


@dataclass(frozen=True)
class Prepared:
    """A method, a scenario and a backbone that were found to fit each other; nothing is written yet.

    Attributes:
        config: with the number format that `training.precision=auto` stands for.
        scenario: the data.
        learner: the method on the backbone.
        tasks: in the order of learning; one task where the method learns all at once.
        remarks: pairs of kind and message: what was guessed, assumed or set aside.
    """

    config: RunConfig
    scenario: ListScenario
    learner: Learner
    tasks: Sequence[Task]
    remarks: Sequence[tuple[str, str]]

    def start(self) -> Place:
        """Return the place at which a run of it begins."""
        return Place(
            tasks=[task.name for task in self.tasks],
            parts=extending.parts_of(self.scenario, self.tasks),
            start=self.learner.method.backbone.fingerprints(),
            environment=environment.fixed(str(self.learner.accelerator.device)),
        )


def prepare(config: RunConfig) -> Prepared:
    """Load what a configuration names, and check that the parts fit.

    Raises:
        EverclipError: with the cause and what to do.
    """
    config, notes = settle_precision(config)
    scenario = load_scenario(config.scenario)
    learner = learner_for(config, scenario)
    tasks = (scenario.at_once() if learner.method.needs.all_tasks_at_once else scenario).tasks
    fit = check_fit(learner, tasks)
    remarks = inputs.all_remarks(
        scenario, learner.method, tasks, [*notes, *(("training", note) for note in fit)]
    )
    check_headline(scenario.eval_sets, scenario.spec.headline.model_dump()["metric"], config.evaluation.top_k)
    return Prepared(config, scenario, learner, tasks, remarks)
