"""Adding tasks to a run: what must be as it was, and measuring old rows on what is new.

A run rests on its learned tasks, on the base and on its evaluation sets. An extension adds to them and changes none,
so that the extended run continues bit for bit as if all tasks had been there from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from everclip.config import RunConfig
from everclip.contracts import ClassEntry, EvalProtocol, EvalSet, LabelSpace, Task
from everclip.data.sampling.order import key_of
from everclip.data.table import Table
from everclip.errors import RunFolderError
from everclip.evaluation.record import RowRecorder
from everclip.evaluation.results import Example, Row
from everclip.evaluation.set_features import Tick
from everclip.learner.core import Learner
from everclip.learner.fit import learner_for
from everclip.running.place import Place
from everclip.running.row_models import RowModels
from everclip.scenarios.base import ListScenario
from everclip.training.run_folder import CONFIG


def require_run(path: Path) -> None:
    """Refuse to extend what is no run.

    Raises:
        RunFolderError: if the folder holds none.
    """
    if not (path / CONFIG).is_file():
        raise RunFolderError(
            f"output: {path} holds no run to extend. Name its folder as output=, or begin without --extend."
        )


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
            "leave new rows out), or choose another output=. New data are a task of their own behind the old ones; of "
            "data without a time they go into a folder or file of their own: see `sources` in docs/going-on.md."
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


def remeasure(
    config: RunConfig,
    scenario: ListScenario,
    place: Place,
    recorder: RowRecorder,
    models: RowModels,
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
        learner = _learner_of(index, config, scenario, place, models)
        if learner is None:
            place.rows[index] = _without_grown(old, scenario)
            left.append(index)
            continue
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


def _learner_of(
    row: int, config: RunConfig, scenario: ListScenario, place: Place, models: RowModels
) -> Learner | None:
    """Return the learner after a row, `None` if it is not at hand."""
    kept = models.load(row) if row else None
    if row and kept is None:
        return None
    learner = learner_for(config, scenario)
    if kept is not None:
        learner.restore(*kept)
    elif learner.method.backbone.fingerprints() != place.start:
        return None
    return learner


def _without_grown(row: dict[str, Any], scenario: ListScenario) -> dict[str, Any]:
    """Leave out what was scored among fewer answers than there are now: a mean over both would be of neither.

    The set `everything` has more rows now, so all its cells go. Cells among the answers of all sets stay where the new
    sets brought no new answer: the same classes in another month. What is `seen` or its `own` does not grow by tasks
    that come later, nor does the retention suite.
    """
    grown = {
        s.name: {p.name for p in scenario.protocols if p.space == "all" and _has_grown(s, p, row, scenario)}
        for s in scenario.eval_sets
    }
    larger = {s.name for s in scenario.eval_sets if s.group == "everything"}
    scores = {
        name: {p: values for p, values in cells.items() if p not in grown[name]}
        for name, cells in row["scores"].items()
        if name not in larger
    }
    shown = scenario.shown_protocol
    per_class = {
        name: values for name, values in row.get("per_class", {}).items() if shown in scores.get(name, {})
    }
    return {**row, "scores": scores, "per_class": per_class}


def _has_grown(s: EvalSet, protocol: EvalProtocol, row: dict[str, Any], scenario: ListScenario) -> bool:
    """Whether a set has more answers on offer now than among the sets that a row was measured on."""
    then = replace(scenario, eval_sets=tuple(e for e in scenario.eval_sets if e.name in row["scores"]))
    if s.kind == "retrieval":
        pools = (each.pool(s, (), protocol) or () for each in (then, scenario))
        before, now = ([member.name for member in pool] for pool in pools)
        return before != now
    learned = range(row["index"])
    spaces = (each.label_space(s, learned, protocol) for each in (then, scenario))
    answers, answers_now = map(_answers, spaces)
    return answers != answers_now


def _answers(space: LabelSpace | None) -> list[tuple[str, str, tuple[str, ...], bool]]:
    return [(e.key, e.name, e.templates, e.seen) for e in (space.entries if space is not None else ())]


def _with_notes(row: Row, old: dict[str, Any]) -> Row:
    return row.model_copy(update={"notes": old.get("notes", {})})


def extension_message(added: Sequence[str], before: int, left: Sequence[int]) -> str:
    """Say what was added, and what the rows before it lack."""
    text = f"{len(added)} new after the first {before}: {', '.join(added)}"
    if left:
        why = "its model was" if len(left) == 1 else "their models were"
        text += (
            f"; {rows_of(left)} could not be measured again, since {why} not kept: no cells for the new columns, nor "
            "among the answers of all sets where these became more (checkpoint.keep_rows=true keeps the "
            "models of the rows to come)"
        )
    return text


def rows_of(rows: Sequence[int]) -> str:
    """Return `row 1`, `rows 1 to 3`, or `rows 1, 3`."""
    if len(rows) == 1:
        return f"row {rows[0]}"
    if list(rows) == list(range(rows[0], rows[-1] + 1)):
        return f"rows {rows[0]} to {rows[-1]}"
    return f"rows {', '.join(map(str, rows))}"
