"""Teachers: frozen copies of the backbone that penalties compare the student with, shared between penalties."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from everclip.errors import CheckpointError
from everclip.models.backbone import Backbone
from everclip.models.modules.short_texts import needed_tokens, short_texts
from everclip.models.same_kernels import same_kernels_as_training

INITIAL, TASK_START = "initial", "task-start"
_BETWEEN = "between:"
BLOCK = 256
"""Number of texts of a bank that are encoded together."""


def between(share: float) -> str:
    """Return the name of the teacher with weights `(1 - share) * initial + share * task start`."""
    return INITIAL if share == 0 else f"{_BETWEEN}{share}"


class Teachers:
    """The backbone as it was at the start of the run, at the start of the task, or between the two.

    The initial model is copied when the method is built, so a resumed run has it without storing it; its fingerprints
    are stored and compared. The others are rebuilt from the stored weights of the task's start.

    Args:
        backbone: the student, still with the weights of the start model.
        wanted: the needed names: `initial`, `task-start` and `between(share)`.
        prepare: undoes, in a copy of the task's start, what the method has already added for the task.
    """

    def __init__(
        self,
        backbone: Backbone,
        wanted: Collection[str],
        prepare: Callable[[Backbone], None] = lambda teacher: None,
    ) -> None:
        self.wanted, self._prepare = frozenset(wanted), prepare
        self._shares = {k: float(k.removeprefix(_BETWEEN)) for k in self.wanted if k.startswith(_BETWEEN)}
        self._copies = {INITIAL: frozen_copy(backbone)} if INITIAL in self.wanted or self._shares else {}
        self._banks: dict[tuple[str, int, str], torch.Tensor] = {}
        self._fingerprints: dict[str, str] | None = None

    @property
    def needs_start(self) -> bool:
        """Whether any of them depends on the model at the task's start."""
        return TASK_START in self.wanted or bool(self._shares)

    def begin_task(self, backbone: Backbone, start: Mapping[str, torch.Tensor] | None = None) -> None:
        """Copy the student as the task's start.

        Args:
            backbone: the student.
            start: for a resume inside a task, the student's weights at its start: name -> tensor.
        """
        self._banks.clear()
        if not self.needs_start:
            return
        teacher = frozen_copy(backbone)
        weights = teacher.state_dict()
        for name, tensor in (start or {}).items():
            weights[name].copy_(tensor)
        self._prepare(teacher)
        for kind, share in self._shares.items():
            self._copies[kind] = _interpolated(self._copies[INITIAL], weights, share)
        if TASK_START in self.wanted:
            self._copies[TASK_START] = teacher

    def end_task(self) -> None:
        """Discard the models of the task's start."""
        self._banks.clear()
        self._copies = {kind: teacher for kind, teacher in self._copies.items() if kind == INITIAL}

    def of(self, kind: str, student: Backbone) -> Backbone:
        """Return a teacher on the student's device and in its precision."""
        teacher, like = self._copies[kind], next(student.parameters())
        parameter = next(teacher.parameters())
        if parameter.device != like.device or parameter.dtype != like.dtype:
            teacher.to(like.device, like.dtype)
        teacher.chunk = student.chunk
        return teacher

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprints of the initial teacher; empty without one."""
        if self._fingerprints is None:  # computed once, because every checkpoint stores them
            initial = self._copies.get(INITIAL)
            self._fingerprints = {} if initial is None else initial.fingerprints()
        return dict(self._fingerprints)

    def require(self, stored: Mapping[str, str]) -> None:
        """Check that the initial teacher has the fingerprints in a checkpoint.

        Raises:
            CheckpointError: if the backbone's weights have changed since.
        """
        now = self.fingerprints()
        if stored and now and dict(stored) != now:
            raise CheckpointError(
                f"the start model has changed since this run began (fingerprints {dict(stored)} -> {now}), and a "
                "penalty refers to it. Restore its weights, or start a new run."
            )

    def parameters(self) -> int:
        """Return the number of parameters of all copies."""
        return sum(p.numel() for teacher in self._copies.values() for p in teacher.parameters())

    def missing(self) -> list[str]:
        """Return the names of the copies that will be made at the start of a task."""
        return sorted(self.wanted - self._copies.keys())

    def image(self, kind: str, pixels: torch.Tensor, student: Backbone) -> torch.Tensor:
        """Return a teacher's unit embeddings `(N, D)` of pixels, without gradient."""
        with same_kernels_as_training():
            return self.of(kind, student).encode_image(pixels)

    def text(self, kind: str, tokens: torch.Tensor, student: Backbone) -> torch.Tensor:
        """Return a teacher's unit embeddings `(N, D)` of token ids, without gradient."""
        with same_kernels_as_training():
            return self.of(kind, student).encode_text(tokens)

    def bank(
        self,
        kind: str,
        phase: tuple[int, str],
        texts: torch.Tensor | Callable[[], torch.Tensor],
        student: Backbone,
        short: bool = False,
    ) -> torch.Tensor:
        """Return a teacher's embeddings `(C, D)` of texts, computed once per phase.

        Args:
            kind: the teacher.
            phase: index of the task and name of the phase.
            texts: token ids `(C, L)`, or a function that returns them.
            student: decides device and precision.
            short: whether to encode them without padding, as the student does.
        """
        key = (kind, *phase)
        if key not in self._banks:
            tokens = texts() if callable(texts) else texts
            clip = self.of(kind, student).clip
            with short_texts(clip, needed_tokens(clip, tokens.cpu()) if short else None):
                parts = [
                    self.text(kind, tokens[i : i + BLOCK], student) for i in range(0, len(tokens), BLOCK)
                ]
            self._banks[key] = torch.cat(parts)
        return self._banks[key]

    def scale(self, kind: str, student: Backbone) -> torch.Tensor:
        """Return a teacher's factor on cosines."""
        return self.of(kind, student).logit_scale.detach()


def frozen_copy(backbone: Backbone) -> Backbone:
    """Return a frozen copy in evaluation mode that shares no tensors.

    With shared tensors, the teacher would change with the student, and every distillation gradient would be zero.
    """
    # Share tokenizer and transform: they hold no weights, and copying them is slower than a small model's towers.
    shared: dict[int, Any] = {id(v): v for v in (backbone.tokenizer, backbone.preprocess)}
    return copy.deepcopy(backbone, shared).eval().requires_grad_(False)


@torch.no_grad()
def _interpolated(start: Backbone, target: Mapping[str, torch.Tensor], share: float) -> Backbone:
    """Return a copy of `start` with floating-point tensors `(1 - share) * start + share * target`."""
    copied = frozen_copy(start)
    for name, tensor in copied.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(target[name].to(tensor.device), share)
    return copied
