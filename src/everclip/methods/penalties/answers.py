"""Distillation of answers: which text fits a picture, and which picture fits a text, according to a teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from everclip.distributed import concatenate, rank
from everclip.methods.losses import distillation


@dataclass(frozen=True)
class Answers:
    """What teacher and student say about the same pictures and texts (ZSCL, arXiv 2303.06628, section 3.2).

    Attributes:
        student, teacher: their unit embeddings of this process's pictures `(M, D)`.
        student_text, text: their unit embeddings of the texts `(K, D)`; both the teacher's as published.
        scale: the teacher's factor on cosines.
        temperature: T; divides the logits of both.
        form: `kl`, which is 0 where both agree, or `cross-entropy`.
        shared: whether every process has the same texts, rather than those of its own share of the batch.
    """

    student: torch.Tensor
    teacher: torch.Tensor
    student_text: torch.Tensor
    text: torch.Tensor
    scale: torch.Tensor
    temperature: float
    form: str
    shared: bool

    def over_texts(self) -> torch.Tensor:
        """Return `T^2 mean_i D(S_t[i], S_s[i])` over this process's pictures; the texts of all are on offer."""
        own, text = self.student_text, self.text
        if not self.shared:
            own, text = concatenate(own, gradient=own.requires_grad), concatenate(text)
        return self._apart(self.scale * self.teacher @ text.T, self.scale * self.student @ own.T)

    def over_images(self) -> torch.Tensor:
        """Return the same for the transpose, over this process's texts; the pictures of all are on offer."""
        teacher = concatenate(self.teacher)
        student = concatenate(self.student, gradient=self.student.requires_grad)
        return self._apart(self.scale * self.text @ teacher.T, self.scale * self.student_text @ student.T)

    def among_images(self) -> torch.Tensor:
        """Return the same among pictures: which other picture is like this one; 0 for a single picture."""
        teacher = concatenate(self.teacher)
        student = concatenate(self.student, gradient=self.student.requires_grad)
        if len(teacher) < 2:
            return self.student.new_zeros(())
        places = other_pictures(len(self.student), len(teacher), self.student.device)
        wanted = (self.scale * self.teacher @ teacher.T).gather(1, places)
        return self._apart(wanted, (self.scale * self.student @ student.T).gather(1, places))

    def _apart(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        return distillation(teacher, student, self.temperature, self.form == "kl")


def other_pictures(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Return for each row all columns but its own, `(rows, columns - 1)`: likeness to itself says nothing."""
    own = torch.arange(rows, device=device)[:, None] + rank() * rows
    rest = torch.arange(columns - 1, device=device)[None, :]
    return rest + (rest >= own)
