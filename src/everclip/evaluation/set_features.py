"""Features of evaluation sets: every distinct image, caption and prompt is encoded once per row, for all sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch

from everclip.contracts import EvalSet, Features, LabelSpace
from everclip.data.sampling.image_pairs import captions_of_pairs
from everclip.data.sampling.multi_image import texts_of_questions
from everclip.evaluation import pools
from everclip.features.encoder import image_encoder, text_encoder
from everclip.features.encoding import Reduce, measuring
from everclip.features.pictures import Pictures
from everclip.features.service import FeatureService
from everclip.interfaces import Predictor

Tick = Callable[[int, int], None]
_OF = "\0"
"""Separator between the name of a set and the name of a feature; names do not contain it."""


class SetFeatures:
    """Gets the features of the union of all evaluation sets from the feature service.

    Args:
        sets: the evaluation sets; an image that occurs in several rows or sets is encoded once.
        service: encodes and caches.
        batch_size: images per batch.
        together: whether all processes make the same calls, so that they can share the work.
    """

    def __init__(
        self, sets: Sequence[EvalSet], service: FeatureService, batch_size: int, together: bool = False
    ) -> None:
        self._service, self._batch, self._together = service, batch_size, together
        self._pictures, rows = Pictures.distinct([s.data for s in sets])
        self._rows = dict(zip((s.name for s in sets), rows, strict=True))
        self._tasks = {s.name: s.task for s in sets}
        self._captions = {s.name: pools.captions(s) for s in sets if s.kind == "retrieval"}
        self._captions |= {s.name: captions_of_pairs(s.data) for s in sets if s.kind == "pairs"}
        self._captions |= {s.name: texts_of_questions(s.data) for s in sets if s.kind == "multi-image"}

    def images(
        self,
        method: Predictor,
        keys: Mapping[str, str],
        tick: Tick,
        known_task: int | None = None,
        reduce: Mapping[str, Reduce] | None = None,
    ) -> dict[str, Features]:
        """Return the features of evaluation sets under the method in its present state.

        Args:
            method: encodes; in evaluation mode.
            keys: identifies what its encodings depend on (`method.encoder_keys()`); computed once per row.
            tick: called with (done, total); may raise to stop.
            known_task: the task that the method is told; then only the sets of that task are encoded.
            reduce: name of a set -> function that reduces a batch of features, for features too wide for memory; then
                nothing is cached.

        Returns:
            Name of a set -> features, one row per image, in the order of the set.
        """
        names = [name for name in self._rows if known_task is None or self._tasks[name] == known_task]
        # If features depend on their batch, encode set by set, so that no set changes the scores of another.
        groups = [[name] for name in names] if method.batch_dependent is not None else [names]
        features: dict[str, Features] = {}
        for group in groups if names else []:
            rows = self._union(group)
            if reduce is not None:
                features |= self._reduced(method, keys, known_task, rows, {n: reduce[n] for n in group}, tick)
                continue
            whole = self._service.images(
                image_encoder(method, keys, known_task),
                self._pictures.select(rows),
                block=self._size(method),
                tick=tick,
                together=self._together,
            )
            features |= {name: self._of_set(whole, rows, name) for name in group}
        return features

    def _union(self, names: Iterable[str]) -> torch.Tensor:
        rows: torch.Tensor = torch.unique(torch.cat([self._rows[name] for name in names]))
        return rows

    def _of_set(self, whole: Features, rows: torch.Tensor, name: str) -> Features:
        """Select the features of a set from those of the images at `rows`."""
        index = torch.searchsorted(rows, self._rows[name])
        return {k: v[index] for k, v in whole.items()}

    def _reduced(
        self,
        method: Predictor,
        keys: Mapping[str, str],
        known_task: int | None,
        rows: torch.Tensor,
        reduce: Mapping[str, Reduce],
        tick: Tick,
    ) -> dict[str, Features]:
        """Return the reduced features of sets that are encoded together; every image is encoded once."""
        masks = {name: np.isin(rows.numpy(), self._rows[name].numpy()) for name in reduce}

        def reduce_block(features: Features, block: range) -> Features:
            reduced: Features = {}
            for name, mask in masks.items():
                if (in_set := torch.from_numpy(mask[block.start : block.stop])).any():
                    part = reduce[name]({k: v[in_set] for k, v in features.items()})
                    reduced |= {name + _OF + k: v for k, v in part.items()}
            return reduced

        whole = self._service.reduced(
            image_encoder(method, keys, known_task),
            self._pictures.select(rows),
            reduce_block,
            block=self._size(method),
            tick=tick,
            together=self._together,
        )
        by_set: dict[str, Features] = {}
        for name in reduce:
            of_set = {k.removeprefix(name + _OF): v for k, v in whole.items() if k.startswith(name + _OF)}
            by_set[name] = self._of_set(of_set, torch.unique(self._rows[name]), name)
        return by_set

    def _size(self, method: Predictor) -> int:
        """Return the batch size: the method's own if its features depend on the batch."""
        fixed: int | None = None if method.batch_dependent is None else method.prediction_batch
        return fixed or self._batch

    def texts(
        self, method: Predictor, keys: Mapping[str, str], spaces: Iterable[LabelSpace] = ()
    ) -> RowTexts:
        """Return the features of all captions of the sets with captions and of all prompts of some label spaces.

        Args:
            method, keys: as in `images`.
            spaces: the label spaces whose class banks will be asked for.
        """
        prompts = [] if method.own_bank else [text for space in spaces for text in space.prompts()]
        captions = [caption for captions in self._captions.values() for caption in captions]
        if not (captions or prompts):
            none = {"embedding": torch.zeros(0, 0)}
            return RowTexts(self._service, method, keys, self._captions, none, {})
        # One list per row, because the features of a text may differ in the last bit with the texts beside it.
        distinct = list(dict.fromkeys([*captions, *prompts]))
        features, _ = self._service.texts(text_encoder(method, keys), distinct, together=self._together)
        index = {text: row for row, text in enumerate(distinct)}
        return RowTexts(self._service, method, keys, self._captions, features, index)


class RowTexts:
    """The features of the texts of a row; every distinct caption and prompt was encoded once.

    Args:
        service: makes the banks of a method that makes its own.
        method: in the state that encoded the texts.
        keys: identifies this state.
        captions: name of a set with captions -> its captions.
        features: the features of the distinct texts.
        index: text -> its row among them.
    """

    def __init__(
        self,
        service: FeatureService,
        method: Predictor,
        keys: Mapping[str, str],
        captions: Mapping[str, Sequence[str]],
        features: Features,
        index: Mapping[str, int],
    ) -> None:
        self._service, self._method, self._keys = service, method, keys
        self._captions, self._features, self._index = captions, features, index

    def captions(self, name: str) -> Features:
        """Return the features of the captions of a set, one per row, or of the distinct texts of its questions."""
        return self._of(self._captions[name])

    def bank(self, space: LabelSpace) -> Features:
        """Return the method's class bank of one of the label spaces."""
        if self._method.own_bank:
            return self._service.bank(self._method, self._keys["text"], space)
        with measuring(self._method):
            return self._method.bank_from(space, self._of(space.prompts()))

    def _of(self, texts: Sequence[str]) -> Features:
        rows = torch.tensor([self._index[text] for text in texts], dtype=torch.int64)
        return {name: values[rows] for name, values in self._features.items()}
