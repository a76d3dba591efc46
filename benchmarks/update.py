"""Three updates of a deployed model: a store's default against text-ridge, plain fine-tuning and replay.

Run: python benchmarks/update.py [--methods "store: safe" ...] [--seeds 0 1 2] [--output runs/update]
`builtin:tiny` serves. The emoji of 2016, of 2017 and 2018, and of 2019 arrive, drawings with their names. A store
measures each update on half of the held-out known drawings and on held-out drawings of the new emoji, and serves only
what passes its gates. The other methods learn the same drawings without a store, with a store's batch size, epochs
and rate. Everything is measured at the end on the other halves, which no method has used to choose anything.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from common import table

from everclip.config import EvaluationConfig
from everclip.contracts import ClassEntry
from everclip.data.builtin.emoji import drawings
from everclip.data.sampling.order import unit_hash
from everclip.data.table import Table
from everclip.diagnosis.seen import see
from everclip.evaluation.statistics import bootstrap_mean
from everclip.files import write_text_atomic
from everclip.learner.core import Learner
from everclip.learner.tasks import make_task, table_of
from everclip.scenarios.base import class_entries, merge_entries
from everclip.scenarios.measuring import MeasuredSets, measured_set
from everclip.store.creating import create_store
from everclip.store.records import Settings
from everclip.store.sizing import sized
from everclip.store.updating import update

PLAIN = Settings(origin="builtin:tiny", created="", method="finetune", probes=[])
UPDATES = ((2016,), (2017, 2018), (2019,))
METHODS = ("store: safe", "store: text-ridge", "finetune", "replay")
DRAWS = 10_000


def written(folder: Path) -> tuple[Path, list[Path], Path, Path]:
    """Write the data; return the probe, the updates, and what is measured at the end: known, new."""
    rows = drawings("en", named_only=True)
    rows = rows.filter(pc.invert(rows["shared"]))
    rows = rows.append_column("class_name", rows["name"])
    known = rows.filter(pc.and_(rows["held_out"], pc.less_equal(rows["year"], 2015)))
    second = [unit_hash("update benchmark", name) < 0.5 for name in known["id"].to_pylist()]
    keep = ["id", "image", "class_name"]
    folder.mkdir(parents=True, exist_ok=True)

    def put(name: str, part: pa.Table, columns: list[str]) -> Path:
        path = folder / f"{name}.parquet"
        pq.write_table(part.select(columns), path)
        return path

    probe = put("known", known.filter(pa.array(second)), keep)
    measured = put("known-end", known.filter(pc.invert(pa.array(second))), keep)
    updates, ends = [], []
    for years in UPDATES:
        part = rows.filter(pc.is_in(rows["year"], pa.array(years, rows.schema.field("year").type)))
        # Of the held-out drawings of a year, the store measures one half, and the end the other.
        held = part["held_out"].to_pylist()
        own = [unit_hash("update benchmark", name) < 0.5 for name in part["id"].to_pylist()]
        kind = ["train" if not h else "test" if o else "end" for h, o in zip(held, own, strict=True)]
        part = part.append_column("split", pa.array(kind))
        used = part.filter(pc.not_equal(part["split"], "end"))
        updates.append(put(f"new-{years[0]}", used, [*keep, "split"]))
        ends.append(part.filter(pc.equal(part["split"], "end")))
    new = put("new-end", pa.concat_tables(ends), keep)
    return probe, updates, measured, new


def answers(learner: Learner, known: Table, new: Table) -> dict[str, np.ndarray]:
    """Return whether each image gets its name, among the names of both sets."""
    sets = {"known": measured_set(known), "new": measured_set(new)}
    classes: tuple[ClassEntry, ...] = merge_entries(
        [entry for data in (known, new) for entry in class_entries(data, ("{}",))]
    )
    found = {}
    for name, s in sets.items():
        measured = MeasuredSets((type(s)(name, s.kind, s.data, classes=classes, group="retention"),))
        one = see(learner, measured, (), EvaluationConfig(), 0)[name]
        found[name] = one.outcomes[one.metric].astype(np.float64)
    return found


def learned(
    method: str, seed: int, probe: Path, updates: list[Path], folder: Path
) -> tuple[Learner, list[str]]:
    """Return the model after all updates, and what became of each."""
    if not method.startswith("store: "):
        learner = Learner.create("builtin:tiny", method, seed=seed)
        for path in updates:
            rows = table_of(str(path))
            train = [i for i, side in enumerate(rows.column("split")) if side == "train"]
            # The training of a store's default, so that only the method and the gates differ.
            way = sized(PLAIN.model_copy(update={"method": method}), None, len(train), learner).training
            learner.training = learner.engine.config = learner.training.model_copy(update=way)
            learner.learn(make_task(rows.select(train)), show=False)
        return learner, ["served"] * len(updates)
    shutil.rmtree(folder, ignore_errors=True)
    store = create_store(
        folder, "builtin:tiny", method=method.removeprefix("store: "), probes=[str(probe)], seed=seed
    )
    became = []
    for path in updates:
        done = update(store, str(path), tell=lambda line: print("  " + line, flush=True))
        gates = "; ".join(f"{g.name} {g.state}" for g in done.version.gates if g.state != "pass")
        became.append(f"served, {done.version.share:g} of the way" if done.serves else f"rejected ({gates})")
    return store.load(), became


def cell(method: str, seed: int, output: Path) -> dict[str, object]:
    """Run one method with one seed, or read what it gave."""
    file = output / f"{method.replace(': ', '-')}-s{seed}.json"
    if file.is_file():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    probe, updates, known_path, new_path = written(output / "data")
    known, new = table_of(str(known_path)), table_of(str(new_path))
    first = answers(Learner.create("builtin:tiny", "zero-shot"), known, new)
    started = time.perf_counter()
    learner, became = learned(method, seed, probe, updates, output / "store")
    seconds = time.perf_counter() - started
    last = answers(learner, known, new)
    found = {
        "became": became,
        "seconds": seconds,
        "start": {name: float(first[name].mean()) for name in first},
        "change": {name: (last[name] - first[name]).tolist() for name in first},
    }
    write_text_atomic(file, json.dumps(found))
    return found


def row(method: str, cells: list[dict[str, object]]) -> tuple[str, ...]:
    """Return the row of a method: change on known and new drawings, averaged over seeds."""
    texts = []
    for name in ("new", "known"):
        per_image = np.mean([c["change"][name] for c in cells], axis=0)  # type: ignore[index]
        interval = bootstrap_mean(per_image, seed=0, draws=DRAWS)
        texts.append(f"{100 * per_image.mean():+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]")
    served = sum(text.startswith("served") for c in cells for text in c["became"])  # type: ignore[attr-defined]
    of = sum(len(c["became"]) for c in cells)  # type: ignore[arg-type]
    minutes = np.mean([float(c["seconds"]) for c in cells]) / 60  # type: ignore[arg-type]
    return (method, str(len(cells)), *texts, f"{served} of {of}", f"{minutes:.1f}")


def main() -> None:
    """Run what is missing, and print the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS, metavar="METHOD")
    words.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    words.add_argument("--output", type=Path, default=Path("runs/update"))
    given = words.parse_args()
    rows = []
    for method in given.methods:
        cells = []
        for seed in given.seeds:
            print(f"{method}, seed {seed}", flush=True)
            cells.append(cell(method, seed, given.output))
            print(f"  {cells[-1]['became']}", flush=True)
        rows.append(row(method, cells))
    header = ("method", "seeds", "new, points", "known, points", "updates that serve", "min/run")
    print(table("Three updates (benchmarks/update.py)", rows, header))


if __name__ == "__main__":
    main()
