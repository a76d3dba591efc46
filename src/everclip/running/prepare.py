"""Prepares a run before its first step: data, learner, tasks, and remarks on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from everclip.config import RunConfig
from everclip.contracts import Task
from everclip.evaluation.headline import check_headline
from everclip.learner.core import Learner
from everclip.learner.fit import check_fit, learner_for
from everclip.running import extending
from everclip.running.precision import resolve_precision
from everclip.running.remarks import all_remarks
from everclip.running.run_state import RunState
from everclip.running.stream_rows import new_per_batch, stream_notes
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario
from everclip.scenarios.online import StreamPlan, plan_stream
from everclip.training import environment


@dataclass(frozen=True)
class Prepared:
    """A method, a scenario and a backbone that fit each other; nothing is written yet.

    Attributes:
        config: with the number format that `training.precision=auto` stands for.
        scenario: the tasks and evaluation sets.
        learner: the method on the backbone.
        tasks: in the order of learning; one task where the method learns all at once.
        remarks: pairs of kind and message on guesses, assumptions and rows set aside.
        stream: the planned rows of a stream that is seen once; `None` for other streams: a row after each task.
    """

    config: RunConfig
    scenario: ListScenario
    learner: Learner
    tasks: Sequence[Task]
    remarks: Sequence[tuple[str, str]]
    stream: StreamPlan | None = None

    def start(self) -> RunState:
        """Return the state at which its run begins."""
        return RunState(
            tasks=[task.name for task in self.tasks],
            parts=extending.data_parts(self.scenario, self.tasks),
            start=self.learner.method.backbone.fingerprints(),
            environment=environment.fixed(str(self.learner.accelerator.device)),
        )


def prepare(config: RunConfig) -> Prepared:
    """Load what a configuration names, and check that the parts fit.

    Raises:
        EverclipError: if they do not; says the cause and what to do.
    """
    config, notes = resolve_precision(config)
    scenario = load_scenario(config.scenario, directory=config.directory)
    learner = learner_for(config, scenario)
    stream, needs = None, learner.method.needs
    if scenario.spec.kind == "online" and not needs.all_tasks_at_once:
        stream = plan_stream(scenario, new_per_batch(learner, scenario), needs.borders)
        scenario = stream.scenario
        notes = (*notes, *stream_notes(stream, learner.method))
    tasks = (scenario.at_once() if needs.all_tasks_at_once else scenario).tasks
    fit = check_fit(learner, tasks)
    remarks = all_remarks(scenario, learner.method, tasks, [*notes, *(("training", note) for note in fit)])
    check_headline(scenario.eval_sets, scenario.spec.headline.model_dump()["metric"], config.evaluation.top_k)
    return Prepared(config, scenario, learner, tasks, remarks, stream)
