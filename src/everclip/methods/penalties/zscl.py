"""ZSCL's distillation: answers about reference pictures and texts, which belong to no task, stay the start model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator

from everclip.contracts import ClassEntry, Past, Reference, Source, Stream
from everclip.data.sampling.order import key_of
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.methods.penalties.answers import Answers
from everclip.methods.penalties.base import Penalty, PenaltySettings, StepView
from everclip.methods.penalties.base import Reference as Teacher
from everclip.methods.penalties.teachers import INITIAL, between
from everclip.methods.trainable import trains
from everclip.models.backbone import Backbone
from everclip.models.modules.grow import grown_parameters

IDLE = "the image tower, of which nothing trains, is all that reference pictures can hold: it has no effect"


class ZsclSettings(PenaltySettings):
    """Settings.

    Attributes:
        reference: the teacher: the model the run began from (published), or the one the task began from.
        toward_task_start: moves the teacher this share of the way from the start model to that of the task's start
            (an option of the reference code, 0.8 there).
        temperature: T; divides the logits of both models.
        form: `kl` is 0 where both agree; `cross-entropy` is the published one: larger by the teacher's entropy, with
            the same gradient.
        image_weight, text_weight: answers of pictures over texts, and of texts over the pictures of the batch.
        image_image_weight: answers of pictures over the other pictures of the batch (an option of the reference code).
        feature_weight: mean squared difference of the embeddings' elements (an option of the reference code).
        batch_size: reference pictures per step; `null` = the task's batch size.
        images: most reference pictures used, chosen by hash: the teacher encodes each of them once.
        texts: most reference texts used, chosen by hash.
    """

    reference: Teacher = "initial"
    toward_task_start: float = Field(0.0, ge=0, lt=1)
    temperature: float = Field(2.0, gt=0, allow_inf_nan=False)
    form: Literal["kl", "cross-entropy"] = "kl"
    image_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    text_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    image_image_weight: float = Field(0.0, ge=0, allow_inf_nan=False)
    feature_weight: float = Field(0.0, ge=0, allow_inf_nan=False)
    batch_size: int | None = Field(None, ge=1)
    images: int = Field(100_000, ge=1)
    texts: int = Field(20_000, ge=1)

    @model_validator(mode="after")
    def _one_teacher(self) -> ZsclSettings:
        if self.toward_task_start and self.reference != "initial":
            raise ValueError("toward_task_start starts from the initial model; leave reference at `initial`")
        return self


@dataclass(frozen=True)
class _Chosen:
    """What is used of the `given` reference data, which hold so many pictures and texts (`counts`)."""

    given: Reference
    pictures: Table
    texts: tuple[ClassEntry, ...]
    counts: tuple[int, int]


class Zscl(Penalty[ZsclSettings]):
    """Distillation on reference data (ZSCL, Zheng et al. 2023, arXiv 2303.06628, section 3.2).

    With unit embeddings `f` of reference pictures and the teacher's `g` of reference texts, teacher `t`, student `s`
    and the teacher's scale `c`: `S_t = c f_t g^T`, `S_s = c f_s g^T`, and `T^2 mean_i KL(softmax(S_t[i] / T) ||
    softmax(S_s[i] / T))` over the rows of `S` (pictures) and of its transpose (texts). The image tower alone is held:
    the texts are the teacher's on both sides.

    What the start model says of both is encoded once per run and kept by the engine; another teacher's texts once per
    task, its pictures at every step.
    """

    Settings: ClassVar[type[PenaltySettings]] = ZsclSettings
    uses_teacher: ClassVar[bool] = True
    needs_reference: ClassVar[frozenset[str]] = frozenset({"images", "texts"})

    _chosen: _Chosen | None = None
    _idle = False

    @property
    def teacher(self) -> str:
        """The start model, that of the task's start, or one between them."""
        share = self.settings.toward_task_start
        return between(share) if share else self.settings.reference

    def prepare(self, backbone: Backbone, trainable: Sequence[str]) -> None:
        """Note whether anything trains that reference pictures could hold.

        Raises:
            ConfigError: if the teacher shall lie between two models of different shape.
        """
        self._idle = not trains(trainable, "image")
        if self.settings.toward_task_start and grown_parameters(backbone.clip):
            raise ConfigError(
                f"method.penalties.{self.name}.toward_task_start: the start model has none of the modules that "
                "method.trainable grows, so nothing lies between it and the model of a task's start; set 0."
            )

    def streams(self, main: Stream, past: Past | None = None) -> dict[str, Stream]:
        """Return the stream of reference pictures, which brings the teacher's embeddings of them and of all texts.

        Raises:
            ConfigError: if there are no reference data.
        """
        chosen = self._reference(past)
        self.notes = (f"{self.name}: {IDLE}",) if self._idle else self._said(chosen)
        if self._idle:
            return {}
        columns = ["image", f"class_embedding@{self.teacher}"]
        cached = past is None or past.training is None or past.training.cache
        if self.teacher == INITIAL and cached:
            columns.append(f"image_embedding@{self.teacher}")
        batch = self.settings.batch_size or main.batch_size
        return {
            self.name: Stream(
                (Source(chosen.pictures),), batch, "eval", columns=tuple(columns), classes=chosen.texts
            )
        }

    def _reference(self, past: Past | None) -> _Chosen:
        """Return the pictures and texts that are used; the same objects each time, so that caches know them again."""
        given = None if past is None else past.reference
        if given is None or given.images is None or not len(given.images) or not given.texts:
            raise ConfigError(
                f"method.penalties.{self.name}: needs reference data that belong to no task: pictures and texts. Set "
                "scenario.reference.images.source and scenario.reference.texts.source (published: ImageNet's training "
                "pictures, captions of Conceptual Captions; nothing is downloaded), or `learner.reference`."
            )
        if self._chosen is None or self._chosen.given is not given:
            table = given.images
            places = _by_hash(table.ids, self.settings.images)
            pictures = table if len(places) == len(table) else table.select(places)
            texts = [given.texts[i] for i in _by_hash(given.texts, self.settings.texts)]
            # The caption stands for a class's name: the texts are the answers on offer.
            entries = tuple(ClassEntry(text, text) for text in texts)
            self._chosen = _Chosen(given, pictures, entries, (len(table), len(given.texts)))
        return self._chosen

    def _said(self, chosen: _Chosen) -> tuple[str, ...]:
        """Say which part of the reference data is used, if not all."""
        used = {"images": len(chosen.pictures), "texts": len(chosen.texts)}
        parts = [
            f"{some:,} of {count:,} reference {what} (method.penalties.{self.name}.{what})"
            for (what, some), count in zip(used.items(), chosen.counts, strict=True)
            if some < count
        ]
        return (f"{self.name} uses, chosen by hash, {' and '.join(parts)}",) if parts else ()

    def loss(self, step: StepView) -> torch.Tensor:
        """Return the weighted sum of the terms; pictures of all processes are answers on offer."""
        if self._idle:
            return step.image.new_zeros((), dtype=torch.float32)
        kind, chosen, columns = self.teacher, self.settings, step.batch[self.name]
        found = step.backbone.encode_image(columns["image"])
        wanted = columns.get(f"image_embedding@{kind}")
        if wanted is None:
            wanted = step.teachers.image(kind, columns["image"], step.backbone)
        wanted, texts = wanted.to(found), columns[f"class_embedding@{kind}"].to(found)
        scale = step.teachers.scale(kind, step.backbone)
        answers = Answers(found, wanted, texts, texts, scale, chosen.temperature, chosen.form, shared=True)
        total = found.new_zeros((), dtype=torch.float32)
        for weight, term in (
            (chosen.image_weight, answers.over_texts),
            (chosen.text_weight, answers.over_images),
            (chosen.image_image_weight, answers.among_images),
            (chosen.feature_weight, lambda: (found.float() - wanted.float()).square().mean()),
        ):
            total = total + weight * term() if weight else total
        return chosen.weight * total


def _by_hash(keys: Sequence[str], most: int) -> list[int]:
    """Return the places of at most so many keys, in order; adding data changes few of the choices."""
    if len(keys) <= most:
        return list(range(len(keys)))
    return sorted(sorted(range(len(keys)), key=lambda i: key_of("reference", keys[i]))[:most])
