"""Learning without forgetting: keep the student's answers about the task's images near those of a teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, TypeVar

import torch
from pydantic import Field

from everclip.contracts import Past, Stream
from everclip.methods.penalties.answers import Answers
from everclip.methods.penalties.base import Penalty, PenaltySettings, StepView

MEMORY = "memory"
"""The stream of stored samples, if `replay.use` gives them to penalties."""


class LwfSettings(PenaltySettings):
    """Settings.

    Attributes:
        temperature: T; divides the logits of both models.
        form: `kl` is 0 if both agree; `cross-entropy` is the published form: larger by the teacher's entropy, with the
            same gradient.
        directions: answers of images over texts, of texts over images, or both (summed).
        images: the images of the `batch`, already encoded by the student; an `own` stream of the task's images without
            augmentation (published), which costs another forward pass; or the `memory` of replay (iCaRL), which costs
            the same and is empty during the first task.
        text: the text embeddings for the student's images: the `teacher`'s (published: distillation then only trains
            the image tower) or the `student`'s own.
        scale: the factor on the student's cosines: the `teacher`'s (published), or its `own` (TiC-CLIP, open_clip).
    """

    temperature: float = Field(2.0, gt=0, allow_inf_nan=False)
    form: Literal["kl", "cross-entropy"] = "kl"
    directions: Literal["both", "image-to-text", "text-to-image"] = "both"
    images: Literal["batch", "own", "memory"] = "batch"
    text: Literal["teacher", "student"] = "teacher"
    scale: Literal["teacher", "own"] = "teacher"


L = TypeVar("L", bound=LwfSettings)


class AnswerPenalty(Penalty[L]):
    """Distillation of answers (LwF, arXiv 1606.09282; in the form of ZSCL, arXiv 2303.06628, section 3.2).

    With unit embeddings `f` of images and `g` of texts, teacher `t`, student `s` and the teacher's scale `c`:
    `S_t = c f_t g_t^T`, `S_s = c f_s g^T`, and `T^2 mean_i KL(softmax(S_t[i] / T) || softmax(S_s[i] / T))`, over the
    rows of `S` and of its transpose.
    """

    Settings: ClassVar[type[PenaltySettings]] = LwfSettings
    uses_teacher: ClassVar[bool] = True

    def streams(self, main: Stream, past: Past | None = None) -> dict[str, Stream]:
        """Return a stream of the task's own images without augmentation, if the settings ask for it."""
        if self.settings.images != "own":
            return {}
        columns = self._columns(main)
        return {
            self.name: replace(main, sources=main.sources[:1], view="eval", columns=columns, classes=None)
        }

    def _columns(self, main: Stream) -> tuple[str, ...]:
        """Return the columns of the `own` stream."""
        return tuple(c for c in main.columns if c != "label")

    def loss(self, step: StepView) -> torch.Tensor:
        """Return the weighted distillation loss; the answers are the texts and images of all processes."""
        images = self._images(step)
        if images is None:
            return step.image.new_zeros((), dtype=torch.float32)
        student, teacher = images
        student_text, text, shared = self._texts(step)
        settings = self.settings
        student_text = text if settings.text == "teacher" else student_text
        scale = step.teachers.scale(self.teacher, step.backbone)
        own = step.backbone.logit_scale if settings.scale == "own" else None
        answers = Answers(
            student, teacher, student_text, text, scale, settings.temperature, settings.form, shared, own
        )
        total = student.new_zeros((), dtype=torch.float32)
        if settings.directions != "text-to-image":
            total = total + answers.over_texts()
        if settings.directions != "image-to-text":
            total = total + answers.over_images()
        return settings.weight * total

    def _images(self, step: StepView) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the embeddings of the images by student and teacher `(M, D)`; `None` if the memory is still empty."""
        if self.settings.images == "batch":
            return step.image, step.teacher_image(self.teacher)
        columns = step.batch.get(MEMORY if self.settings.images == "memory" else self.name)
        if columns is None:
            return None
        pixels = columns["image"]
        return step.backbone.encode_image(pixels), step.teachers.image(self.teacher, pixels, step.backbone)

    def _texts(self, step: StepView) -> tuple[torch.Tensor, torch.Tensor, bool]:
        """Return the texts by student and teacher `(K, D)`, and whether they are equal on all processes."""
        if step.labelled or self.settings.images != "own":
            return step.text, step.teacher_text(self.teacher), step.labelled
        tokens, student = step.batch[self.name]["tokens"], step.backbone
        text = step.teachers.text(self.teacher, tokens, student)
        student_text = student.encode_text(tokens) if self.settings.text == "student" else text
        return student_text, text, False


class Lwf(AnswerPenalty[LwfSettings]):
    """Distillation of answers over the task's texts: class texts, or the captions of the batch."""
