"""Teachers: frozen copies of the backbone that penalties compare the student with, shared between penalties."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from everclip.errors import CheckpointError
from everclip.models.backbone import Backbone
from everclip.models.exact import exactly
from everclip.models.modules.short_texts import needed_tokens, short_texts

INITIAL, TASK_START = "initial", "task-start"
_BETWEEN = "between:"
BLOCK = 256
"""Texts of a bank that are encoded together."""


def between(share: float) -> str:
    """Name the teacher that lies at `share` of the way from the initial model to that of the task's start."""
    return INITIAL if share == 0 else f"{_BETWEEN}{share}"


class Teachers:
    """The backbone as it was at the start of the run, at the start of the task, or between the two.

    The initial one is copied when the method is built, so a resumed run has it without storing it; its fingerprints
    are stored and compared. The others are rebuilt from the weights that the method keeps of the task's start.

    Args:
        backbone: the student, still with the weights that the run begins from.
        wanted: which of `initial`, `task-start` and `between(share)` are needed.
        settle: fixes what a copy of the task's start answers through, where a method gave it something new already.
    """

    def __init__(
        self,
        backbone: Backbone,
        wanted: Collection[str],
        settle: Callable[[Backbone], None] = lambda teacher: None,
    ) -> None:
        self.wanted, self._settle = frozenset(wanted), settle
        self._shares = {k: float(k.removeprefix(_BETWEEN)) for k in self.wanted if k.startswith(_BETWEEN)}
        self._held = {INITIAL: frozen_copy(backbone)} if INITIAL in self.wanted or self._shares else {}
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
            start: inside a task, what the student's weights were when it began: name -> tensor.
        """
        self._banks.clear()
        if not self.needs_start:
            return
        teacher = frozen_copy(backbone)
        place = teacher.state_dict()
        for name, tensor in (start or {}).items():
            place[name].copy_(tensor)
        self._settle(teacher)
        for kind, share in self._shares.items():
            self._held[kind] = _moved(self._held[INITIAL], place, share)
        if TASK_START in self.wanted:
            self._held[TASK_START] = teacher

    def end_task(self) -> None:
        """Forget the task's start."""
        self._banks.clear()
        self._held = {kind: teacher for kind, teacher in self._held.items() if kind == INITIAL}

    def of(self, kind: str, student: Backbone) -> Backbone:
        """Return a teacher on the student's device and in its precision."""
        return self._beside(kind, student)

    def fingerprints(self) -> dict[str, str]:
        """Return what the initial teacher is called by, empty if there is none."""
        if self._fingerprints is None:  # hashed once: every checkpoint asks
            held = self._held.get(INITIAL)
            self._fingerprints = {} if held is None else held.fingerprints()
        return dict(self._fingerprints)

    def require(self, stored: Mapping[str, str]) -> None:
        """Check that the initial teacher is the one a checkpoint was made with.

        Raises:
            CheckpointError: if the backbone's weights have changed since.
        """
        found = self.fingerprints()
        if stored and found and dict(stored) != found:
            raise CheckpointError(
                f"the start model has changed since this run began (fingerprints {dict(stored)} -> {found}), and a "
                "penalty refers to it. Put the weights back, or start a new run."
            )

    def parameters(self) -> int:
        """Return how many parameters the copies hold."""
        return sum(p.numel() for teacher in self._held.values() for p in teacher.parameters())

    def missing(self) -> list[str]:
        """Return which copies are made when a task begins and are not there now."""
        return sorted(self.wanted - self._held.keys())

    def image(self, kind: str, pixels: torch.Tensor, student: Backbone) -> torch.Tensor:
        """Return a teacher's unit embeddings `(N, D)` of pixels, without gradient."""
        with exactly():
            return self._beside(kind, student).encode_image(pixels)

    def text(self, kind: str, tokens: torch.Tensor, student: Backbone) -> torch.Tensor:
        """Return a teacher's unit embeddings `(N, D)` of token ids, without gradient."""
        with exactly():
            return self._beside(kind, student).encode_text(tokens)

    def bank(
        self,
        kind: str,
        place: tuple[int, str],
        texts: torch.Tensor | Callable[[], torch.Tensor],
        student: Backbone,
        short: bool = False,
    ) -> torch.Tensor:
        """Return a teacher's embeddings `(C, D)` of token ids, or of what a function makes; once per `place`.

        Args:
            kind: the teacher.
            place: task and phase.
            texts: token ids `(C, L)`.
            student: decides device and precision.
            short: whether the student reads them without their padding, and so the teacher.
        """
        key = (kind, *place)
        if key not in self._banks:
            tokens = texts() if callable(texts) else texts
            clip = self._beside(kind, student).clip
            with short_texts(clip, needed_tokens(clip, tokens.cpu()) if short else None):
                parts = [
                    self.text(kind, tokens[i : i + BLOCK], student) for i in range(0, len(tokens), BLOCK)
                ]
            self._banks[key] = torch.cat(parts)
        return self._banks[key]

    def scale(self, kind: str, student: Backbone) -> torch.Tensor:
        """Return a teacher's factor on cosines."""
        return self._beside(kind, student).logit_scale.detach()

    def _beside(self, kind: str, student: Backbone) -> Backbone:
        """Return the teacher on the student's device and in its precision."""
        teacher, like = self._held[kind], next(student.parameters())
        own = next(teacher.parameters())
        if own.device != like.device or own.dtype != like.dtype:
            teacher.to(like.device, like.dtype)
        return teacher


def frozen_copy(backbone: Backbone) -> Backbone:
    """Return a copy with tensors of its own, in evaluation mode, that nothing trains.

    Sharing tensors would let the teacher move with the student, and every distillation gradient be zero.
    """
    # The tokenizer and the transform hold no weights; copying them costs more than the towers of a small model.
    shared: dict[int, Any] = {id(v): v for v in (backbone.tokenizer, backbone.preprocess)}
    return copy.deepcopy(backbone, shared).eval().requires_grad_(False)


@torch.no_grad()
def _moved(start: Backbone, target: Mapping[str, torch.Tensor], share: float) -> Backbone:
    """Return a copy of `start` whose floating tensors lie at `share` of the way to `target`."""
    copied = frozen_copy(start)
    for name, tensor in copied.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(target[name].to(tensor.device), share)
    return copied
