"""Autoencoders, one per task: an image that a task's network reconstructs badly does not belong to the task (DDAS)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from everclip.contracts import Past, Phase, Progress, StepDecay, Task
from everclip.data.table import Table
from everclip.distributed import gather_rows
from everclip.methods.selectors.base import REFERENCE, Selector
from everclip.methods.selectors.settings import AutoencoderSettings
from everclip.models.backbone import Backbone
from everclip.models.modules.base import generator

SCALE = "selector-scale"


class Network(nn.Module):
    """`sigmoid(W_d relu(W_e u + b_e) + b_d)` (arXiv 2403.11549, section 3.3).

    Args:
        features: size of its input, F.
        width: size of the code.
        seed: decides initial values.
    """

    def __init__(self, features: int, width: int, *seed: object) -> None:
        super().__init__()
        self.encode = nn.Linear(features, width)
        self.decode = nn.Linear(width, features)
        draw = generator("autoencoder", *seed)
        with torch.no_grad():
            for layer in (self.encode, self.decode):
                # torch's initialisation of a linear layer.
                bound = 1 / math.sqrt(layer.in_features)
                for parameter in (layer.weight, layer.bias):
                    parameter.uniform_(-bound, bound, generator=draw)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the reconstruction `(N, F)`."""
        output: torch.Tensor = torch.sigmoid(self.decode(torch.relu(self.encode(inputs))))
        return output

    def errors(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error of each row `(N,)`."""
        output: torch.Tensor = self(inputs)
        return (output - inputs).square().mean(dim=1)


class Autoencoder(Selector[AutoencoderSettings]):
    """Discriminative auto-selector (DDAS; Yu et al. 2024, arXiv 2403.11549, section 3.3).

    The distance of an image from a task is `mean_j (u_j - u'_j)^2`, with `u` the sigmoid of its features and `u'` their
    reconstruction by the task's network. With reference images, one more network represents images of no task (route
    0).
    """

    mean: torch.Tensor
    std: torch.Tensor
    count: torch.Tensor
    total: torch.Tensor

    def __init__(self, settings: AutoencoderSettings, *arguments: Any, **options: Any) -> None:
        super().__init__(settings, *arguments, **options)
        self.networks = nn.ModuleDict()
        self.register_buffer("mean", torch.zeros(0))
        self.register_buffer("std", torch.ones(0))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("total", torch.zeros(2, 0, dtype=torch.float64))

    # -- learning ---------------------------------------------------------------------------------------------

    def grow_task(self, backbone: Backbone, task: Task, past: Past) -> None:
        """Add the task's network, and before the first one the network of the reference images."""
        size = self.extractor.width(backbone)
        device = self.limits.device
        if self.settings.standardise and not len(self.mean):
            self.mean, self.std = self.mean.new_zeros(size), self.std.new_ones(size)
            self.total = self.total.new_zeros(2, size)
        for position in ([-1] if self.reference and len(self.tasks) == 1 else []) + [len(self.tasks) - 1]:
            self._add(position, size, past.seed).to(device)

    def _add(self, position: int, size: int, seed: int) -> Network:
        network = Network(size, self.settings.width or max(1, min(100, size // 4)), seed, position)
        self.networks[str(position + 1)] = network.requires_grad_(False)
        return network

    def fitting(self, task: Task | None, train: Table, position: int, past: Past) -> list[Phase]:
        """Declare the network's training, as published; before the first network also a pass for the feature scale."""
        kind = REFERENCE if task is None else ""
        settings = self.settings
        first = position == -1 or (position == 0 and not self.knows_reference(past))
        scale = [self.once(SCALE + kind, train, past)] if first and settings.standardise else []
        size = past.training.batch_size if past.training else 64
        names = [
            f"networks.{position + 1}.{layer}.{of}"
            for layer in ("encode", "decode")
            for of in ("weight", "bias")
        ]
        phase = self.gradient(
            f"selector{kind}",
            train,
            past,
            names,
            optimiser="adam",
            weight_decay=settings.weight_decay,
            steps=settings.reference_steps if task is None else settings.steps,
            lr=settings.lr,
            schedule=StepDecay(settings.decay_epochs * math.ceil(len(train) / size), settings.decay),
        )
        return [*scale, phase]

    def fit(
        self, features: torch.Tensor, columns: Mapping[str, Any], position: int, progress: Progress
    ) -> torch.Tensor | None:
        """Return the network's error; in the pass before it, gather mean and deviation of the features."""
        if not progress.phase.startswith(SCALE):
            return self._network(position).errors(self.prepare(features)).mean()
        values = gather_rows(features).to(self.total)
        self.count += len(values)
        self.total += torch.stack([values.sum(dim=0), values.square().sum(dim=0)])
        return None

    def end_phase(self, phase: Phase) -> None:
        """Compute the scale or the threshold from a finished pass."""
        super().end_phase(phase)
        if phase.name.startswith(SCALE):
            mean, square = self.total / self.count
            self.mean.copy_(mean)
            # Features that are constant in these images must not dominate the distance.
            deviation = (square - mean.square()).clamp_min(0).sqrt()
            self.std.copy_(torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, 1.0))
            self.total = self.total[:, :0]

    # -- deciding ---------------------------------------------------------------------------------------------

    def prepare(self, features: torch.Tensor) -> torch.Tensor:
        """Return the sigmoid of features `(N, F)`, standardised if the settings say so."""
        return torch.sigmoid((features - self.mean) / self.std if self.settings.standardise else features)

    def measure_one(self, features: torch.Tensor, position: int) -> torch.Tensor:
        """Return the error `(N,)` of one network."""
        return self._network(position).errors(features)

    def _network(self, position: int) -> Network:
        network = self.networks[str(position + 1)]
        assert isinstance(network, Network)
        return network

    # -- state ------------------------------------------------------------------------------------------------

    def shape(self) -> dict[str, Any]:
        """Return the networks with the sizes of their features."""
        sizes = {name: self._network(int(name) - 1).encode.in_features for name in self.networks}
        return {"networks": sizes, "scale": len(self.mean), "gathering": self.total.shape[1]}

    def reshape(self, shape: Mapping[str, Any]) -> None:
        """Rebuild the networks."""
        self.networks.clear()
        for name, size in shape["networks"].items():
            self._add(int(name) - 1, int(size), 0)
        self.mean, self.std = (old.new_ones(int(shape["scale"])) for old in (self.mean, self.std))
        self.total = self.total.new_zeros(2, int(shape["gathering"]))

    def growth(self) -> int:
        """See `Selector.growth`."""
        last = self.networks[str(len(self.tasks))].state_dict()
        return sum(tensor.numel() for tensor in last.values())
