"""ZSCL's distillation: keep the answers about reference data (of no task) near those of the start model."""

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

IDLE = "no effect: it only constrains the image tower, which does not train"


class ZsclSettings(PenaltySettings):
    """Settings.

    Attributes:
        reference: the teacher: the start model of the run (published), or the model at the start of the task.
        toward_task_start: share of the model at the task's start in the teacher's weights; the rest is the start model
            (an option of the reference code, 0.8 there).
        temperature: T; divides the logits of both models.
        form: `kl` is 0 if both agree; `cross-entropy` is the published form: larger by the teacher's entropy, with the
            same gradient.
        image_weight, text_weight: weights of the answers of images over texts, and of texts over images of the batch.
        image_image_weight: weight of the answers of images over the other images of the batch (an option of the
            reference code).
        feature_weight: weight of the mean squared difference between embeddings (an option of the reference code).
        batch_size: reference images per step; `null` = the task's batch size.
        images: largest number of reference images, chosen by hash; the teacher encodes each of them once.
        texts: largest number of reference texts, chosen by hash.
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
            raise ValueError("toward_task_start begins at the initial model; leave reference at `initial`")
        return self


@dataclass(frozen=True)
class _Chosen:
    """The used images and texts of some reference data (`source`), which hold `counts` images and texts in all."""

    source: Reference
    images: Table
    texts: tuple[ClassEntry, ...]
    counts: tuple[int, int]


class Zscl(Penalty[ZsclSettings]):
    """Distillation on reference data (ZSCL, Zheng et al. 2023, arXiv 2303.06628, section 3.2).

    With unit embeddings `f` of reference images and the teacher's `g` of reference texts, teacher `t`, student `s` and
    the teacher's scale `c`: `S_t = c f_t g^T`, `S_s = c f_s g^T`, and `T^2 mean_i KL(softmax(S_t[i] / T) ||
    softmax(S_s[i] / T))` over the rows of `S` (images) and of its transpose (texts). Only the image tower is
    constrained, because both sides use the teacher's text embeddings.

    With the start model as teacher, images and texts are encoded once per run and cached by the engine. With another
    teacher, texts are encoded once per task and images at every step.
    """

    Settings: ClassVar[type[PenaltySettings]] = ZsclSettings
    uses_teacher: ClassVar[bool] = True

    _chosen: _Chosen | None = None
    _idle = False

    @property
    def needs_reference(self) -> frozenset[str]:
        """Images and texts."""
        return frozenset({"images", "texts"})

    @property
    def teacher(self) -> str:
        """The start model, that of the task's start, or one between them."""
        share = self.settings.toward_task_start
        return between(share) if share else self.settings.reference

    def prepare(self, backbone: Backbone, trainable: Sequence[str]) -> None:
        """Check whether the image tower trains; otherwise the penalty has no effect.

        Raises:
            ConfigError: if the teacher would be an interpolation of two models of different shapes.
        """
        self._idle = not trains(trainable, "image")
        if self.settings.toward_task_start and grown_parameters(backbone.clip):
            raise ConfigError(
                f"method.penalties.{self.name}.toward_task_start: the start model lacks the modules that "
                "method.trainable grows, so it cannot be interpolated with the model at a task's start; set 0."
            )

    def streams(self, main: Stream, past: Past | None = None) -> dict[str, Stream]:
        """Return the stream of reference images, with the teacher's embeddings of them and of all texts.

        Raises:
            ConfigError: if there are no reference data.
        """
        chosen = self._reference(past)
        self.notes = (f"{self.name}: {IDLE}",) if self._idle else self._notes_on(chosen)
        if self._idle:
            return {}
        columns = ["image", f"class_embedding@{self.teacher}"]
        cached = past is None or past.training is None or past.training.cache
        if self.teacher == INITIAL and cached:
            columns.append(f"image_embedding@{self.teacher}")
        batch = self.settings.batch_size or main.batch_size
        return {
            self.name: Stream(
                (Source(chosen.images),), batch, "eval", columns=tuple(columns), classes=chosen.texts
            )
        }

    def _reference(self, past: Past | None) -> _Chosen:
        """Return the images and texts to use; always the same objects, so that caches recognise them."""
        reference = None if past is None else past.reference
        if reference is None or reference.images is None or not len(reference.images) or not reference.texts:
            raise ConfigError(
                f"method.penalties.{self.name}: needs reference data that belong to no task: images and texts. Set "
                "scenario.reference.images.source and scenario.reference.texts.source (published: ImageNet's training "
                "images, captions of Conceptual Captions; nothing is downloaded), or `learner.reference`."
            )
        if self._chosen is None or self._chosen.source is not reference:
            table = reference.images
            rows = _by_hash(table.ids, self.settings.images)
            images = table if len(rows) == len(table) else table.select(rows)
            texts = [reference.texts[i] for i in _by_hash(reference.texts, self.settings.texts)]
            # The texts are the answers, so each stands in for a class name.
            entries = tuple(ClassEntry(text, text) for text in texts)
            self._chosen = _Chosen(reference, images, entries, (len(table), len(reference.texts)))
        return self._chosen

    def _notes_on(self, chosen: _Chosen) -> tuple[str, ...]:
        """Return a note on the used part of the reference data, if not all are used."""
        used = {"images": len(chosen.images), "texts": len(chosen.texts)}
        parts = [
            f"{some:,} of {count:,} reference {what} (method.penalties.{self.name}.{what})"
            for (what, some), count in zip(used.items(), chosen.counts, strict=True)
            if some < count
        ]
        return (f"{self.name} uses, chosen by hash, {' and '.join(parts)}",) if parts else ()

    def loss(self, step: StepView) -> torch.Tensor:
        """Return the weighted sum of the terms; the answers are the texts, and the images of all processes."""
        if self._idle:
            return step.image.new_zeros((), dtype=torch.float32)
        kind, settings, columns = self.teacher, self.settings, step.batch[self.name]
        student = step.backbone.encode_image(columns["image"])
        teacher = columns.get(f"image_embedding@{kind}")
        if teacher is None:
            teacher = step.teachers.image(kind, columns["image"], step.backbone)
        teacher, texts = teacher.to(student), columns[f"class_embedding@{kind}"].to(student)
        scale = step.teachers.scale(kind, step.backbone)
        answers = Answers(
            student, teacher, texts, texts, scale, settings.temperature, settings.form, shared=True
        )
        total = student.new_zeros((), dtype=torch.float32)
        for weight, term in (
            (settings.image_weight, answers.over_texts),
            (settings.text_weight, answers.over_images),
            (settings.image_image_weight, answers.among_images),
            (settings.feature_weight, lambda: (student.float() - teacher.float()).square().mean()),
        ):
            total = total + weight * term() if weight else total
        return settings.weight * total


def _by_hash(keys: Sequence[str], most: int) -> list[int]:
    """Return the indices of at most `most` keys, chosen by hash, in order; adding data changes few of the choices."""
    if len(keys) <= most:
        return list(range(len(keys)))
    return sorted(sorted(range(len(keys)), key=lambda i: key_of("reference", keys[i]))[:most])
