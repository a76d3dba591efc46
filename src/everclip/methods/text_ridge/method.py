"""Texts move to their images by a kernel ridge regression in closed form; a method of everclip, not published.

A CLIP that does not know a new name embeds it somewhere. The images of the name are together, in a place that the
image tower already gives them. So the text embedding moves there: `t + k(t, T) alpha` with a narrow Gaussian kernel
between texts. Image embeddings do not change, so a search index of images stays valid; a text that is not close to a
learned one stays as it is. One pass and one linear system per task. The result equals that of all tasks at once, in
any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from everclip.contracts import (
    Batch,
    ClassEntry,
    Cost,
    Features,
    Needs,
    Past,
    Phase,
    Progress,
    Source,
    Stream,
    Task,
    TextCorrection,
)
from everclip.data.sampling.captions import own_caption
from everclip.data.sampling.same_texts import keys_by_text
from everclip.data.table import Table
from everclip.distributed import gather_objects, gather_rows
from everclip.errors import ConfigError, DataError
from everclip.features.encoding import BLOCK, device_of, measuring
from everclip.methods.base import Method
from everclip.methods.frozen import embeddings
from everclip.methods.text_ridge.export import correction_to_export, solved_texts
from everclip.methods.text_ridge.regression import FORMAT, TextRegression
from everclip.methods.text_ridge.settings import TextRidgeSettings
from everclip.models.backbone import Backbone

BATCH = 64
"""Batch size without a training configuration."""

FULL_LENGTH = (
    "method.level has no effect, so learned texts may also take images of what the model knew. {why} Name known data "
    "as `base`: the result then shows this loss."
)
TOO_FEW = (
    "It needs {needed:,} images: those of the tasks, and of scenario.reference.images or else of the base."
)
NONE_SPARE = "It needs a direction that images hardly use, and these images leave none."

NOT_POSITIVE = (
    "method.level: nothing moves. Other texts score 0 or less on the images of this run, as with a CLIP that keeps "
    "texts and images far apart, and a learned text would get a share of that score. Use another method."
)


class TextRidge(Method):
    """A regression from texts to where their images lie; the towers do not change.

    A text is a caption, or a class name in one of its templates. A recurring text adds images to the same row.
    """

    Settings = TextRidgeSettings
    needs = Needs(borders=True)
    reads_embeddings = True
    in_chunks = True
    gathers = True
    settings: TextRidgeSettings

    def __init__(self, backbone: Backbone, settings: TextRidgeSettings, seed: int = 0) -> None:
        super().__init__(backbone, settings, seed)
        self.regression: TextRegression | None = None
        self._rows: dict[str, int] = {}
        self._anchors: tuple[str, ...] = ()
        self._classes: dict[str, ClassEntry] = {}
        self._task = ""

    # -- learning ---------------------------------------------------------------------------------------------

    def on_begin_task(self, task: Task, past: Past) -> None:
        """Give the task's texts a row; before the first task, encode the anchors and look at known images.

        Raises:
            ConfigError: if there are more texts than `limit`.
            DataError: if an embedding is NaN or infinite.
        """
        texts = _texts_of(task)
        first = self.regression is None
        anchors = self._reference_texts(past) if first else self._anchors
        new = [text for text in texts if text not in self._rows]
        self._check_limit(len(self._rows) + len(new) + len(anchors))
        self._task = task.name
        found = self._encode(new)
        _require_finite(found, f"task {task.name!r}", "texts")
        if self.regression is None:
            held = self._encode(anchors)
            _require_finite(held, "scenario.reference", "texts")
            self._anchors = anchors
            self.regression = TextRegression(self.backbone.embedding_width()).to(device_of(self))
            self.regression.anchors = held.to(self.regression.anchors)
            try:
                self._see_known_images(past)
            except DataError:
                self.regression, self._anchors = None, ()  # as before the task
                raise
        self.regression.widen(found)
        self.regression.moment[-1, 0] -= _repeats(task.train)  # `add` counts samples
        self._rows |= {text: len(self._rows) + i for i, text in enumerate(new)}
        self._classes = self._classes_with(task)

    def _classes_with(self, task: Task) -> dict[str, ClassEntry]:
        """Return all classes by key, including those of a task; a recurring one with its latest name and templates."""
        return self._classes | {entry.key: entry for entry in task.classes or ()}

    def _reference_texts(self, past: Past) -> tuple[str, ...]:
        if not self.settings.anchors or past.reference is None:
            return ()
        return tuple(dict.fromkeys(past.reference.texts))

    def _see_known_images(self, past: Past) -> None:
        """Learn how images lie in general, from those of the reference data, else of the base."""
        assert self.regression is not None
        table = (
            past.base if past.reference is None or past.reference.images is None else past.reference.images
        )
        if table is not None and past.embed is not None:
            images = past.embed(table)
            _require_finite(images, table.name, "images")
            self.regression.see(images.to(self.regression.moment.device), _repeats(table))

    def _check_limit(self, total: int) -> None:
        if total > self.settings.limit:
            raise ConfigError(
                f"method.limit: every distinct text takes a row, and {total:,} texts (reference texts included) exceed "
                f"{self.settings.limit:,}. Raise it (solving takes {8 * total**2 / 1e9:.1f} GB), leave out the "
                "reference texts (method.anchors=false), or learn from class names."
            )

    def _encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the backbone's own embeddings `(N, D)` of texts, float32."""
        device = device_of(self)
        blocks = [texts[i : i + BLOCK] for i in range(0, len(texts), BLOCK)]
        with measuring(self):
            parts = [self.backbone.encode_text(self.backbone.tokenise(list(b)).to(device)) for b in blocks]
            whole = torch.cat(parts) if parts else torch.zeros(0, self.backbone.embedding_width())
        return whole.float().clone()

    def phases(self, task: Task, past: Past) -> list[Phase]:
        """Declare one pass without gradient over the task's samples, each exactly once."""
        training = past.training
        image = "image_embedding" if training is None or training.cache else "image"
        # With all classes, a label stands for the same class in a resumed task, which does not begin again.
        classes = tuple(self._classes_with(task).values()) if task.classes else None
        main = Stream(
            (Source(task.train),),
            training.batch_size if training else BATCH,
            view="eval",
            order="once",
            columns=(image, "label") if task.classes else (image, "text_id"),
            classes=classes,
        )
        return [Phase("regress", {"main": main}, optimiser=None)]

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        """Add one batch of all processes; return the mean distance of its images from their texts as they are now.

        Raises:
            DataError: if an embedding is NaN or infinite; nothing of the batch was added.
        """
        assert self.regression is not None  # set by `on_begin_task`
        columns = batch["main"]
        device = self.regression.texts.device
        texts = self._texts_of_samples(columns)
        if texts:
            x = embeddings(self.backbone, "image", columns, "image").float()
        else:  # in the last batch of a pass, a process may have no samples
            x = torch.zeros(0, self.regression.texts.shape[1], device=device)
        x = gather_rows(x)
        _require_finite(x, f"task {self._task!r}", "images of a batch")
        every = [own for part in gather_objects(texts) for own in part]
        own = torch.zeros(len(every), len(self._rows), dtype=torch.bool, device=device)
        for sample, prompts in enumerate(every):
            own[sample, [self._rows[text] for text in prompts]] = True
        self.regression.add(x, own)
        present = own.any(dim=0).nonzero()[:, 0]
        now = self.regression.moved(self.regression.texts[present], self.settings.gamma)
        means = own[:, present].float() @ now / own.sum(dim=1, keepdim=True)
        return {"distance": (1 - (x * means).sum(dim=1)).mean()}

    def _texts_of_samples(self, columns: Mapping[str, Any]) -> list[tuple[str, ...]]:
        """Return the texts of each sample of this process."""
        if "label" in columns:
            entries = tuple(self._classes.values())
            return [entries[label].prompts() for label in columns["label"].tolist()]
        return [(text,) for text in columns["text_id"]]

    def on_end_phase(self, task: Task, phase: Phase) -> None:
        """Solve for the corrections."""
        assert self.regression is not None
        settings = self.settings
        held = torch.tensor(self._held(), dtype=torch.bool)
        with torch.no_grad():
            figures = self.regression.solve(
                settings.gamma,
                settings.ridge,
                settings.level,
                settings.shrinkage,
                held.to(self.regression.texts.device),
            )
        note = self._full_length() if not bool(self.regression.spare.any()) else None
        if figures["texts"] and figures["length"] is None:
            note = NOT_POSITIVE
        self.notes["text-ridge"] = figures if note is None else {**figures, "note": note}

    def _held(self) -> list[bool]:
        """Return for each anchor whether no task has learned it: the model does not read all letters of a text."""
        if self.regression is None or not self._anchors:
            return []
        learned = [
            text for text, count in zip(self._rows, self.regression.counts.tolist(), strict=True) if count
        ]
        keys = keys_by_text(self.backbone.tokenise, [*learned, *self._anchors])
        known = {keys[text] for text in learned}
        return [keys[text] not in known for text in self._anchors]

    def _full_length(self) -> str:
        """Return the note that learned texts have full length, with the reason."""
        assert self.regression is not None
        few = self.regression.seen < self.regression.needed
        return FULL_LENGTH.format(why=TOO_FEW.format(needed=self.regression.needed) if few else NONE_SPARE)

    # -- predicting -------------------------------------------------------------------------------------------

    def encode_texts(self, tokens: torch.Tensor) -> Features:
        """Encode token ids `(N, L)`: the backbone's embeddings, corrected."""
        found = super().encode_texts(tokens)
        if self.regression is None:
            return found
        return {"embedding": self.regression.moved(found["embedding"], self.settings.gamma)}

    @property
    def outside_towers(self) -> str | None:
        """The regression, because the towers do not change."""
        if self.regression is None or not len(self.regression.support):
            return None
        return f"a regression over {len(solved_texts(self.regression, self._rows))} texts was learned"

    def text_correction(self) -> TextCorrection | None:
        """Return the regression for an export; see `everclip.methods.text_ridge.export`."""
        if self.regression is None or not len(self.regression.support):
            return None
        texts = solved_texts(self.regression, self._rows)

        def encode(tokens: torch.Tensor) -> torch.Tensor:
            return self.encode_texts(tokens)["embedding"]

        return correction_to_export(
            self.regression, self.settings.gamma, texts, self._classes.values(), encode
        )

    def describe(self) -> Cost:
        """Count the regression with the backbone; it is solved, not trained."""
        cost = super().describe()
        if self.regression is None:
            return replace(cost, growth_per_task="32 D + 16 bytes per new text, D: width of embeddings")
        buffers = list(self.regression.buffers())
        return replace(
            cost,
            stored_parameters=cost.stored_parameters + sum(t.numel() for t in buffers),
            active_parameters=cost.active_parameters + self.regression.used_values,
            bytes=cost.bytes + sum(t.numel() * t.element_size() for t in buffers),
            growth_per_task=f"{32 * self.regression.texts.shape[1] + 16:,} bytes per new text",
        )

    # -- state ------------------------------------------------------------------------------------------------

    def structure(self) -> dict[str, Any]:
        """Return the texts in the order of rows, the anchors, the classes, and the shape of the regression."""
        shape = {} if self.regression is None else self.regression.shape()
        classes = [[e.key, e.name, *e.templates] for e in self._classes.values()]
        texts = {"texts": list(self._rows), "anchors": list(self._anchors), "task": self._task}
        return {**texts, "classes": classes, "regression": shape}

    def grow(self, structure: Mapping[str, Any]) -> None:
        """Rebuild an empty regression of the shape that `structure` described."""
        self._rows = {text: row for row, text in enumerate(structure.get("texts", ()))}
        self._anchors = tuple(structure.get("anchors", ()))
        self._task = structure.get("task", "")
        self._classes = {
            key: ClassEntry(key, name, tuple(templates))
            for key, name, *templates in structure.get("classes", ())
        }
        if shape := structure.get("regression"):
            sizes = (shape["width"], len(self._rows), len(self._anchors), shape["solved"])
            self.regression = TextRegression(*sizes).to(device_of(self))
            if shape.get("format", 1) < FORMAT:
                del self.regression.shared_sums  # `load_extra` computes it

    def load_extra(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Restore what the base class stores, and complete a regression from an older checkpoint."""
        super().load_extra(tensors, state)
        if self.regression is not None and "shared_sums" not in dict(self.regression.named_buffers()):
            self.regression.complete()


def _require_finite(found: torch.Tensor, where: str, what: str) -> None:
    """Refuse embeddings `(N, D)` that a sum would carry into every text.

    Raises:
        DataError: names where they come from and how many rows are wrong.
    """
    wrong = int((~found.isfinite().all(dim=1)).sum())
    if wrong:
        raise DataError(
            f"{where}: the embeddings of {wrong:,} of {len(found):,} {what} hold NaN or infinite values, so "
            "text-ridge has learned nothing from them. Check the backbone's weights (a half-precision file may "
            "overflow), or delete the cache of features and encode again."
        )


def _repeats(table: Table) -> int:
    """Return how many samples show the image of an earlier sample: further captions or classes of it."""
    return len(table) - len(set(table.column("image_id"))) if table.has("image_id") else 0


def _texts_of(task: Task) -> list[str]:
    """Return the distinct texts of a task: the prompts of its classes, or its captions, in their order."""
    if task.classes:
        return list(dict.fromkeys(text for entry in task.classes for text in entry.prompts()))
    return list(dict.fromkeys(own_caption(task.train, row) for row in range(len(task.train))))
