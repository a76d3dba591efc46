"""Score a learner in its present state, on a scenario or on a user's data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from everclip.config import EvaluationConfig, evaluation_of
from everclip.evaluation.results import Score
from everclip.evaluation.scoring import RowScorer
from everclip.evaluation.set_features import SetFeatures
from everclip.features.service import FeatureService
from everclip.learner.tasks import UserData, to_measure
from everclip.methods.base import Method
from everclip.scenarios.base import ListScenario
from everclip.templates import GivenTemplates

Scores = dict[str, dict[str, dict[str, Score]]]


class Scored(Protocol):
    """The interface of a learner that scoring uses; see `everclip.Learner`."""

    method: Method
    features: FeatureService
    seed: int
    learned: set[int]


def evaluate(
    learner: Scored,
    on: ListScenario | UserData,
    config: EvaluationConfig | Mapping[str, Any] | None,
    templates: GivenTemplates,
) -> Scores:
    """See `everclip.Learner.evaluate`."""
    settings = evaluation_of(config)
    scenario = on if isinstance(on, ListScenario) else to_measure(on, templates)
    sets = SetFeatures(scenario.eval_sets, learner.features, settings.batch_size)
    scorer = RowScorer(scenario, sets, settings, learner.seed, {})
    return scorer.row(learner.method, learner.learned, lambda done, total: None).scores
