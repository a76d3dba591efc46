"""Score one row of the matrix: every evaluation set under every protocol, from features that are encoded once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from everclip.config import EvaluationConfig
from everclip.contracts import EvalProtocol, EvalSet, Features, LabelSpace
from everclip.data.sampling.image_pairs import patterns_of_pairs, with_two_captions
from everclip.data.sampling.multi_image import tasks_of, texts_of_questions
from everclip.data.sampling.same_texts import TextKeys
from everclip.evaluation import classification, pairs, pools
from everclip.evaluation.best_answers import BestAnswers, best_classes, nearest_captions
from everclip.evaluation.confusions import Confusions, count_confusions
from everclip.evaluation.multi_image_answers import MultiImageAnswers, answer_questions
from everclip.evaluation.results import Experts, Score
from everclip.evaluation.returned import require_numbers, require_values
from everclip.evaluation.routes import count_experts, count_routes
from everclip.evaluation.set_features import RowTexts, SetFeatures, Tick
from everclip.evaluation.shared_answers import Answers, shared_answers
from everclip.evaluation.statistics import bootstrap_mean, wilson
from everclip.features.encoding import Reduce
from everclip.interfaces import MeasuredScenario, Predictor
from everclip.metrics import Kind, cut
from everclip.models.limits import longer_than_read

Outcomes = dict[str, torch.Tensor]
"""`column/protocol/metric` -> `(N,)` float32, one outcome per item, for paired comparisons."""

Answered = classification.Predictions | pools.Ranked | pairs.PairAnswers | MultiImageAnswers
"""What the metrics of a set take."""


@dataclass(frozen=True, eq=False)
class Inspected:
    """What the scores of one set under the shown protocol were computed from.

    Attributes:
        s: the set.
        answers: what its metrics took.
        images: features of the counted images, row by row; of questions about several images, of all images.
        texts: features of the captions, row by row, or of the classes, one row per entry of `space`; of questions about
            several images, of their distinct texts.
        positions: `(N,)` rows of the set that are counted; of questions about several images, their first images.
        space: the classes that were offered; `None` for a set without classes.
        names: the name of each distinct answer (a column of the scores); empty without classes.
    """

    s: EvalSet
    answers: Answered
    images: Features
    texts: Features
    positions: list[int]
    space: LabelSpace | None = None
    names: tuple[str, ...] = ()


Inspect = Callable[[Inspected], None]
"""Called once per set that is scored under the shown protocol."""


def nothing(found: Inspected) -> None:
    """Look at nothing."""


SCORES_UNDER = "scores under "
"""Prefix, before the name of a protocol, of features that are already scores `(N, C)`."""


@dataclass
class RowScores:
    """The measurements of one row."""

    scores: dict[str, dict[str, dict[str, Score]]] = field(default_factory=dict)
    per_class: dict[str, dict[str, float | None]] = field(default_factory=dict)
    patterns: dict[str, dict[str, dict[str, Score]]] = field(default_factory=dict)
    confusions: dict[str, Confusions] = field(default_factory=dict)
    ambiguous: dict[str, int] = field(default_factory=dict)
    outcomes: Outcomes = field(default_factory=dict)
    answers: dict[str, BestAnswers] = field(default_factory=dict)
    features: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    routes: dict[str, dict[str, int]] = field(default_factory=dict)
    experts: dict[str, Experts] = field(default_factory=dict)
    thresholds: dict[str, dict[str, float]] = field(default_factory=dict)
    questions: dict[str, MultiImageAnswers] = field(default_factory=dict)


class RowScorer:
    """Scores a method on a scenario.

    Args:
        scenario: evaluation sets, protocols, label spaces.
        features: features of the evaluation sets, encoded once.
        config: confidence, top-k.
        seed: seed of the bootstrap.
        examples: evaluation set name -> positions of the images whose answers are recorded.
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
        self._tokenizer: object = None
        self._inspect: Inspect = nothing

    @property
    def shown_protocol(self) -> str:
        """The protocol whose details (examples, values per class) are recorded: the headline's."""
        names = [protocol.name for protocol in self._scenario.protocols]
        headline = self._scenario.shown_protocol
        return headline if headline in names else names[0]

    def row(
        self, method: Predictor, learned: Collection[int], tick: Tick, inspect: Inspect = nothing
    ) -> RowScores:
        """Measure all sets under all protocols. This puts the method into evaluation mode.

        Args:
            method: the method in its present state.
            learned: indices of the learned tasks.
            tick: called with progress; may raise to stop.
            inspect: called with what each set's scores were computed from.
        """
        method.eval()
        self._inspect = inspect
        result = RowScores()
        keys = method.encoder_keys()
        spaces = self._label_spaces(learned)
        texts = self._features.texts(method, keys, spaces.values())
        reduce = self._reducers(method, spaces, texts) if method.wide else None
        images = self._features.images(method, keys, tick, reduce=reduce)
        with_known_task: dict[int, dict[str, Features]] = {}
        for s in self._scenario.eval_sets:
            result.scores[s.name] = {}
            for protocol in self._scenario.protocols:
                if s.kind == "retrieval":
                    self._retrieval(result, s, protocol, learned, images, texts, method)
                elif s.kind == "pairs":
                    self._pairs(result, s, protocol, images[s.name], texts)
                elif s.kind == "multi-image":
                    self._multi_image(result, s, protocol, images[s.name], texts, method.backbone.tokenizer)
                else:
                    of_set = images[s.name]
                    if protocol.known_task and s.task is not None and method.uses_known_task:
                        if s.task not in with_known_task:
                            with_known_task[s.task] = self._features.images(
                                method, keys, tick, s.task, reduce
                            )
                        of_set = with_known_task[s.task][s.name]
                    if (space := spaces.get((s.name, protocol.name))) is not None:
                        self._classification(result, s, protocol, space, of_set, method, texts)
                    if protocol.name == self.shown_protocol:
                        self._count_routes(result, s, of_set, method)
            if s.kind == "retrieval":
                embeddings = texts.captions(s.name)["embedding"]
                result.features[s.name] = (images[s.name]["embedding"], embeddings)
            if s.kind != "classification":
                self._count_routes(result, s, images[s.name], method)
        return result

    def _label_spaces(self, learned: Collection[int]) -> dict[tuple[str, str], LabelSpace]:
        """Return (set, protocol) -> the label space of each cell of the row that has classes."""
        spaces: dict[tuple[str, str], LabelSpace] = {}
        for s in self._scenario.eval_sets:
            for protocol in self._scenario.protocols if s.kind == "classification" else ():
                space = self._scenario.label_space(s, learned, protocol)
                spaces |= {} if space is None else {(s.name, protocol.name): space}
        return spaces

    def _reducers(
        self, method: Predictor, spaces: Mapping[tuple[str, str], LabelSpace], texts: RowTexts
    ) -> dict[str, Reduce]:
        """Return per set a function that turns a batch's wide features into scores under every protocol."""
        reducers: dict[str, Reduce] = {}
        for s in self._scenario.eval_sets:
            banks = {
                protocol: (space, texts.bank(space))
                for (name, protocol), space in spaces.items()
                if name == s.name
            }
            reducers[s.name] = partial(scores_of_batch, method, banks)
        return reducers

    def _count_routes(self, result: RowScores, s: EvalSet, images: Features, method: Predictor) -> None:
        """Count the routes and experts of a set's images."""
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
        space: LabelSpace,
        images: Features,
        method: Predictor,
        texts: RowTexts,
    ) -> None:
        index = {key: i for i, key in enumerate(space.keys)}
        keys = [str(key) for key in s.data.column("class_key")]
        counted = [i for i, key in enumerate(keys) if key in index] if s.seen_only else list(range(len(keys)))
        if not counted:
            return  # no class seen so far has a test image
        if len(counted) < len(keys):
            images = {name: values[counted] for name, values in images.items()}
        cosines = images.get(SCORES_UNDER + protocol.name)
        bank: Features = {}
        if cosines is None:
            bank = texts.bank(space)
            with torch.inference_mode():
                cosines = method.class_scores(images, space, bank).float()
        require_numbers(s.name, ~torch.isnan(cosines))  # -inf may mean that a class is not offered
        labels = torch.tensor([index[keys[i]] for i in counted], dtype=torch.int64)
        if protocol.same_texts == "one":
            answers = shared_answers(self._keys_of(method), space.entries, cosines, labels)
        else:
            names = [entry.name for entry in space.entries]
            answers = Answers(cosines, labels, names, torch.arange(len(names)))
        scale = float(method.backbone.logit_scale.detach())
        predictions = classification.Predictions(
            answers.scores, answers.labels, labels, len(space.entries), scale
        )
        self._measure(result, s, protocol, "classification", predictions)
        if protocol.name == self.shown_protocol:
            self._inspect(Inspected(s, predictions, images, bank, counted, space, tuple(answers.names)))
            result.per_class[s.name] = {
                e.key: v for e, v in zip(space.entries, predictions.per_class, strict=True) if v is not None
            }
            classes = torch.where(predictions.right, labels, answers.classes[predictions.best.cpu()])
            result.confusions[s.name] = count_confusions(protocol.name, classes, labels, space.entries)
            if bool((answers.scores.abs() <= 1.01).all()):
                result.ambiguous[s.name] = int(classification.ambiguous(answers.scores).sum())
            place = {position: at for at, position in enumerate(counted)}
            if chosen := [i for i in self._examples.get(s.name, ()) if i in place]:
                found = best_classes(answers.scores, answers.names, labels, [place[i] for i in chosen])
                result.answers[s.name] = {counted[at]: answer for at, answer in found.items()}

    def _keys_of(self, method: Predictor) -> TextKeys:
        """Return the token keys of texts under the method's tokenizer, cached over the rows."""
        if self._keys is None or self._tokenizer is not method.backbone.tokenizer:
            # Another tokenizer, or one that has grown.
            self._keys, self._tokenizer = TextKeys(method.backbone.tokenise), method.backbone.tokenizer
        return self._keys

    # -- retrieval --------------------------------------------------------------------------------------------

    def _retrieval(
        self,
        result: RowScores,
        s: EvalSet,
        protocol: EvalProtocol,
        learned: Collection[int],
        images: Mapping[str, Features],
        texts: RowTexts,
        method: Predictor,
    ) -> None:
        pool = self._scenario.pool(s, learned, protocol)
        if pool is None:
            return
        embeddings = (images[s.name]["embedding"], texts.captions(s.name)["embedding"])
        require_numbers(s.name, *map(torch.isfinite, embeddings))
        ranked = pools.rank(
            s,
            embeddings,
            pool,
            torch.cat([images[p.name]["embedding"] for p in pool]),
            torch.cat([texts.captions(p.name)["embedding"] for p in pool]),
            self._keys_of(method) if protocol.same_texts == "one" else None,
        )
        self._measure(result, s, protocol, "retrieval", ranked)
        if protocol.name == self.shown_protocol:
            self._inspect(
                Inspected(s, ranked, images[s.name], texts.captions(s.name), list(range(len(s.data))))
            )
            chosen = self._examples.get(s.name, ())
            ambiguous, answers = nearest_captions(embeddings[0], ranked, s.data.identities(), chosen)
            result.ambiguous[s.name] = ambiguous
            if answers:
                result.answers[s.name] = answers

    # -- pairs ------------------------------------------------------------------------------------------------

    def _pairs(
        self, result: RowScores, s: EvalSet, protocol: EvalProtocol, images: Features, texts: RowTexts
    ) -> None:
        """Score pairs; a caption and an image only ever choose inside their pair, whatever the protocol."""
        embeddings = (images["embedding"], texts.captions(s.name)["embedding"])
        require_numbers(s.name, *map(torch.isfinite, embeddings))
        of_images, of_texts = (features.reshape(len(s.data) // 2, 2, -1) for features in embeddings)
        answers = pairs.answer_pairs(
            pairs.pair_similarities(of_texts, of_images),
            torch.from_numpy(with_two_captions(s.data)),
            patterns_of_pairs(s.data),
        )
        self._measure(result, s, protocol, "pairs", answers)
        if protocol.name == self.shown_protocol:
            self._inspect(Inspected(s, answers, images, texts.captions(s.name), list(range(len(s.data)))))
            result.ambiguous[s.name] = answers.ambiguous
            for name in answers.pattern_names:
                scores, _ = compute_metrics("pairs", answers.of_pattern(name), self._config, self._seed)
                scores.pop("pair_pattern_mean")
                result.patterns.setdefault(s.name, {})[name] = scores
                result.per_class.setdefault(s.name, {})[name] = scores["pair_text_to_image"].value

    # -- questions about several images ------------------------------------------------------------------------

    def _multi_image(
        self,
        result: RowScores,
        s: EvalSet,
        protocol: EvalProtocol,
        images: Features,
        texts: RowTexts,
        tokenizer: Any,
    ) -> None:
        """Score questions; a question only ever chooses among its own candidates, whatever the protocol."""
        if s.name not in result.questions:
            words = texts_of_questions(s.data)
            of_words = texts.captions(s.name)["embedding"]
            require_numbers(s.name, torch.isfinite(images["embedding"]), torch.isfinite(of_words))
            bank = {text: of_words[row] for row, text in enumerate(words)}
            result.questions[s.name] = answer_questions(
                tasks_of(s.data), images["embedding"], bank, cut_off=longer_than_read(tokenizer, words)
            )
        answers = result.questions[s.name]
        self._measure(result, s, protocol, "multi-image", answers)
        if protocol.name == self.shown_protocol:
            scored = [question.first_row for question in answers.strong.questions]
            self._inspect(Inspected(s, answers, images, texts.captions(s.name), scored))
            result.ambiguous[s.name] = answers.ambiguous
            result.thresholds[s.name] = {name: cut.value for name, cut in answers.thresholds.items()}
            result.per_class[s.name] = {name: answers.of_task(name).accuracy() for name in answers.names}

    def _measure(
        self,
        result: RowScores,
        s: EvalSet,
        protocol: EvalProtocol,
        kind: Kind,
        answers: Answered,
    ) -> None:
        scores, outcomes = compute_metrics(kind, answers, self._config, self._seed)
        result.scores[s.name][protocol.name] = scores
        result.outcomes |= {f"{s.name}/{protocol.name}/{name}": values for name, values in outcomes.items()}


def compute_metrics(
    kind: Kind, answers: Answered, config: EvaluationConfig, seed: int
) -> tuple[dict[str, Score], Outcomes]:
    """Compute every metric of one kind of set.

    Args:
        kind: the kind of the set.
        answers: the predictions for a set with classes, the ranks of a set with captions, or the answers to pairs or to
            questions about several images.
        config: cut-offs and confidence.
        seed: seed of the bootstrap.

    Returns:
        Name of a metric -> its score, and -> its outcomes `(N,)` per item if it is their mean.

    Raises:
        ConfigError: if the function of a metric returns something else than its `interval` says.
    """
    scores: dict[str, Score] = {}
    outcomes: Outcomes = {}
    for entry, arguments in cut(kind, config.top_k):
        returned = entry.function(answers, **arguments)
        require_values(entry, returned)
        if entry.interval == "none":
            value, n = returned
            scores[entry.name] = Score(value=value, n=n)
            continue
        outcomes[entry.name] = returned.float()
        if not len(returned):
            scores[entry.name] = Score(value=None)
        elif entry.interval == "wilson":
            scores[entry.name] = _share(returned, config.confidence)
        else:
            scores[entry.name] = _mean(returned, config.confidence, seed)
    return scores, outcomes


def _share(hits: torch.Tensor, confidence: float) -> Score:
    right, n = int(hits.sum()), len(hits)
    interval = wilson(right, n, confidence)
    return Score(value=right / n, low=interval.low, high=interval.high, n=n)


def _mean(values: torch.Tensor, confidence: float, seed: int) -> Score:
    if bool((values == 0).all()) or bool((values == 1).all()):
        # Resampling equal values would give an interval of width 0, but 0 of 75 does not exclude 5 %.
        interval = wilson(int(values.sum()), len(values), confidence)
    else:
        interval = bootstrap_mean(values.numpy(), seed, confidence=confidence)
    return Score(value=float(values.double().mean()), low=interval.low, high=interval.high, n=len(values))


def scores_of_batch(
    method: Predictor, banks: Mapping[str, tuple[LabelSpace, Features]], features: Features
) -> Features:
    """Replace the wide features of a batch by its scores in each label space."""
    slim = {name: values for name, values in features.items() if name not in method.wide}
    scores = {
        SCORES_UNDER + name: method.class_scores(features, space, bank).float()
        for name, (space, bank) in banks.items()
    }
    return slim | scores
