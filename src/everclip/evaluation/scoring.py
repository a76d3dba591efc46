"""One row of the score matrix: every evaluation set under every protocol, from features encoded once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from everclip.config import EvaluationConfig
from everclip.contracts import EvalProtocol, EvalSet, Features, LabelSpace
from everclip.data.sampling.same_texts import TextKeys
from everclip.evaluation import classification, pools
from everclip.evaluation.best_answers import Answered, best_classes, nearest_captions
from everclip.evaluation.confusions import Confusions, count_confusions
from everclip.evaluation.results import Experts, Score
from everclip.evaluation.routes import count_experts, count_routes
from everclip.evaluation.same_answers import Answers, shared_answers
from everclip.evaluation.set_features import SetFeatures, Tick
from everclip.evaluation.statistics import bootstrap_mean, wilson
from everclip.features.encoding import Reduce
from everclip.interfaces import MeasuredScenario, Predictor
from everclip.metrics import Kind, cut

Outcomes = dict[str, torch.Tensor]
"""`column/protocol/metric` -> `(N,)` float32 per item: what paired comparisons resample."""

SCORES = "scores under "
"""What features are called that hold scores `(N, C)` already, before the name of a protocol."""


@dataclass
class RowScores:
    """What was measured at one row."""

    scores: dict[str, dict[str, dict[str, Score]]] = field(default_factory=dict)
    per_class: dict[str, dict[str, float | None]] = field(default_factory=dict)
    confusions: dict[str, Confusions] = field(default_factory=dict)
    ambiguous: dict[str, int] = field(default_factory=dict)
    outcomes: Outcomes = field(default_factory=dict)
    answers: dict[str, Answered] = field(default_factory=dict)
    features: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    routes: dict[str, dict[str, int]] = field(default_factory=dict)
    experts: dict[str, Experts] = field(default_factory=dict)


class RowScorer:
    """Scores a method on a scenario.

    Args:
        scenario: evaluation sets, protocols, label spaces.
        features: of the evaluation sets, encoded once.
        config: confidence, top-k.
        seed: of the bootstrap.
        examples: evaluation set name -> positions of the pictures whose answers are recorded.
    """

    def __init__(
        self,
        scenario: MeasuredScenario,
        features: SetFeatures,
        config: EvaluationConfig,
        seed: int,
        examples: Mapping[str, Sequence[int]],
    ) -> None:
        self._scenario, self._features, self._config, self._seed = scenario, features, config, seed
        self._examples = examples
        self._keys: TextKeys | None = None

    @property
    def shown(self) -> str:
        """The protocol whose details (examples, per-class values) are shown: the headline's."""
        names = [protocol.name for protocol in self._scenario.protocols]
        headline = self._scenario.shown_protocol
        return headline if headline in names else names[0]

    def row(self, method: Predictor, learned: Collection[int], tick: Tick) -> RowScores:
        """Measure everything once. The method is put into evaluation mode and left there."""
        method.eval()
        result = RowScores()
        keys = method.encoder_keys()
        reduce = self._reducing(method, learned, keys) if method.wide else None
        images = self._features.images(method, keys, tick, reduce=reduce)
        told: dict[int, dict[str, Features]] = {}
        texts = self._features.texts(method, keys)
        for s in self._scenario.eval_sets:
            result.scores[s.name] = {}
            for protocol in self._scenario.protocols:
                if s.kind == "retrieval":
                    self._retrieval(result, s, protocol, learned, images, texts, method)
                else:
                    found = images[s.name]
                    if protocol.known_task and s.task is not None and method.uses_known_task:
                        if s.task not in told:
                            told[s.task] = self._features.images(method, keys, tick, s.task, reduce)
                        found = told[s.task][s.name]
                    self._classification(result, s, protocol, learned, found, method, keys)
                    if protocol.name == self.shown:
                        self._ways(result, s, found, method)
            if s.kind == "retrieval":
                result.features[s.name] = (images[s.name]["embedding"], texts[s.name]["embedding"])
                self._ways(result, s, images[s.name], method)
        return result

    def _reducing(
        self, method: Predictor, learned: Collection[int], keys: Mapping[str, str]
    ) -> dict[str, Reduce]:
        """Return what is kept of each set's batches: scores under every protocol, and no wide features."""
        found: dict[str, Reduce] = {}
        for s in self._scenario.eval_sets:
            asked: dict[str, LabelSpace] = {}
            for protocol in self._scenario.protocols if s.kind != "retrieval" else ():
                space = self._scenario.label_space(s, learned, protocol)
                asked |= {} if space is None else {protocol.name: space}
            banks = {name: (space, self._features.bank(method, keys, space)) for name, space in asked.items()}
            found[s.name] = partial(scored, method, banks)
        return found

    def _ways(self, result: RowScores, s: EvalSet, images: Features, method: Predictor) -> None:
        """Count which way the pictures of a set went, under the protocol that it shows."""
        if routes := count_routes(images, method.routes()):
            result.routes[s.name] = routes
        if (experts := count_experts(images, method.expert_places())) is not None:
            result.experts[s.name] = experts

    # -- classification ---------------------------------------------------------------------------------------

    def _classification(
        self,
        result: RowScores,
        s: EvalSet,
        protocol: EvalProtocol,
        learned: Collection[int],
        images: Features,
        method: Predictor,
        keys: Mapping[str, str],
    ) -> None:
        space = self._scenario.label_space(s, learned, protocol)
        if space is None:
            return
        cosines = images.get(SCORES + protocol.name)
        if cosines is None:
            bank = self._features.bank(method, keys, space)
            with torch.inference_mode():
                cosines = method.class_scores(images, space, bank).float()
        index = {key: i for i, key in enumerate(space.keys)}
        labels = torch.tensor([index[str(key)] for key in s.data.column("class_key")], dtype=torch.int64)
        if protocol.same_texts == "one":
            own = shared_answers(self._keys_of(method), space.entries, cosines, labels)
        else:
            names = [entry.name for entry in space.entries]
            own = Answers(cosines, labels, names, torch.arange(len(names)))
        scale = float(method.backbone.logit_scale.detach())
        asked = classification.Asked(own.scores, own.labels, labels, len(space.entries), scale)
        self._measure(result, s, protocol, "classification", asked)
        if protocol.name == self.shown:
            result.per_class[s.name] = {
                e.key: v for e, v in zip(space.entries, asked.per_class, strict=True) if v is not None
            }
            answers = torch.where(asked.right, labels, own.classes[asked.best.cpu()])
            result.confusions[s.name] = count_confusions(protocol.name, answers, labels, space.entries)
            if bool((own.scores.abs() <= 1.01).all()):
                result.ambiguous[s.name] = int(classification.ambiguous(own.scores).sum())
            if chosen := self._examples.get(s.name):
                result.answers[s.name] = best_classes(own.scores, own.names, asked.right, chosen)

    def _keys_of(self, method: Predictor) -> TextKeys:
        """Return what the method's tokenizer reads of texts, remembered from row to row."""
        if self._keys is None or self._keys.tokenise != method.backbone.tokenise:
            self._keys = TextKeys(method.backbone.tokenise)
        return self._keys

    # -- retrieval --------------------------------------------------------------------------------------------

    def _retrieval(
        self,
        result: RowScores,
        s: EvalSet,
        protocol: EvalProtocol,
        learned: Collection[int],
        images: Mapping[str, Features],
        texts: Mapping[str, Features],
        method: Predictor,
    ) -> None:
        pool = self._scenario.pool(s, learned, protocol)
        if pool is None:
            return
        own = (images[s.name]["embedding"], texts[s.name]["embedding"])
        ranked = pools.rank(
            s,
            own,
            pool,
            torch.cat([images[p.name]["embedding"] for p in pool]),
            torch.cat([texts[p.name]["embedding"] for p in pool]),
            self._keys_of(method) if protocol.same_texts == "one" else None,
        )
        self._measure(result, s, protocol, "retrieval", ranked)
        if protocol.name == self.shown:
            chosen = self._examples.get(s.name, ())
            close, answers = nearest_captions(own[0], ranked, s.data.identities(), chosen)
            result.ambiguous[s.name] = close
            if answers:
                result.answers[s.name] = answers

    def _measure(
        self,
        result: RowScores,
        s: EvalSet,
        protocol: EvalProtocol,
        kind: Kind,
        answered: classification.Asked | pools.Ranked,
    ) -> None:
        scores, outcomes = measured(kind, answered, self._config, self._seed)
        result.scores[s.name][protocol.name] = scores
        result.outcomes |= {f"{s.name}/{protocol.name}/{name}": found for name, found in outcomes.items()}


def measured(
    kind: Kind, answered: classification.Asked | pools.Ranked, config: EvaluationConfig, seed: int
) -> tuple[dict[str, Score], Outcomes]:
    """Compute every metric of a kind of set.

    Args:
        kind: whether classes or captions were the answers.
        answered: what was answered.
        config: cut-offs and confidence.
        seed: of the bootstrap.

    Returns:
        Name of a metric -> its score, and the outcomes `(N,)` per item of those metrics that are means of them.
    """
    scores: dict[str, Score] = {}
    outcomes: Outcomes = {}
    for entry, arguments in cut(kind, config.top_k):
        found = entry.function(answered, **arguments)
        if entry.interval == "none":
            value, n = found
            scores[entry.name] = Score(value=value, n=n)
            continue
        outcomes[entry.name] = found.float()
        if not len(found):
            scores[entry.name] = Score(value=None)
        elif entry.interval == "wilson":
            scores[entry.name] = _share(found, config.confidence)
        else:
            scores[entry.name] = _mean(found, config.confidence, seed)
    return scores, outcomes


def _share(hits: torch.Tensor, confidence: float) -> Score:
    right, n = int(hits.sum()), len(hits)
    interval = wilson(right, n, confidence)
    return Score(value=right / n, low=interval.low, high=interval.high, n=n)


def _mean(values: torch.Tensor, confidence: float, seed: int) -> Score:
    if bool((values == 0).all()) or bool((values == 1).all()):
        # Resampling equal values would claim certainty: a 0 of 75 does not exclude 5 %.
        interval = wilson(int(values.sum()), len(values), confidence)
    else:
        interval = bootstrap_mean(values.numpy(), seed, confidence=confidence)
    return Score(value=float(values.double().mean()), low=interval.low, high=interval.high, n=len(values))


def scored(
    method: Predictor, asked: Mapping[str, tuple[LabelSpace, Features]], features: Features
) -> Features:
    """Return the features of a batch that are held, and its scores in each label space."""
    slim = {name: values for name, values in features.items() if name not in method.wide}
    scores = {
        SCORES + name: method.class_scores(features, space, bank).float()
        for name, (space, bank) in asked.items()
    }
    return slim | scores
