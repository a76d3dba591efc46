"""Adds tasks to a run: checks that its data are unchanged, and measures old rows on new evaluation sets.

The results of a run depend on its learned tasks, the base and the evaluation sets. An extension adds to them and
changes none of them, so the extended run is bit-identical to a run that had all tasks from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from everclip.config import RunConfig
from everclip.contracts import ClassEntry, EvalProtocol, EvalSet, LabelSpace, Task
from everclip.data.sampling.order import key_of
from everclip.data.table import Table
from everclip.errors import RunFolderError
from everclip.evaluation.headline import NEVER_TASKS
from everclip.evaluation.record import RowRecorder
from everclip.evaluation.results import Example, Row
from everclip.evaluation.set_features import Tick
from everclip.learner.core import Learner
from everclip.learner.fit import learner_for
from everclip.learner.row_models import RowModels
from everclip.running.run_state import RunState
from everclip.scenarios.base import ListScenario
from everclip.training.run_folder import CONFIG


def require_run(config: RunConfig) -> None:
    """Check that the folder of a configuration holds a run.

    Raises:
        RunFolderError: if it does not.
    """
    if not (config.folder / CONFIG).is_file():
        raise RunFolderError(
            f"output: {config.output} holds no run to extend. Set output= to the folder of the run, or start "
            "without --extend."
        )


def data_parts(scenario: ListScenario, tasks: Sequence[Task]) -> dict[str, str]:
    """Return the data that the results of a run depend on: name -> size and hash of the content."""
    found: dict[str, Table | None] = {"base": scenario.base, "base (validation)": scenario.base_val}
    for task in tasks:
        found |= {f"task {task.name!r}": task.train, f"task {task.name!r} (validation)": task.val}
    # The set `everything` grows with the tasks; its parts are listed under their own names.
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
    """Return the number and a hash of class texts, without the tasks of a class: these change as tasks are added."""
    texts = tuple((entry.key, entry.name, entry.templates) for entry in classes)
    return f"{len(texts)} classes, {key_of('texts', repr(texts)):032x}"


def added_tasks(
    state: RunState, names: Sequence[str], parts: dict[str, str], place: str, extend: bool
) -> list[str]:
    """Return the names of the tasks that were added since the run's last checkpoint.

    Args:
        state: the state in the checkpoint.
        names, parts: the current tasks and parts.
        place: the run folder, or its URL.
        extend: whether tasks may be added.

    Raises:
        RunFolderError: if data of the run changed or are missing, or if tasks were added without `extend`.
    """
    changed = [
        f"{name}: {was} -> {parts.get(name, 'gone')}"
        for name, was in state.parts.items()
        if parts.get(name) != was
    ]
    if list(names[: len(state.tasks)]) != state.tasks:
        changed.insert(0, f"the tasks were {', '.join(state.tasks)}; they are {', '.join(names) or 'none'}")
    if changed:
        listed = "\n".join(f"  {line}" for line in changed)
        raise RunFolderError(
            f"{place}: the data have changed since this run began:\n{listed}\nRestore them (a condition `where` can "
            "leave new rows out), or choose another output=. New data must be a new task after the old ones. Put new "
            "data without a time into a folder or file of their own: see `sources` in docs/going-on.md."
        )
    added = list(names[len(state.tasks) :])
    if added and not extend:
        raise RunFolderError(
            f"{place}: this run has {len(state.tasks)} tasks; new tasks are "
            f"{', '.join(added)}. To learn them, too, repeat the command with --extend."
        )
    return added


def refuse_all_at_once(learner: Learner, place: str) -> None:
    """Raise `RunFolderError` for a method that learns all tasks at once: it cannot add tasks."""
    if learner.method.needs.all_tasks_at_once:
        raise RunFolderError(
            f"{place}: {learner.method.preset} learns all tasks at once, so tasks cannot be added to a finished run; "
            "start a new one with another output=."
        )


def remeasure(
    config: RunConfig,
    scenario: ListScenario,
    state: RunState,
    recorder: RowRecorder,
    models: RowModels,
    tick: Tick,
) -> list[int]:
    """Measure again every row whose model is available; row 0 needs only the backbone with unchanged weights.

    Returns:
        The rows that could not be measured again. They have no cells for new columns, and lose the old cells that new
        sets change.
    """
    examples = recorder.with_old_answers([Example(**e) for e in state.examples])
    left = []
    for index, old in enumerate(state.rows):
        learner = _learner_of(index, config, scenario, state, models)
        if learner is None:
            state.rows[index] = _drop_outgrown(old, scenario)
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
        state.rows[index] = _with_notes(row, old).model_dump(mode="json")
    state.examples = [e.model_dump(mode="json") for e in examples]
    return left


def _learner_of(
    row: int, config: RunConfig, scenario: ListScenario, state: RunState, models: RowModels
) -> Learner | None:
    """Return the learner after a row, `None` if it is not available."""
    kept = models.load(row) if row else None
    if row and kept is None:
        return None
    learner = learner_for(config, scenario)
    if kept is not None:
        learner.restore(*kept)
    elif learner.method.backbone.fingerprints() != state.start:
        return None
    return learner


def _drop_outgrown(row: dict[str, Any], scenario: ListScenario) -> dict[str, Any]:
    """Remove the cells that were scored among fewer answers than there are now: they cannot be averaged with new ones.

    The set `everything` has more rows now, so all its cells are removed. Cells of `space: all` stay if the new sets add
    no answer, such as the same classes in another month. Cells of `seen`, `own` and the retention suite do not change
    with later tasks.
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
    """Whether a set has more answers now than with the evaluation sets that a row was measured on."""
    if s.kind in NEVER_TASKS:
        return False
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
    """Return a message on the added tasks, and on the cells that earlier rows lack."""
    text = f"{len(added)} new after the first {before}: {', '.join(added)}"
    if left:
        why = "its model was" if len(left) == 1 else "their models were"
        text += (
            f"; {row_list(left)} could not be measured again, since {why} not kept: no cells for the new columns, "
            "and none in `space: all` for sets with new answers (checkpoint.keep_rows=true keeps the "
            "models of later rows)"
        )
    return text


def row_list(rows: Sequence[int]) -> str:
    """Return `row 1`, `rows 1 to 3`, or `rows 1, 3`."""
    if len(rows) == 1:
        return f"row {rows[0]}"
    if list(rows) == list(range(rows[0], rows[-1] + 1)):
        return f"rows {rows[0]} to {rows[-1]}"
    return f"rows {', '.join(map(str, rows))}"
