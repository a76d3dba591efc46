"""Distillation from tables of features: keep the student near what any other model has computed, without running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from everclip.contracts import ClassEntry, Past, Source, Stream, Task
from everclip.data.feature_table import FeatureTable, read_feature_table
from everclip.data.sampling.captions import own_caption
from everclip.data.table import Table
from everclip.errors import CheckpointError, ConfigError, DataError
from everclip.files import found_in, user_path
from everclip.methods.penalties.base import Penalty, StepView, WeightSettings
from everclip.methods.trainable import trains
from everclip.models.backbone import Backbone
from everclip.models.modules.base import generator, uniform
from everclip.models.modules.towers import SIDES, Side

_SHOWN = 3
_WHAT = {"image": "image_id", "text": "caption"}


class TableDistillSettings(WeightSettings):
    """Settings.

    Attributes:
        image, text: the tables of features of images and of texts (`everclip.write_feature_table`); at least one.
        head: `linear` maps the student's embeddings by a matrix that trains with it; `none` compares them directly,
            which needs features of the student's width.
        distance: `cosine` is `1 - cos`; `squared` is the squared Euclidean distance to the feature of unit length.
        missing: what to do if the table lacks a sample's feature: `error` before training, or `skip` the sample.
        samples: the images to compare: those of the `batch`, the `reference` images of the scenario
            (`scenario.reference.images`, augmented as the task's images are), or `both` (two means, added). Texts are
            always those of the batch.
        reference_batch_size: reference images per step; `null` = the task's batch size.
    """

    image: str | None = None
    text: str | None = None
    head: Literal["linear", "none"] = "linear"
    distance: Literal["cosine", "squared"] = "cosine"
    missing: Literal["error", "skip"] = "error"
    samples: Literal["batch", "reference", "both"] = "batch"
    reference_batch_size: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _some_table(self) -> TableDistillSettings:
        if self.weight and self.image is None and self.text is None:
            raise ValueError("name a table of features: `image` or `text` (a path), or both")
        if self.weight and self.samples != "batch" and self.image is None:
            raise ValueError(
                f"samples={self.samples} compares reference images; name their table: `image` (a path)"
            )
        return self


class TableDistill(Penalty[TableDistillSettings]):
    """Distance of embeddings to stored features `t`, after a linear map `W` (feature distillation, arXiv 2307.12732).

    `weight * sum over towers of 1/N sum_i (1 - cos(W z[i], t[i]))` (`cosine`), or of `||W z[i] - t[i]/||t[i]|| ||^2`
    (`squared`), over the N samples of a step. A sample without a feature adds 0 and counts in N, so that the loss of
    a sample depends neither on the others nor on the number of processes.

    The key of an image is its `image_id` (default: the first 16 hexadecimal digits of the SHA-256 of its file). The
    key of a text is the caption as it is in the data, whatever text a step makes of it (templates, keywords); in tasks
    that are learned by classes it is the class name, and the N texts are the classes.
    """

    Settings: ClassVar[type[WeightSettings]] = TableDistillSettings

    _active: tuple[Side, ...] = ()
    _width = 0
    _directory: str | None = None

    def __init__(self, name: str, settings: TableDistillSettings) -> None:
        super().__init__(name, settings)
        self._tables: dict[Side, FeatureTable] = {}
        self._skipped: dict[str, dict[str, int]] = {}
        self._begun = False
        self._stored: dict[str, str] = {}

    def prepare(self, backbone: Backbone, trainable: Sequence[str]) -> None:
        """Decide which tables have an effect: those whose tower trains."""
        self._active = tuple(side for side in self._given if trains(trainable, side))
        self._width = self._width or backbone.embedding_width()
        self._directory = backbone.directory

    @property
    def _given(self) -> tuple[Side, ...]:
        return tuple(side for side in SIDES if self._path(side) is not None)

    @property
    def _on_reference(self) -> bool:
        return self.settings.samples != "batch" and "image" in self._used

    @property
    def _in_batch(self) -> tuple[Side, ...]:
        """The sides that are compared on the task's own stream."""
        return tuple(s for s in self._used if s == "text" or self.settings.samples != "reference")

    @property
    def needs_reference(self) -> frozenset[str]:
        """Images, if they are compared."""
        return frozenset({"images"} if self.settings.samples != "batch" else ())

    @property
    def _used(self) -> tuple[Side, ...]:
        """The sides of the loss; every module has its part in it, because several processes wait for its gradient."""
        return tuple(side for side in self._given if side in self._active or side in self.modules)

    def _path(self, side: Side) -> str | None:
        return self.settings.image if side == "image" else self.settings.text

    def _where(self, side: Side) -> str:
        return f"method.penalties.{self.name}.{side}"

    @property
    def main_columns(self) -> tuple[str, ...]:
        """The keys of images and texts."""
        return tuple(f"{side}_id" for side in self._in_batch)

    # -- tables -----------------------------------------------------------------------------------------------

    def _table(self, side: Side) -> FeatureTable:
        """Return a table; it is read when a task is checked or begins, since predictions do not need it.

        Raises:
            ConfigError: if there is no such file, or its features do not have the width that the student needs.
            DataError: if its content is unusable.
            CheckpointError: if it has changed since a task began that continues.
        """
        if side not in self._tables:
            where = self._where(side)
            path = found_in(user_path(self._path(side), where), self._directory)
            table = read_feature_table(path, where)
            self._require_width(side, table)
            if self._stored.get(side, table.fingerprint) != table.fingerprint:
                raise CheckpointError(
                    f"{where}: {table.path} has changed since the task began, so the run cannot continue as it was. "
                    "Restore the table, or start a new run; between tasks it may change."
                )
            self._tables[side] = table
        return self._tables[side]

    def _require_width(self, side: Side, table: FeatureTable) -> None:
        where = f"{self._where(side)}: {table.path}"
        if self.settings.head == "none" and table.width != self._width:
            raise ConfigError(
                f"{where}: features have {table.width} values, and embeddings of the model {self._width}; without a "
                f"head both must be equal. Set method.penalties.{self.name}.head=linear."
            )
        if side in self.modules and self._head(side).out_features != table.width:
            raise ConfigError(
                f"{where}: features have {table.width} values, and the head of this run was trained for "
                f"{self._head(side).out_features}; use features of the same model as before."
            )

    def check_task(self, table: Table, classes: tuple[ClassEntry, ...] | None) -> None:
        """Check that the tables have a feature for each image and text.

        Raises:
            DataError: if one is missing and `missing` is `error`; names the first.
        """
        self._check([table], classes)

    def streams(self, main: Stream, past: Past | None = None) -> dict[str, Stream]:
        """Check the samples of a phase, also the replayed ones; return the stream of reference images, if one is used.

        Raises:
            ConfigError: if there are no reference images, but they are to be compared.
            DataError: if the table lacks a feature and `missing` is `error`.
        """
        reference = self._reference(main, past)
        idle = [side for side in self._given if side not in self._used]
        notes = [f"{self.name}: {side} has no effect: the {side} tower does not train" for side in idle]
        tables = [source.table for source in main.sources]
        self._skipped = self._check(
            tables, main.classes, [s.table for r in reference.values() for s in r.sources]
        )
        for side, counts in self._skipped.items():
            if counts["without_feature"]:
                notes.append(
                    f"{self.name}: {counts['without_feature']:,} of {counts['of']:,} {side}s have no feature in "
                    f"{self._table_name(side)} and are skipped"
                )
        self.notes = tuple(notes)
        return reference

    def _reference(self, main: Stream, past: Past | None) -> dict[str, Stream]:
        """Return the stream of reference images, augmented as the task's are; empty if none is used."""
        if not self._on_reference:
            return {}
        images = None if past is None or past.reference is None else past.reference.images
        if images is None or not len(images):
            raise ConfigError(
                f"method.penalties.{self.name}.samples={self.settings.samples}: needs reference images that belong to "
                "no task. Set scenario.reference.images.source, or `learner.reference`; or set samples=batch."
            )
        batch = self.settings.reference_batch_size or main.batch_size
        return {self.name: Stream((Source(images),), batch, main.view, columns=("image", "image_id"))}

    def _table_name(self, side: str) -> str:
        return Path(str(self._path("image" if side == "image" else "text"))).name

    def _check(
        self,
        tables: Sequence[Table],
        classes: tuple[ClassEntry, ...] | None,
        reference: Sequence[Table] = (),
    ) -> dict[str, dict[str, int]]:
        """Return for each side how many samples (or classes) have no feature, and of how many."""
        counts: dict[str, dict[str, int]] = {}
        for side in self._used:
            missing, total = 0, 0
            own = tables if side in self._in_batch else ()
            for name, keys in _keys(side, [*own, *(reference if side == "image" else ())], classes):
                found = self._table(side).find(keys)
                lacking = [keys[int(i)] for i in (found < 0).nonzero()[0]]
                if lacking and self.settings.missing == "error":
                    raise self._lacks(side, name, lacking, len(keys), classes is not None)
                missing, total = missing + len(lacking), total + len(keys)
            counts[side] = {"without_feature": missing, "of": total}
        return counts

    def _lacks(self, side: Side, name: str, lacking: Sequence[str], count: int, labelled: bool) -> DataError:
        first = list(dict.fromkeys(lacking))[:_SHOWN]
        what = "class name" if labelled and side == "text" else _WHAT[side]
        return DataError(
            f"{self._where(side)}: {self._table(side).path} has no feature for {len(lacking):,} of {count:,} "
            f"{side}s of {name} (first: {', '.join(map(repr, first))}). The key of each is its {what}. Add their "
            f"features, or set method.penalties.{self.name}.missing=skip."
        )

    # -- modules ----------------------------------------------------------------------------------------------

    def _head(self, side: Side) -> nn.Linear:
        head = self.modules[side]
        assert isinstance(head, nn.Linear)
        return head

    def begin_task(self, backbone: Backbone, task: Task, past: Past) -> None:
        """Note that the tables must not change from now on."""
        self._begun, self._stored = True, {}

    def end_task(self, backbone: Backbone, task: Task, past: Past) -> None:
        """Note that the tables may change."""
        self._begun, self._stored = False, {}

    def structure(self) -> dict[str, Any]:
        """Return the sizes `[D, W]` of the heads, and inside a task the fingerprints of the tables."""
        heads = {side: self._head(side) for side in SIDES if side in self.modules}
        shapes: dict[str, Any] = {side: [h.in_features, h.out_features] for side, h in heads.items()}
        if self._begun:
            shapes["tables"] = self._stored | {side: t.fingerprint for side, t in self._tables.items()}
        return shapes

    def shapes(self) -> dict[str, Any]:
        """Return the sizes `[D, W]` of the heads that a task needs."""
        if self.settings.head == "none":
            return {}
        return {side: [self._width, self._table(side).width] for side in self._active}

    def grow(self, shapes: Mapping[str, Any], seed: int) -> None:
        """Create the heads that do not exist, with initial values as torch's linear layers have them."""
        if "tables" in shapes:
            self._begun, self._stored = True, dict(shapes["tables"])
        for side in SIDES:
            if side not in shapes or side in self.modules:
                continue
            inputs, outputs = shapes[side]
            head = nn.Linear(inputs, outputs, bias=False)
            draw = generator(seed, self.name, side)
            with torch.no_grad():
                head.weight.copy_(uniform(outputs, inputs, inputs**-0.5, draw))
            self.modules[side] = head

    def new_parameters(self) -> int | None:
        """Return the size of the heads to come; `None` before the tables are read."""
        new = [side for side in self._active if side not in self.modules and self.settings.head == "linear"]
        if any(side not in self._tables for side in new):
            return None
        return sum(self._width * self._tables[side].width for side in new)

    # -- the loss ---------------------------------------------------------------------------------------------

    def loss(self, step: StepView) -> torch.Tensor:
        """Return the weighted distance of this process's rows (and of all class texts)."""
        total = step.image.new_zeros((), dtype=torch.float32)
        for side in self._in_batch:
            student = step.image if side == "image" else step.text
            total = total + self._mean(side, student, step.batch["main"][f"{side}_id"])
        if self._on_reference:
            columns = step.batch[self.name]
            total = total + self._mean(
                "image", step.backbone.encode_image(columns["image"]), columns["image_id"]
            )
        return self.settings.weight * total

    def _mean(self, side: Side, student: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
        """Return the mean distance of embeddings `(N, D)` to the features of their keys."""
        mapped = self.modules[side](student) if side in self.modules else student
        features, known = self._features(side, keys, student.device)
        return (known * self._distance(mapped.float(), features)).mean()

    def _features(
        self, side: Side, keys: Sequence[str], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features of some keys `(N, W)`, of unit length, and whether there is one `(N,)`: 1.0 or 0.0."""
        table = self._table(side)
        found = table.find(keys)
        rows = torch.from_numpy(table.features[found.clip(min=0)]).float()
        known = torch.from_numpy(found >= 0).float()
        return nn.functional.normalize(rows, dim=1).to(device), known.to(device)

    def _distance(self, student: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Return the distance of each row `(N,)`."""
        if self.settings.distance == "squared":
            return (student - features).square().sum(dim=1)
        # For unit vectors, half the squared distance is 1 - cos, without its rounding near 0.
        return 0.5 * (nn.functional.normalize(student, dim=1) - features).square().sum(dim=1)

    def record(self) -> dict[str, Any]:
        """Return how many samples of the last task had no feature, if they were skipped."""
        return dict(self._skipped) if self.settings.missing == "skip" else {}


def _keys(
    side: Side, tables: Sequence[Table], classes: tuple[ClassEntry, ...] | None
) -> list[tuple[str, list[str]]]:
    """Return the names of parts of the data with their keys."""
    if side == "image":
        return [(table.name, table.identities()) for table in tables]
    if classes is not None:
        return [("the classes", [entry.name for entry in classes])]
    return [(table.name, [own_caption(table, i) for i in range(len(table))]) for table in tables]
