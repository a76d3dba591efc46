"""Follow blind pairs over the rows of a run: which stay blind, which heal, which are new after each task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from everclip.config import BackboneConfig, CheckpointConfig, MethodConfig, validated
from everclip.data.table import Table
from everclip.diagnosis.blind_pairs import (
    HEALED,
    NEW,
    STAYS,
    BlindPairs,
    Earlier,
    RowChange,
    Tick,
    find_blind_pairs,
    spread_out,
)
from everclip.diagnosis.of_run import start_learner
from everclip.errors import ConfigError
from everclip.evaluation.results import FILE, Results
from everclip.learner.core import Learner
from everclip.learner.row_models import RowModels
from everclip.models.image_encoder import ImageEncoder
from everclip.registry import read_yaml
from everclip.training.checkpoint import Checkpoints
from everclip.training.run_folder import CONFIG
from everclip.training.run_place import local_run


def models_of_rows(folder: Path) -> Iterator[tuple[str, Learner]]:
    """Yield the label and the model of each row of a run, from the start model on.

    Raises:
        ConfigError: if it is no run with results, or the model of a row was not kept.
    """
    document = read_yaml(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if "scenario" not in document or not (folder / FILE).is_file():
        raise ConfigError(f"--rows: {folder} is not the folder of a run with results.")
    method = validated(MethodConfig, document["method"], f"{folder / CONFIG}: method")
    backbone = validated(BackboneConfig, document["backbone"], f"{folder / CONFIG}: backbone")
    rows, models = Results.read(folder).rows, RowModels(folder, Checkpoints(folder, CheckpointConfig()))
    last = Learner.load(folder)
    for row in rows:
        learner = start_learner(last, method, backbone, document.get("directory"))
        if row.index:
            kept = models.load(row.index)
            if kept is None:
                raise ConfigError(
                    f"--rows: {folder} did not keep the model of row {row.index} ({row.label}); run with "
                    "checkpoint.keep_rows=true."
                )
            learner.restore(*kept)
        learner.method.eval()
        yield row.label, learner


def follow_rows(
    table: Table,
    run: str,
    reference: ImageEncoder,
    *,
    above: float,
    below: float,
    limit: int,
    per_image: int | None = None,
    mix: float | None = None,
    tick: Tick = lambda done, total: None,
) -> BlindPairs:
    """Mine the blind pairs of every row of a run; arguments as in `find_blind_pairs`.

    Returns:
        Those of the last row, with what became of the start model's, and what changed at each row (`over`).

    Raises:
        ConfigError: if the run did not keep its models.
        DataError: if there are fewer than two images.
    """
    given: dict[str, Any] = {"above": above, "below": below, "limit": limit, "tick": tick}
    start: Earlier | None = None
    last: Earlier | None = None
    partial = False
    over: list[RowChange] = []
    found: BlindPairs | None = None
    features = None
    for label, learner in models_of_rows(local_run(run, "blind-pairs")):
        features = features or learner.features  # it remembers what the reference gave
        found = find_blind_pairs(
            table,
            learner,
            reference,
            model=f"{run}, {label}",
            earlier=start,
            previous=last,
            mix=mix,
            features=features,
            **given,
        )
        over.append(
            RowChange(
                label=label,
                blind=found.mined.found,
                stays=found.changes.get(STAYS, found.mined.found),
                healed=found.changes.get(HEALED, 0),
                new=found.changes.get(NEW, 0),
                healed_since_last=found.since_previous.get(HEALED, 0),
                new_since_last=found.since_previous.get(NEW, 0),
            )
        )
        partial = partial or (last is not None and not last.whole)
        last = Earlier.of(found)
        start = start or last
    if found is None:
        raise ConfigError(f"--rows: {run} has no row yet.")
    if partial:
        found.notes.append(
            f"a row has more than --limit={limit:,} pairs: of those since the row before, healed ones are missing and "
            "some called new are old ones; raise --limit"
        )
    if per_image is not None:
        spread_out(found, per_image)
    found.over = over
    return found
