"""CLL-CLIP with TEIR: one language after the other (Yang et al., AAAI 2024, arXiv 2401.17186).

Each language adds tokens to the vocabulary and rows to the token embedding. Only the rows that its captions use train,
towards a frozen teacher's embeddings of the source captions and of the images; so the image tower never runs in
training, and all other rows keep their bits. TEIR draws new rows from the distribution of the table (initialisation),
and divides gradient and weight decay of a row by the number of languages that have used it (regularisation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from everclip.config import TrainingConfig
from everclip.contracts import (
    Batch,
    Cost,
    Needs,
    ParamGroup,
    Past,
    Phase,
    Progress,
    RowScale,
    Source,
    Stream,
    Task,
    Validate,
)
from everclip.data.sampling.order import key_of
from everclip.data.table import Table
from everclip.distributed import from_first
from everclip.errors import DataError
from everclip.features.encoding import device_of
from everclip.methods.base import Method
from everclip.methods.cll_clip.keeping import Keeping
from everclip.methods.cll_clip.languages import caption_tables, captions_of, compared, cut_share
from everclip.methods.cll_clip.losses import masked_mse, to_fixed
from everclip.methods.cll_clip.rows import factors, new_counts, new_rows
from everclip.methods.cll_clip.settings import CllClipSettings
from everclip.methods.gradient_pass import measure, measuring_phases
from everclip.methods.layer_decay import scaled, with_layer_decay
from everclip.methods.penalties.teachers import INITIAL, Teachers
from everclip.methods.task_training import with_task_training
from everclip.methods.trainable import choose, decay_groups
from everclip.models.backbone import Backbone
from everclip.models.modules.grow import insert
from everclip.models.modules.short_texts import short_texts
from everclip.models.modules.token_rows import (
    embedding_of,
    has_rows,
    put_rows_back,
    require_end_pooling,
    take_rows,
)
from everclip.models.vocabulary import Vocabulary, require_growable, train_vocabulary, used_ids
from everclip.training.buffer import Buffer

BATCH = 128
"""Batch size without a training configuration."""

LEAST, MOST = 0.001, 0.5
"""Bounds of the learned temperature."""

SOURCE, IMAGE = f"source_raw@{INITIAL}", f"image_raw@{INITIAL}"
MEMORY = "memory"

_ON: dict[str, frozenset[Any]] = {
    "both": frozenset({"gradient", "decay"}),
    "gradient": frozenset({"gradient"}),
    "decay": frozenset({"decay"}),
    "update": frozenset({"update", "decay"}),
}

NO_SOURCE = (
    "cll-clip: the data name no source captions (the column `source_caption`, which scenario.kind=languages adds), so "
    "the teacher reads the captions themselves"
)


class CllClip(Method):
    """Languages as rows of the token embedding.

    Buffers: `counts` `(V,)`, how many languages have used a token before this task; `uses` `(V,)`, how many use it in
    this task; `row_scale` `(n, 1)`, the factors of the rows that train.
    """

    Settings = CllClipSettings
    # A language's vocabulary grows from its captions before the first step.
    needs = Needs(supervision=frozenset({"captions"}), borders=True)
    in_chunks = True
    settings: CllClipSettings
    counts: torch.Tensor
    uses: torch.Tensor
    row_scale: torch.Tensor

    def __init__(self, backbone: Backbone, settings: CllClipSettings, seed: int = 0) -> None:
        super().__init__(backbone, settings, seed)
        embedding = embedding_of(backbone.clip)
        if settings.vocabulary.size:
            require_end_pooling(backbone.clip)
        self._base = require_growable(backbone.tokenizer, backbone.name)
        self.teachers = Teachers(backbone, {INITIAL})  # before anything grows
        for name, module in settings.modules:
            insert(backbone.clip, name, module, seed=seed, tokenise=backbone.tokenise)
        chosen = choose(backbone.clip, settings.parts)
        self._further = [f"backbone.clip.{n}" for n in chosen if not n.endswith("token_embedding.weight")]
        self.tau = nn.Parameter(torch.tensor(settings.temperature))
        self.vocabularies: list[Vocabulary] = []
        self._ends: list[tuple[str, int]] = []
        self.register_buffer("counts", torch.ones(len(embedding.weight)))
        self.register_buffer("uses", torch.zeros(len(embedding.weight)))
        self.register_buffer("row_scale", torch.zeros(0, 1))
        replay = settings.replay
        self.buffer = None if replay.kind == "none" else Buffer(replay.kind, replay.size, seed)
        self._stored = torch.zeros(0)
        self._keeping = Keeping(settings.penalties)
        self._name_trainable()

    def uses_labels(self, task: Task) -> bool:
        """Return false: it learns from captions, also where a task names its classes."""
        return False

    def check_task(self, task: Task) -> None:
        """Check that a task has texts.

        Raises:
            DataError: if a language of it has none.
        """
        for name, table in caption_tables(task):
            if not captions_of(table):
                raise DataError(
                    f"task {task.name!r}: no caption of {name!r} holds text, so there is nothing to learn a vocabulary "
                    "from; leave the language out."
                )

    # -- learning ---------------------------------------------------------------------------------------------

    def on_begin_task(self, task: Task, past: Past) -> None:
        """Grow the vocabulary by that of each language of the task, and take out the rows that it trains."""
        clip = self.backbone.clip
        put_rows_back(clip)
        self.check_task(task)
        tables = caption_tables(task)
        for name, table in tables:
            if self.settings.vocabulary.size:
                self._add_language(name, captions_of(table), task.index)
        replayed = self._replayed(past)
        stored = [] if replayed is None else [t for _, t in caption_tables(Task(-1, "stored", replayed))]
        self.uses = torch.zeros_like(self.counts)
        for table in [*(table for _, table in tables), *stored]:
            self.uses[sorted(used_ids(self._tokenizer, captions_of(table)))] += 1
        self._take_rows()
        with torch.no_grad():
            self.tau.fill_(self.settings.temperature)
        self._name_trainable()
        self._ends.append((task.name, len(self.vocabularies)))
        self._record(task, tables, past)

    def _begin_slots(self, task: Task, past: Past) -> None:
        self._keeping.begin(self, self._kept, self.backbone, task, past)

    def _end_slots(self, task: Task, past: Past, validate: Validate) -> None:
        self._keeping.end(self.backbone, task, past)

    @property
    def _kept(self) -> list[str]:
        """The parameters that penalties keep; the temperature starts anew with each task."""
        return [name for name in self.trainable if name != "tau"]

    def _slot_phases(self, phases: Sequence[Phase]) -> list[Phase]:
        return measuring_phases(self._keeping.penalties, phases, self._kept)

    def _measure_slots(self, progress: Progress) -> None:
        measure(self._keeping.penalties, self, progress)

    @property
    def _tokenizer(self) -> Any:
        return self.backbone.tokenizer

    def _add_language(self, name: str, texts: list[str], task: int) -> None:
        wanted = self.settings.vocabulary
        vocabulary = train_vocabulary(self._tokenizer, texts, name, wanted.size, wanted.min_frequency)
        table = embedding_of(self.backbone.clip).weight
        draw = torch.Generator().manual_seed(key_of(self.seed, "token rows", task, name) % 2**63)
        self.backbone.grow_vocabulary(
            vocabulary, new_rows(table, len(vocabulary.tokens), self.settings.init, draw)
        )
        self.counts = new_counts(self.counts, len(vocabulary.tokens), not self.vocabularies)
        self.vocabularies.append(vocabulary)

    def _take_rows(self) -> None:
        """Compute the factors of the rows, and take out those that train."""
        specials = torch.zeros_like(self.uses, dtype=torch.bool)
        specials[list(self._tokenizer.all_special_ids)] = True
        used = self.uses > 0
        used = used | specials if self.settings.train_specials else used & ~specials
        scale = factors(self.settings.factor, used, self.counts, self.settings.k)
        if not self.settings.compact:
            self.row_scale = scale[:, None]
            return
        # With factors on the decay alone, the gradient of start and end is not masked.
        trained = used | specials if self.settings.rows == "decay" else used
        ids = trained.nonzero()[:, 0]
        self.row_scale = scale[ids][:, None]
        take_rows(self.backbone.clip, ids)

    def _name_trainable(self) -> None:
        contrasts = "contrastive" in (
            self.settings.text_loss if self.settings.text_weight else "",
            self.settings.image_loss if self.settings.image_weight else "",
        )
        self.trainable = [self._rows_name(), *(["tau"] if contrasts else []), *self._further]

    def _rows_name(self) -> str:
        kind = "rows" if has_rows(self.backbone.clip) else "weight"
        end = f"token_embedding.{kind}"
        return next(name for name, _ in self.named_parameters() if name.endswith(end))

    def _record(self, task: Task, tables: list[tuple[str, Table]], past: Past) -> None:
        """Note what the task's languages added, and what they did to the captions of earlier ones."""
        own = {name: captions_of(table) for name, table in tables}
        earlier = [(t.name, captions_of(t.train)) for t in past.tasks]
        self.notes["languages"] = compared(self._base, self.vocabularies, self._ends, own, earlier)

    def phases(self, task: Task, past: Past) -> list[Phase]:
        """Declare one phase on the task's captions, with a second stream of stored ones."""
        training, settings = past.training, self.settings
        columns = ["tokens", "text_length"]
        columns += [SOURCE] if settings.text_weight else []
        columns += [IMAGE] if settings.image_weight else []
        size = training.batch_size if training else BATCH
        streams = {"main": Stream((Source(task.train),), size, columns=tuple(columns))}
        stored = self._replayed(past)
        if stored is not None:
            share = settings.replay.share
            of_teacher = (SOURCE,) if settings.replay.target == "teacher" else ()
            beside = Stream(
                (Source(stored),),
                max(1, round(size * share / (1 - share))),
                columns=("tokens", "text_length", *of_teacher),
            )
            streams[MEMORY] = beside
        phase = Phase("train", streams, self._groups(training), notes=self._phase_notes(task))
        return [with_task_training(phase, task, self.per_task)]

    def _groups(self, training: TrainingConfig | None) -> tuple[ParamGroup, ...]:
        rows, *others = self.trainable
        on = _ON.get(self.settings.rows)
        fits = len(self.row_scale) == len(self.get_parameter(rows))  # not in a plan before the first task
        scale = RowScale("row_scale", on) if on and fits else None
        groups = (
            ParamGroup((rows,), row_scale=scale),
            *([ParamGroup(("tau",), weight_decay=0.0)] if "tau" in others else []),
            *with_layer_decay(
                decay_groups([n for n in others if n != "tau"], self),
                self.backbone.clip,
                training.layer_decay if training else 1.0,
                "backbone.clip.",
            ),
        )
        return scaled(groups, self.lr_scale)

    def _phase_notes(self, task: Task) -> tuple[str, ...]:
        notes = [] if task.train.has("source_caption") or not self.settings.text_weight else [NO_SOURCE]
        cut = cut_share(self._tokenizer, captions_of(task.train))
        if cut > 0.05:
            notes.append(
                f"task {task.name!r}: {100 * cut:.0f} % of its captions are longer than the "
                f"{self._tokenizer.context_length} tokens that the model reads; their ends are cut off"
            )
        return tuple(notes)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        """Return the losses from captions to the teacher's embeddings; stored captions have a loss of their own."""
        main, memory, settings = batch["main"], batch.get(MEMORY), self.settings
        parts = [main] if memory is None else [main, memory]
        lengths: list[Any] = [part.get("text_length") for part in parts]
        most = None if None in lengths else max(lengths)
        with short_texts(self.backbone.clip, most):
            student = self.backbone.encode_text(torch.cat([p["tokens"] for p in parts]), unit=False).float()
        own = student[: len(main["tokens"])]
        losses = {}
        if settings.text_weight:
            # Captions of one image share it, but not always its source caption: only they themselves are positives.
            text = to_fixed(settings.text_loss, own, main[SOURCE], self.tau, None, main["text_key"])
            losses["text"] = settings.text_weight * text
        if settings.image_weight:
            keys = main["image_key"], main["text_key"]
            image = to_fixed(settings.image_loss, own, main[IMAGE], self.tau, *keys)
            losses["image"] = settings.image_weight * image
        if memory is not None:
            losses["memory"] = masked_mse(student[len(own) :], self._memory_targets(memory))
        return losses | self._keeping.losses(self, batch, progress, self.backbone, own, self.teachers)

    def _memory_targets(self, memory: Mapping[str, Any]) -> torch.Tensor:
        if self.settings.replay.target == "teacher":
            found: torch.Tensor = memory[SOURCE]
            return found
        assert self.buffer is not None
        place = {_key(origin, name): i for i, (origin, name, _) in enumerate(self.buffer.items)}
        rows = torch.tensor([place[name] for name in memory["id"]], dtype=torch.int64)
        return self._stored[rows].to(memory["tokens"].device)

    def on_step(self, progress: Progress) -> None:
        """Bound the temperature."""
        with torch.no_grad():
            self.tau.clamp_(LEAST, MOST)

    def on_end_task(self, task: Task, past: Past, validate: Validate) -> None:
        """Count the languages that used each token, and offer the task's captions to the buffer."""
        self.counts = self.counts + self.uses
        self.uses = torch.zeros_like(self.uses)
        self.store(task, past)

    def store(self, task: Task, past: Past | None = None) -> None:
        """Offer a task's captions to the buffer, with the student's embeddings if they are the target."""
        if self.buffer is None:
            return
        before = {item[:2]: row for item, row in zip(self.buffer.items, self._stored, strict=False)}
        self.buffer.offer(f"task {task.index}", task.train)
        if self.settings.replay.target == "teacher":
            return
        row_of = {name: i for i, name in enumerate(task.train.ids)}
        new = [item for item in self.buffer.items if item[:2] not in before]
        captions = [task.train.value("caption", row_of[item[1]]) for item in new]
        known = before | dict(zip([item[:2] for item in new], self._raw(captions), strict=True))
        self._stored = torch.stack([known[item[:2]].cpu() for item in self.buffer.items])

    def _raw(self, captions: list[str]) -> torch.Tensor:
        """Return the student's embeddings `(N, D)` of captions, not of unit length, equal on all processes."""
        blocks = [captions[i : i + 256] for i in range(0, len(captions), 256)]
        device = device_of(self)
        with torch.no_grad():
            parts = [
                self.backbone.encode_text(self.backbone.tokenise(b).to(device), unit=False) for b in blocks
            ]
        return from_first(torch.cat(parts).float().cpu()) if parts else torch.zeros(0)

    def _replayed(self, past: Past) -> Table | None:
        """Return the stored captions under ids that are unique among languages; `None` if there are none."""
        if self.buffer is None or not len(self.buffer):
            return None
        table = self.buffer.rows({f"task {task.index}": task.train for task in past.tasks})
        assert table is not None
        origins = dict.fromkeys(item[0] for item in self.buffer.items)
        ids = [_key(o, name) for o in origins for origin, name, _ in self.buffer.items if origin == o]
        return table.with_column("id", ids)

    # -- state ------------------------------------------------------------------------------------------------

    def teacher_of(self, kind: str) -> Backbone:
        """Return the frozen start model, on the method's device."""
        return self.teachers.of(kind, self.backbone)

    @property
    def teacher_parameters(self) -> int:
        """The number of parameters of the frozen start model."""
        return self.teachers.parameters()

    def structure(self) -> dict[str, Any]:
        """Return the vocabularies, and the number of rows that are taken out."""
        rows = len(self.get_parameter(self._rows_name())) if has_rows(self.backbone.clip) else None
        return {
            "vocabularies": [vocabulary.document() for vocabulary in self.vocabularies],
            "ends": [list(end) for end in self._ends],
            "rows": rows,
            "factors": len(self.row_scale),
        }

    def grow(self, structure: Mapping[str, Any]) -> None:
        """Rebuild the vocabularies, and the shapes of the token embedding and of the buffers."""
        for document in structure["vocabularies"]:
            vocabulary = Vocabulary.of(document)
            self.backbone.grow_vocabulary(vocabulary)
            self.vocabularies.append(vocabulary)
        self._ends = [(str(name), int(end)) for name, end in structure["ends"]]
        self.counts = self.counts.new_ones(len(embedding_of(self.backbone.clip).weight))
        self.uses = torch.zeros_like(self.counts)
        self.row_scale = self.row_scale.new_zeros(structure["factors"], 1)
        if structure["rows"] is not None:
            take_rows(self.backbone.clip, range(structure["rows"]))
        self._name_trainable()

    def extra_tensors(self) -> dict[str, torch.Tensor]:
        """Return the stored embeddings of the buffer's captions, and what penalties hold."""
        stored = {"stored": self._stored} if len(self._stored) else {}
        return stored | self._keeping.tensors()

    def extra_state(self) -> dict[str, Any]:
        """Return the buffer, and the fingerprints of the teacher."""
        buffer = None if self.buffer is None else self.buffer.state()
        return {"buffer": buffer, "start_model": self.teachers.fingerprints()} | super().extra_state()

    def load_extra(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Restore what `extra_tensors` and `extra_state` returned."""
        super().load_extra(tensors, state)
        self.teachers.require(state.get("start_model", {}))
        self._stored = tensors["stored"].cpu() if "stored" in tensors else torch.zeros(0)
        self._keeping.load(tensors, self._kept, self.backbone)
        if self.buffer is not None and state.get("buffer") is not None:
            self.buffer.restore(state["buffer"])

    def describe(self) -> Cost:
        """Count parameters and bytes."""
        return replace(
            super().describe(),
            growth_per_task="the rows of the new tokens of its language, and one count each",
        )


class CllClipJoint(CllClip):
    """All languages at once: their vocabularies grow one after the other, then all captions are learned together."""

    needs = Needs(supervision=frozenset({"captions"}), all_tasks_at_once=True)


def _key(origin: str, name: str) -> str:
    return f"{origin}|{name}"
