"""MoE-Adapters (Yu et al. 2024, arXiv 2403.11549): experts beside every MLP of a frozen CLIP, one router per task.

A task trains its router and the experts that are not frozen; the experts that it used most are frozen after it. A
selector recognises images of learned tasks; all others take the model without experts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from everclip.contracts import Batch, Cost, Features, LabelSpace, Needs, Past, Phase, Progress, Task, Validate
from everclip.data.sampling.order import key_of
from everclip.errors import ConfigError
from everclip.methods.frozen import class_texts, embeddings
from everclip.methods.merge import Weights
from everclip.methods.moe_adapters import shape
from everclip.methods.moe_adapters.passes import training_passes
from everclip.methods.moe_adapters.predicting import encode_images, scores_by_route, texts_through
from everclip.methods.moe_adapters.settings import MoeSettings, moves_features
from everclip.methods.penalties.teachers import INITIAL
from everclip.methods.selectors.base import ZERO_SHOT, route_names
from everclip.methods.selectors.build import build as build_selector
from everclip.methods.slots import SlotMethod
from everclip.models.backbone import Backbone
from everclip.models.fingerprint import tensors_hash
from everclip.models.modules.expert_bank import KEPT
from everclip.models.modules.experts import experts_in
from everclip.models.modules.grow import insert
from everclip.models.modules.routing import Pass, current_pass, passing
from everclip.models.modules.towers import Side, tower_of

PREFIX = "backbone.clip."
_IMAGE_BLOCK = re.compile(rf"{re.escape(PREFIX)}visual\.transformer\.resblocks\.(\d+)\.")


class Learned(NamedTuple):
    """A task learned or being learned, and whether its texts take experts."""

    number: int
    name: str
    texts: bool


class MoeAdapters(SlotMethod):
    """Routes: 0 is the model without experts, 1 + t the t-th task learned (or all of them, with one router).

    A caption does not reveal its task. So with one router per task, captions take no experts, neither in training nor
    afterwards. With classes, both towers use experts, and each image is compared with the class texts of its route.
    """

    Settings = MoeSettings
    needs = Needs(transformer=True, borders=True)
    reads_embeddings = True
    contrasts = True
    gathers = True
    settings: MoeSettings

    def __init__(self, backbone: Backbone, settings: MoeSettings, seed: int = 0) -> None:
        super().__init__(backbone, settings, seed)
        self._other_parts = list(self.trainable)
        insert(backbone.clip, "experts", settings.experts, seed=seed)
        first = [e.number for _, e in experts_in(backbone.clip, "image")]
        self.selector = build_selector(settings.selecting, backbone, first[0] if first else 0)
        self._require_fixed_features()
        self.tasks: list[Learned] = []
        self._labelled = False
        self._same = self._has_start_token()
        self._choose()

    def _require_fixed_features(self) -> None:
        """Check that no block trains before the one whose input the selector reads; settings check the other parts."""
        first = 0 if self.selector is None else self.selector.early or 0
        for name in self._other_parts:
            block = _IMAGE_BLOCK.match(name)
            if block is not None and int(block[1]) < first:
                raise ConfigError(f"method.{moves_features(f'image-blocks:{block[1]}', 'early')}.")

    def _has_start_token(self) -> bool:
        """Return whether all texts begin with the same token; it attends only to itself, so there is one gate."""
        root = tower_of(self.backbone.clip, "text").root
        first = self.backbone.tokenise(["a", "the end"])[:, 0]
        return getattr(root, "attn_mask", None) is not None and bool(first[0] == first[1])

    @property
    def uses_known_task(self) -> bool:
        """Whether predictions use the known task of a protocol."""
        return self.settings.routers == "per-task"

    @property
    def batch_dependent(self) -> str | None:
        """Why predictions depend on the rest of the batch; `None` if they do not."""
        return None if self.selector is None else self.selector.batch_dependent

    @property
    def prediction_batch(self) -> int | None:
        """The number of images that take one route together, if the selector decides for several at once."""
        return None if self.selector is None else self.selector.settings.decision_batch

    def routes(self) -> tuple[str, ...]:
        """Return the names of the routes."""
        if self.settings.routers == "one":
            return (ZERO_SHOT, "experts")
        return route_names([task.name for task in self.tasks])

    def expert_places(self) -> tuple[str, ...]:
        """Return the names of the image blocks with experts."""
        return tuple(f"image block {e.number}" for _, e in experts_in(self.backbone.clip, "image"))

    # -- learning ---------------------------------------------------------------------------------------------

    @property
    def _routers(self) -> tuple[str, ...]:
        """The names of the routers, in the order of their routes."""
        count = min(len(self.tasks), 1) if self.settings.routers == "one" else len(self.tasks)
        return tuple(str(i) for i in range(count))

    def on_begin_task(self, task: Task, past: Past) -> None:
        """Add a router, and experts if too few still learn."""
        texts = self.settings.routers == "one" or self.uses_labels(task)
        self.tasks.append(Learned(task.index, task.name, texts))
        learning = shape.learning(self.backbone.clip)
        shape.begin_task(self.backbone.clip, self._routers[-1], self.settings.grow)
        self.to(next(self.backbone.parameters()).device)
        self._choose()
        if not self.trainable:
            raise ConfigError(
                f"method: nothing trains on task {task.name!r}, because it has captions: captions do not reveal their "
                "task, so they take no experts. Set method.experts.tower=both or image, or method.routers=one."
            )
        self._reshape_initial(learning)
        if self.selector is not None:
            self.selector.begin_task(self.backbone, task, past)

    def _choose(self) -> None:
        """Decide which parameters train, and tell the penalties."""
        routers = self._routers
        texts = self.tasks[-1].texts if self.tasks else True
        names = shape.trainable(self.backbone.clip, routers[-1] if routers else None, texts)
        self.trainable = [*self._other_parts, *(PREFIX + name for name in names)]
        for penalty in self.penalties:
            penalty.prepare(self.backbone, self.trainable)
        self.mark_trainable()

    def _reshape_initial(self, learning: Mapping[str, Sequence[int]]) -> None:
        """Bring the `initial` weights into the current shape; `learning` is the shape that they have."""
        if INITIAL in self._anchors:
            before, after = (
                {PREFIX + bank: experts for bank, experts in rows.items()}
                for rows in (learning, shape.learning(self.backbone.clip))
            )
            now = self._snapshot()
            self._anchors[INITIAL] = shape.reshape_anchors(self._anchors[INITIAL], before, now, after)

    def prepare_teacher(self, teacher: Backbone) -> None:
        """Make the model of the task's start use only the routers that it had, not the new one, which is untrained.

        With one router for all tasks it uses this router; with a router per task, none: it then predicts as for images
        of no learned task, because the texts of a step belong to one route.
        """
        known = self.settings.routers == "one" and len(self.tasks) > 1
        shape.fix_route(teacher.clip, "0" if known else None, self._same)

    def _changing(self) -> Weights:
        # Leave frozen experts out of merging: interpolating even equal weights would round.
        return {name: tensor for name, tensor in super()._changing().items() if f".{KEPT}" not in name}

    def teacher_size(self) -> int:
        """Return the number of parameters of a copy of the task's start; it has no experts with a router per task."""
        has_experts = self.settings.routers == "one" and self.tasks
        experts = sum(p.numel() for _, e in experts_in(self.backbone.clip) for p in e.parameters())
        return super().teacher_size() - (0 if has_experts else experts)

    def phases(self, task: Task, past: Past) -> list[Phase]:
        """Declare one phase over the task's samples, and the phases of the selector."""
        of_selector = [] if self.selector is None else self.selector.phases(task, past)
        return [*super().phases(task, past), *of_selector]

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        """Return the losses of the slots through this task's router, and the balance loss if it has a weight."""
        if self.selector is not None and self.selector.owns(batch):
            losses: dict[str, torch.Tensor] = self.selector(self.backbone, batch, progress)
            return losses
        columns, router, texts = batch["main"], self._routers[-1], self.tasks[-1].texts
        passes = training_passes(
            self.backbone.clip, columns, progress, router, texts, self.settings.balance > 0
        )
        with passing(passes):
            encoded = columns | self._encoded(columns)
        # Further inputs that penalties encode take the same router, without noise.
        quiet: dict[Side, Pass] = {side: Pass((router,), counts=False) for side in passes}
        with passing(quiet):
            losses = super().forward({**batch, "main": encoded}, progress)
        imbalances = [value for routing in passes.values() for value in routing.imbalances]
        if not imbalances:
            return losses
        return losses | {"balance": self.settings.balance * torch.stack(imbalances).sum()}

    def _encoded(self, columns: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return the embeddings of a step."""
        image = embeddings(self.backbone, "image", columns, "image")
        self._labelled = "label" in columns
        if not self._labelled:
            return {
                "image_embedding": image,
                "text_embedding": embeddings(self.backbone, "text", columns, "tokens"),
            }
        return {"image_embedding": image, "class_embedding": class_texts(self.backbone, columns)}

    def on_step(self, progress: Progress) -> None:
        """Count the samples that each expert received."""
        shape.reduce_counts(self.backbone.clip, shared_texts=self._labelled)

    def on_end_phase(self, task: Task, phase: Phase) -> None:
        """Let the selector compute its scale or threshold."""
        if self.selector is not None:
            self.selector.end_phase(phase)

    def on_end_task(self, task: Task, past: Past, validate: Validate) -> None:
        """Freeze the experts that the task used most."""
        learning = shape.learning(self.backbone.clip)
        self.notes["experts"] = shape.end_task(self.backbone.clip, self.settings.freeze)
        if self.selector is not None:
            self.notes["selector"] = dict(self.selector.notes)
        self._choose()
        self._reshape_initial(learning)

    # -- predicting -------------------------------------------------------------------------------------------

    def _route(self, known_task: int | None) -> int | None:
        """Return the route if it is known; `None`: the selector decides."""
        if self.settings.routers == "one":
            return len(self._routers)
        if known_task is None:
            return None
        learned = [task.number for task in self.tasks]
        return 1 + learned.index(known_task) if known_task in learned else 0

    def encode_images(self, pixels: torch.Tensor, known_task: int | None = None) -> Features:
        """Encode images `(N, 3, S, S)`, each on its route."""
        route = self._route(known_task)
        return encode_images(self.backbone, pixels, self._routers, route, self.selector)

    def encode_texts(self, tokens: torch.Tensor) -> Features:
        """Encode token ids `(N, L)`, with experts if there is one router for all tasks, else without."""
        if current_pass("text") is not None:  # inside `_bank`
            return super().encode_texts(tokens)
        route = len(self._routers) if self.settings.routers == "one" else 0
        with texts_through(self._routers, route, self._same):
            return super().encode_texts(tokens)

    def class_scores(self, images: Features, space: LabelSpace, bank: Features) -> torch.Tensor:
        """Return scores `(N, C)`: cosines with the class texts of each image's route."""
        if self.settings.routers == "one" or "route" not in images:
            return super().class_scores(images, space, bank)
        return scores_by_route(images, bank, lambda route: self._bank(route, space))

    def _bank(self, route: int, space: LabelSpace) -> torch.Tensor:
        with texts_through(self._routers, route if self.tasks[route - 1].texts else 0, self._same):
            return super().class_bank(space)["embedding"]

    def blend(
        self, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], share: float
    ) -> None:
        """Interpolate between `before` and `after`; experts that were frozen in between stay as they are."""
        common = {n: t for n, t in after.items() if n in before and before[n].shape == t.shape}
        super().blend({n: before[n] for n in common}, common, share)

    def encoder_keys(self) -> dict[str, str]:
        """Return one key per tower; that of images covers selector, its settings and routers, which decide routes."""
        keys = self.backbone.fingerprints()
        tensors = [] if self.selector is None else list(self.selector.state_dict().items())
        settings = None if self.selector is None else self.selector.settings.model_dump_json()
        routing = key_of(tensors_hash(tensors), settings, self.settings.routers, *self._routers)
        keys["image"] += f"{routing:032x}"[:16]
        return keys

    # -- state ------------------------------------------------------------------------------------------------

    def structure(self) -> dict[str, Any]:
        """Return the grown shape as JSON."""
        selector = None if self.selector is None else self.selector.structure()
        blocks = shape.structure(self.backbone.clip)
        return {"tasks": [list(task) for task in self.tasks], "blocks": blocks, "selector": selector}

    def grow(self, structure: Mapping[str, Any]) -> None:
        """Rebuild the shape that `structure` described, before tensors are loaded."""
        self.tasks = [Learned(*task) for task in structure["tasks"]]
        shape.reshape(self.backbone.clip, structure["blocks"])
        if self.selector is not None:
            self.selector.grow(structure["selector"])
        self._choose()

    def describe(self) -> Cost:
        """Count parameters; frozen experts are buffers and count as stored."""
        cost, clip = super().describe(), self.backbone.clip
        grown, frozen = shape.stored(clip), shape.frozen(clip)
        blocks = [experts for _, experts in experts_in(clip)]
        routers, expert = (sum(map(size, blocks)) for size in (shape.one_router, shape.one_expert))
        per_task = routers if self.settings.routers == "per-task" else 0
        growth = [f"{per_task:,} parameters of routers"] if per_task else []
        growth += [f"{expert:,} per expert that is added to all blocks"] if self.settings.grow else []
        selector_tensors = [] if self.selector is None else self.selector.stored()
        if self.selector is not None and self.tasks:
            growth.append(f"{self.selector.growth():,} of the selector")
        growth += [cost.growth_per_task] if cost.growth_per_task != "none" else []
        return replace(
            cost,
            # The first task adds the first router.
            trainable_parameters=cost.trainable_parameters + (0 if self.tasks else routers),
            stored_parameters=cost.stored_parameters + frozen + sum(t.numel() for t in selector_tensors),
            active_parameters=cost.active_parameters + frozen - grown + shape.active(clip),
            bytes=cost.bytes
            + next(clip.parameters()).element_size() * frozen
            + sum(t.numel() * t.element_size() for t in selector_tensors),
            growth_per_task="; ".join(growth) or "none",
        )
