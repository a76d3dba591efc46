"""Builds the typed result of a run from its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from everclip.config import RunConfig
from everclip.contracts import Task
from everclip.evaluation.assemble import build_matrix, build_together, column_info, flat_metrics, task_info
from everclip.evaluation.measurements import OLD_AND_NEW, Measurements
from everclip.evaluation.results import Event, Example, Results, Row
from everclip.learner.core import Learner
from everclip.running.clock import Clock
from everclip.running.run_state import RunState
from everclip.running.stream_rows import online_info, stretches
from everclip.scenarios.base import ListScenario
from everclip.scenarios.online import StreamPlan
from everclip.training import environment

Status = Literal["running", "finished", "stopped"]


def build_results(
    config: RunConfig,
    scenario: ListScenario,
    learner: Learner,
    tasks: Sequence[Task],
    state: RunState,
    headline: Mapping[str, str],
    status: Status,
    clock: Clock,
    stream: StreamPlan | None = None,
) -> Results:
    """Return the current result."""
    spec, method = scenario.spec, learner.method
    measured = measurements_of(scenario, state, headline)
    rows, columns = list(measured.rows), list(measured.columns)
    return Results(
        status=status,
        benchmark=config.benchmark,
        title=spec.title or spec.name,
        summary=spec.summary,
        method={
            "name": config.method.name,
            "settings": method.settings.model_dump(mode="json"),
            "cost": vars(method.describe()),
        },
        backbone={
            "name": method.backbone.name,
            "weights": config.backbone.weights,
            **({} if config.backbone.adapter is None else {"adapter": config.backbone.adapter}),
        },
        seed=config.seed,
        protocols=[dict(protocol) for protocol in measured.protocols],
        headline=dict(headline),
        tasks=[task_info(task) for task in tasks] if stream is None else stretches(stream),
        columns=columns,
        rows=rows,
        matrix=build_matrix(rows, columns, headline),
        together=build_together(measured),
        metrics=flat_metrics(measured) | measured.values(*OLD_AND_NEW),
        examples=[Example(**e) for e in state.examples],
        events=[Event(**e) for e in state.events],
        cost=_cost(learner, state, clock),
        provenance=_provenance(config, scenario, learner, state),
        online=None if stream is None else online_info(stream, config, rows),
    )


def measurements_of(scenario: ListScenario, state: RunState, headline: Mapping[str, str]) -> Measurements:
    """Return the rows of a run so far, with what describes them."""
    columns = [column_info(s) for s in scenario.eval_sets]
    rows = [Row(**row) for row in state.rows]
    return Measurements(rows, columns, headline, [p.model_dump() for p in scenario.spec.protocols])


def _cost(learner: Learner, state: RunState, clock: Clock) -> dict[str, Any]:
    spent = environment.consumption(clock.seconds(), str(learner.accelerator.device))
    computed = learner.compute
    if computed:
        spent |= {
            "macs": sum(entry["macs"] for entry in computed),
            "macs_of_tasks": [dict(e) for e in computed],
        }
    return {**spent, "sessions": clock.sessions, "checkpoints": dict(state.checkpoints)}


def _provenance(
    config: RunConfig, scenario: ListScenario, learner: Learner, state: RunState
) -> dict[str, Any]:
    return {
        **environment.describe(str(learner.accelerator.device)),
        "processes": learner.accelerator.num_processes,
        "precision": config.training.precision,
        "seed": config.seed,
        "data": scenario.data_fingerprints,
        "towers": learner.method.backbone.fingerprints(),
        "towers_before": state.start,
    }
