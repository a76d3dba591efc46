"""Score a method on validation data. Merging and other choices use these scores, never those of test sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from everclip.contracts import EvalSet, Features, LabelSpace, Task
from everclip.data.sampling.same_texts import TextKeys
from everclip.data.table import Table
from everclip.errors import DataError
from everclip.evaluation import pools
from everclip.evaluation.metrics.retrieval import mean_recall
from everclip.evaluation.shared_answers import shared_answers
from everclip.features.encoder import image_encoder, text_encoder
from everclip.features.encoding import BLOCK, joined
from everclip.features.pictures import Pictures
from everclip.features.service import FeatureService
from everclip.interfaces import Predictor
from everclip.scenarios.base import merge_entries

Keys = Mapping[str, str]


def validation_scores(
    method: Predictor,
    tasks: Sequence[Task],
    base_val: Table | None,
    features: FeatureService,
    own_classes: bool = False,
) -> Mapping[str, float]:
    """Score the method on the validation images of everything learned so far.

    Args:
        method: the method in its present state.
        tasks: the tasks so far, the newest last.
        base_val: validation part of the base.
        features: encodes, and caches the features of frozen towers.
        own_classes: score each task among its own classes, as a protocol with `space: own` does; else among all classes
            so far.

    Returns:
        `old` (base and earlier tasks) and `new` (the newest task), each only if it has images. The score is accuracy
        for tasks with classes, and else the mean of Recall@1 in both directions in the pool of all validation images;
        if the earlier tasks are of both kinds, it is the mean over their images. Scores are in [0, 1]. Old and new
        have separate scores, so that a large past does not outweigh a small task.
    """
    require_pictures(tasks, base_val)
    keys = method.encoder_keys()
    sides = _sides(tasks, base_val)
    method.eval()
    collected: dict[str, list[tuple[float, int]]] = {"old": [], "new": []}
    for labelled, tables in sides.items():
        if labelled and own_classes:
            for name, part in (("old", tasks[:-1]), ("new", tasks[-1:])):
                collected[name] += [
                    _score_among_own(method, t, features, keys) for t in part if t.classes and t.val
                ]
            continue
        if labelled:
            space = LabelSpace(merge_entries([e for t in tasks for e in t.classes or ()]))
            scores = {name: _accuracy(method, table, space, features, keys) for name, table in tables.items()}
        else:
            scores = recalls(method, tables, features, keys) if tables else {}
        for name, score in scores.items():
            collected[name].append((score, len(tables[name])))
    return {name: _mean(scores) for name, scores in collected.items() if scores}


def _score_among_own(
    method: Predictor, task: Task, features: FeatureService, keys: Keys
) -> tuple[float, int]:
    assert task.val is not None  # checked by the caller
    assert task.classes is not None
    one = EvalSet(task.name, "classification", task.val, task.index, "task", task.classes)
    return set_score(method, one, features, keys)


def require_pictures(tasks: Sequence[Task], base_val: Table | None) -> None:
    """Require validation images of the newest task: a choice on the past alone would be to learn nothing.

    Raises:
        DataError: if the newest task has no validation image.
    """
    if not any("new" in tables for tables in _sides(tasks, base_val).values()):
        raise DataError(
            f"task {tasks[-1].name!r}: there is no validation image to choose on. Give more rows, mark some as "
            "`validation` in a column `split`, set a larger share aside, or fix the value: method.merge.alpha=0.5."
        )


def _sides(tasks: Sequence[Task], base_val: Table | None) -> dict[bool, dict[str, Table]]:
    """Return the validation images: whether they are scored by class -> `old`, `new` -> table."""
    sides: dict[bool, dict[str, Table]] = {False: {}, True: {}}
    for labelled, tables in sides.items():
        parts = [t.val for t in tasks[:-1] if (t.classes is not None) == labelled]
        if not labelled and any(t.classes is None for t in tasks) and _captioned(base_val):
            parts = [base_val, *parts]
        newest = [tasks[-1].val] if (tasks[-1].classes is not None) == labelled else []
        for name, candidates in (("old", parts), ("new", newest)):
            filled = [table for table in candidates if table is not None and len(table)]
            if filled:
                tables[name] = Table.concat(filled, name)
    return sides


def _captioned(table: Table | None) -> bool:
    return table is not None and table.has("caption") and all(table.column("caption"))


def _mean(scores: Sequence[tuple[float, int]]) -> float:
    if len(scores) == 1:
        return scores[0][0]  # a product and a quotient would round
    return sum(score * count for score, count in scores) / sum(count for _, count in scores)


def set_score(
    method: Predictor, s: EvalSet, features: FeatureService, keys: Keys | None = None
) -> tuple[float, int]:
    """Score the method on one evaluation set, among the set's own classes or captions.

    Args:
        method: the method in its present state.
        s: the set.
        features: encodes.
        keys: `method.encoder_keys()`, if already computed: they take a pass over all weights.

    Returns:
        Accuracy, or the mean of Recall@1 in both directions, in [0, 1]; and the number of images behind it.
    """
    method.eval()
    keys = keys or method.encoder_keys()
    if s.classes is not None:
        return _accuracy(method, s.data, LabelSpace(s.classes), features, keys), len(s.data)
    return recalls(method, {s.name: s.data}, features, keys)[s.name], len(set(s.data.identities()))


def _accuracy(
    method: Predictor, table: Table, space: LabelSpace, features: FeatureService, keys: Keys
) -> float:
    return float(correct(method, table, space, features, keys).float().mean())


def correct(
    method: Predictor, table: Table, space: LabelSpace, features: FeatureService, keys: Keys | None = None
) -> torch.Tensor:
    """Return `(N,)` bool: whether the best class of `space` is the row's `class_key`."""
    keys = keys or method.encoder_keys()
    bank = features.bank(method, keys["text"], space)
    encoder, images = replace(image_encoder(method, keys), lasting=False), Pictures.of(table)

    def scores(block: Features) -> Features:
        with torch.inference_mode():
            return {"scores": method.class_scores(block, space, bank)}

    if method.wide or method.batch_dependent is not None:
        # Block by block, because the features per image may grow with every task that the method learned.
        scored = features.reduced(encoder, images, lambda block, part: scores(block))
    else:
        whole = features.images(encoder, images)
        starts = range(0, len(table), BLOCK)
        scored = joined([scores({k: v[i : i + BLOCK] for k, v in whole.items()}) for i in starts])
    index = {key: i for i, key in enumerate(space.keys)}
    labels = torch.tensor([index[str(key)] for key in table.column("class_key")])
    answers = shared_answers(TextKeys(method.backbone.tokenise), space.entries, scored["scores"], labels)
    return answers.scores.argmax(dim=1) == answers.labels


def recalls(
    method: Predictor, tables: Mapping[str, Table], features: FeatureService, keys: Keys
) -> dict[str, float]:
    """Return the mean Recall@1 of each table, in the pool of the images and captions of all tables."""
    hits = recall_hits(method, tables, features, keys)
    return {name: float(values.double().mean()) for name, values in hits.items()}


def recall_hits(
    method: Predictor, tables: Mapping[str, Table], features: FeatureService, keys: Keys | None = None
) -> dict[str, torch.Tensor]:
    """Return the Recall@1 of each distinct image `(I,)`, the mean of both directions, in the pool of all tables."""
    keys = keys or method.encoder_keys()
    images_of, texts_of = (
        replace(image_encoder(method, keys), lasting=False),
        replace(text_encoder(method, keys), lasting=False),
    )
    images = {n: features.images(images_of, Pictures.of(table))["embedding"] for n, table in tables.items()}
    sets = {name: EvalSet(name, "retrieval", table) for name, table in tables.items()}
    texts = {}
    for name, s in sets.items():
        unique, rows = features.texts(texts_of, pools.captions(s))
        texts[name] = unique["embedding"][rows]
    pool = list(sets.values())
    pool_images = torch.cat([images[s.name] for s in pool])
    pool_texts = torch.cat([texts[s.name] for s in pool])
    keys_of = TextKeys(method.backbone.tokenise)
    hits = {}
    for name, s in sets.items():
        ranked = pools.rank(s, (images[name], texts[name]), pool, pool_images, pool_texts, keys_of)
        hits[name] = mean_recall(ranked, k=1)
    return hits
