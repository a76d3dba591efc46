"""Propose a stream for a user's data: its kind, its split, its training. Every proposal is built once as a test."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from everclip.config import validated
from everclip.data.reading.class_in_name import UnlabelledError
from everclip.data.reading.formats.template_files import templates_beside
from everclip.data.reading.quarantine import Quarantine
from everclip.data.reading.spec import DataSpec
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError, did_you_mean
from everclip.prepare.init_config.candidates import (
    Wish,
    candidates,
    distinct_values,
    first_that_builds,
    time_units,
)
from everclip.prepare.init_config.sides import notes_on_sides
from everclip.prepare.init_config.times import notes_on_times
from everclip.prepare.init_config.training import training_settings
from everclip.scenarios.base import ListScenario
from everclip.scenarios.measuring import class_name_notes
from everclip.scenarios.paths import Paths
from everclip.scenarios.reading import Reader, has_values
from everclip.scenarios.spec import ScenarioSpec

KINDS = tuple(get_args(ScenarioSpec.model_fields["kind"].annotation))


@dataclass(frozen=True)
class Proposal:
    """A stream that fits the data.

    Attributes:
        document: the scenario, as YAML holds it.
        scenario: what it builds.
        reason: for this kind.
        training: batch size, epochs and learning rate.
        training_reason: for these values.
        quarantine: rows that were set aside.
        guesses: guesses about the data.
        notes: on missing sides and what replaces them.
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
        wish: of the user.

    Raises:
        ConfigError: for an unknown kind, or one that does not fit the data.
        DataError: for data that cannot be read, or that are too few for training and test.
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
        raise ConfigError(
            f"--kind {chosen}: several data sets ({len(tables)}) need --kind sources; name one data set."
        )
    try:
        document, scenario = first_that_builds(candidates(chosen, common, explicit, tables, wish), reader)
    except DataError as error:
        if wish.kind is not None or chosen in ("single", "sources"):
            raise
        reason = f"no stream of kind {chosen}, since {error}"
        document, scenario = first_that_builds(candidates("single", common, explicit, tables, wish), reader)
    training, why = training_settings(scenario)
    notes = [
        *guessed,
        *notes_on_sides(tables, document),
        *notes_on_times(tables, document),
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
    """Read data; if image names seem to contain classes, use the pattern that reads them and add a note."""
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
                f"{spec.label}: classes are guessed from the images' names (class_in_name: '{error.pattern}'); look "
                "whether they are classes, else take the line out"
            )
        read.append((block, spec))
    return tables, [block for block, _ in read], [spec for _, spec in read], notes


def _check(wish: Wish, count: int) -> None:
    """Refuse wishes that contradict each other, before anything is read."""
    if wish.kind is not None and wish.kind not in KINDS:
        raise ConfigError(f"--kind: {wish.kind!r} is not known.{did_you_mean(wish.kind, KINDS)}")
    if wish.test is not None and (count > 1 or wish.kind == "sources"):
        raise ConfigError(
            "--test: needs exactly one data set; for several, set `test` of each in the YAML file."
        )
    if wish.classes_per_task is None:
        return
    if wish.kind not in (None, "classes") or count > 1:
        raise ConfigError(
            "--classes-per-task: makes a stream of kind classes from one data set; leave out --kind."
        )
    if wish.classes_per_task < 2:
        raise ConfigError(
            "--classes-per-task: a task with one class has one answer, so its loss is 0 and nothing is learned; use 2 "
            "or more. (For a method that compares with earlier tasks, write per_task: 1 into the YAML file.)"
        )


def _explicit(block: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Write guessed columns into the block, so that later columns change nothing."""
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
    """Return the templates beside the data, if there is one data set."""
    found = templates_beside(specs[0].sources) if len(specs) == 1 else None
    return {} if found is None else {"class_templates": list(found[0])}


def _kind(tables: Sequence[Table], wish: Wish) -> tuple[str, str]:
    if len(tables) > 1:
        return "sources", f"{len(tables)} data sets: one task each"
    table = tables[0]
    if wish.classes_per_task is not None:
        return "classes", f"{wish.classes_per_task} classes at a time, as asked for"
    if has_values(table, "time") and (units := time_units(table)):
        return "time", f"the column `time` spans {units[0][1]} {units[0][0]}s"
    languages = distinct_values(table, "language")
    if len(languages) > 1:
        kind = "languages" if has_values(table, "caption") else "domains"
        return kind, f"{len(languages)} languages: one task each"
    classes = distinct_values(table, "class_key")
    if len(classes) > 1 and not has_values(table, "caption"):
        stream = "; --classes-per-task N makes a task of every N classes" if len(classes) > 3 else ""
        return "single", f"{len(classes)} classes and no captions: one task with all classes{stream}"
    return "single", "no column `time` and at most one language: one task with all rows"
