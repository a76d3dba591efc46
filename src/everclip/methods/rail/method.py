"""RAIL (Xu et al. 2024, arXiv 2406.18868): ridge regression on the features of a frozen CLIP, fused with zero-shot.

To learn a task takes one pass and one linear system. The result equals that of all tasks at once, in any order (with a
fixed `dimension`; the automatic one depends on the size of the first task).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from everclip.contracts import (
    Batch,
    ClassEntry,
    ClassHead,
    Cost,
    Features,
    LabelSpace,
    Needs,
    Past,
    Phase,
    Progress,
    Source,
    Stream,
    Task,
)
from everclip.distributed import gather_rows
from everclip.errors import ConfigError
from everclip.features.encoding import device_of
from everclip.methods.base import Method
from everclip.methods.frozen import embeddings
from everclip.methods.rail.base import Ridge
from everclip.methods.rail.build import build_head, with_head
from everclip.methods.rail.dual import Dual
from everclip.methods.rail.export import head_to_export
from everclip.methods.rail.fuse import as_cosines, fuse
from everclip.methods.rail.settings import RailSettings
from everclip.models.backbone import Backbone

BATCH = 64
"""Batch size without a training configuration."""

UNAUGMENTED = (
    "method.augmented: has no effect with training.augment=none; each image is encoded once, in one pass."
)


class Rail(Method):
    """A regression over all learned classes, fused with zero-shot; zero-shot alone decides on other classes.

    The key identifies a class: a recurring class adds samples to the same column.
    """

    Settings = RailSettings
    needs = Needs(supervision=frozenset({"labels"}), borders=True)
    reads_embeddings = True
    in_chunks = True
    gathers = True
    settings: RailSettings

    def __init__(self, backbone: Backbone, settings: RailSettings, seed: int = 0) -> None:
        super().__init__(backbone, settings, seed)
        self.head: Ridge | None = None
        self._classes: dict[str, ClassEntry] = {}
        self._shape: dict[str, int] = {}

    # -- learning ---------------------------------------------------------------------------------------------

    def on_begin_task(self, task: Task, past: Past) -> None:
        """Build the head at the first task, and give new classes a column.

        Raises:
            ConfigError: if the task names no classes, or the dual form cannot store its samples.
        """
        if task.classes is None:
            raise ConfigError(f"method: {self.preset} learns classes, and task {task.name!r} names none.")
        if self.head is None:
            inputs = self.backbone.embedding_width()
            self._build({"inputs": inputs, "width": self.settings.width(len(task.train), inputs)})
        assert self.head is not None
        self._classes = self._classes_with(task)
        self.head.widen(len(self._classes))
        if isinstance(self.head, Dual):
            self.head.check_limit(self._passes(past) * len(task.train))

    def _build(self, shape: Mapping[str, int]) -> None:
        self._shape = {key: shape[key] for key in ("inputs", "width")}
        self.head = build_head(self.settings, shape, self.seed).to(device_of(self))

    def _classes_with(self, task: Task) -> dict[str, ClassEntry]:
        """Return all classes by key in the order of columns, including those of a task."""
        return self._classes | {e.key: e for e in task.classes or () if e.key not in self._classes}

    def _augments(self, past: Past) -> bool:
        return self.settings.augmented and (past.training is None or past.training.augment is not None)

    def _passes(self, past: Past) -> int:
        """Return the number of passes over a task: one without augmentation, because all would be equal."""
        return self.settings.passes if self._augments(past) else 1

    def phases(self, task: Task, past: Past) -> list[Phase]:
        """Declare passes without gradient over the task's samples, each exactly once per pass."""
        training = past.training
        augmented = self._augments(past)
        cached = not augmented and (training is None or training.cache)
        # Use all classes learned so far, so that labels are columns of the head.
        classes = tuple(ClassEntry(e.key, e.name) for e in self._classes_with(task).values())
        main = Stream(
            (Source(task.train),),
            training.batch_size if training else BATCH,
            view="train" if augmented else "eval",
            order="once",
            columns=("image_embedding" if cached else "image", "label"),
            classes=classes,
        )
        notes = (UNAUGMENTED,) if self.settings.augmented and not augmented else ()
        return [Phase("regress", {"main": main}, optimiser=None, repeats=self._passes(past), notes=notes)]

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        """Add one batch of all processes; return the error of the current weights on it."""
        assert self.head is not None  # set by `on_begin_task`
        columns = batch["main"]
        labels = gather_rows(columns["label"])
        if len(columns["label"]):
            x = embeddings(self.backbone, "image", columns, "image").float()
        else:  # in the last batch of a pass, a process may have no samples
            x = torch.zeros(0, self._shape["inputs"], device=labels.device)
        x = gather_rows(x)
        error = self.head.error(x, labels)
        self.head.add(x, labels)
        return {"squared_error": error}

    def on_end_phase(self, task: Task, phase: Phase) -> None:
        """Solve for the weights."""
        assert self.head is not None
        with torch.no_grad():
            self.head.solve()
        how = {k: getattr(self.settings, k) for k in ("form", "update", "expansion", "fusion", "augmented")}
        if self.settings.form == "dual":
            how = {k: v for k, v in how.items() if k not in ("update", "expansion")}
        elif self.settings.expansion != "none":
            how |= {"dimension": self._shape["width"], "dimension_from": self._width_from()}
        self.notes["rail"] = {
            **how,
            "ridge": self.head.ridge,
            "rows": len(self.head.weights),
            "classes": self.head.classes,
        }

    def _width_from(self) -> str:
        if self.settings.dimension != "auto":
            return "method.dimension"
        return "auto: from the number of samples of the first task; with another first task it may differ"

    # -- predicting -------------------------------------------------------------------------------------------

    def class_scores(self, images: Features, space: LabelSpace, bank: Features) -> torch.Tensor:
        """Return scores `(N, C)`: the cosines whose softmax is the fused row.

        If the best cosine of a row belongs to a class that was not learned, the row is zero-shot's, bit for bit.
        """
        cosines = self.similarity(images, bank)
        columns = self._columns(space.entries)
        learned = torch.tensor([column is not None for column in columns], device=cosines.device)
        if self.head is None or self.settings.fusion == 0 or not bool(learned.any()):
            return cosines
        rows = learned[cosines.argmax(dim=1)].nonzero()[:, 0]
        chosen = cosines[rows]
        fused = self._fused(images["embedding"][rows], chosen, columns)
        scores = cosines.clone()
        scores[rows] = as_cosines(fused, chosen, self._scale()).to(cosines.dtype)
        return scores

    def _fused(self, x: torch.Tensor, cosines: torch.Tensor, columns: Sequence[int | None]) -> torch.Tensor:
        """Return fused rows `(N, C)` float64 of embeddings `(N, D)` and their cosines `(N, C)` with the classes."""
        assert self.head is not None
        learned = torch.tensor([column is not None for column in columns], device=cosines.device)
        probabilities = torch.softmax(self._scale() * cosines.double(), dim=1)
        outputs = torch.zeros_like(probabilities)
        device = self.head.weights.device
        wanted = torch.tensor([column for column in columns if column is not None], device=device)
        outputs[:, learned] = self.head.outputs(x.to(device), wanted).to(x.device)
        return fuse(probabilities, outputs, learned, self.settings.fusion)

    def _scale(self) -> float:
        return float(self.backbone.logit_scale.detach())

    def _columns(self, entries: Sequence[ClassEntry]) -> list[int | None]:
        """Return the column of each class of a label space; `None` if it was not learned."""
        by_key = {key: column for column, key in enumerate(self._classes)}
        by_name = {e.name: column for column, e in enumerate(self._classes.values())}
        # A name that a user typed belongs to no task, and its key equals its name.
        return [
            by_key.get(e.key, None if e.tasks or e.key != e.name else by_name.get(e.name)) for e in entries
        ]

    @property
    def outside_towers(self) -> str | None:
        """The regression, because the towers do not change."""
        return None if self.head is None else f"a regression over {self.head.classes} classes was learned"

    def class_head(self) -> ClassHead | None:
        """Return the regression and its rule for an export; see `everclip.methods.rail.export`."""
        if self.head is None:
            return None
        entries = tuple(self._classes.values())

        def answers(images: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
            return self._fused(images, images @ bank.T, range(len(entries)))

        return head_to_export(self.head, self.settings, entries, answers)

    # -- state ------------------------------------------------------------------------------------------------

    def structure(self) -> dict[str, Any]:
        """Return the classes in the order of columns, and the shape of the head."""
        shape = {} if self.head is None else {**self._shape, **self.head.shape()}
        classes = [[e.key, e.name, *e.templates] for e in self._classes.values()]
        return {"classes": classes, "head": shape}

    def grow(self, structure: Mapping[str, Any]) -> None:
        """Rebuild an empty head of the shape that `structure` described."""
        self._classes = {
            # Checkpoints from before version 0.2 hold no templates.
            key: ClassEntry(key, name, tuple(templates) or ("{}",))
            for key, name, *templates in structure.get("classes", ())
        }
        if structure.get("head"):
            self._build(structure["head"])

    def describe(self) -> Cost:
        """Count the head with the backbone; the regression is solved, not trained."""
        return with_head(super().describe(), self.head, self.settings)
