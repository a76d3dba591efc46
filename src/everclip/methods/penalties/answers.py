"""Distil a teacher's answers: which text fits an image, and which image fits a text."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from everclip.distributed import concatenate, rank
from everclip.methods.losses import distillation


@dataclass(frozen=True)
class Answers:
    """The embeddings of the same images and texts by teacher and student (ZSCL, arXiv 2303.06628, section 3.2).

    Attributes:
        student, teacher: unit embeddings of this process's images `(M, D)` by each.
        student_text, text: unit embeddings of the texts `(K, D)` by student and teacher; as published, both are the
            teacher's.
        scale: the teacher's factor on cosines.
        temperature: T; divides the logits of both.
        form: `kl`, which is 0 if both agree, or `cross-entropy`.
        shared: whether all processes have the same texts, rather than those of their share of the batch.
        student_scale: the student's own factor; `None`: the teacher's, as published.
    """

    student: torch.Tensor
    teacher: torch.Tensor
    student_text: torch.Tensor
    text: torch.Tensor
    scale: torch.Tensor
    temperature: float
    form: str
    shared: bool
    student_scale: torch.Tensor | None = None

    @property
    def own_scale(self) -> torch.Tensor:
        """The factor on the student's cosines."""
        return self.scale if self.student_scale is None else self.student_scale

    def over_texts(self) -> torch.Tensor:
        """Return `T^2 mean_i D(S_t[i], S_s[i])` over this process's images; the answers are all processes' texts."""
        student_text, text = self.student_text, self.text
        if not self.shared:
            student_text = concatenate(student_text, gradient=student_text.requires_grad)
            text = concatenate(text)
        return self._distil(
            self.scale * self.teacher @ text.T, self.own_scale * self.student @ student_text.T
        )

    def over_images(self) -> torch.Tensor:
        """Return the same for the transpose, over this process's texts; the answers are all processes' images."""
        teacher = concatenate(self.teacher)
        student = concatenate(self.student, gradient=self.student.requires_grad)
        return self._distil(
            self.scale * self.text @ teacher.T, self.own_scale * self.student_text @ student.T
        )

    def among_images(self) -> torch.Tensor:
        """Return the same among images: which other image is similar to this one; 0 for a single image."""
        teacher = concatenate(self.teacher)
        student = concatenate(self.student, gradient=self.student.requires_grad)
        if len(teacher) < 2:
            return self.student.new_zeros(())
        others = other_pictures(len(self.student), len(teacher), self.student.device)
        target = (self.scale * self.teacher @ teacher.T).gather(1, others)
        return self._distil(target, (self.own_scale * self.student @ student.T).gather(1, others))

    def _distil(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        return distillation(teacher, student, self.temperature, self.form == "kl")


def other_pictures(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Return for each row all columns except its own, `(rows, columns - 1)`."""
    itself = torch.arange(rows, device=device)[:, None] + rank() * rows
    rest = torch.arange(columns - 1, device=device)[None, :]
    return rest + (rest >= itself)
