"""SIT: symmetric image-text tuning for streams that are seen once (Wang et al. 2024, arXiv 2405.15155).

A class text without an image in the batch is only pushed away from the images that are there. So the texts of a step
are exactly the classes of its batch: every text has at least one positive image, and the cost of a step does not grow
with the number of classes seen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch

from everclip.contracts import Batch, Past, Phase, Progress, Task
from everclip.methods.frozen import class_texts, embeddings
from everclip.methods.losses import class_cross_entropy, without_copies
from everclip.methods.settings import MethodSettings, SlotSettings
from everclip.methods.slots import SlotMethod


class SitSettings(SlotSettings):
    """The slots, and the rule of the loss.

    Attributes:
        classes: the texts of a step: those of the `batch` (symmetric), or all classes `seen` so far (asymmetric).
        outputs: what the cross entropy takes: `logits`, or `probabilities`, a second softmax as in the published code.
    """

    classes: Literal["batch", "seen"] = "batch"
    outputs: Literal["logits", "probabilities"] = "logits"


class Sit(SlotMethod):
    """Fine-tuning with the texts of the batch; `trainable` decides which modules train, in which towers."""

    Settings: ClassVar[type[MethodSettings]] = SitSettings
    settings: SitSettings
    reads_embeddings = True
    contrasts = True
    in_chunks = True

    def phases(self, task: Task, past: Past) -> list[Phase]:
        """Declare the slots' phase, whose steps know the classes that `classes` says."""
        (phase,) = super().phases(task, past)
        main = phase.streams["main"]
        if self.settings.classes != "batch" or main.classes is None:
            return [phase]
        return [replace(phase, streams={**phase.streams, "main": replace(main, space="batch")})]

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        """Return the named losses of a training step; their sum is minimised."""
        columns = batch["main"]
        if "label" not in columns or self.settings.outputs == "logits":
            return super().forward(batch, progress)
        image = embeddings(self.backbone, "image", columns, "image")
        text = class_texts(self.backbone, columns)
        loss = double_softmax(
            image, text, columns["label"], self.backbone.logit_scale, columns.get("class_same")
        )
        losses = {"labels": loss * columns.get("weight", 1)}
        return losses | self.penalise(batch, progress, image, text)


def double_softmax(
    image: torch.Tensor,
    bank: torch.Tensor,
    labels: torch.Tensor,
    scale: torch.Tensor,
    same: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the published loss of SIT with adapters and LoRA: the cross entropy of a softmax of a softmax.

    It is bounded, `log(e + C - 1) - 1` at least, and its gradient is small where the model is confident.

    Args:
        image: unit embeddings `(N, D)`.
        bank: unit class embeddings `(C, D)`.
        labels: `(N,)` positions in the bank.
        scale: factor on cosines, scalar.
        same: see `class_cross_entropy`.
    """
    labels, (bank,) = without_copies(labels, same, bank)
    probabilities = torch.softmax((scale * image @ bank.T).float(), dim=1)
    # The probabilities take the place of cosines.
    one = torch.eye(len(bank), device=bank.device)
    return class_cross_entropy(probabilities, one, labels, torch.ones((), device=bank.device))
