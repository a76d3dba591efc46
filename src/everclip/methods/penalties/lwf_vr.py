"""LwF with vocabulary replay: a teacher's answers about the task's pictures, over sentences of random tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field

from everclip.contracts import Progress, Stream
from everclip.data.sampling.order import generator
from everclip.errors import ConfigError
from everclip.methods.penalties.base import PenaltySettings, StepView
from everclip.methods.penalties.lwf import AnswerPenalty, LwfSettings
from everclip.models.backbone import Backbone

_IDS = ("sot_token_id", "eot_token_id", "vocab_size", "context_length")


@dataclass(frozen=True)
class _Ids:
    """What a tokenizer has: the ids that start and end a text, how many ids there are, and how many it reads."""

    start: int
    end: int
    count: int
    context: int


class LwfVrSettings(LwfSettings):
    """Settings.

    Attributes:
        sentences: how many random sentences.
        length: tokens of each, between those that start and end a text.
        published: whether the tokens that start and end a text may be drawn too, as the reference code does: an end
            inside cuts a sentence short.
    """

    sentences: int = Field(1000, ge=1)
    length: int = Field(10, ge=1)
    published: bool = False


class LwfVr(AnswerPenalty[LwfVrSettings]):
    """Vocabulary replay (Ding et al. 2022, "Don't stop learning: towards continual learning for the CLIP model").

    The distillation of `lwf`, whose texts are sentences of uniform random tokens instead of the task's: with them the
    whole of the text space is asked about, and no data are needed. They are drawn anew for each task.
    """

    Settings: ClassVar[type[PenaltySettings]] = LwfVrSettings

    _drawn: tuple[tuple[int, int, torch.device], torch.Tensor] | None = None
    """The sentences of the task that is being learned; they follow from seed and task, and are no state."""

    def prepare(self, backbone: Backbone, trainable: Sequence[str]) -> None:
        """Look at the vocabulary.

        Raises:
            ConfigError: if the tokenizer does not say which ids it has, or reads fewer tokens than a sentence takes.
        """
        known = backbone.tokenizer
        ids: list[Any] = [getattr(known, name, None) for name in _IDS]
        where = f"method.penalties.{self.name}"
        if None in ids:
            raise ConfigError(
                f"{where}: random sentences are made of token ids, and the tokenizer of {backbone.name} "
                f"({type(known).__name__}) does not say which of its ids are words; take the penalty lwf, or zscl with "
                "texts of your own."
            )
        self._ids = _Ids(*map(int, ids))
        if self.settings.length + 2 > self._ids.context:
            raise ConfigError(
                f"{where}.length: {self.settings.length} tokens, a start and an end exceed the {self._ids.context} "
                "that the text tower reads."
            )

    def sentences(self, seed: int, task: int) -> torch.Tensor:
        """Return random sentences `(sentences, L)`, int64: start, `length` tokens, end, zeros.

        Args:
            seed: the run's.
            task: index of the task.
        """
        chosen, ids = self.settings, self._ids
        barred = set() if chosen.published else {ids.start, ids.end}
        words = torch.arange(ids.count)
        words = words[~torch.isin(words, torch.tensor([*barred], dtype=torch.int64))]
        draw = generator("lwf-vr", seed, task).integers(len(words), size=(chosen.sentences, chosen.length))
        found = torch.zeros(chosen.sentences, ids.context, dtype=torch.int64)
        found[:, 0] = ids.start
        found[:, 1 : chosen.length + 1] = words[torch.from_numpy(draw)]
        found[:, chosen.length + 1] = ids.end
        return found

    def _columns(self, main: Stream) -> tuple[str, ...]:
        return ("image",)

    def _texts(self, step: StepView) -> tuple[torch.Tensor, torch.Tensor, bool]:
        at, student = step.progress, step.backbone
        device = step.image.device
        place = (at.task, f"{at.phase}/{self.name}")
        text = step.teachers.bank(self.teacher, place, lambda: self._tokens(at, device), student)
        own = student.encode_text(self._tokens(at, device)) if self.settings.text == "student" else text
        return own, text, True

    def _tokens(self, at: Progress, device: torch.device) -> torch.Tensor:
        key = (at.seed, at.task, device)
        if self._drawn is None or self._drawn[0] != key:
            self._drawn = (key, self.sentences(at.seed, at.task).to(device))
        return self._drawn[1]
