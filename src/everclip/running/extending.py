"""Adding tasks to a run: what must be as it was, and measuring old rows on what is new.

A run rests on its learned tasks, on the base and on its evaluation sets. An extension adds to them and changes none,
so that the extended run continues bit for bit as if all tasks had been there from the start.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from everclip.config import RunConfig
from everclip.contracts import ClassEntry, Task
from everclip.data.order import key_of
from everclip.data.table import Table
from everclip.errors import RunFolderError
from everclip.evaluation.encode import Tick
from everclip.evaluation.record import RowRecorder
from everclip.evaluation.results import Example, Row
from everclip.files import folder_atomic
from everclip.learner.core import Learner
from everclip.learner.fit import learner_for
from everclip.learner.following import Cursor
from everclip.running.place import Place
from everclip.scenarios.base import ListScenario

MODELS = "rows/models"
"""Folder of the learners after each row, kept on request (`checkpoint.keep_rows`)."""

_TENSORS, _STATE = "model.safetensors", "state.json"


def parts_of(scenario: ListScenario, tasks: Sequence[Task]) -> dict[str, str]:
    """Return everything that a run's numbers rest on: name -> how much it is, and a hash of the content."""
    found: dict[str, Table | None] = {"base": scenario.base, "base (validation)": scenario.base_val}
    for task in tasks:
        found |= {f"task {task.name!r}": task.train, f"task {task.name!r} (validation)": task.val}
    # The set `everything` grows with the tasks; its parts stand here under their own names.
    fixed = [s for s in scenario.eval_sets if s.group != "everything"]
    found |= {f"evaluation set {s.name!r}": s.data for s in fixed}
    found |= {f"evaluation set {s.name!r} (validation)": s.data for s in scenario.retention_val}
    parts = {
        name: f"{len(table)} rows, {table.fingerprint}" for name, table in found.items() if table is not None
    }
    named = {f"class texts of task {task.name!r}": task.classes for task in tasks}
    named |= {f"class texts of evaluation set {s.name!r}": s.classes for s in fixed}
    return parts | {name: _texts(classes) for name, classes in named.items() if classes}


def _texts(classes: Sequence[ClassEntry]) -> str:
    """Say what classes are called; to which tasks they belong may change as tasks are added."""
    texts = tuple((entry.key, entry.name, entry.templates) for entry in classes)
    return f"{len(texts)} classes, {key_of('texts', repr(texts)):032x}"


def added_tasks(
    place: Place, names: Sequence[str], parts: dict[str, str], path: Path, extend: bool
) -> list[str]:
    """Return the names of the tasks that were added since the run's last checkpoint.

    Args:
        place: where the run stands, as its checkpoint says.
        names, parts: the tasks and parts as they are now.
        path: the run folder.
        extend: whether adding tasks was asked for.

    Raises:
        RunFolderError: if something that the run rests on changed or is gone, or tasks were added unasked.
    """
    changed = [
        f"{name}: {was} -> {parts.get(name, 'gone')}"
        for name, was in place.parts.items()
        if parts.get(name) != was
    ]
    if list(names[: len(place.tasks)]) != place.tasks:
        changed.insert(0, f"the tasks were {', '.join(place.tasks)}; they are {', '.join(names) or 'none'}")
    if changed:
        listed = "\n".join(f"  {line}" for line in changed)
        raise RunFolderError(
            f"{path}: the data have changed since this run began:\n{listed}\nPut them back (a condition `where` can "
            "leave new rows out; new tasks come after the old ones), or choose another output=."
        )
    added = list(names[len(place.tasks) :])
    if added and not extend:
        raise RunFolderError(
            f"{path}: this run has {len(place.tasks)} tasks, and new are "
            f"{', '.join(added)}. To learn them too, give the same command with --extend."
        )
    return added


def refuse_at_once(learner: Learner, path: Path) -> None:
    """Raise `RunFolderError` for a method that learns all tasks at once: it has nothing to go on from."""
    if learner.method.needs.all_tasks_at_once:
        raise RunFolderError(
            f"{path}: {learner.method.preset} learns all tasks at once, so tasks cannot be added to a finished run; "
            "start a new one with another output=."
        )


def keep_model(path: Path, index: int, learner: Learner) -> None:
    """Keep the learner as it is at a row, so that the row can be measured again on sets that are added later."""
    folder = path / MODELS / f"{index:03d}"
    if folder.is_dir():
        return
    with folder_atomic(folder) as aside:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in learner.tensors({}).items()}
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, aside / _TENSORS)
        (aside / _STATE).write_text(json.dumps(learner.state(Cursor())), encoding="utf-8")


def remeasure(
    config: RunConfig,
    scenario: ListScenario,
    place: Place,
    recorder: RowRecorder,
    path: Path,
    tick: Tick,
) -> list[int]:
    """Measure again every row whose model is at hand; row 0 is the backbone itself, while its weights are the same.

    Returns:
        The rows that could not be measured again: they have no cells for new columns, and keep those old ones that new
        sets do not change.
    """
    examples = recorder.carried([Example(**e) for e in place.examples])
    left = []
    for index, old in enumerate(place.rows):
        folder = path / MODELS / f"{index:03d}"
        if index and not folder.is_dir():
            place.rows[index] = _without_grown(old, scenario)
            left.append(index)
            continue
        learner = learner_for(config, scenario)
        if not index and learner.method.backbone.fingerprints() != place.start:
            place.rows[index] = _without_grown(old, scenario)
            left.append(index)
            continue
        if index:
            learner.restore(load_file(folder / _TENSORS), _read_state(folder))
        learner.method.eval()
        row, examples = recorder.measure(
            learner.method,
            old["label"],
            index,
            old["task"],
            learner.learned,
            (old["step"], old["samples"]),
            tick,
            examples,
        )
        place.rows[index] = _with_notes(row, old).model_dump(mode="json")
    place.examples = [e.model_dump(mode="json") for e in examples]
    return left


def _without_grown(row: dict[str, Any], scenario: ListScenario) -> dict[str, Any]:
    """Leave out what was scored among all sets: there are more answers now, and a mean over both would be of neither.

    The set `everything` has more rows now, so all its cells go. What is `seen` or its `own` does not grow by tasks that
    come later, nor does the retention suite.
    """
    grown = {p.name for p in scenario.protocols if p.space == "all"}
    kept = {s.name for s in scenario.retention_suite}
    larger = {s.name for s in scenario.eval_sets if s.group == "everything"}
    scores = {
        name: cells if name in kept else {p: values for p, values in cells.items() if p not in grown}
        for name, cells in row["scores"].items()
        if name not in larger
    }
    return {**row, "scores": scores}


def _with_notes(row: Row, old: dict[str, Any]) -> Row:
    return row.model_copy(update={"notes": old.get("notes", {})})


def _read_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    return state


def extension_message(added: Sequence[str], before: int, left: Sequence[int]) -> str:
    """Say what was added, and what the rows before it lack."""
    text = f"{len(added)} new after the first {before}: {', '.join(added)}"
    if left:
        rows = f"row {left[0]}" if len(left) == 1 else f"rows {left[0]} to {left[-1]}"
        text += (
            f"; {rows} could not be measured again: no cells for the new columns, nor among the answers of all "
            "sets, which were fewer then (checkpoint.keep_rows=true keeps what measuring again needs)"
        )
    return text
