"""Before an update: how well the version that serves does on new data, and how far they lie from what it knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from everclip.config import EvaluationConfig
from everclip.data.table import Table
from everclip.diagnosis.seen import see
from everclip.errors import ConfigError
from everclip.features.encoder import image_encoder
from everclip.features.pictures import Pictures
from everclip.learner.core import Learner
from everclip.learner.tasks import make_task
from everclip.store.drift import Drift, drift
from everclip.store.foreseen import Foreseen, foresee
from everclip.store.learning import learner_of, require_settings
from everclip.store.records import Learning
from everclip.store.sizing import sized
from everclip.store.update_data import UpdateData, measured, read_update
from everclip.store.versions import Store


@dataclass(frozen=True)
class Slice:
    """New data, or a part of them, before the update.

    Attributes:
        name: of the part.
        rows: its held-out rows.
        score: of the version that serves.
        drift: against what was measured so far; `None` with too few images.
    """

    name: str
    rows: int
    score: float
    drift: Drift | None


@dataclass(frozen=True)
class Outlook:
    """What is known before an update: is it worth it?

    Attributes:
        metric: what `score` is.
        known: mean score on probes and held-out data of earlier updates; `None` without any.
        slices: the new data, then parts of them.
        rows, held_out: rows to learn from, and rows that are only measured.
        notes: what is to be said about the data.
        takes: what the update would take; `None` after one.
    """

    metric: str
    known: float | None
    slices: list[Slice]
    rows: int
    held_out: int
    notes: list[str] = field(default_factory=list)
    takes: Foreseen | None = None


def outlook(
    store: Store, data: str | Table, slices: Sequence[str] = (), learning: Learning | None = None
) -> Outlook:
    """Say, before an update, how well the version that serves does on new data, and how far they differ.

    Args:
        store: the store.
        data: the new data.
        slices: columns whose values make parts.
        learning: how the update would learn, if that differs from the settings of the store.
    """
    parent = store.current.version
    require_settings(store.settings, learning or Learning())
    read = read_update(store, data, parent)
    old = store.load(parent)
    learner = learner_of(store, parent, sized(store.settings, learning, len(read.learn), old))
    found = outlook_of(old, read, slices)
    return replace(found, takes=foresee(learner, make_task(read.learn)))


def outlook_of(learner: Learner, data: UpdateData, columns: Sequence[str] = ()) -> Outlook:
    """Return the outlook of data that were read, without what the update would take.

    Args:
        learner: the version that serves.
        data: the new data.
        columns: whose values make parts.

    Raises:
        ConfigError: if the data lack such a column.
    """
    seen = see(learner, measured([*data.kept, data.new]), (), EvaluationConfig(), 0)
    metric = seen[data.new.name].metric
    outcomes = seen[data.new.name].outcomes[metric]
    images = _embeddings(learner, data.new.data)
    known = [_embeddings(learner, s.data) for s in data.kept]
    reference = torch.cat(known) if known else None

    def part(name: str, rows: list[int]) -> Slice:
        score = (
            float(outcomes[rows].mean()) if len(outcomes) == len(data.new.data) else float(outcomes.mean())
        )
        return Slice(name, len(rows), score, None if reference is None else drift(reference, images[rows]))

    slices = [part("all new data", list(range(len(data.new.data))))]
    for column in columns:
        if not data.new.data.has(column):
            raise ConfigError(
                f"--slice: the data have no column {column!r}; there are {', '.join(data.new.data.column_names)}."
            )
        values = [str(value) for value in data.new.data.column(column)]
        slices += [
            part(f"{column} {v}", [i for i, x in enumerate(values) if x == v]) for v in dict.fromkeys(values)
        ]
    scores = [float(one.outcomes[one.metric].mean()) for name, one in seen.items() if name != data.new.name]
    repeated = learner.pictures.among(data.new.data) if len(learner.pictures) else 0
    notes = (
        [f"{repeated:,} held-out images were learned from before, so their scores are too good"]
        if repeated
        else []
    )
    return Outlook(
        metric,
        sum(scores) / len(scores) if scores else None,
        slices,
        len(data.learn),
        len(data.held_out),
        notes,
    )


def known_lines(found: Outlook) -> list[str]:
    """Return how well the version that serves does on known and new data, and whether these differ, as lines."""
    lines = []
    if found.known is not None:
        lines.append(f"known data: {100 * found.known:.1f} % (mean {found.metric})")
    for part in found.slices:
        line = f"{part.name}: {100 * part.score:.1f} % {found.metric} on {part.rows:,} rows"
        if (of := part.drift) is not None:
            word = "differ from" if of.differs else "are not told apart from"
            line += (
                f"; images {word} known ones (classifier {of.auc:.2f} [{of.auc_low:.2f}, {of.auc_high:.2f}], 0.5 is "
                f"alike; MMD² {of.mmd:.4f}, p {of.p:.3f})"
            )
        lines.append(line)
    return lines


def worth_lines(found: Outlook) -> list[str]:
    """Return whether an update may gain little, and what is to be said about the data, as lines."""
    whole = found.slices[0]
    alike = whole.drift is None or not whole.drift.differs
    lines = [f"note: {note}" for note in found.notes]
    if found.known is not None and whole.score >= found.known and alike:
        lines.insert(
            0, "The version that serves does as well here as on known data: an update may gain little."
        )
    return lines


def _embeddings(learner: Learner, table: Table) -> torch.Tensor:
    encoder = image_encoder(learner.method, learner.method.encoder_keys())
    return learner.features.images(encoder, Pictures.of(table))["embedding"]
