"""Proposes a stream for a user's data: which kind, which split, how long to train. What is proposed was built once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from everclip.config import validated
from everclip.data.reading.formats.template_files import templates_beside
from everclip.data.reading.names_of_files import UnlabelledError
from everclip.data.reading.quarantine import Quarantine
from everclip.data.reading.spec import DataSpec
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError, did_you_mean
from everclip.prepare.check.periods import misordered
from everclip.prepare.init_config.sides import notes_on_sides, rule_by_marks, splits
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import build_scenario
from everclip.scenarios.measuring import class_name_notes
from everclip.scenarios.paths import Paths
from everclip.scenarios.periods import period_of
from everclip.scenarios.reading import Reader, has_values
from everclip.scenarios.spec import ScenarioSpec
from everclip.scenarios.splits import NO_ROW

KINDS = tuple(get_args(ScenarioSpec.model_fields["kind"].annotation))
UNITS = ("day", "week", "month", "quarter", "year", "value")
"""From fine to coarse; the finest that gives no more than `MOST_TASKS` tasks is proposed."""

MOST_TASKS = 12


@dataclass(frozen=True)
class Wish:
    """What the user asks for.

    Attributes:
        kind: of the stream; default: by what the data hold.
        classes_per_task: so many classes become a task each; default: all classes are one task.
        test: a `data` block of separate test data.
        remove_shared: learn without pictures that marked sides share; else such data are refused.
    """

    kind: str | None = None
    classes_per_task: int | None = None
    test: Mapping[str, Any] | None = None
    remove_shared: bool = False


@dataclass(frozen=True)
class Proposal:
    """A stream that fits the data.

    Attributes:
        document: the scenario, as YAML holds it.
        scenario: what it builds.
        reason: why it is of this kind.
        training: batch size, epochs and learning rate.
        training_reason: why so.
        quarantine: what was set aside of the data.
        guesses: what was guessed about them.
        notes: what is missing, and what was decided about it.
    """

    document: dict[str, Any]
    scenario: ListScenario
    reason: str
    training: dict[str, Any]
    training_reason: str
    quarantine: tuple[Quarantine, ...]
    guesses: tuple[str, ...]
    notes: tuple[str, ...] = ()


def propose(blocks: Sequence[Mapping[str, Any]], wish: Wish | None = None) -> Proposal:
    """Propose a stream for data.

    Args:
        blocks: `data` blocks; several become a stream of sources.
        wish: what the user asks for.

    Raises:
        ConfigError: for a kind that is not known, or does not go with the data.
        DataError: for data that cannot be read, or hold too little to learn from and to be measured on.
    """
    wish = wish or Wish()
    _check(wish, len(blocks))
    specs = [validated(DataSpec, block, "data") for block in blocks]
    reader = Reader(Paths())
    tables, blocks, specs, guessed = _read(blocks, specs, reader)
    explicit = [_explicit(block, reader.columns(spec)) for block, spec in zip(blocks, specs, strict=True)]
    common = _common(tables) | _templates(specs)
    if wish.test is not None:
        test = validated(DataSpec, wish.test, "test")
        reader.read(test, "test")
        common["test"] = _explicit(wish.test, reader.columns(test))
    chosen, reason = (wish.kind, "as asked for") if wish.kind else _kind(tables, wish)
    if (chosen == "sources") != (len(tables) > 1) and wish.kind != "sources":
        raise ConfigError(f"--kind {chosen}: {len(tables)} data sets are a stream of `sources`; name one.")
    try:
        document, scenario = _first_that_builds(_candidates(chosen, common, explicit, tables, wish), reader)
    except DataError as error:
        if wish.kind is not None or chosen in ("single", "sources"):
            raise
        reason = f"no stream of kind {chosen}, since {error}"
        document, scenario = _first_that_builds(_candidates("single", common, explicit, tables, wish), reader)
    training, why = _training(scenario)
    notes = [
        *guessed,
        *notes_on_sides(tables, document),
        *scenario.notes,
        *class_name_notes(scenario.eval_sets),
    ]
    return Proposal(
        document,
        scenario,
        reason,
        training,
        why,
        tuple(reader.quarantine),
        tuple(reader.guesses),
        tuple(dict.fromkeys(notes)),
    )


def _read(
    blocks: Sequence[Mapping[str, Any]], specs: Sequence[DataSpec], reader: Reader
) -> tuple[list[Table], list[Mapping[str, Any]], list[DataSpec], list[str]]:
    """Read data; where names of pictures look like classes, propose the pattern that reads them, with a note."""
    tables: list[Table] = []
    read: list[tuple[Mapping[str, Any], DataSpec]] = []
    notes: list[str] = []
    for block, spec in zip(blocks, specs, strict=True):
        try:
            tables.append(reader.read(spec))
        except UnlabelledError as error:
            block = {**block, "class_in_name": error.pattern}
            spec = validated(DataSpec, block, "data")
            tables.append(reader.read(spec))
            notes.append(
                f"{spec.label}: classes are guessed from the pictures' names (class_in_name: '{error.pattern}'); look "
                "whether they are classes, else take the line out"
            )
        read.append((block, spec))
    return tables, [block for block, _ in read], [spec for _, spec in read], notes


def _check(wish: Wish, count: int) -> None:
    """Refuse what does not go together, before anything is read."""
    if wish.kind is not None and wish.kind not in KINDS:
        raise ConfigError(f"--kind: {wish.kind!r} is not known.{did_you_mean(wish.kind, KINDS)}")
    if wish.test is not None and (count > 1 or wish.kind == "sources"):
        raise ConfigError("--test: goes with one data set; give each of several its `test` in the YAML file.")
    if wish.classes_per_task is None:
        return
    if wish.kind not in (None, "classes") or count > 1:
        raise ConfigError(
            "--classes-per-task: makes a stream of kind classes of one data set; leave --kind out."
        )
    if wish.classes_per_task < 2:
        raise ConfigError(
            "--classes-per-task: a task of one class has one answer, so its loss is 0 and nothing is learned; take 2 "
            "or more. (With a method that compares with earlier tasks, write per_task: 1 into the YAML file.)"
        )


def _explicit(block: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Write out which columns were guessed, so that a column that appears later changes nothing."""
    none = {wanted: "" for wanted, found in dict(block.get("columns") or {}).items() if not found}
    named = none | {wanted: found for wanted, found in columns.items() if wanted != found}
    return {**block, "columns": named} if named else dict(block)


def _common(tables: Sequence[Table]) -> dict[str, Any]:
    names = [re.sub(r"[^a-z0-9]+", "-", Path(t.name).stem.lower()).strip("-") or "data" for t in tables]
    rows = sum(map(len, tables))
    return {
        "name": "-".join(dict.fromkeys(names))[:60],
        "version": 1,
        "summary": f"{rows:,} samples of {', '.join(t.name for t in tables)}",
    }


def _templates(specs: Sequence[DataSpec]) -> dict[str, Any]:
    """Return the texts around class names that lie beside the one data set."""
    found = templates_beside(specs[0].sources) if len(specs) == 1 else None
    return {} if found is None else {"class_templates": list(found[0])}


def _kind(tables: Sequence[Table], wish: Wish) -> tuple[str, str]:
    if len(tables) > 1:
        return "sources", f"{len(tables)} data sets: one task each"
    table = tables[0]
    if wish.classes_per_task is not None:
        return "classes", f"{wish.classes_per_task} classes at a time, as asked for"
    if has_values(table, "time") and (units := _units(table)):
        return "time", f"the column `time` spans {units[0][1]} {units[0][0]}s"
    languages = _distinct(table, "language")
    if len(languages) > 1:
        return "domains", f"{len(languages)} languages: one task each"
    classes = _distinct(table, "class_key")
    if len(classes) > 1 and not has_values(table, "caption"):
        stream = "; --classes-per-task N makes a task of every N of them" if len(classes) > 3 else ""
        return "single", f"{len(classes)} classes and no captions: all of them are one task{stream}"
    return "single", "no times, no languages, no classes alone: everything is one task"


def _distinct(table: Table, column: str) -> list[str]:
    if not table.has(column):
        return []
    return [str(v) for v in dict.fromkeys(table.column(column)) if v is not None and v != ""]


def _units(table: Table) -> list[tuple[str, int]]:
    """Return the units that give 2 to `MOST_TASKS` periods, finest first, with the number of periods."""
    values = [value for value in dict.fromkeys(table.column("time")) if value is not None and value == value]
    found = []
    for unit in UNITS:
        try:
            count = len({period_of(value, unit) for value in values})
        except ValueError:
            continue
        if 2 <= count <= MOST_TASKS:
            found.append((unit, count))
    return found


# -- candidates -----------------------------------------------------------------------------------------------


def _candidates(
    kind: str,
    common: Mapping[str, Any],
    blocks: Sequence[dict[str, Any]],
    tables: Sequence[Table],
    wish: Wish,
) -> Iterator[dict[str, Any]]:
    """Yield documents, the preferred first."""
    metric = {"everything": True, "protocols": [{"name": "own"}, {"name": "all", "space": "all"}]}
    headline = {"headline": {"protocol": "all", "metric": "auto"}}
    if kind == "sources":
        settings = [_several(blocks, tables)]
    else:
        settings = [{"data": blocks[0], **setting} for setting in _settings(kind, tables[0], wish)]
    for setting in settings:
        for split in splits(tables, "test" in common, wish.remove_shared):
            own = _by_own_marks(setting, tables, split) if kind == "sources" else setting
            yield {**common, "kind": kind, **own, "split": split, **metric, **headline}


def _settings(kind: str, table: Table, wish: Wish) -> Iterator[dict[str, Any]]:
    if kind == "time":
        if not has_values(table, "time"):
            raise ConfigError("--kind time: the data have no column `time`; name it with columns.time=NAME.")
        if date := misordered(v for v in table.column("time") if v is not None):
            raise ConfigError(
                f"{table.name}: column `time` holds {date!r}, which sorts by its first number and not by date. Write "
                "dates as 2025-01-31, or go without a stream by time: --kind single, or columns.time= for no time."
            )
        for unit, _ in _units(table) or [("value", 0)]:
            yield {"every": unit}
    elif kind == "domains":
        column = (
            "language"
            if table.has("language")
            else next((c for c in ("domain", "split") if table.has(c)), None)
        )
        if column is None:
            raise ConfigError(
                "--kind domains: the data have no column `language`; name it with columns.language=NAME, or give the "
                "domains as several data sets."
            )
        yield {"column": column}
    elif kind == "classes":
        count = len(_distinct(table, "class_key"))
        if count < 2:
            raise ConfigError(
                f"--kind classes: the data have {count} classes; there is nothing to add later."
            )
        yield _class_groups(count, wish.classes_per_task)
    else:
        yield {}


def _several(blocks: Sequence[dict[str, Any]], tables: Sequence[Table]) -> dict[str, Any]:
    names: list[str] = []
    for table in tables:
        stem = Path(table.name).stem or table.name
        names.append(stem if stem not in names else f"{stem}-{len(names) + 1}")
    kinds = ["retrieval" if has_values(t, "caption") else "classification" for t in tables]
    return {
        "sources": [
            {"name": name, "data": block, "kind": kind}
            for name, block, kind in zip(names, blocks, kinds, strict=True)
        ]
    }


def _class_groups(count: int, wanted: int | None) -> dict[str, Any]:
    """Return how many classes a task gets: never one alone, so a rest of one goes into the first task."""
    per_task = wanted or max(2, math.ceil(count / 5))
    found: dict[str, Any] = {"per_task": per_task, "order": "seed"}
    if count % per_task == 1 and count > per_task:
        found["first_task"] = per_task + 1
    return found


def _by_own_marks(
    setting: Mapping[str, Any], tables: Sequence[Table], split: Mapping[str, Any]
) -> dict[str, Any]:
    """Let the sources that mark sides keep them; the stream's share is for the others."""
    shared = {"shared": split["shared"]} if "shared" in split else {}
    rules = [rule_by_marks(table, split["validation"], shared) for table in tables]
    sources = [
        source if rule is None or rule == split else {**source, "split": rule}
        for source, rule in zip(setting["sources"], rules, strict=True)
    ]
    return {**setting, "sources": sources}


def _first_that_builds(
    candidates: Iterator[dict[str, Any]], reader: Reader
) -> tuple[dict[str, Any], ListScenario]:
    """Return the first document whose tasks and classes can all be learned, measured and chosen on.

    Where there is none, the first of those that lack least.
    """
    best: tuple[dict[str, Any], ListScenario] | None = None
    least = math.inf
    problem: DataError | None = None
    for document in candidates:
        try:
            scenario = build_scenario(validated(ScenarioSpec, document, ""), reader.fresh())
            _require_answers(scenario)
        except DataError as error:
            problem = problem or error
            continue
        if (count := _lacks(scenario)) < least:
            best, least = (document, scenario), count
        if not count:
            break
    if best is None:
        raise DataError(str(problem)) from problem
    return best


def _lacks(scenario: ListScenario) -> int:
    """Count the tasks without validation rows, and the sides that lack classes."""
    unwatched = sum(task.val is None or not len(task.val) for task in scenario.tasks)
    return unwatched + sum(NO_ROW in note for note in scenario.notes)


def _require_answers(scenario: ListScenario) -> None:
    """Refuse tasks with one answer: nothing can be told apart, so nothing is learned.

    Raises:
        DataError: naming the task and its one class or text.
    """
    for task in scenario.tasks:
        if task.classes is not None:
            texts = {entry.name for entry in task.classes}
        else:
            texts = {str(text) for text in task.train.column("caption")}
        if len(texts) < 2:
            what = "class" if task.classes is not None else "caption"
            raise DataError(
                f"task {task.name!r} has one {what} ({next(iter(texts), '')[:60]!r}), so there is nothing to tell "
                f"apart in its {len(task.train):,} training rows; give more classes, or captions that differ (some "
                "rows are held out for testing and validation)"
            )


# -- training -------------------------------------------------------------------------------------------------

STEPS = 300
"""Steps per task that small data are given; large data get one epoch."""


def _training(scenario: ListScenario) -> tuple[dict[str, Any], str]:
    """Return batch size and epochs for the size of the tasks, and why."""
    sizes = sorted(len(task.train) for task in scenario.tasks)
    typical, smallest = sizes[len(sizes) // 2], sizes[0]
    # Some eight batches in the smallest task: a contrastive loss wants many others, a short task wants many steps.
    batch = max(2, min(256, smallest, 2 ** int(math.log2(max(8, smallest / 8)))))
    steps = max(1, typical // batch)
    epochs = max(1, min(20, round(STEPS / steps)))
    spread = "" if smallest == sizes[-1] else f" in the middle ({smallest:,} to {sizes[-1]:,})"
    reason = (
        f"A task has {typical:,} training rows{spread}: some "
        f"{math.ceil(typical * epochs / batch):,} steps of {batch} in all"
    )
    return {"epochs": epochs, "batch_size": batch, "lr": 1e-5}, reason
