"""CoLeCLIP (Li et al. 2024, arXiv 2403.10245): a prompt per task beside a frozen CLIP, and one vocabulary for all.

A task trains its prompt and a LoRA of the text tower. The LoRA only teaches the vocabulary and is discarded with the
task; pictures are compared with the vocabulary through the prompts of the tasks that a class belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from everclip.contracts import (
    Batch,
    ClassEntry,
    Cost,
    Features,
    LabelSpace,
    Needs,
    Past,
    Phase,
    Progress,
    Task,
    Validate,
)
from everclip.data.sampling.order import key_of
from everclip.errors import ConfigError
from everclip.evaluation.classification import ensemble_bank
from everclip.features.encoding import device_of
from everclip.methods.base import Method
from everclip.methods.coleclip import losses
from everclip.methods.coleclip.settings import CoLeClipSettings
from everclip.methods.coleclip.vocabulary import Vocabulary
from everclip.methods.frozen import class_texts
from everclip.methods.merge import Weights
from everclip.models.backbone import Backbone
from everclip.models.modules import lora, task_prompts
from everclip.models.modules.grow import insert
from everclip.models.modules.towers import tower_of

PROMPTS = f"backbone.clip.visual.{task_prompts.NAME}."
ROWS = "vocabulary.rows"


class CoLeClip(Method):
    """Task prompts, a vocabulary with momentum, and a text LoRA that lasts for one task.

    Classes are told apart by their key: one that comes again goes on from its row and belongs to both tasks.
    """

    Settings = CoLeClipSettings
    needs = Needs(supervision=frozenset({"labels"}), transformer=True)
    wide = frozenset({"tokens"})
    contrasts = True
    settings: CoLeClipSettings

    def __init__(self, backbone: Backbone, settings: CoLeClipSettings, seed: int = 0) -> None:
        super().__init__(backbone, settings, seed)
        with torch.no_grad():
            width = backbone.encode_text(backbone.tokenise(["a"]).to(device_of(backbone))).shape[1]
        task_prompts.insert(tower_of(backbone.clip, "image"), settings.prompts)
        self.vocabulary = Vocabulary(width)
        self._entries: tuple[ClassEntry, ...] = ()
        self._moved: torch.Tensor | None = None
        self._held: dict[str, torch.Tensor] = {}
        self._words: torch.Tensor | None = None

    @property
    def sees_past(self) -> bool:
        """Its second half has the classes of earlier tasks as negatives."""
        return True

    @property
    def prompts(self) -> task_prompts.TaskPrompts:
        """The prompts of all tasks so far; they live in the image tower."""
        return task_prompts.of(self.backbone.clip)

    # -- learning ---------------------------------------------------------------------------------------------

    def on_begin_task(self, task: Task, past: Past) -> None:
        """Add a prompt, grow the text LoRA anew, and open the vocabulary for the task's classes.

        Raises:
            ConfigError: if the task names no classes.
        """
        if not task.classes:
            raise ConfigError(f"method: {self.preset} learns classes, and task {task.name!r} names none.")
        new = self.vocabulary.missing(task.classes)
        start = self._zero_shot(new, self.settings.templates.vocabulary)
        self.prompts.add(self.seed, next(self.backbone.clip.parameters()))
        self.vocabulary.begin(task.classes, len(self.prompts) - 1, start)
        self._grow_lora()
        self._held.clear()
        self.notes["coleclip"] = {
            "templates": self.settings.templates.model_dump(),
            "momentum": self.settings.momentum,
            "classes": len(self.vocabulary),
            "recurring": len(task.classes) - len(new),
        }

    def _grow_lora(self) -> None:
        number = len(self.prompts) - 1
        drawn = key_of(self.seed, "coleclip", number) % 2**31
        grown = insert(self.backbone.clip, "lora", self.settings.lora, seed=drawn)
        self.trainable = [f"{PROMPTS}tokens.{number}", *(f"backbone.clip.{n}" for n in grown.parameters)]

    def phases(self, task: Task, past: Past) -> list[Phase]:
        """Declare one phase over the task's pictures; its second half has earlier classes as negatives."""
        self._entries, self._words = task.classes or (), None
        return super().phases(task, past)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        """The training step: cross entropy through prompt and class token, and the vocabulary's regulariser."""
        columns, vocabulary, keep = batch["main"], self.vocabulary, self.settings
        tokens = self._tokens(columns["image"])
        assert vocabulary.start is not None  # `begin_task` came first
        own = vocabulary.combined(self._texts(columns), from_start=keep.momentum is None)
        self._moved = own.detach()
        found = {"labels": self._local_or_wide(tokens, own, columns["label"], progress)}
        if keep.momentum is not None and keep.weight > 0:
            found["vocabulary"] = keep.weight * losses.distance(own, vocabulary.start)
        return found

    def _local_or_wide(
        self, tokens: torch.Tensor, own: torch.Tensor, labels: torch.Tensor, progress: Progress
    ) -> torch.Tensor:
        scale = self.backbone.logit_scale.detach()
        late = progress.step > int(self.settings.stage_two * progress.steps)
        if not late or len(self.prompts) == 1:
            return losses.local(tokens[:, -2], tokens[:, -1], own, labels, scale)
        held = self._columns(own.device)
        bank = torch.cat([own, self.vocabulary.rows[held["earlier"]]])
        visual = scale * losses.token_scores(tokens, bank, held["owned"])
        whole = scale * tokens[:, -1] @ bank.T
        kept, _ = losses.admitted(visual, len(own), held["groups"], scale, self.settings.quantile)
        return losses.with_negatives(visual, whole, len(own), labels, kept)

    def _columns(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Return what stage two knows of its columns; the same at every step of a task.

        `earlier` `(M,)`: rows that are not the task's; `owned` `(C + M, T)`: whose class is whose; `groups`
        `(T - 1, M)`: the columns of each earlier task.
        """
        if not self._held:
            vocabulary, tasks = self.vocabulary, len(self.prompts)
            assert vocabulary.place is not None
            earlier = vocabulary.earlier()
            owned = vocabulary.owned([*vocabulary.place.tolist(), *earlier.tolist()], tasks)
            groups = owned[len(vocabulary.place) :, : tasks - 1].T.contiguous()
            self._held = {"earlier": earlier, "owned": owned.to(device), "groups": groups.to(device)}
        return self._held

    def _texts(self, columns: Mapping[str, Any]) -> torch.Tensor:
        """Return unit texts of the task's classes under the LoRA `(C, D)`, with gradient."""
        if self.settings.templates.training == "first":
            return class_texts(self.backbone, columns)
        if self._words is None:
            texts = [text for entry in self._entries for text in entry.prompts()]
            self._words = self.backbone.tokenise(texts).to(columns["label"].device)
        found = self.backbone.encode_text(self._words)
        parts = torch.split(found, [len(entry.templates) for entry in self._entries])
        return torch.stack([ensemble_bank(part) for part in parts])

    def on_step(self, progress: Progress) -> None:
        """Move the vocabulary towards what the step saw before its update, as published."""
        if self.settings.momentum is not None and self._moved is not None:
            self.vocabulary.update(self._moved, self.settings.momentum)
        self._moved = None

    def on_end_task(self, task: Task, past: Past, validate: Validate) -> None:
        """Close the vocabulary and discard the LoRA; what is left is the prompt and the classes' rows."""
        if self.settings.momentum is None:
            with torch.no_grad():
                self.vocabulary.replace(self._adapted(task.classes or ()))
        lora.remove(self.backbone.clip)
        self.vocabulary.end()
        self._held.clear()
        self.trainable = self.trainable[:1]

    # -- predicting -------------------------------------------------------------------------------------------

    def encode_images(self, pixels: torch.Tensor, known_task: int | None = None) -> Features:
        """Encode images `(N, 3, S, S)`: `embedding` is the frozen class token, `tokens` `(N, T + 1, D)` all of them."""
        if not len(self.prompts):
            return super().encode_images(pixels)
        tokens = self._tokens(pixels)
        return {"embedding": tokens[:, -1].contiguous(), "tokens": tokens}

    def _tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return unit features `(N, T + 1, D)`: the mean of each prompt's output and the class token; that one last."""
        whole, outputs = task_prompts.encode(tower_of(self.backbone.clip, "image"), pixels)
        found = merged(outputs, whole)
        return F.normalize(found.to(torch.promote_types(found.dtype, torch.float32)), dim=2)

    def encode_texts(self, tokens: torch.Tensor) -> Features:
        """Encode token ids `(N, L)` with the frozen tower, also while a task is being learned."""
        with lora.asleep(self.backbone.clip):
            return super().encode_texts(tokens)

    def class_bank(self, space: LabelSpace) -> Features:
        """Return `embedding` `(C, D)`: learned rows where there are any, else `zero_shot`, the frozen texts."""
        frozen = super().class_bank(space)["embedding"]
        return {"embedding": self._known(space, frozen), "zero_shot": frozen}

    def _known(self, space: LabelSpace, frozen: torch.Tensor) -> torch.Tensor:
        rows = self.vocabulary.find(space.entries)
        learned = [column for column, row in enumerate(rows) if row is not None]
        bank = frozen.clone()
        bank[learned] = self.vocabulary.rows[[row for row in rows if row is not None]].to(bank)
        return bank

    def class_scores(self, images: Features, space: LabelSpace, bank: Features) -> torch.Tensor:
        """Return cosines `(N, C)`: a learned class with the tokens of its tasks, another with the class token."""
        rows = self.vocabulary.find(space.entries)
        if all(row is None for row in rows):
            return self.similarity(images, {"embedding": bank["zero_shot"]})
        owned = self.vocabulary.owned(rows, len(self.prompts)).to(bank["zero_shot"].device)
        # A bank may be older than the vocabulary: what never changes is kept, what was learned is looked up.
        return losses.token_scores(images["tokens"], self._known(space, bank["zero_shot"]), owned)

    def _zero_shot(self, entries: Sequence[ClassEntry], which: str) -> torch.Tensor:
        """Return frozen embeddings `(C, D)` of classes, from `all` of their templates or the `first`."""
        chosen = [
            entry if which == "all" else replace(entry, templates=entry.templates[:1]) for entry in entries
        ]
        if not chosen:
            return self.vocabulary.rows[:0]
        return super().class_bank(LabelSpace(tuple(chosen)))["embedding"]

    def _adapted(self, entries: Sequence[ClassEntry]) -> torch.Tensor:
        """Return embeddings `(C, D)` of classes under the LoRA, from all of their templates."""
        found = []
        for entry in entries:
            tokens = self.backbone.tokenise(list(entry.prompts())).to(device_of(self))
            found.append(ensemble_bank(self.backbone.encode_text(tokens)))
        return torch.stack(found)

    # -- state ------------------------------------------------------------------------------------------------

    def _changing(self) -> Weights:
        # The rows learn without a gradient, and are no buffer of the backbone.
        return super()._changing() | {ROWS: self.vocabulary.rows}

    def weights(self) -> Weights:
        """Return a copy of what outlives the task: its prompt and the vocabulary."""
        prompt = self.trainable[0]
        return {name: tensor for name, tensor in super().weights().items() if name in (prompt, ROWS)}

    def blend(
        self, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], share: float
    ) -> None:
        """Put prompt and vocabulary at `share` of the way from `before` to `after`; rows stay of unit norm."""
        super().blend(before, after, share)
        if 0 < share < 1:
            self.vocabulary.normalise()

    def structure(self) -> dict[str, Any]:
        """Return how many prompts there are, and the vocabulary without its embeddings."""
        return {"prompts": len(self.prompts), **self.vocabulary.structure()}

    def grow(self, structure: Mapping[str, Any]) -> None:
        """Rebuild prompts, vocabulary and, inside a task, the LoRA."""
        while len(self.prompts) < structure["prompts"]:
            self.prompts.add(self.seed, next(self.backbone.clip.parameters()))
        self.vocabulary.grow(structure)
        self._held.clear()
        if structure["current"] is not None:
            self._grow_lora()
        elif len(self.prompts):
            self.trainable = [f"{PROMPTS}tokens.{len(self.prompts) - 1}"]
        self.mark_trainable()

    def describe(self) -> Cost:
        """Count what a task trains, which is the same for every task, and what it leaves behind."""
        tower = tower_of(self.backbone.clip, "text")
        discarded = lora.size(tower, self.settings.lora)
        kept = self.prompts.count * self.prompts.width
        rows = self.vocabulary.rows
        cost = super().describe()
        learning = self.vocabulary.place is not None
        return replace(
            cost,
            task_parameters=0 if learning else discarded,
            held_during_task=f"LoRA: {discarded:,}; the rows of the task's classes, as they were",
            trainable_parameters=discarded + kept,
            stored_parameters=cost.stored_parameters + rows.numel(),
            active_parameters=cost.active_parameters - (discarded if learning else 0),
            bytes=cost.bytes + rows.numel() * rows.element_size(),
            growth_per_task=(
                f"{kept:,} prompt values and {rows.shape[1]:,} per new class; "
                f"{discarded:,} LoRA values while the task lasts"
            ),
        )


def merged(prompts: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Return `(N, T + 1, D)`: `(p_j + v_cls) / 2` for each task and the class token last, not of unit norm.

    Args:
        prompts: one output per task `(N, T, D)`.
        whole: the class token `(N, D)`.
    """
    return torch.cat([(prompts + whole[:, None]) / 2, whole[:, None]], dim=1)
