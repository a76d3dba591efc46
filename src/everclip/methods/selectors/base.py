"""The base class of selectors: a selector decides the route of each image.

A method owns a selector as a submodule and calls it like this; everything else is here:

    self.selector = build(settings.selector, backbone, first_block, prefix="selector")     # in __init__
    self.selector.begin_task(backbone, task, past)                                          # in on_begin_task
    [*super().phases(task, past), *self.selector.phases(task, past)]                        # in phases
    if self.selector.owns(batch): return self.selector(self.backbone, batch, progress)      # first in forward
    self.selector.end_phase(phase)                                                          # in on_end_phase
    self.selector.structure() / self.selector.grow(structure)                               # in structure, grow
    gathers = True                    # class attribute: its passes join the samples of all processes

To predict, it calls `route = self.selector.decide(self.selector.features(self.backbone, pixels))`, or, if it already
has the tokens `(N, L, W)` that enter block `self.selector.early`,
`self.selector.decide(self.selector.features_of(tokens))`. Whenever the method passes its backbone, its grown modules
must be on the zero-shot route.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from everclip.contracts import Batch, Order, ParamGroup, Past, Phase, Progress, Source, Stream, Task
from everclip.data.sampling.splits import carve
from everclip.data.table import Table
from everclip.distributed import gather_rows
from everclip.methods.selectors.features import Extractor
from everclip.methods.selectors.settings import SelectorSettings
from everclip.models.backbone import Backbone

STREAM = "selector"
"""The name of the stream of a selector's phases."""

ZERO_SHOT = "zero-shot"
CALIBRATE = "selector-calibrate"
REFERENCE = "-reference"
"""The suffix of the names of phases over reference images."""

SALT = "everclip-selector-v1"

S = TypeVar("S", bound=SelectorSettings)


class Selector(nn.Module, Generic[S]):
    """Decide the route of each image from features `(N, F)`: 0 is zero-shot, 1 + t is the t-th learned task.

    Subclasses define `fitting` (phases in which it learns), `fit` (a step of them) and `measure_one` (distances), and
    grow one part per task. A part's `position` is the position of its task in the order of learning; -1 is the part of
    the reference images.

    Args:
        settings: an instance of its settings.
        extractor: pixels to features.
        prefix: the name of this module in the method, used in the names of parameters.

    Attributes:
        tasks: index and name of each task, in the order of learning, including the current one.
        notes: notes for results.
    """

    labels: ClassVar[bool] = False
    """Whether it learns from classes if a task has them."""

    limits: torch.Tensor
    own: torch.Tensor

    def __init__(self, settings: S, extractor: Extractor, prefix: str = "selector") -> None:
        super().__init__()
        self.settings, self.extractor, self.prefix = settings, extractor, prefix
        self.tasks: list[tuple[int, str]] = []
        self.notes: dict[str, Any] = {"kind": settings.kind, "features": settings.features, **extractor.notes}
        self.reference = False
        # Per route: the median of its own held-out distances, the threshold, and 1 once both are known.
        self.register_buffer("limits", torch.zeros(1, 3, dtype=torch.float64))
        self.register_buffer("own", torch.zeros(0))

    # -- learning ---------------------------------------------------------------------------------------------

    def begin_task(self, backbone: Backbone, task: Task, past: Past) -> None:
        """Grow the part of the task."""
        if task.index not in [index for index, _ in self.tasks]:
            if not self.tasks:
                self.reference = self.knows_reference(past)
            self.tasks.append((task.index, task.name))
            self._resize()
            self.grow_task(backbone, task, past)

    def knows_reference(self, past: Past) -> bool:
        """Return whether there are reference images, which represent images of no task."""
        return past.reference is not None and past.reference.images is not None

    def grow_task(self, backbone: Backbone, task: Task, past: Past) -> None:
        """Add the part of the last task in `tasks`."""
        raise NotImplementedError

    def phases(self, task: Task, past: Past) -> list[Phase]:
        """Declare the phases of a task: fitting, then one pass over held-out images for the threshold."""
        position = self.position(task)
        train, held = self.parts(task)
        before = self.reference_phases(past) if position == 0 and self.knows_reference(past) else []
        return [*before, *self.fitting(task, train, position, past), self.calibration(CALIBRATE, held, past)]

    def reference_phases(self, past: Past) -> list[Phase]:
        """Declare the phases of the reference images, before the first task, as published."""
        assert past.reference is not None
        assert past.reference.images is not None
        images = past.reference.images
        rest, held = carve(images, self.settings.held, SALT)
        rest, held = (rest, held) if len(rest) and len(held) else (images, images)
        calibration = self.calibration(f"{CALIBRATE}{REFERENCE}", held, past)
        return [*self.fitting(None, rest, -1, past), calibration]

    def fitting(self, task: Task | None, train: Table, position: int, past: Past) -> list[Phase]:
        """Declare the phases that fit the part of a task to `train`; `None` and -1: that of the reference images."""
        raise NotImplementedError

    def owns(self, batch: Batch) -> bool:
        """Return whether a batch belongs to a phase of the selector."""
        return STREAM in batch

    def forward(self, backbone: Backbone, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        """Return the named losses of a step in one of its phases."""
        columns = batch[STREAM]
        features = self.features(backbone, columns["image"])
        position = -1 if progress.phase.endswith(REFERENCE) else len(self.tasks) - 1
        if progress.phase.startswith(CALIBRATE):
            # In the precision of decisions, not in that of training.
            with torch.autocast(features.device.type, enabled=False):
                distances = self.measure_one(self.prepare(features), position)
            self.own = torch.cat([self.own, gather_rows(distances.float()).to(self.own)])
        else:
            loss = self.fit(features, columns, position, progress)
            if loss is not None:
                return {"selector": loss}
        return {"selector": features.new_zeros(())}

    def fit(
        self, features: torch.Tensor, columns: Mapping[str, Any], position: int, progress: Progress
    ) -> torch.Tensor | None:
        """Return the loss of one step of `fitting`; `None` if it only gathered sums."""
        raise NotImplementedError

    def end_phase(self, phase: Phase) -> None:
        """Compute the threshold from the distances of a finished pass."""
        if phase.name.startswith(CALIBRATE):
            route = 0 if phase.name.endswith(REFERENCE) else len(self.tasks)
            self.limits[route] = torch.cat([quantiles(self.own, self.settings.quantile), torch.ones(1)])
            self.own = self.own[:0]
            self.notes["limits"] = {
                # Rounded, because the last bits depend on the number of processes.
                name: {"middle": float(f"{middle:.4g}"), "threshold": float(f"{limit:.4g}")}
                for name, (middle, limit, known) in zip(self.routes(), self.limits.tolist(), strict=True)
                if known
            }

    # -- deciding ---------------------------------------------------------------------------------------------

    def routes(self) -> tuple[str, ...]:
        """Return the names of the routes."""
        return route_names([name for _, name in self.tasks])

    @property
    def ready(self) -> torch.Tensor:
        """Whether a route can be chosen `(R,)`, bool: its part is fitted and calibrated."""
        return self.limits[:, 2] > 0

    @property
    def early(self) -> int | None:
        """The block whose input it reads (for `features_of`); `None` if it reads something else."""
        return self.extractor.block

    def features(self, backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
        """Return features `(N, F)` of pixels `(N, 3, S, S)`, float32, without gradient."""
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            # In the last batch of a pass, a process may have no image; a transformer needs at least one.
            some = pixels if len(pixels) else pixels.new_zeros(1, *pixels.shape[1:])
            features: torch.Tensor = self.extractor(backbone, some.float())
            return features.float()[: len(pixels)]

    def features_of(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return features `(N, F)` of the tokens `(N, L, W)` that enter the block `early`."""
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            return self.extractor.pool(tokens.float())

    def prepare(self, features: torch.Tensor) -> torch.Tensor:
        """Return features in the form that `measure_one` takes; unchanged by default."""
        return features

    def measure_one(self, features: torch.Tensor, position: int) -> torch.Tensor:
        """Return the distance `(N,)` of prepared features from one task, or from the reference images (-1)."""
        raise NotImplementedError

    @torch.no_grad()
    def distances(self, features: torch.Tensor) -> torch.Tensor:
        """Return distances `(N, R)`, one column per route; infinite for a route that cannot be chosen."""
        far = features.new_full((len(features),), torch.inf)
        if not self.tasks:
            return far[:, None]
        features = self.prepare(features)
        first = self.measure_one(features, -1) if self.reference else far
        columns = [first, *(self.measure_one(features, position) for position in range(len(self.tasks)))]
        return torch.stack(columns, dim=1).masked_fill(~self.ready, torch.inf)

    @torch.no_grad()
    def decide(self, features: torch.Tensor) -> torch.Tensor:
        """Return the route `(N,)`, int64, of images with features `(N, F)`."""
        distances = self.distances(features)
        if self.settings.decision == "batch":
            parts = torch.split(distances, self.settings.decision_batch or max(1, len(distances)))
            distances = torch.cat([part.mean(dim=0, keepdim=True).expand_as(part) for part in parts])
        return choose_route(distances, self.limits, self.settings)

    @property
    def batch_dependent(self) -> str | None:
        """Why predictions depend on the rest of the batch; `None` if they do not."""
        if self.settings.decision == "sample":
            return None
        size = self.settings.decision_batch
        together = (
            "the images of an evaluation batch" if size is None else f"{size} images in the order of a set"
        )
        return (
            f"method.selector.decision=batch: {together} take one route, as in the publication of DDAS; a single image "
            "may take another route, so these scores are not those of single images"
        )

    # -- state ------------------------------------------------------------------------------------------------

    def structure(self) -> dict[str, Any]:
        """Return the grown shape as JSON."""
        return {
            "tasks": [list(task) for task in self.tasks],
            "reference": self.reference,
            "held": len(self.own),
            "parts": self.shape(),
            "notes": self.notes,
        }

    def grow(self, structure: Mapping[str, Any]) -> None:
        """Rebuild the shape that `structure` described, before tensors are loaded."""
        self.tasks = [(int(index), str(name)) for index, name in structure["tasks"]]
        self.reference, self.notes = bool(structure["reference"]), dict(structure["notes"])
        self._resize()
        self.own = self.own.new_zeros(int(structure["held"]))
        self.reshape(structure["parts"])

    def shape(self) -> dict[str, Any]:
        """Return the shape of the parts as JSON."""
        raise NotImplementedError

    def reshape(self, shape: Mapping[str, Any]) -> None:
        """Rebuild the parts that `shape` described."""
        raise NotImplementedError

    def stored(self) -> list[torch.Tensor]:
        """Return its tensors, except parameters and those of the extractor."""
        extractor = {f"extractor.{name}" for name in self.extractor.state_dict()}
        stored = self.state_dict().keys() - extractor - {name for name, _ in self.named_parameters()}
        return [tensor for name, tensor in self.state_dict().items() if name in stored]

    def growth(self) -> int:
        """Return the number of values that the last task added, including buffers."""
        raise NotImplementedError

    # -- shared -----------------------------------------------------------------------------------------------

    def position(self, task: Task) -> int:
        """Return the position of a task in the order of learning; of a new task, the next position."""
        indices = [index for index, _ in self.tasks]
        return indices.index(task.index) if task.index in indices else len(indices)

    def parts(self, task: Task) -> tuple[Table, Table]:
        """Return a task's images for fitting, and those held out for its threshold."""
        if task.val is not None and len(task.val):
            return task.train, task.val
        rest, held = carve(task.train, self.settings.held, SALT)
        return (rest, held) if len(rest) and len(held) else (task.train, task.train)

    def once(self, name: str, table: Table, past: Past, task: Task | None = None) -> Phase:
        """Return a phase of one pass over images without augmentation and without gradient.

        Args:
            name: of the phase.
            table: the images.
            past: holds the batch size.
            task: the task whose classes are the labels of the images; `None` without labels.
        """
        return Phase(name, {STREAM: self._stream(table, past, task, view=False)}, optimiser=None)

    def calibration(self, name: str, table: Table, past: Past) -> Phase:
        """Return such a phase over held-out images, which only decide a threshold."""
        return replace(self.once(name, table, past), chooses=True)

    def gradient(
        self,
        name: str,
        table: Table,
        past: Past,
        parameters: list[str],
        weight_decay: float,
        **options: Any,
    ) -> Phase:
        """Return a phase that trains parameters of this module, given by their names in it."""
        names = tuple(f"{self.prefix}.{parameter}" for parameter in parameters)
        group = ParamGroup(names, weight_decay=weight_decay)
        return Phase(
            name, {STREAM: self._stream(table, past, None, view=True)}, (group,), guarded=False, **options
        )

    def _stream(self, table: Table, past: Past, task: Task | None, view: bool) -> Stream:
        size = past.training.batch_size if past.training else 64
        classes = task.classes if task is not None and self.labels else None
        columns = ("image", "label") if classes else ("image",)
        order: Order = "shuffle" if view else "once"
        return Stream((Source(table),), size, "train" if view else "eval", order, columns, classes)

    def _resize(self) -> None:
        routes, old = 1 + len(self.tasks), self.limits
        self.limits = old.new_zeros(routes, 3)
        self.limits[: len(old)] = old[:routes]


def route_names(tasks: Sequence[str]) -> tuple[str, ...]:
    """Return unique names of the routes; a task may have the name of another task or of the first route."""
    names = [ZERO_SHOT]
    for number, name in enumerate(tasks, 1):
        while name in names:
            name = f"{name} (task {number})"
        names.append(name)
    return tuple(names)


def choose_route(distances: torch.Tensor, limits: torch.Tensor, settings: SelectorSettings) -> torch.Tensor:
    """Return the route `(N,)` from distances.

    Args:
        distances: `(N, R)`; infinite for a route that cannot be chosen.
        limits: `(R, 2)` or more: the median of a route's own held-out distances, and its threshold.
        settings: how to compare, and which threshold applies.
    """
    middle, limit = limits[:, 0].to(distances), limits[:, 1].to(distances)
    spread = (limit - middle).clamp_min(1e-6 * (1 + middle.abs()))
    # 0 at the median of a route's own held-out images, 1 at its threshold.
    relative = (distances - middle) / spread
    nearest, route = (relative if settings.compare == "calibrated" else distances).min(dim=1)
    if settings.threshold == "none":
        outside = nearest.isinf()
    elif settings.threshold == "calibrated":
        outside = relative.gather(1, route[:, None])[:, 0] > 1
    else:
        outside = distances.gather(1, route[:, None])[:, 0] > settings.threshold
    return torch.where(outside, torch.zeros_like(route), route)


def quantiles(values: torch.Tensor, share: float) -> torch.Tensor:
    """Return the median and the `share` quantile `(2,)` of values `(N,)`, float64."""
    return torch.from_numpy(np.quantile(values.double().cpu().numpy(), (0.5, share)))
