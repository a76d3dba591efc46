"""What every selector is: it decides for each picture which route of a method it takes.

A method owns one as a sub-module and hands over four moments; everything else stays here:

    self.selector = build(settings.selector, backbone, first_block, prefix="selector")     # in __init__
    self.selector.begin_task(backbone, task, past)                                          # in begin_task
    [*super().phases(task, past), *self.selector.phases(task, past)]                        # in phases
    if self.selector.owns(batch): return self.selector(self.backbone, batch, progress)      # first in forward
    self.selector.end_phase(phase)                                                          # in end_phase
    self.selector.structure() / self.selector.grow(structure)                               # in structure, grow
    gathers = True                    # class attribute: its passes join the samples of all processes

and in predicting, `route = self.selector.decide(self.selector.features(self.backbone, pixels))`, or, where the method
already holds the tokens `(N, L, W)` that enter block `self.selector.early`,
`self.selector.decide(self.selector.features_of(tokens))`. The modules that the method grew must be on their zero-shot
route whenever it hands over its backbone.
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
"""The stream that only a selector's phases have."""

ZERO_SHOT = "zero-shot"
CALIBRATE = "selector-calibrate"
REFERENCE = "-reference"
"""What the names of phases over reference pictures end with."""

SALT = "everclip-selector-v1"

S = TypeVar("S", bound=SelectorSettings)


class Selector(nn.Module, Generic[S]):
    """Decides from features `(N, F)` which route each picture takes: 0 is zero-shot, 1 + t is the t-th task learned.

    Subclasses give `fitting` (phases in which it learns), `fit` (a step of them) and `measure_one` (distances), and
    grow one part per task.

    Args:
        settings: an instance of its settings.
        extractor: pixels to features.
        prefix: what the method calls this module; parameters are named by it.

    Attributes:
        tasks: index and name of each task learned or being learned, in order; route 1 + t is the t-th.
        notes: what results should say about it.
    """

    labels: ClassVar[bool] = False
    """Whether it learns from classes where a task has them."""

    limits: torch.Tensor
    own: torch.Tensor

    def __init__(self, settings: S, extractor: Extractor, prefix: str = "selector") -> None:
        super().__init__()
        self.settings, self.extractor, self.prefix = settings, extractor, prefix
        self.tasks: list[tuple[int, str]] = []
        self.notes: dict[str, Any] = {"kind": settings.kind, "features": settings.features, **extractor.notes}
        self.reference = False
        # Per route: the middle of its own held-out distances, the threshold, and 1 once both are known.
        self.register_buffer("limits", torch.zeros(1, 3, dtype=torch.float64))
        self.register_buffer("own", torch.zeros(0))

    # -- learning ---------------------------------------------------------------------------------------------

    def begin_task(self, backbone: Backbone, task: Task, past: Past) -> None:
        """Grow what the task needs."""
        if task.index not in [index for index, _ in self.tasks]:
            if not self.tasks:
                self.reference = self.knows_reference(past)
            self.tasks.append((task.index, task.name))
            self._resize()
            self.grow_task(backbone, task, past)

    def knows_reference(self, past: Past) -> bool:
        """Whether there are reference pictures to learn what belongs to no task."""
        return past.reference is not None and past.reference.images is not None

    def grow_task(self, backbone: Backbone, task: Task, past: Past) -> None:
        """Make the part of the task that was just added to `tasks`."""
        raise NotImplementedError

    def phases(self, task: Task, past: Past) -> list[Phase]:
        """Declare how it learns the task: fitting, then one pass over held-out pictures for the threshold."""
        place = self.place(task)
        train, held = self.parts(task)
        before = self.reference_phases(past) if place == 0 and self.knows_reference(past) else []
        return [*before, *self.fitting(task, train, place, past), self.held(CALIBRATE, held, past)]

    def reference_phases(self, past: Past) -> list[Phase]:
        """Declare how it learns the reference pictures: before the first task, as published."""
        assert past.reference is not None
        assert past.reference.images is not None
        images = past.reference.images
        rest, held = carve(images, self.settings.held, SALT)
        rest, held = (rest, held) if len(rest) and len(held) else (images, images)
        return [*self.fitting(None, rest, -1, past), self.held(f"{CALIBRATE}{REFERENCE}", held, past)]

    def fitting(self, task: Task | None, train: Table, place: int, past: Past) -> list[Phase]:
        """Declare how the part of a task (`None` and -1: that of the reference pictures) learns from `train`."""
        raise NotImplementedError

    def owns(self, batch: Batch) -> bool:
        """Whether a batch belongs to one of the phases declared here."""
        return STREAM in batch

    def forward(self, backbone: Backbone, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        """A step of one of its phases: named losses."""
        columns = batch[STREAM]
        features = self.features(backbone, columns["image"])
        place = -1 if progress.phase.endswith(REFERENCE) else len(self.tasks) - 1
        if progress.phase.startswith(CALIBRATE):
            # In the precision in which it will decide, whatever that of training is.
            with torch.autocast(features.device.type, enabled=False):
                found = self.measure_one(self.prepare(features), place)
            self.own = torch.cat([self.own, gather_rows(found.float()).to(self.own)])
        else:
            loss = self.fit(features, columns, place, progress)
            if loss is not None:
                return {"selector": loss}
        return {"selector": features.new_zeros(())}

    def fit(
        self, features: torch.Tensor, columns: Mapping[str, Any], place: int, progress: Progress
    ) -> torch.Tensor | None:
        """Return the loss of one step of `fitting`; `None` where sums were gathered instead."""
        raise NotImplementedError

    def end_phase(self, phase: Phase) -> None:
        """Turn what a pass gathered into a threshold."""
        if phase.name.startswith(CALIBRATE):
            route = 0 if phase.name.endswith(REFERENCE) else len(self.tasks)
            self.limits[route] = torch.cat([quantiles(self.own, self.settings.quantile), torch.ones(1)])
            self.own = self.own[:0]
            self.notes["limits"] = {
                # Rounded: low bits depend on how many processes shared the pass.
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
        """Which routes can win `(R,)`: those that were fitted and calibrated; bool."""
        return self.limits[:, 2] > 0

    @property
    def early(self) -> int | None:
        """The block whose input it looks at (for `features_of`); `None` if it looks at something else."""
        return self.extractor.block

    def features(self, backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
        """Return features `(N, F)` of pixels `(N, 3, S, S)`, float32, without gradient."""
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            # A process may have no picture in the last batch of a pass; no transformer takes none.
            some = pixels if len(pixels) else pixels.new_zeros(1, *pixels.shape[1:])
            found: torch.Tensor = self.extractor(backbone, some.float())
            return found.float()[: len(pixels)]

    def features_of(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return features `(N, F)` of the tokens `(N, L, W)` that enter the block `early`."""
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            return self.extractor.pool(tokens.float())

    def prepare(self, features: torch.Tensor) -> torch.Tensor:
        """Return features as `measure_one` takes them; as they are by default."""
        return features

    def measure_one(self, features: torch.Tensor, place: int) -> torch.Tensor:
        """Return the distance `(N,)` of prepared features from one task, or from the reference pictures (-1)."""
        raise NotImplementedError

    @torch.no_grad()
    def distances(self, features: torch.Tensor) -> torch.Tensor:
        """Return distances `(N, R)`, one column per route; infinite where a route cannot win."""
        far = features.new_full((len(features),), torch.inf)
        if not self.tasks:
            return far[:, None]
        features = self.prepare(features)
        first = self.measure_one(features, -1) if self.reference else far
        columns = [first, *(self.measure_one(features, place) for place in range(len(self.tasks)))]
        return torch.stack(columns, dim=1).masked_fill(~self.ready, torch.inf)

    @torch.no_grad()
    def decide(self, features: torch.Tensor) -> torch.Tensor:
        """Return the route `(N,)`, int64, of each picture with these features `(N, F)`."""
        far = self.distances(features)
        if self.settings.decision == "batch":
            parts = torch.split(far, self.settings.decision_batch or max(1, len(far)))
            far = torch.cat([part.mean(dim=0, keepdim=True).expand_as(part) for part in parts])
        return choose(far, self.limits, self.settings)

    @property
    def batch_dependent(self) -> str | None:
        """Why predictions depend on the rest of the batch; `None` if they do not."""
        if self.settings.decision == "sample":
            return None
        size = self.settings.decision_batch
        together = (
            "the pictures of an evaluation batch"
            if size is None
            else f"{size} pictures in the order of a set"
        )
        return (
            f"method.selector.decision=batch: {together} take one route, as DDAS was published; a picture alone may "
            "take another, so these numbers do not tell what a single picture gets"
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
        """Return what it holds, but for parameters and what its extractor was given."""
        given = {f"extractor.{name}" for name in self.extractor.state_dict()}
        kept = self.state_dict().keys() - given - {name for name, _ in self.named_parameters()}
        return [tensor for name, tensor in self.state_dict().items() if name in kept]

    def growth(self) -> int:
        """Return how many values the task learned last left, parameters or not."""
        raise NotImplementedError

    # -- shared -----------------------------------------------------------------------------------------------

    def place(self, task: Task) -> int:
        """Return which of the tasks in order of learning a task is, begun or not."""
        indices = [index for index, _ in self.tasks]
        return indices.index(task.index) if task.index in indices else len(indices)

    def parts(self, task: Task) -> tuple[Table, Table]:
        """Return a task's pictures to fit on, and those held out for its threshold."""
        if task.val is not None and len(task.val):
            return task.train, task.val
        rest, held = carve(task.train, self.settings.held, SALT)
        return (rest, held) if len(rest) and len(held) else (task.train, task.train)

    def once(self, name: str, table: Table, past: Past, task: Task | None = None) -> Phase:
        """Return a phase of one pass over pictures as evaluation sees them, without gradient.

        Args:
            name: of the phase.
            table: the pictures.
            past: knows the batch size.
            task: whose classes come with the pictures; `None` for none.
        """
        return Phase(name, {STREAM: self._stream(table, past, task, view=False)}, optimiser=None)

    def held(self, name: str, table: Table, past: Past) -> Phase:
        """Return such a phase over pictures that decide a threshold and teach nothing."""
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
        """Return a phase that trains parameters of this module, named as it names them."""
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
        wanted, held = 1 + len(self.tasks), self.limits
        self.limits = held.new_zeros(wanted, 3)
        self.limits[: len(held)] = held[:wanted]


def route_names(tasks: Sequence[str]) -> tuple[str, ...]:
    """Return names of the routes, each different: a task may be called as another, or as the first route."""
    found = [ZERO_SHOT]
    for place, name in enumerate(tasks, 1):
        while name in found:
            name = f"{name} (task {place})"
        found.append(name)
    return tuple(found)


def choose(far: torch.Tensor, limits: torch.Tensor, settings: SelectorSettings) -> torch.Tensor:
    """Return the route `(N,)` from distances.

    Args:
        far: `(N, R)`; infinite where a route cannot win.
        limits: `(R, 2)` or more: the middle of a route's own held-out distances, and its threshold.
        settings: how to compare, and what is too far.
    """
    middle, limit = limits[:, 0].to(far), limits[:, 1].to(far)
    spread = (limit - middle).clamp_min(1e-6 * (1 + middle.abs()))
    # 0 at the middle of a route's own held-out pictures, 1 at its threshold.
    relative = (far - middle) / spread
    nearest, route = (relative if settings.compare == "calibrated" else far).min(dim=1)
    if settings.threshold == "none":
        outside = nearest.isinf()
    elif settings.threshold == "calibrated":
        outside = relative.gather(1, route[:, None])[:, 0] > 1
    else:
        outside = far.gather(1, route[:, None])[:, 0] > settings.threshold
    return torch.where(outside, torch.zeros_like(route), route)


def quantiles(values: torch.Tensor, share: float) -> torch.Tensor:
    """Return the middle and the `share` quantile `(2,)` of values `(N,)`, float64."""
    found = np.quantile(values.double().cpu().numpy(), (0.5, share))
    return torch.from_numpy(found)
