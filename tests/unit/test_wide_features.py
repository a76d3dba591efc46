"""What evaluation holds does not grow with the tasks learned: no feature for each of them, no bank of an old space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from everclip.evaluation.scoring import RowScorer
from everclip.evaluation.set_features import SetFeatures
from everclip.features import service
from everclip.methods.coleclip.method import CoLeClip
from everclip.run import Run
from everclip.training.progress import Progress


def held(value: Any) -> int:
    """Count the values of all tensors inside containers, each tensor once."""
    found: dict[int, int] = {}

    def look(inside: Any) -> None:
        if isinstance(inside, torch.Tensor):
            found[inside.untyped_storage().data_ptr()] = inside.numel()
        elif isinstance(inside, dict):
            for one in inside.values():
                look(one)

    look(value)
    return sum(found.values())


def rows_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[int], list[Any]]:
    """Run; return per row what the encoder holds after it, and what it was handed inside it, and what was measured."""
    features = run.learner.features
    kept, handed, rows = [], [], []
    inner, measure = service.joined, RowScorer.row

    def handing(parts: Any) -> Any:
        found = inner(parts)
        handed[-1] += held(found)
        return found

    def row(*arguments: Any) -> Any:
        handed.append(0)
        rows.append(measure(*arguments))
        kept.append(sum(size for slot, size in features.cached().items() if slot[0] == "image"))
        return rows[-1]

    monkeypatch.setattr(service, "joined", handing)
    monkeypatch.setattr(RowScorer, "row", row)
    run.execute()
    return kept, handed, rows


def test_features_that_grow_with_tasks_are_scored_batch_by_batch(
    micro_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two classes a task: one alone may leave nothing to learn.
    settings = ("method=coleclip", "scenario.per_task=2", "training.steps=1", "evaluation.batch_size=5")
    found = {}
    for wide in (CoLeClip.wide, frozenset[str]()):
        with monkeypatch.context() as patch:
            patch.setattr(CoLeClip, "wide", wide)
            run = Run.of(
                micro_config("classes", *settings, output=f"wide {bool(wide)}"), Progress(quiet=True)
            )
            found[bool(wide)] = rows_of(run, patch)
    kept, handed, rows = found[True]
    assert kept == [0] * 4
    before_kept, before_handed, before_rows = found[False]
    assert before_kept[-1] > 3 * before_kept[0]  # what it was: T + 1 tokens per picture
    assert before_handed[-1] > 3 * before_handed[0]
    # Embeddings, and scores in spaces of as many classes as were seen.
    assert handed[-1] < before_handed[-1] / 2
    for one, two in zip(rows, before_rows, strict=True):
        assert one.scores.keys() == two.scores.keys()
        assert one.per_class == two.per_class
        for name, values in one.outcomes.items():
            assert torch.equal(values, two.outcomes[name]), name


class Told:
    """Answers which task it was told, beside a feature that is too wide to be held; counts what it encodes."""

    batch_dependent = None
    wide = frozenset({"tokens"})

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone
        self.encoded = 0

    def parameters(self) -> Any:
        """Return those of the CLIP."""
        return iter(self.backbone.clip.parameters())

    def encode_images(self, pixels: torch.Tensor, known_task: int | None = None) -> dict[str, torch.Tensor]:
        """Return the mean of each picture, and the task."""
        self.encoded += len(pixels)
        mean = pixels.flatten(1).mean(dim=1, keepdim=True) + (known_task or 0)
        return {"embedding": mean, "tokens": mean.expand(-1, 9)}


def test_pictures_that_sets_share_are_encoded_once_and_kept_as_each_set_says(
    micro_config: Callable[..., Any],
) -> None:
    run = Run.of(micro_config("classes", "scenario.per_task=1", "method=zero-shot"), Progress(quiet=True))
    whole = run.scenario.eval_sets[0]
    odd = replace(whole, name="odd", data=whole.data.select(range(len(whole.data) - 1, -1, -2)), group="part")
    other = replace(run.scenario.eval_sets[1], task=whole.task)
    features = SetFeatures([whole, odd, other], service.FeatureService(run.learner.store), batch_size=3)
    method = Told(run.learner.method.backbone)
    keys = {"image": "one"}
    reduce = {
        s.name: partial(lambda factor, found: {"scores": factor * found["tokens"][:, :2]}, i + 1)
        for i, s in enumerate((whole, odd, other))
    }
    for task in (None, whole.task):
        method.encoded = 0
        found = features.images(method, keys, lambda done, total: None, task, reduce)
        assert method.encoded == len(whole.data) + len(other.data)
        pictures = [run.learner.store.get(whole.data, i) for i in range(len(whole.data))]
        means = torch.stack([method.backbone.preprocess(picture).mean() for picture in pictures])
        own = means[:, None].expand(-1, 2) + (task or 0)
        assert torch.allclose(found[whole.name]["scores"], own, atol=1e-5)
        assert torch.allclose(found["odd"]["scores"], 2 * own.flip(0)[::2], atol=1e-5)
        assert found[other.name]["scores"].shape == (len(other.data), 2)
