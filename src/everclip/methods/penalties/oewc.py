"""Online EWC: keep weights that earlier tasks depend on near their values before the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field

from everclip.contracts import Past, Progress, Task
from everclip.errors import ConfigError
from everclip.methods.penalties.base import Penalty, Reference, StepView, Tensors, WeightSettings
from everclip.models.backbone import Backbone


class OewcSettings(WeightSettings):
    """Settings.

    Attributes:
        weight: factor on the loss (published for CLL-CLIP: 1000).
        decay: factor on the Fisher information of earlier tasks after each task (gamma of the papers).
    """

    weight: float = Field(1000.0, ge=0, allow_inf_nan=False)
    decay: float = Field(1.0, ge=0, le=1)

    @property
    def reference(self) -> Reference:
        """The weights that it keeps: those before the task."""
        return "task-start"


class Oewc(Penalty[OewcSettings]):
    """Squared distances to the weights before the task, weighed by the Fisher information of all earlier tasks.

    `weight * sum_k F_k (theta_k - theta_k^start)^2`. After each task, `F <- decay * F + F_task`; the diagonal of
    `F_task` is the mean over the batches of one pass of the squared gradient of the task's own loss (Schwarz et al.,
    arXiv 1805.06370, section 2.4; squares of the batch's gradient, and no factor 1/2, as in the code of CLL-CLIP,
    arXiv 2401.17186). Weights that did not exist then are free.

    Attributes:
        tables: name of a parameter that holds some rows of a table -> their places `(n,)` and the table's number of
            rows. The information is kept for the whole table, because each task trains other rows.
    """

    Settings: ClassVar[type[WeightSettings]] = OewcSettings
    uses_weights: ClassVar[bool] = True
    reads_gradients: ClassVar[bool] = True

    def __init__(self, name: str, settings: OewcSettings) -> None:
        super().__init__(name, settings)
        self.tables: dict[str, tuple[torch.Tensor, int]] = {}
        self._fisher: dict[str, torch.Tensor] = {}
        self._of_task: dict[str, torch.Tensor] = {}

    def begin_task(self, backbone: Backbone, task: Task, past: Past) -> None:
        """Forget what an earlier task left unfinished."""
        self._of_task = {}

    def loss(self, step: StepView) -> torch.Tensor:
        """Return the weighted sum; 0 in the first task."""
        start, total = step.anchors[self.settings.reference], step.text.new_zeros(())
        for name, weight in step.weights.items():
            if name in self._fisher:
                known = self._known(name, weight)
                total = total + (known * (weight - start[name].to(weight)).square()).sum()
        return self.settings.weight * total

    def _known(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return the information on a parameter, in its shape."""
        known = self._fisher[name] = self._fisher[name].to(weight)
        if name in self.tables:
            places, count = self.tables[name]
            return _grown(known, (count, *known.shape[1:]), name)[places.to(known.device)]
        return _grown(known, weight.shape, name)

    def measure(self, gradients: Tensors, progress: Progress) -> None:
        """Add the squared gradients of one batch of the pass after training."""
        for name, gradient in gradients.items():
            part = gradient.detach().square() / progress.steps
            self._of_task[name] = part if name not in self._of_task else self._of_task[name] + part

    def end_task(self, backbone: Backbone, task: Task, past: Past) -> None:
        """Add the task's information to that of the earlier ones."""
        found, self._of_task = self._of_task, {}
        for name, values in found.items():
            if name in self.tables:
                places, count = self.tables[name]
                whole = values.new_zeros(count, *values.shape[1:])
                found[name] = whole.index_copy(0, places.to(values.device), values)
        for name in [*self._fisher, *(n for n in found if n not in self._fisher)]:
            before = self.settings.decay * self._fisher[name] if name in self._fisher else None
            if name in found:
                new = found[name]
                self._fisher[name] = new if before is None else _grown(before.to(new), new.shape, name) + new
            elif before is not None:
                self._fisher[name] = before

    def new_values(self, trained: Mapping[str, torch.Tensor]) -> int:
        """Return how many values the pass after training adds."""
        return 0 if self._of_task else sum(tensor.numel() for tensor in trained.values())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the information on earlier tasks, and the part of the task's own that is summed up."""
        parts = {"fisher": self._fisher, "task": self._of_task}
        return {f"{part}.{name}": tensor for part, held in parts.items() for name, tensor in held.items()}

    def load(self, tensors: Tensors) -> None:
        """Restore what `tensors` returned."""
        self._fisher, self._of_task = {}, {}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            (self._fisher if part == "fisher" else self._of_task)[name] = tensor.clone()


def _grown(known: torch.Tensor, shape: tuple[int, ...], name: str) -> torch.Tensor:
    """Return information in the shape of a parameter that gained rows; 0 for them.

    Raises:
        ConfigError: if it changed in another way.
    """
    if known.shape == shape:
        return known
    if known.ndim == len(shape) and known.shape[1:] == shape[1:] and len(known) < shape[0]:
        return torch.cat([known, known.new_zeros(shape[0] - len(known), *known.shape[1:])])
    raise ConfigError(
        f"method.penalties.oewc: {name} has the shape {tuple(shape)} now and had {tuple(known.shape)} when its Fisher "
        "information was measured; the penalty can follow added rows only. Leave it out."
    )
