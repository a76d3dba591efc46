"""Nothing that is measured or chosen on is ever trained on: by id, by picture, and by what training ends at."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import leak_cases
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import presets
from everclip.config import resolve_config
from everclip.contracts import Task
from everclip.data.pictures.images import ImageStore
from everclip.data.sampling.batches import BatchMaker
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.learner import learner_for
from everclip.run import Run
from everclip.scenarios.load import load_scenario
from everclip.training.progress import Progress
from micro import REFERENCE, picture

MICRO = ("time", "classes", "domains", "single", "sources")
BUILTIN = presets.builtin_benchmarks()


def _ids(tables: Sequence[Table | None]) -> set[str]:
    return {name for table in tables if table is not None for name in table.ids}


def _pictures(tables: Sequence[Table | None]) -> set[str]:
    found = set()
    for table in tables:
        found |= set() if table is None else {hashlib.sha256(b).hexdigest() for b in table.column("image")}
    return found


class Parts:
    """The ids of a scenario: what is measured, what is chosen on, what may be trained on."""

    def __init__(self, scenario: Any) -> None:
        self.measured = _ids([s.data for s in scenario.eval_sets])
        twins = [s.data for s in scenario.retention_val]
        self.validation = _ids([scenario.base_val, *[t.val for t in scenario.tasks], *twins])
        self.base = _ids([scenario.base])
        self.tasks = [set(t.train.ids) for t in scenario.tasks]
        reference = None if scenario.reference is None else scenario.reference.images
        self.reference = _ids([reference])
        self.training = self.base.union(*self.tasks, self.reference)


def _walk(config: Any, scenario: Any) -> Iterator[tuple[Task, list[Table], Any]]:
    """Go through all tasks as a run does, without training: (task, what its phases train on, the method).

    What decides a threshold alone is a task's validation pictures, or held out of its own.
    """
    learner = learner_for(config, scenario)
    at_once = learner.method.needs.all_tasks_at_once
    for task in (scenario.at_once() if at_once else scenario).tasks:
        learner.method.begin_task(task, learner.past())
        phases = learner.plan(task)
        tables = [(p.chooses, s.table) for p in phases for st in p.streams.values() for s in st.sources]
        looked_at = _ids([table for chooses, table in tables if chooses])
        reference = None if scenario.reference is None else scenario.reference.images
        assert looked_at <= _ids([task.train, task.val, reference])
        assert all(p.optimiser is None for p in phases if p.chooses)
        yield task, [table for chooses, table in tables if not chooses], learner.method
        for phase in phases:
            if not phase.chooses:  # there is nothing to choose on: nothing was looked at
                learner.method.end_phase(task, phase)
        learner.method.end_task(task, learner.past(), lambda: {"new": 0.5})
        learner.tasks.append(task)


def _check(config: Any, scenario: Any) -> None:
    parts = Parts(scenario)
    pictures = _pictures([s.data for s in scenario.eval_sets])
    trained: set[str] = set()
    for task, tables, method in _walk(config, scenario):
        ids = _ids(tables)
        trained |= ids
        assert ids & parts.measured == set()
        assert ids & parts.validation == set()
        assert ids <= parts.training
        assert _pictures(tables) & pictures == set()
        joint = method.needs.all_tasks_at_once
        if not joint:
            later = set().union(*parts.tasks[task.index + 1 :])
            assert ids & (later - set().union(*parts.tasks[: task.index + 1])) == set()
        if method.buffer is not None:
            held = {name for _, name, _ in method.buffer.items}
            assert held <= parts.training
            assert held & (parts.measured | parts.validation) == set()
        if not (joint or method.sees_base):
            assert ids & (parts.base - parts.reference.union(*parts.tasks)) == set()
    assert (trained == set()) == (config.method.name == "zero-shot")


@pytest.mark.parametrize("kind", MICRO)
@pytest.mark.parametrize("method", leak_cases.CASES)
def test_small_streams_and_buffers_hold_no_measured_id(
    method: str, kind: str, micro_config: Callable[..., Any]
) -> None:
    config = micro_config(leak_cases.kind_for(method, kind), *leak_cases.SETTINGS[method])
    _check(config, load_scenario(config.scenario))


@pytest.mark.parametrize("benchmark", BUILTIN)
@pytest.mark.parametrize(
    "method",
    leak_cases.cases(leak_cases.SETTINGS.keys() - {"finetune", "joint", "wise-ft", "safe", "moe-adapters"}),
)
def test_benchmarks_streams_and_buffers_hold_no_measured_id(
    method: str, benchmark: str, micro_folder: Path
) -> None:
    place = [f"backbone={micro_folder / 'model'}", "backbone.patch_dropout=0", "training.device=cpu"]
    if REFERENCE in leak_cases.SETTINGS[method]:
        pytest.skip("the benchmark names no reference data")
    config, scenario = (
        resolve_config(benchmark, [*place, *leak_cases.SETTINGS[method]]),
        presets.builtin_scenario(benchmark),
    )
    if leak_cases.kind_for(method, "any") == "classes" and any(t.classes is None for t in scenario.tasks):
        pytest.skip("it learns from classes alone")
    try:
        _check(config, scenario)
    except ConfigError as error:
        if "seen once" not in str(error):
            raise
        pytest.skip("a stream that is seen once refuses it")


@pytest.mark.parametrize("benchmark", BUILTIN)
def test_the_built_in_model_never_saw_what_a_benchmark_measures_or_chooses_on(benchmark: str) -> None:
    seen = Parts(presets.builtin_scenario("emoji-base")).training
    parts = Parts(presets.builtin_scenario(benchmark))
    assert len(seen) > 2000
    assert seen & parts.measured == set()
    assert seen & parts.validation == set()
    pictures = _pictures([s.data for s in presets.builtin_scenario(benchmark).eval_sets])
    assert _pictures([t.train for t in presets.builtin_scenario("emoji-base").tasks]) & pictures == set()


@pytest.mark.parametrize("benchmark", BUILTIN)
def test_measured_and_chosen_on_are_apart(benchmark: str) -> None:
    parts = Parts(presets.builtin_scenario(benchmark))
    assert parts.measured & parts.validation == set()
    assert parts.measured & parts.training == set()
    assert parts.validation & parts.training == set()
    scenario = presets.builtin_scenario(benchmark)
    measured = _pictures([s.data for s in scenario.eval_sets])
    twins = [s.data for s in scenario.retention_val]
    chosen_on = _pictures([scenario.base_val, *[t.val for t in scenario.tasks], *twins])
    assert chosen_on & measured == set()
    assert chosen_on & _pictures([scenario.base, *[t.train for t in scenario.tasks]]) == set()


@pytest.mark.parametrize("kind", MICRO)
def test_learning_under_a_guard_and_choosing_alpha_decode_no_measured_picture(
    kind: str, micro_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = "method.merge={kind: wise-ft, alpha: sweep}"
    config = micro_config(kind, *leak_cases.SHORT[kind], "method=safe", merge, "guard.every=1")
    run, seen = Run.of(config, Progress(quiet=True)), set()
    inner = ImageStore.get

    def get(store: ImageStore, table: Table, row: int) -> Any:
        seen.add((table.ids[row], hashlib.sha256(table.value("image", row)).hexdigest()))
        return inner(store, table, row)

    monkeypatch.setattr(ImageStore, "get", get)
    run.learner.learn(run.tasks[0])
    assert run.learner.guard is not None
    watched = [s.data for s in run.learner.guard.sets]
    assert watched
    assert _pictures(watched) <= {picture for _, picture in seen}
    measured = [s.data for s in run.scenario.eval_sets]
    assert not {name for name, _ in seen} & _ids(measured)
    assert not {picture for _, picture in seen} & _pictures(measured)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        pytest.param(*case.values, kind, marks=case.marks)
        for kind, slow in (("time", ()), ("classes", leak_cases.SAME_DATA))
        for case in leak_cases.cases(slow)
        if leak_cases.kind_for(case.values[0], "time") != "classes" or kind == "classes"
    ],
)
def test_batches_hold_training_ids_and_learning_looks_at_no_test_picture(
    method: str, kind: str, micro_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batched: set[str] = set()
    looked_at: set[str] = set()
    make, get = BatchMaker.batch, ImageStore.get

    def batch(self: Any, stream: Any, scope: str, step: int) -> Any:
        found = make(self, stream, scope, step)
        batched.update(found["id"])
        return found

    def picture(self: Any, table: Table, position: int) -> Any:
        looked_at.add(table.ids[position])
        return get(self, table, position)

    monkeypatch.setattr(BatchMaker, "batch", batch)
    monkeypatch.setattr(ImageStore, "get", picture)
    kind = leak_cases.kind_for(method, kind)
    config = micro_config(kind, *leak_cases.SHORT[kind], *leak_cases.SETTINGS[method])
    run = Run.of(config, Progress(quiet=True))
    for task in run.tasks:
        run.learner.learn(task)
    parts = Parts(run.scenario)
    selects = getattr(run.learner.method, "selector", None) is not None
    assert batched <= (parts.training | parts.validation if selects else parts.training)
    assert looked_at & parts.measured == set()
    assert looked_at - parts.training <= parts.validation
    sweeps = run.learner.method.chooses_on_validation
    chooses = selects or sweeps or "guarded" in method or method == "safe"
    assert (looked_at & parts.validation != set()) == chooses
    assert (batched == set()) == (method == "zero-shot")


def _with_other_test_rows(source: Path, target: Path) -> None:
    """Copy a data set with other test pictures, and their captions and classes moved along by one.

    The pictures are new ones: a measured picture that training also held would rightly leave training. Classes stay
    within their year: which answers are on offer is no secret of the test rows, and the guard looks at it.
    """
    table = pq.read_table(source)
    rows = table.to_pylist()
    draw = np.random.default_rng(5)
    for year in sorted({row["time"] for row in rows}):
        tests = [row for row in rows if row["test"] and row["time"] == year]
        columns = ("caption", "keywords", "concept", "class_key", "class_name")
        moved = {k: [row[k] for row in tests] for k in columns}
        for number, row in enumerate(tests):
            row["image"] = picture(tuple(int(v) for v in draw.integers(0, 200, 3)), number, draw)
            row |= {k: values[(number + 1) % len(tests)] for k, values in moved.items()}
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), target)


@pytest.mark.parametrize(
    ("method", "kind"),
    [pytest.param(*case.values, "time", marks=case.marks) for case in leak_cases.cases(leak_cases.SAME_DATA)]
    + [
        (m, "classes") for m in ("finetune", "joint", "wise-ft", "finetune, guarded", "icarl", "moe-adapters")
    ],
)
def test_whatever_stands_in_the_test_rows_training_ends_at_the_same_weights(
    method: str, kind: str, micro_config: Callable[..., Any], micro_folder: Path, tmp_path: Path
) -> None:
    _with_other_test_rows(micro_folder / "data.parquet", tmp_path / "other.parquet")
    other = yaml.safe_dump(str(tmp_path / "other.parquet")).splitlines()[0]
    one = leak_cases.trained(micro_config, method, kind, "one")
    two = leak_cases.trained(micro_config, method, kind, "two", f"scenario.data.source={other}")
    ours, theirs = one.learner.method, two.learner.method
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())
    assert ours.notes == theirs.notes
    assert ours.extra_state() == theirs.extra_state()
    if (method, kind) == ("finetune, guarded", "classes"):
        assert ours.notes["guard"]["acted"]  # on the last task: it changed what training ended at
    if method == "moe-adapters":
        assert int(ours.selector.ready.sum()) == len(
            one.tasks
        )  # part of the state, and it learned every task
    if method == "icarl":
        assert ours.buffer.items
    # The other rows were really measured.
    assert one.state.rows[-1]["scores"] != two.state.rows[-1]["scores"]
