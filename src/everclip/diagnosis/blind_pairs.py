"""Blind pairs of a data set: mine them for a model, keep them in a file, and follow them from model to model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from everclip.data.sampling.order import key_of
from everclip.data.table import Table
from everclip.diagnosis.mining import MinedPairs, cosines_of, mine, spread
from everclip.diagnosis.mixture import MixedPairs, mix_pairs
from everclip.errors import DataError
from everclip.features.encoder import Encoder
from everclip.features.encoder import image_encoder as encoder_of
from everclip.features.pictures import Pictures
from everclip.features.service import FeatureService
from everclip.files import write_bytes_atomic
from everclip.learner.core import Learner
from everclip.models.image_encoder import ImageEncoder

Tick = Callable[[int, int], None]

BLOCK = 32
"""Images that the reference encodes at a time: the maps of a convolutional network are large."""

_FEW = 256  # images that tell whether two models are the same

STAYS, NEW, HEALED = "stays", "new", "healed"
"""What became of a pair since an earlier model: blind in both, only now, only then."""

COLUMNS = ("left", "right", "clip", "reference", "status")
_FACTS = b"everclip.blind_pairs"
"""Key of the models and bounds, as JSON, in the metadata of the Parquet file."""


@dataclass(frozen=True)
class RowChange:
    """The blind pairs at one row of a run.

    Attributes:
        label: the row.
        blind: number of pairs within both bounds.
        stays, healed, new: of the start model's pairs, those blind and no longer blind; pairs that were not blind then.
        healed_since_last, new_since_last: the same against the row before.
    """

    label: str
    blind: int
    stays: int
    healed: int
    new: int
    healed_since_last: int
    new_since_last: int


@dataclass
class BlindPairs:
    """Blind pairs of a data set.

    Attributes:
        table: one row per distinct image.
        mined: the pairs; positions are rows of `table`.
        model, reference: the names of the two models.
        above, below: bounds of the two cosines.
        status: of each pair `(P,)`, if there was an earlier model: `stays` or `new`.
        healed: pairs that were blind for the earlier model and are not now, with their cosines now.
        changes: number of pairs by what became of them, also of pairs that `limit` and `per_image` leave out; empty
            without an earlier model.
        since_previous: the same against a second earlier model, for the rows of a run.
        weights: a hash of the reference's weights.
        mixture: what a mixture of both models makes of the pairs, if one was asked for; before `per_image`.
        over: what changed at each row of a run, if its rows were followed.
        notes: what is to be said about the data and the models.
    """

    table: Table
    mined: MinedPairs
    model: str
    reference: str
    above: float
    below: float
    status: list[str] | None = None
    healed: MinedPairs | None = None
    changes: dict[str, int] = field(default_factory=dict)
    since_previous: dict[str, int] = field(default_factory=dict)
    weights: str = ""
    mixture: MixedPairs | None = None
    over: list[RowChange] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rows(self) -> pa.Table:
        """Return the pairs as a table: ids of both images, both cosines, what became of the pair; healed ones last."""
        parts = [(self.mined, self.status or [""] * len(self.mined))]
        if self.healed is not None:
            parts.append((self.healed, [HEALED] * len(self.healed)))
        ids = self.table.ids
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        for pairs, status in parts:
            columns["left"] += [ids[i] for i in pairs.left.tolist()]
            columns["right"] += [ids[i] for i in pairs.right.tolist()]
            columns["clip"] += pairs.clip.tolist()
            columns["reference"] += pairs.reference.tolist()
            columns["status"] += status
        types = {"left": pa.string(), "right": pa.string(), "status": pa.string()}
        return pa.table({n: pa.array(v, types.get(n, pa.float64())) for n, v in columns.items()})

    def write(self, path: Path) -> None:
        """Write `rows` as Parquet, with models and bounds in its metadata."""
        facts = {
            "model": self.model,
            "reference": self.reference,
            "weights": self.weights,
            "above": self.above,
            "below": self.below,
            "found": self.mined.found,
        }
        file = pa.BufferOutputStream()
        pq.write_table(self.rows().replace_schema_metadata({_FACTS: json.dumps(facts).encode()}), file)
        write_bytes_atomic(path, file.getvalue().to_pybytes())


@dataclass(frozen=True)
class Earlier:
    """Pairs of an earlier model, read from the file of `BlindPairs.write`."""

    pairs: frozenset[tuple[str, str]]
    model: str
    reference: str
    above: float
    below: float
    weights: str
    whole: bool
    """Whether the file holds all pairs within the bounds, not only those of the largest gap."""

    @classmethod
    def read(cls, path: Path) -> Earlier:
        """Read a file.

        Raises:
            DataError: if there is no file, or it is not one of blind pairs.
        """
        if not path.is_file():
            raise DataError(
                f"{path}: no such file; expected the .parquet of an earlier `everclip blind-pairs`."
            )
        try:
            rows = pq.read_table(path, columns=["left", "right", "status"])
            facts = json.loads((rows.schema.metadata or {})[_FACTS])
            named = {key: str(facts[key]) for key in ("model", "reference", "weights")}
            above, below, found = float(facts["above"]), float(facts["below"]), int(facts["found"])
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path}: is not a file of `everclip blind-pairs` ({error}).") from error
        blind = [row for row in rows.to_pylist() if row["status"] != HEALED]
        pairs = frozenset((row["left"], row["right"]) for row in blind)
        return cls(pairs, above=above, below=below, whole=found == len(blind), **named)

    @classmethod
    def of(cls, found: BlindPairs) -> Earlier:
        """Return found pairs as those of an earlier model."""
        ids, pairs = found.table.ids, found.mined
        sides = zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)
        return cls(
            frozenset((ids[left], ids[right]) for left, right in sides),
            found.model,
            found.reference,
            found.above,
            found.below,
            found.weights,
            pairs.found == len(pairs),
        )


def find_blind_pairs(
    table: Table,
    learner: Learner,
    reference: ImageEncoder,
    *,
    model: str,
    above: float,
    below: float,
    limit: int,
    per_image: int | None = None,
    earlier: Earlier | None = None,
    previous: Earlier | None = None,
    mix: float | None = None,
    features: FeatureService | None = None,
    tick: Tick = lambda done, total: None,
) -> BlindPairs:
    """Mine the blind pairs of a data set.

    Args:
        table: its rows; of equal images (by content) only the first is used.
        learner: the model under test.
        reference: a vision-only model.
        model: what the result calls the model.
        above, below, limit: see `mine`.
        per_image: an image is in at most so many pairs.
        earlier: pairs of an earlier model of the same data.
        previous: those of a second one, for `since_previous` alone.
        mix: the CLIP's share in a mixture with the reference; says how many pairs it tells apart.
        features: encodes and remembers; default: the learner's.
        tick: called with (images done, all images) for each model.

    Raises:
        DataError: if there are fewer than two images, a feature has no direction, or `earlier` does not fit.
    """
    pictures, positions = Pictures.distinct([table])
    first = _first_rows(positions[0], len(pictures))
    unique = table.select(first)
    if len(unique) < 2:
        raise DataError(f"{table.name}: {len(unique)} images; a pair needs two different ones.")
    service = features or learner.features
    clip = service.images(encoder_of(learner.method, learner.method.encoder_keys()), pictures, tick=tick)
    other = service.images(_encoder(reference), pictures, block=BLOCK, tick=tick)
    both = clip["embedding"], other["embedding"]
    for name, embedded in zip((model, reference.name), both, strict=True):
        _require_directions(unique, name, embedded)
    mined = mine(*both, above, below, limit)
    notes = [f"{reference.name}: {note}" for note in reference.notes]
    if _same(*both):
        notes.append(f"{reference.name} gives the same embeddings as {model}: it sees what {model} sees")
    if len(unique) < len(table):
        notes.append(
            f"{table.name}: {len(table) - len(unique):,} rows repeat an image; each image is used once"
        )
    if mined.found > len(mined):
        notes.append(
            f"{mined.found:,} pairs are within the bounds; the {len(mined):,} of the largest gap are kept"
        )
    found = BlindPairs(
        unique, mined, model, reference.name, above, below, weights=reference.fingerprint, notes=notes
    )
    if mix is not None:
        found.mixture = mix_pairs(*both, mined, mix, above)
    if earlier is not None:
        follow(found, earlier, both)
    if previous is not None:
        found.since_previous = _changes(found, previous, both)[0]
    if per_image is not None:
        spread_out(found, per_image)
    return found


def _same(clip: torch.Tensor, reference: torch.Tensor) -> bool:
    """Whether two models give the same embeddings; a few images tell."""
    one, two = (normalize(features[:_FEW].float(), dim=1) for features in (clip, reference))
    return one.shape == two.shape and torch.allclose(one, two, atol=1e-5)


def _require_directions(table: Table, model: str, embedded: torch.Tensor) -> None:
    """Refuse features that are not finite or zero; names the image of the first one."""
    wrong = ~torch.isfinite(embedded).all(dim=1) | (embedded == 0).all(dim=1)
    if wrong.any():
        first = table.ids[int(wrong.nonzero()[0])]
        raise DataError(
            f"{table.name}: {model} gives {int(wrong.sum()):,} of {len(wrong):,} images features that are zero or not "
            f"finite, so they have no cosine; the first is {first}. Are its weights damaged?"
        )


def _first_rows(positions: torch.Tensor, count: int) -> NDArray[np.int64]:
    """Return the first row of each distinct image `(count,)`, given the image of each row."""
    first = np.full(count, -1, dtype=np.int64)
    for row, image in reversed(list(enumerate(positions.tolist()))):
        first[image] = row
    return first


def _encoder(reference: ImageEncoder) -> Encoder:
    """Return the reference model as an encoder of the feature service."""
    key = f"{key_of('reference', reference.fingerprint, repr(reference.transform)):032x}"
    return Encoder(
        "image", "reference", key, reference.transform, lambda px: {"embedding": reference.encode(px)}
    )


def follow(found: BlindPairs, earlier: Earlier, features: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Say of each pair what became of it since an earlier model.

    Raises:
        DataError: if the earlier pairs are of another reference model, of other bounds, or of other images.
    """
    for option, old, new in (
        ("--reference", earlier.reference, found.reference),
        ("--above", earlier.above, found.above),
        ("--below", earlier.below, found.below),
        ("the weights of --reference (a hash)", earlier.weights, found.weights),
    ):
        if old != new:
            raise DataError(
                f"--before: its pairs were found with {option} {old}, here it is {new}; use the same."
            )
    place = {name: row for row, name in enumerate(found.table.ids)}
    lost = [pair for pair in earlier.pairs if not (pair[0] in place and pair[1] in place)]
    if lost:
        found.notes.append(f"{len(lost):,} earlier pairs have an image that is not here: {lost[0]}")
    if lost and len(lost) == len(earlier.pairs):
        raise DataError(
            f"--before: none of its {len(lost):,} pairs has both images here; is it of other data?"
        )
    if not earlier.whole:
        found.notes.append(
            "not all pairs of the earlier model were kept: some pairs called new may be old ones"
        )
    ids = found.table.ids
    now = zip(found.mined.left.tolist(), found.mined.right.tolist(), strict=True)
    found.status = [
        STAYS if (ids[a], ids[b]) in earlier.pairs or (ids[b], ids[a]) in earlier.pairs else NEW
        for a, b in now
    ]
    found.changes, found.healed = _changes(found, earlier, features)


def _changes(
    found: BlindPairs, earlier: Earlier, features: tuple[torch.Tensor, torch.Tensor]
) -> tuple[dict[str, int], MinedPairs]:
    """Return how many pairs stay, are new and healed since an earlier model, and those that healed.

    All pairs count, also those that `limit` leaves out: the earlier ones are looked at one by one.
    """
    place = {name: row for row, name in enumerate(found.table.ids)}
    kept = sorted(tuple(sorted((place[a], place[b]))) for a, b in earlier.pairs if a in place and b in place)
    sides = np.array(kept, dtype=np.int64).reshape(-1, 2)
    pairs = cosines_of(*features, sides[:, 0], sides[:, 1])
    healed = ~((pairs.clip > found.above) & (pairs.reference < found.below))
    stays = len(pairs) - int(healed.sum())
    counts = {STAYS: stays, NEW: found.mined.found - stays, HEALED: int(healed.sum())}
    return counts, pairs.chosen(np.flatnonzero(healed))


def spread_out(found: BlindPairs, per_image: int) -> None:
    """Keep at most `per_image` pairs of each image."""
    kept = spread(found.mined, per_image)
    found.mined = found.mined.chosen(kept)
    if found.status is not None:
        found.status = [found.status[i] for i in kept.tolist()]
