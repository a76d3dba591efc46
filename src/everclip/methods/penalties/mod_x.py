"""Mod-X: keep how similar the pairs of a batch are to each other, where the teacher matches them."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from everclip.distributed import concatenate, world
from everclip.methods.losses import positives, without_copies
from everclip.methods.penalties.base import Penalty, PenaltySettings, StepView


class ModXSettings(PenaltySettings):
    """Settings.

    Attributes:
        weight: alpha (published: 20, together with `reduce: sum`).
        temperature: T; divides the cosines of both models. At 1 (published) the distributions are almost uniform.
        reduce: the `sum` over the rows of the global batch (published): twice the batch, about twice the penalty; or
            their `mean`, which does not depend on the batch size.
    """

    weight: float = Field(20.0, ge=0, allow_inf_nan=False)
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    reduce: Literal["sum", "mean"] = "sum"


class ModX(Penalty[ModXSettings]):
    """Distillation of the similarities within a batch (Mod-X, Ni et al. 2023, arXiv 2305.07437).

    With unit embeddings `V` of images and `U` of texts of the global batch, of the student and (`°`) of the teacher:
    `M = V U^T`, `M° = V° U°^T`, and `T^2 / 2 (sum_i k_i KL(softmax(M°[i] / T) || softmax(M[i] / T)) + the same for the
    transposes)`. `k_i` is 1 if the teacher's best answer to row i is right, else 0: such a row has no value and no
    gradient. The rows of either direction are judged by themselves. Cosines are not scaled.

    All texts that belong to an image are right, and all images that belong to a text: repeats of an image or a caption
    in the batch, images of the same class. A tie between a right and a wrong answer counts as right, so the order of
    the batch does not matter. A class without an image in the batch has no right answer.
    """

    Settings: ClassVar[type[PenaltySettings]] = ModXSettings
    uses_teacher: ClassVar[bool] = True

    def loss(self, step: StepView) -> torch.Tensor:
        """Return the weighted penalty of this process's rows; the answers are those of all processes."""
        kind, main = self.teacher, step.batch["main"]
        images = step.image, step.teacher_image(kind)
        texts: tuple[torch.Tensor, ...] = step.text, step.teacher_text(kind)
        if step.labelled:
            labels, texts = without_copies(main["label"], main.get("class_same"), *texts)
            right = labels[:, None] == torch.arange(len(texts[0]), device=labels.device)
            per_image = self._rows(images, texts, right)
            # Every process has all class texts, so each computes all of their rows.
            right = torch.arange(len(texts[0]), device=labels.device)[:, None] == concatenate(labels)
            per_text = self._rows(texts, _gathered(images), right, share=False)
        else:
            keys = main["image_key"], main["text_key"]
            right = positives(len(step.image), len(step.image) * world(), *keys, step.image.device)
            per_image = self._rows(images, _gathered(texts), right)
            per_text = self._rows(texts, _gathered(images), right)
        return self.settings.weight * 0.5 * (per_image + per_text)

    def _rows(
        self,
        rows: tuple[torch.Tensor, ...],
        answers: tuple[torch.Tensor, ...],
        right: torch.Tensor,
        share: bool = True,
    ) -> torch.Tensor:
        """Return the divergence in one direction.

        Args:
            rows: embeddings `(R, D)` by student and teacher.
            answers: embeddings `(A, D)` by student and teacher.
            right: `(R, A)`, which answers are right.
            share: whether the rows are this process's share of all rows, rather than all of them.
        """
        # Outside autocast: at bf16's precision many of the teacher's cosines are equal.
        with torch.autocast(right.device.type, enabled=False):
            student, teacher = (r.float() @ a.float().T for r, a in zip(rows, answers, strict=True))
            divergence = kept_divergence(teacher, student, right, self.settings.temperature)
        if self.settings.reduce == "mean":
            return divergence.sum() / right.any(dim=1).sum()
        # Gradients are averaged over processes, so a share counts as often as there are processes.
        return divergence.sum() * (world() if share else 1)


def kept_divergence(
    teacher: torch.Tensor, student: torch.Tensor, right: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Return `T^2 KL(softmax(teacher / T) || softmax(student / T))` of each row, 0 where the teacher is wrong `(R,)`.

    Args:
        teacher, student: cosines `(R, A)`; only the student's receive gradients.
        right: `(R, A)`, which answers are right. The teacher is wrong if its best answer is not among them.
        temperature: T.
    """
    teacher = teacher.detach()
    best = teacher.masked_fill(~right, -torch.inf).amax(dim=1)
    kept = best >= teacher.masked_fill(right, -torch.inf).amax(dim=1)
    target, output = (F.log_softmax(cosines / temperature, dim=1) for cosines in (teacher, student))
    divergence = temperature**2 * (target.exp() * (target - output)).sum(dim=1)
    return torch.where(kept, divergence, 0.0)


def _gathered(pair: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Return the embeddings of all processes by student, with gradient, and teacher."""
    student, teacher = pair
    return concatenate(student, gradient=student.requires_grad), concatenate(teacher)
