"""Energies: how well the names of a task's classes fit an image, by the frozen CLIP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from everclip.contracts import Past, Phase, Progress, Task
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.evaluation.classification import ensemble_banks
from everclip.methods.selectors.base import Selector
from everclip.methods.selectors.settings import EnergySettings
from everclip.models.backbone import Backbone

BLOCK = 256
"""Number of texts that are encoded together."""


class Energy(Selector[EnergySettings]):
    """Free energy of each task's classes (Liu et al. 2020, arXiv 2010.03759, equation 4), on the frozen CLIP's cosines.

    The distance of an image from a task is `-log mean_c exp(s cos(x, c)) / s` with the CLIP's own scale s: between the
    best and the mean cosine. Nothing trains; texts are encoded once per task. With a vocabulary or reference texts,
    their energy is the distance of the zero-shot route, and the nearest route is chosen.
    """

    scale: torch.Tensor

    def __init__(self, settings: EnergySettings, *arguments: Any, **options: Any) -> None:
        super().__init__(settings, *arguments, **options)
        self.register_buffer("scale", torch.ones(()))
        self._sizes: dict[str, tuple[int, int]] = {}

    # -- learning ---------------------------------------------------------------------------------------------

    def knows_reference(self, past: Past) -> bool:
        """Return whether there are texts for the zero-shot route."""
        return bool(self._vocabulary(past))

    def _vocabulary(self, past: Past) -> Sequence[str]:
        if self.settings.vocabulary is not None:
            return self.settings.vocabulary
        return past.reference.texts if past.reference is not None else ()

    def grow_task(self, backbone: Backbone, task: Task, past: Past) -> None:
        """Encode the names of the task's classes; in the first task also the vocabulary.

        Raises:
            ConfigError: if the task names no classes.
        """
        if not task.classes:
            raise ConfigError(
                f"method.selector: `energy` compares images with the names of a task's classes, but task {task.name!r} "
                "names none. Choose `autoencoder` or `gaussian`."
            )
        if self.reference and len(self.tasks) == 1:
            self._keep(0, encode(backbone, self._vocabulary(past)))
            # The route has no images to calibrate on; it is chosen whenever it is nearest.
            self.limits[0, 2] = 1
        self.scale.copy_(backbone.logit_scale.detach())
        prompts = [entry.prompts() for entry in task.classes]
        encoded = encode(backbone, [text for texts in prompts for text in texts])
        self._keep(len(self.tasks), ensemble_banks(torch.split(encoded, [len(texts) for texts in prompts])))

    def _keep(self, route: int, bank: torch.Tensor) -> None:
        self.register_buffer(f"bank{route}", bank.to(self.scale))
        self._sizes[str(route)] = (bank.shape[0], bank.shape[1])

    def reference_phases(self, past: Past) -> list[Phase]:
        """Return no phases: the vocabulary consists of texts."""
        return []

    def fitting(self, task: Task | None, train: Table, position: int, past: Past) -> list[Phase]:
        """Return no phases: there is nothing to fit."""
        return []

    def fit(
        self, features: torch.Tensor, columns: Mapping[str, Any], position: int, progress: Progress
    ) -> torch.Tensor | None:
        """Return no loss: there is nothing to fit."""
        return None

    # -- deciding ---------------------------------------------------------------------------------------------

    def measure_one(self, features: torch.Tensor, position: int) -> torch.Tensor:
        """Return the energy `(N,)` of one task, in units of cosines."""
        bank: torch.Tensor = getattr(self, f"bank{position + 1}")
        energy = torch.logsumexp(self.scale * (features @ bank.T), dim=1)
        if self.settings.count == "mean":
            energy = energy - math.log(len(bank))
        return -energy / self.scale

    # -- state ------------------------------------------------------------------------------------------------

    def shape(self) -> dict[str, Any]:
        """Return the sizes of the banks."""
        return {route: list(size) for route, size in self._sizes.items()}

    def reshape(self, shape: Mapping[str, Any]) -> None:
        """Create banks of these sizes."""
        for route, size in shape.items():
            self._keep(int(route), torch.zeros(*size))

    def growth(self) -> int:
        """See `Selector.growth`."""
        classes, width = self._sizes[str(len(self.tasks))]
        return classes * width


@torch.no_grad()
def encode(backbone: Backbone, texts: Sequence[str]) -> torch.Tensor:
    """Return unit embeddings `(M, D)` of texts, in blocks."""
    device = next(backbone.parameters()).device
    blocks = [list(texts[i : i + BLOCK]) for i in range(0, len(texts), BLOCK)]
    return torch.cat([backbone.encode_text(backbone.tokenise(block).to(device)) for block in blocks])
