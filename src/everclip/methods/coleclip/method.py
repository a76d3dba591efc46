"""CoLeCLIP (Li et al. 2024, arXiv 2403.10245): a prompt per task beside a frozen CLIP, and one vocabulary for all.

A task trains its prompt and a LoRA of the text tower. The LoRA only serves to learn the vocabulary and is discarded
after the task. The prompts of a class's tasks are compared with its embedding in the vocabulary.
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

    The key identifies a class: a recurring class continues from its row and belongs to both tasks.
    """

    Settings = CoLeClipSettings
    needs = Needs(supervision=frozenset({"labels"}), transformer=True, borders=True)
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
        self._step_rows: torch.Tensor | None = None
        self._stage_two: dict[str, torch.Tensor] = {}
        self._token_ids: torch.Tensor | None = None

    @property
    def sees_past(self) -> bool:
        """Always: in stage two, the classes of earlier tasks are negatives."""
        return True

    @property
    def prompts(self) -> task_prompts.TaskPrompts:
        """The prompts of all tasks so far, which belong to the image tower."""
        return task_prompts.task_prompts_of(self.backbone.clip)

    # -- learning ---------------------------------------------------------------------------------------------

    def on_begin_task(self, task: Task, past: Past) -> None:
        """Add a prompt, grow a new text LoRA, and add the task's classes to the vocabulary.

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
        self._stage_two.clear()
        self.notes["coleclip"] = {
            "templates": self.settings.templates.model_dump(),
            "momentum": self.settings.momentum,
            "classes": len(self.vocabulary),
            "recurring": len(task.classes) - len(new),
        }

    def _grow_lora(self) -> None:
        number = len(self.prompts) - 1
        seed = key_of(self.seed, "coleclip", number) % 2**31
        grown = insert(self.backbone.clip, "lora", self.settings.lora, seed=seed)
        self.trainable = [f"{PROMPTS}tokens.{number}", *(f"backbone.clip.{n}" for n in grown.parameters)]

    def phases(self, task: Task, past: Past) -> list[Phase]:
        """Declare one phase over the task's images."""
        self._entries, self._token_ids = task.classes or (), None
        return super().phases(task, past)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        """Return the cross entropy through prompt and class token, and the vocabulary's regulariser."""
        columns, vocabulary, settings = batch["main"], self.vocabulary, self.settings
        tokens = self._tokens(columns["image"])
        assert vocabulary.start is not None  # set by `on_begin_task`
        rows = vocabulary.combined(self._texts(columns), from_start=settings.momentum is None)
        self._step_rows = rows.detach()
        losses_of_step = {"labels": self._cross_entropy(tokens, rows, columns["label"], progress)}
        if settings.momentum is not None and settings.weight > 0:
            losses_of_step["vocabulary"] = settings.weight * losses.distance(rows, vocabulary.start)
        return losses_of_step

    def _cross_entropy(
        self, tokens: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor, progress: Progress
    ) -> torch.Tensor:
        """Return the loss over the task's classes (stage one), or with earlier classes as negatives (stage two)."""
        scale = self.backbone.logit_scale.detach()
        late = progress.step > int(self.settings.stage_two * progress.steps)
        if not late or len(self.prompts) == 1:
            return losses.local(tokens[:, -2], tokens[:, -1], rows, labels, scale)
        columns = self._columns(rows.device)
        bank = torch.cat([rows, self.vocabulary.rows[columns["earlier"]]])
        visual = scale * losses.token_scores(tokens, bank, columns["membership"])
        whole = scale * tokens[:, -1] @ bank.T
        kept, _ = losses.admitted(visual, len(rows), columns["groups"], scale, self.settings.quantile)
        return losses.with_negatives(visual, whole, len(rows), labels, kept)

    def _columns(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Return the columns of stage two, which are the same at every step of a task.

        `earlier` `(M,)`: rows of earlier classes only; `membership` `(C + M, T)`: whether a class belongs to a task;
        `groups` `(T - 1, M)`: the columns of each earlier task.
        """
        if not self._stage_two:
            vocabulary, tasks = self.vocabulary, len(self.prompts)
            assert vocabulary.place is not None
            earlier = vocabulary.earlier()
            membership = vocabulary.membership([*vocabulary.place.tolist(), *earlier.tolist()], tasks)
            groups = membership[len(vocabulary.place) :, : tasks - 1].T.contiguous()
            self._stage_two = {
                "earlier": earlier,
                "membership": membership.to(device),
                "groups": groups.to(device),
            }
        return self._stage_two

    def _texts(self, columns: Mapping[str, Any]) -> torch.Tensor:
        """Return unit texts of the task's classes under the LoRA `(C, D)`, with gradient."""
        if self.settings.templates.training == "first":
            return class_texts(self.backbone, columns)
        if self._token_ids is None:
            texts = [text for entry in self._entries for text in entry.prompts()]
            self._token_ids = self.backbone.tokenise(texts).to(columns["label"].device)
        embeddings = self.backbone.encode_text(self._token_ids)
        parts = torch.split(embeddings, [len(entry.templates) for entry in self._entries])
        return torch.stack([ensemble_bank(part) for part in parts])

    def on_step(self, progress: Progress) -> None:
        """Move the vocabulary towards the embeddings from before the step's update, as published."""
        if self.settings.momentum is not None and self._step_rows is not None:
            self.vocabulary.update(self._step_rows, self.settings.momentum)
        self._step_rows = None

    def on_end_task(self, task: Task, past: Past, validate: Validate) -> None:
        """End the task in the vocabulary and discard the LoRA; the prompt and the classes' rows remain."""
        if self.settings.momentum is None:
            with torch.no_grad():
                self.vocabulary.replace(self._adapted(task.classes or ()))
        lora.remove(self.backbone.clip)
        self.vocabulary.end()
        self._stage_two.clear()
        self.trainable = self.trainable[:1]

    # -- predicting -------------------------------------------------------------------------------------------

    def encode_images(self, pixels: torch.Tensor, known_task: int | None = None) -> Features:
        """Encode images `(N, 3, S, S)`: `embedding` is the frozen class token, `tokens` `(N, T + 1, D)` holds all."""
        if not len(self.prompts):
            return super().encode_images(pixels)
        tokens = self._tokens(pixels)
        return {"embedding": tokens[:, -1].contiguous(), "tokens": tokens}

    def _tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return unit features `(N, T + 1, D)`: the mean of each prompt and the class token; the class token last."""
        whole, outputs = task_prompts.encode(tower_of(self.backbone.clip, "image"), pixels)
        tokens = merged(outputs, whole)
        return F.normalize(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), dim=2)

    def encode_texts(self, tokens: torch.Tensor) -> Features:
        """Encode token ids `(N, L)` with the frozen tower, also during a task."""
        with lora.disabled(self.backbone.clip):
            return super().encode_texts(tokens)

    def encoder_keys(self) -> dict[str, str]:
        """Return one key per tower: prompts are in the image tower, and scores look the vocabulary up anew."""
        return self.backbone.fingerprints()

    def bank_from(self, space: LabelSpace, prompts: Features) -> Features:
        """Return `zero_shot` `(C, D)`, the frozen texts, and `embedding`, the same with learned rows in place."""
        frozen = super().bank_from(space, prompts)["embedding"]
        return {"embedding": self._with_learned(space, frozen), "zero_shot": frozen}

    def _with_learned(self, space: LabelSpace, frozen: torch.Tensor) -> torch.Tensor:
        """Return a bank with the learned rows of its classes."""
        rows = self.vocabulary.find(space.entries)
        learned = [column for column, row in enumerate(rows) if row is not None]
        bank = frozen.clone()
        bank[learned] = self.vocabulary.rows[[row for row in rows if row is not None]].to(bank)
        return bank

    def class_scores(self, images: Features, space: LabelSpace, bank: Features) -> torch.Tensor:
        """Return cosines `(N, C)`: of a learned class with the tokens of its tasks, else with the class token."""
        rows = self.vocabulary.find(space.entries)
        if all(row is None for row in rows):
            return self.similarity(images, {"embedding": bank["zero_shot"]})
        membership = self.vocabulary.membership(rows, len(self.prompts)).to(bank["zero_shot"].device)
        # A bank may be older than the vocabulary: use its frozen texts, and look the learned rows up again.
        bank_now = self._with_learned(space, bank["zero_shot"])
        return losses.token_scores(images["tokens"], bank_now, membership)

    def _zero_shot(self, entries: Sequence[ClassEntry], which: str) -> torch.Tensor:
        """Return frozen embeddings `(C, D)` of classes, from `all` of their templates or the `first`."""
        chosen = [
            entry if which == "all" else replace(entry, templates=entry.templates[:1]) for entry in entries
        ]
        if not chosen:
            return self.vocabulary.rows[:0]
        return self.class_bank(LabelSpace(tuple(chosen)))["zero_shot"]

    def _adapted(self, entries: Sequence[ClassEntry]) -> torch.Tensor:
        """Return embeddings `(C, D)` of classes under the LoRA, from all of their templates."""
        embeddings = []
        for entry in entries:
            tokens = self.backbone.tokenise(list(entry.prompts())).to(device_of(self))
            embeddings.append(ensemble_bank(self.backbone.encode_text(tokens)))
        return torch.stack(embeddings)

    # -- state ------------------------------------------------------------------------------------------------

    def _changing(self) -> Weights:
        # The rows learn without a gradient, and are not a buffer of the backbone.
        return super()._changing() | {ROWS: self.vocabulary.rows}

    def weights(self) -> Weights:
        """Return a copy of what remains after the task: its prompt and the vocabulary."""
        prompt = self.trainable[0]
        return {name: tensor for name, tensor in super().weights().items() if name in (prompt, ROWS)}

    def blend(
        self, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], share: float
    ) -> None:
        """Interpolate prompt and vocabulary between `before` and `after`; rows keep unit norm."""
        super().blend(before, after, share)
        if 0 < share < 1:
            self.vocabulary.normalise()

    def structure(self) -> dict[str, Any]:
        """Return the number of prompts, and the vocabulary without its embeddings."""
        return {"prompts": len(self.prompts), **self.vocabulary.structure()}

    def grow(self, structure: Mapping[str, Any]) -> None:
        """Rebuild prompts, vocabulary and, inside a task, the LoRA."""
        while len(self.prompts) < structure["prompts"]:
            self.prompts.add(self.seed, next(self.backbone.clip.parameters()))
        self.vocabulary.grow(structure)
        self._stage_two.clear()
        if structure["current"] is not None:
            self._grow_lora()
        elif len(self.prompts):
            self.trainable = [f"{PROMPTS}tokens.{len(self.prompts) - 1}"]
        self.mark_trainable()

    def describe(self) -> Cost:
        """Count what a task trains (the same for every task) and what remains after it."""
        tower = tower_of(self.backbone.clip, "text")
        discarded = lora.size(tower, self.settings.lora)
        kept = self.prompts.count * self.prompts.width
        rows = self.vocabulary.rows
        cost = super().describe()
        learning = self.vocabulary.place is not None
        return replace(
            cost,
            task_parameters=0 if learning else discarded,
            held_during_task=f"LoRA: {discarded:,}; a copy of the rows of the task's classes",
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
