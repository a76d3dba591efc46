"""Learning without forgetting: the student's answers about the task's pictures stay those of a teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field

from everclip.contracts import Stream
from everclip.distributed import concatenate
from everclip.methods.losses import distillation
from everclip.methods.penalties.base import Penalty, PenaltySettings, StepView


class LwfSettings(PenaltySettings):
    """Settings.

    Attributes:
        temperature: T; divides the logits of both models.
        form: `kl` is 0 where both agree; `cross-entropy` is the published one: larger by the teacher's entropy, with
            the same gradient.
        directions: answers of pictures over texts, of texts over pictures, or both (summed).
        images: pictures of the `batch`, already encoded by the student; or an `own` stream over the task's pictures
            without augmentation (published), which costs a further forward pass.
        text: whose text embeddings the student's pictures are compared with: the `teacher`'s (published: distillation
            then reaches the image tower alone) or the `student`'s own.
    """

    temperature: float = Field(2.0, gt=0)
    form: Literal["kl", "cross-entropy"] = "kl"
    directions: Literal["both", "image-to-text", "text-to-image"] = "both"
    images: Literal["batch", "own"] = "batch"
    text: Literal["teacher", "student"] = "teacher"


class Lwf(Penalty[LwfSettings]):
    """Distillation of answers (LwF, arXiv 1606.09282; in the form of ZSCL, arXiv 2303.06628, section 3.2).

    With unit embeddings `f` of pictures and `g` of texts, teacher `t`, student `s` and the teacher's scale `c`:
    `S_t = c f_t g_t^T`, `S_s = c f_s g^T`, and `T^2 mean_i KL(softmax(S_t[i] / T) || softmax(S_s[i] / T))`, over the
    rows of `S` and of its transpose. Texts are the class prompts, or the captions of the batch.
    """

    Settings: ClassVar[type[PenaltySettings]] = LwfSettings
    uses_teacher: ClassVar[bool] = True

    def streams(self, main: Stream) -> dict[str, Stream]:
        """Return a stream over the task's own pictures, as evaluation sees them, where that is asked for."""
        if self.settings.images == "batch":
            return {}
        columns = tuple(c for c in main.columns if c != "label")
        return {
            self.name: replace(main, sources=main.sources[:1], view="eval", columns=columns, classes=None)
        }

    def loss(self, step: StepView) -> torch.Tensor:
        """Return the weighted distillation loss; texts and pictures of all processes are answers on offer."""
        kind = self.settings.reference
        found, wanted, own_text, text = self._embeddings(step)
        if self.settings.text == "teacher":
            own_text = text
        scale = step.teachers.scale(kind, step.backbone)
        student, teacher = concatenate(found, gradient=True), concatenate(wanted)
        total = found.new_zeros((), dtype=torch.float32)
        if self.settings.directions != "text-to-image":
            # Class texts are the same in every process; captions of all processes are on offer.
            every_own = own_text if step.labelled else concatenate(own_text, gradient=own_text.requires_grad)
            every = text if step.labelled else concatenate(text)
            total = total + self._distance(scale * wanted @ every.T, scale * found @ every_own.T)
        if self.settings.directions != "image-to-text":
            total = total + self._distance(scale * text @ teacher.T, scale * own_text @ student.T)
        return self.settings.weight * total

    def _distance(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        return distillation(teacher, student, self.settings.temperature, self.settings.form == "kl")

    def _embeddings(self, step: StepView) -> tuple[torch.Tensor, ...]:
        """Return pictures by student and teacher, texts by student and teacher."""
        kind = self.settings.reference
        if self.settings.images == "batch":
            return step.image, step.teacher_image(kind), step.text, step.teacher_text(kind)
        columns, student = step.batch[self.name], step.backbone
        image = student.encode_image(columns["image"])
        image_by_teacher = step.teachers.image(kind, columns["image"], student)
        if step.labelled:
            return image, image_by_teacher, step.text, step.teacher_text(kind)
        text_by_teacher = step.teachers.text(kind, columns["tokens"], student)
        text = student.encode_text(columns["tokens"]) if self.settings.text == "student" else text_by_teacher
        return image, image_by_teacher, text, text_by_teacher
