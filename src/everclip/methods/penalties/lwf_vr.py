"""LwF with vocabulary replay: distil a teacher's answers about the task's images over sentences of random tokens."""

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
    """The ids of a tokenizer: start and end of a text, the number of ids, and the length of its context."""

    start: int
    end: int
    count: int
    context: int


class LwfVrSettings(LwfSettings):
    """Settings.

    Attributes:
        sentences: the number of random sentences.
        length: tokens per sentence, between start and end.
        published: whether start and end tokens may be drawn as well, as in the reference code, where an end token
            inside a sentence cuts it short.
    """

    sentences: int = Field(1000, ge=1)
    length: int = Field(10, ge=1)
    published: bool = False


class LwfVr(AnswerPenalty[LwfVrSettings]):
    """Vocabulary replay (Ding et al. 2022, "Don't stop learning: towards continual learning for the CLIP model").

    The distillation of `lwf`, over sentences of uniform random tokens instead of the task's texts. They cover the whole
    text space and need no data. Each task draws new ones.
    """

    Settings: ClassVar[type[PenaltySettings]] = LwfVrSettings

    _drawn: tuple[tuple[int, int, torch.device], torch.Tensor] | None = None
    """The sentences of the current task; they depend only on seed and task, so they are not part of the state."""

    def prepare(self, backbone: Backbone, trainable: Sequence[str]) -> None:
        """Read the ids of the tokenizer.

        Raises:
            ConfigError: if the tokenizer does not name its ids, or its context is shorter than a sentence.
        """
        tokenizer = backbone.tokenizer
        ids: list[Any] = [getattr(tokenizer, name, None) for name in _IDS]
        where = f"method.penalties.{self.name}"
        if None in ids:
            raise ConfigError(
                f"{where}: random sentences consist of token ids, but the tokenizer of {backbone.name} "
                f"({type(tokenizer).__name__}) does not name its start, end and word ids; use the penalty lwf, or zscl "
                "with your own texts."
            )
        self._ids = _Ids(*map(int, ids))
        if self.settings.length + 2 > self._ids.context:
            raise ConfigError(
                f"{where}.length: {self.settings.length} tokens with start and end exceed the {self._ids.context} "
                "tokens that the text tower reads."
            )

    def sentences(self, seed: int, task: int) -> torch.Tensor:
        """Return random sentences `(sentences, L)`, int64: start, `length` tokens, end, zeros.

        Args:
            seed: the run's.
            task: index of the task.
        """
        settings, ids = self.settings, self._ids
        excluded = set() if settings.published else {ids.start, ids.end}
        words = torch.arange(ids.count)
        words = words[~torch.isin(words, torch.tensor([*excluded], dtype=torch.int64))]
        size = (settings.sentences, settings.length)
        draw = generator("lwf-vr", seed, task).integers(len(words), size=size)
        sentences = torch.zeros(settings.sentences, ids.context, dtype=torch.int64)
        sentences[:, 0] = ids.start
        sentences[:, 1 : settings.length + 1] = words[torch.from_numpy(draw)]
        sentences[:, settings.length + 1] = ids.end
        return sentences

    def _columns(self, main: Stream) -> tuple[str, ...]:
        return ("image",)

    def _texts(self, step: StepView) -> tuple[torch.Tensor, torch.Tensor, bool]:
        progress, student = step.progress, step.backbone
        device = step.image.device
        phase = (progress.task, f"{progress.phase}/{self.name}")
        text = step.teachers.bank(self.teacher, phase, lambda: self._tokens(progress, device), student)
        if self.settings.text == "teacher":
            return text, text, True
        return student.encode_text(self._tokens(progress, device)), text, True

    def _tokens(self, progress: Progress, device: torch.device) -> torch.Tensor:
        key = (progress.seed, progress.task, device)
        if self._drawn is None or self._drawn[0] != key:
            self._drawn = (key, self.sentences(progress.seed, progress.task).to(device))
        return self._drawn[1]
