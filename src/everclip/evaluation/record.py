"""Measure one row, and write what later comparisons need: outcomes per item, features, example images."""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from everclip.config import RunConfig
from everclip.data.sampling.order import unit_hash
from everclip.evaluation import disorder, representation
from everclip.evaluation.assemble import add_answers
from everclip.evaluation.confusions import confusions_file, to_json
from everclip.evaluation.headline import NEVER_TASKS
from everclip.evaluation.results import Example, Row
from everclip.evaluation.scoring import RowScorer, RowScores
from everclip.evaluation.set_features import SetFeatures, Tick
from everclip.features.service import FeatureService
from everclip.files import optional_write, write_bytes_atomic, write_text_atomic
from everclip.interfaces import MeasuredScenario, Predictor

THUMBNAIL = 128
SIDES = ("images", "texts")


class RowRecorder:
    """Scores rows of a run and keeps their files in the run folder (`rows/`, `examples/`).

    Args:
        path: the run folder.
        scenario: evaluation sets and protocols.
        config: the configuration of the run.
        features: encodes images and texts, on all processes together.
        writes: whether this process writes files; only the first one does.
    """

    def __init__(
        self,
        path: Path,
        scenario: MeasuredScenario,
        config: RunConfig,
        features: FeatureService,
        writes: bool,
    ) -> None:
        self._path, self._scenario, self._store, self._writes = path, scenario, features.store, writes
        self._seed, self._settings = config.seed, config.evaluation
        self._chosen = choose_examples(scenario, config.evaluation.examples)
        sets = SetFeatures(scenario.eval_sets, features, config.evaluation.batch_size, together=True)
        self._scorer = RowScorer(scenario, sets, config.evaluation, config.seed, self._chosen)

    def measure(
        self,
        method: Predictor,
        label: str,
        index: int,
        task: int | None,
        learned: Collection[int],
        progress: tuple[int, int],
        tick: Tick,
        examples: Sequence[Example],
    ) -> tuple[Row, list[Example]]:
        """Measure a row.

        Args:
            method: the method in its present state.
            label, index, task: the row's label and number, and the task just learned.
            learned: indices of all tasks learned so far.
            progress: (optimiser steps, samples) so far.
            tick: called with progress; may raise to stop.
            examples: the examples with the answers of earlier rows.

        Returns:
            The row, and the examples with this row's answers added.
        """
        scores = self._scorer.row(method, learned, tick)
        space, moved = self._space(index, scores)
        row = Row(
            index=index,
            task=task,
            label=label,
            step=progress[0],
            samples=progress[1],
            scores=scores.scores,
            per_class=scores.per_class,
            representation=space,
            rotations=moved,
            ambiguous=scores.ambiguous,
            routes=scores.routes,
            experts=scores.experts,
            thresholds=scores.thresholds,
            notes={} if index == 0 else dict(method.notes),
        )
        if self._writes:
            outcomes = {name: values.contiguous() for name, values in scores.outcomes.items()}
            write_bytes_atomic(self._path / "rows" / f"{index:03d}.safetensors", save(outcomes))
            if scores.confusions:
                with optional_write(confusions_file(self._path, index), "the report shows no single classes"):
                    write_text_atomic(confusions_file(self._path, index), to_json(scores.confusions))
            if index == 0:
                self._write_images()
        return row, add_answers(examples or self._new_examples(), index, scores.answers, self._chosen)

    def _space(self, index: int, scores: RowScores) -> tuple[dict[str, float | None], dict[str, list[int]]]:
        """Measure the embedding space on the known retrieval sets, or on all retrieval sets if none is known.

        Returns:
            The metrics, and how far items moved since the row before; both empty without retrieval sets.
        """
        sets = [s for s in self._scenario.eval_sets if s.kind == "retrieval"]
        of_tasks = {s.name for s in sets if s.group in ("task", "everything") or s.task is not None}
        names = [s.name for s in sets if s.name not in of_tasks] or [s.name for s in sets]
        if not names:
            return {}, {}
        images, texts = (torch.cat([scores.features[name][side] for name in names]) for side in (0, 1))
        now = {"images": images, "texts": texts}
        rows = representation.probe_rows(len(images), self._settings.representation_samples, self._seed)
        probes = {name: features[rows.to(features.device)] for name, features in now.items()}
        first = _read_features(self._features_file(0)) if index > 0 else None
        last = self._last(index, first, rows)
        if self._writes:
            # All items of row 0, which later runs may compare with; of later rows only those that are compared.
            kept = now if index == 0 else {**probes, "rows": rows}
            write_bytes_atomic(self._features_file(index), save({k: v.contiguous() for k, v in kept.items()}))
        with warnings.catch_warnings():
            # A null in the result already shows that a metric is undefined on a small set.
            warnings.simplefilter("ignore", RuntimeWarning)
            values = representation.measure(
                images,
                texts,
                None if first is None else _pair(first),
                None if last is None else _pair(last),
                sample=self._settings.representation_samples,
                seed=self._seed,
            )
            moved = {s: disorder.rotation_histogram(last[s], probes[s]) for s in SIDES if last is not None}
        return values, moved

    def _last(
        self, index: int, first: dict[str, torch.Tensor] | None, rows: torch.Tensor
    ) -> dict[str, torch.Tensor] | None:
        """Return the features of these items at the row before; `None` if they are unknown.

        Args:
            index: the row.
            first: the features of row 0.
            rows: the positions of the items.
        """
        if index == 1:
            return None if first is None else {side: first[side][rows] for side in SIDES}
        last = _read_features(self._features_file(index - 1)) if index > 1 else None
        # After an extension by new sets, the row before may have been measured on other items.
        return last if last is not None and torch.equal(last["rows"], rows) else None

    def _features_file(self, index: int) -> Path:
        return self._path / "rows" / f"{index:03d}.features.safetensors"

    def with_old_answers(self, examples: Sequence[Example]) -> list[Example]:
        """Return the examples of an extended scenario; images that were examples before keep their answers."""
        answers = {(e.column, e.id): e.answers for e in examples}
        return [
            e.model_copy(update={"answers": answers.get((e.column, e.id), [])}) for e in self._new_examples()
        ]

    def missing_features(self, index: int) -> list[str]:
        """Return messages if the features of row 0 or of the row before are missing, which a row is compared with."""
        if all(s.kind != "retrieval" for s in self._scenario.eval_sets):
            return []
        compared = {0: "row 0", index - 1: "the row before"} if index > 1 else {0: "row 0"} if index else {}
        return [
            f"{file} is missing or damaged: changes against {name} are null"
            for row, name in compared.items()
            if _read_features(file := self._features_file(row)) is None
        ]

    def _chosen_items(self) -> list[tuple[Any, int]]:
        by_name = {s.name: s for s in self._scenario.eval_sets}
        return [(by_name[name], position) for name, chosen in self._chosen.items() for position in chosen]

    def _new_examples(self) -> list[Example]:
        examples = []
        for number, (s, position) in enumerate(self._chosen_items()):
            truth = s.data.value("caption" if s.kind == "retrieval" else "class_name", position)
            examples.append(
                Example(
                    column=s.name,
                    id=s.data.ids[position],
                    picture=f"examples/{number:03d}.png",
                    truth=str(truth),
                    answers=[],
                )
            )
        return examples

    def _write_images(self) -> None:
        for example, (s, position) in zip(self._new_examples(), self._chosen_items(), strict=True):
            image = self._store.get(s.data, position).copy()
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            file = io.BytesIO()
            image.save(file, "PNG")
            path = self._path / example.picture
            with optional_write(path, "the report shows no examples"):
                write_bytes_atomic(path, file.getvalue())


def _pair(features: dict[str, torch.Tensor]) -> representation.Pairs:
    return features["images"], features["texts"]


def _read_features(file: Path) -> dict[str, torch.Tensor] | None:
    try:
        return load_file(file)
    except (OSError, SafetensorError):
        return None  # the run loop records this as an event


def choose_examples(scenario: MeasuredScenario, count: int) -> dict[str, list[int]]:
    """Choose the example images: per set those of lowest hash, so that all runs show the same ones."""
    chosen = {}
    for s in scenario.eval_sets:
        if s.group == "everything" or s.kind in NEVER_TASKS:
            continue  # its images are those of the other sets; a pair or question has several images
        order = sorted(range(len(s.data)), key=lambda i: unit_hash("examples", s.name, s.data.ids[i]))
        chosen[s.name] = sorted(order[:count])
    return chosen
