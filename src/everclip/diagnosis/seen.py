"""What one model answers on evaluation sets, kept in the form that a diagnosis compares."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everclip.config import EvaluationConfig
from everclip.contracts import EvalSet
from everclip.data.sampling.order import unit_hash
from everclip.evaluation.assemble import column_info
from everclip.evaluation.classification import Predictions, Reliability, reliability
from everclip.evaluation.headline import metric_of
from everclip.evaluation.pools import Ranked
from everclip.evaluation.scoring import Inspected, RowScorer
from everclip.evaluation.set_features import SetFeatures, Tick
from everclip.interfaces import MeasuredScenario
from everclip.learner.core import Learner
from everclip.metrics import AUTO

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ClassAnswers:
    """The answers to the images of a set with classes.

    Attributes:
        truth: `(N,)` names of the right classes.
        keys: `(N,)` keys of the right classes.
        answer: `(N,)` names of the best answers.
        right: `(N,)` bool.
        probability: `(N,)` of the best answer.
        right_probability: `(N,)` of the right answer.
        bins: confidence against accuracy.
        scale: the factor of the scores before the softmax.
    """

    truth: list[str]
    keys: list[str]
    answer: list[str]
    right: NDArray[np.bool_]
    probability: Array
    right_probability: Array
    bins: Reliability
    scale: float


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings of a set's items.

    Attributes:
        rows: `(N,)` rows of the set, chosen alike for both models.
        images: `(N, D)`, the image of each row.
        texts: `(N, D)`, the matching caption or right class of each row.
        gallery: positions among `rows` of the distinct images.
        queries: distinct texts: captions, or the names of classes.
        query_features: `(Q, D)`.
    """

    rows: list[int]
    images: Tensor
    texts: Tensor
    gallery: Tensor
    queries: list[str]
    query_features: Tensor


@dataclass(frozen=True, eq=False)
class SeenSet:
    """One evaluation set as one model answers it.

    Attributes:
        s: the set.
        metric: its metric.
        outcomes: metric -> `(N,)` outcomes per item.
        positions: the row of each item: of a pair, of its first image; of a question about several images, too.
        classes: the answers, for a set with classes.
        embedded: the embeddings; `None` if the method gives scores alone.
        text_of_row: per row, the position of its caption among outcomes per text; of a set with captions.
    """

    s: EvalSet
    metric: str
    outcomes: dict[str, Array]
    positions: list[int]
    classes: ClassAnswers | None = None
    embedded: Embedded | None = None
    text_of_row: list[int] | None = None


@dataclass
class Watched:
    """Collects what a row is computed from, set by set; `limit` items of a set are embedded at most."""

    limit: int
    sets: dict[str, tuple[list[int], ClassAnswers | None, Embedded | None, list[int] | None]] = field(
        default_factory=dict
    )

    def __call__(self, found: Inspected) -> None:
        """Keep what the diagnosis of a set needs."""
        classes = _class_answers(found) if isinstance(found.answers, Predictions) else None
        # The images and texts of questions about several images do not match row by row.
        embedded = _embedded(found, self.limit) if self.limit and found.s.kind != "multi-image" else None
        items = found.positions[::2] if found.s.kind == "pairs" else found.positions
        texts = found.answers.text_of_row if isinstance(found.answers, Ranked) else None
        self.sets[found.s.name] = (items, classes, embedded, texts)


def see(
    learner: Learner,
    scenario: MeasuredScenario,
    learned: Collection[int],
    settings: EvaluationConfig,
    limit: int,
    headline: dict[str, str] | None = None,
    tick: Tick = lambda done, total: None,
    warn: Callable[[str], None] = lambda line: None,
) -> dict[str, SeenSet]:
    """Score a model on the sets of a scenario.

    Args:
        learner: the model.
        scenario: sets and protocols; the shown protocol counts.
        learned: indices of the tasks after which it is scored.
        settings: batch size, cache, cut-offs, confidence.
        limit: the most items of a set whose embeddings are kept; 0 keeps none.
        headline: the metric that sets show.
        tick: called with (images done, all images).
        warn: called with notes.

    Returns:
        Name of a set -> what the model answers; sets without an item that counts are left out.
    """
    watched = Watched(limit)
    sets = SetFeatures(scenario.eval_sets, learner.features, settings.batch_size)
    scorer = RowScorer(scenario, sets, settings, learner.seed, {})
    row = scorer.row(learner.method, learned, tick, watched)
    seen = {}
    for s in scenario.eval_sets:
        if s.name not in watched.sets:
            warn(f"{s.name} has no item to score")
            continue
        prefix = f"{s.name}/{scorer.shown_protocol}/"
        outcomes = {
            name.removeprefix(prefix): values.numpy().astype(np.float64)
            for name, values in row.outcomes.items()
            if name.startswith(prefix)
        }
        metric = metric_of(column_info(s), headline or {"metric": AUTO})
        if metric not in outcomes:
            warn(f"{s.name}: {metric} has no outcomes per item, so accuracy or mean_r1 is compared instead")
            metric = metric_of(column_info(s), {"metric": AUTO})
        seen[s.name] = SeenSet(s, metric, outcomes, *watched.sets[s.name])
    return seen


def common_items(old: SeenSet, new: SeenSet) -> tuple[SeenSet, SeenSet]:
    """Return the items that both models answer.

    They differ for questions about several images: one with a text that is longer than a text tower reads is left out.
    Captions with equal tokens are one item, and the two tokenizers may differ; then every distinct caption is one.
    """
    if old.text_of_row != new.text_of_row:
        names = [name for name in old.outcomes if _per_text(name, old, new)]
        old, new = _by_caption(old, names), _by_caption(new, names)
    if old.positions == new.positions:
        return old, new
    shared = set(old.positions) & set(new.positions)
    return _restricted(old, shared), _restricted(new, shared)


def _per_text(metric: str, old: SeenSet, new: SeenSet) -> bool:
    return metric.startswith("text_to_image_") or len(old.outcomes[metric]) != len(new.outcomes[metric])


def _by_caption(one: SeenSet, names: Sequence[str]) -> SeenSet:
    """Return a set whose outcomes per text have one value per distinct caption, in the order of the rows."""
    assert one.text_of_row is not None
    rows = _first([str(caption) for caption in one.s.data.column("caption")]).tolist()
    items = [one.text_of_row[row] for row in rows]
    return replace(one, outcomes=one.outcomes | {name: one.outcomes[name][items] for name in names})


def _restricted(one: SeenSet, shared: set[int]) -> SeenSet:
    kept = [item for item, position in enumerate(one.positions) if position in shared]
    outcomes = {name: values[kept] for name, values in one.outcomes.items()}
    return replace(one, outcomes=outcomes, positions=[one.positions[item] for item in kept])


def _class_answers(found: Inspected) -> ClassAnswers:
    answers, space = found.answers, found.space
    assert isinstance(answers, Predictions)
    assert space is not None
    probabilities = answers.probabilities
    best = answers.best[:, None].to(probabilities.device)
    own = answers.labels[:, None].to(probabilities.device)
    truth = answers.truth.tolist()
    return ClassAnswers(
        [space.entries[i].name for i in truth],
        [space.entries[i].key for i in truth],
        [found.names[i] for i in answers.best.tolist()],
        answers.right.cpu().numpy(),
        probabilities.gather(1, best)[:, 0].cpu().numpy(),
        probabilities.gather(1, own)[:, 0].cpu().numpy(),
        reliability(probabilities, answers.labels.to(probabilities.device)),
        answers.scale,
    )


def _embedded(found: Inspected, limit: int) -> Embedded | None:
    """Return the embeddings of at most `limit` images, the same ones for every model."""
    images, texts = found.images.get("embedding"), found.texts.get("embedding")
    if (
        images is None
        or texts is None
        or images.ndim != 2
        or texts.ndim != 2
        or images.shape[1] != texts.shape[1]
    ):
        return None
    data = found.s.data
    written = None if found.space is not None else data.column("caption")
    # The second image of a pair with one caption matches no text.
    matching = [
        row for row, place in enumerate(found.positions) if written is None or written[place] is not None
    ]
    chosen = chosen_rows([data.ids[found.positions[row]] for row in matching], limit)
    rows = torch.tensor(matching, dtype=torch.int64)[chosen]
    places = [found.positions[row] for row in rows.tolist()]
    identities = data.identities()
    gallery = _first([identities[place] for place in places])
    images = images[rows]
    if found.space is not None and isinstance(found.answers, Predictions):
        own = texts[found.answers.truth.cpu()]
        queries = [entry.name for entry in found.space.entries]
        return Embedded(places, images, own[rows], gallery, queries, texts)
    assert written is not None
    captions = [str(written[place]) for place in places]
    asked = _first(captions)
    texts = texts[rows]
    return Embedded(places, images, texts, gallery, [captions[i] for i in asked.tolist()], texts[asked])


def _first(values: Sequence[str]) -> Tensor:
    """Return the position of the first appearance of each value, in order."""
    first: dict[str, int] = {}
    for position, value in enumerate(values):
        first.setdefault(value, position)
    return torch.tensor(list(first.values()), dtype=torch.int64)


def chosen_rows(ids: Sequence[str], limit: int) -> Tensor:
    """Return the positions of at most `limit` ids, those of lowest hash, ascending."""
    if len(ids) <= limit:
        return torch.arange(len(ids))
    order = sorted(range(len(ids)), key=lambda i: unit_hash("diagnosis", ids[i], i))
    return torch.tensor(sorted(order[:limit]), dtype=torch.int64)
