"""Two models side by side, for `everclip diagnose` and the report of a run: what did an update gain, lose and move?"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from everclip.config import EvaluationConfig, resolve_config
from everclip.contracts import EvalSet
from everclip.diagnosis.block_similarity import compare_blocks
from everclip.diagnosis.records import Diagnosis, Role, SetDiagnosis
from everclip.diagnosis.seen import SeenSet, common_items, see
from everclip.diagnosis.set_changes import (
    SearchResults,
    calibration,
    class_changes,
    flip_counts,
    flipped_images,
    group_changes,
    hub_pairs,
    query_changes,
    space_changes,
)
from everclip.diagnosis.verdict import TOLERANCE, Judged, judge, numbers_of
from everclip.errors import ConfigError
from everclip.features.pictures import Pictures
from everclip.interfaces import MeasuredScenario
from everclip.learner.core import Learner
from everclip.learner.evaluate import is_benchmark, read_set, same_text_lines
from everclip.learner.over_time import dated_sets
from everclip.report.over_time import OverTime, over_time
from everclip.report.paired import Answered, PairedMeasure
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario
from everclip.scenarios.measuring import MeasuredSets

LIMIT = 20_000
"""Items of a set that are compared in the embedding space at most."""

_ROLES: dict[str, Role] = {"known": "kept", "retention": "kept", "task": "new"}


@dataclass(frozen=True, eq=False)
class Target:
    """Evaluation sets that are scored together.

    Attributes:
        label: for people.
        scenario: the sets, with their protocol.
        roles: name of a set -> its role.
        learned: indices of the tasks after which the sets are scored.
        headline: the metric that sets show.
        dated: names of the dated sets, oldest first; empty unless it is a stream in time.
        notes: what is to be said about reading them.
    """

    label: str
    scenario: MeasuredScenario
    roles: Mapping[str, Role]
    learned: Collection[int] = ()
    headline: dict[str, str] | None = None
    dated: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def sets(self) -> list[EvalSet]:
        """The sets with a role."""
        return [s for s in self.scenario.eval_sets if s.name in self.roles]


def target_of_data(name: str, role: Role, templates: tuple[str, ...] | None) -> list[Target]:
    """Read data, or a benchmark or YAML file of a stream, as what both models are measured on.

    Args:
        name: data, see `DataSpec.source` (test rows if a column `split` marks some), or a stream.
        role: of data; the sets of a stream have their own: the base and the retention suite are kept, tasks are new.
        templates: texts around class names of data; default: see `read_set`.
    """
    if is_benchmark(name):
        return [target_of_stream(name, load_scenario(resolve_config(name).scenario))]
    label, measured, notes = read_set(name, templates)
    return [Target(label, MeasuredSets((measured,)), {measured.name: role}, notes=tuple(notes))]


def with_text_notes(target: Target, models: Sequence[Learner]) -> Target:
    """Return data with notes about classes that are one text to a model; streams say it themselves.

    Raises:
        DataError: for data of one answer: every model is right there.
    """
    if not isinstance(target.scenario, MeasuredSets):
        return target
    lines = [same_text_lines(target.scenario, model.method.backbone.tokenise) for model in models]
    return replace(target, notes=tuple(dict.fromkeys([*target.notes, *chain(*lines)])))


def target_of_stream(label: str, scenario: ListScenario) -> Target:
    """Return the sets of a stream, scored as after its last task, under the protocol that it shows."""
    # All sets and protocols are scored, as a run does, so that its features are found in the cache.
    chosen = [s for s in scenario.eval_sets if s.group in _ROLES]
    dated = tuple(s.name for s in dated_sets(scenario, None)) if scenario.spec.kind == "time" else ()
    return Target(
        label,
        scenario,
        {s.name: _ROLES[s.group] for s in chosen},
        [task.index for task in scenario.tasks],
        scenario.spec.headline.model_dump(),
        tuple(name for name in dated if name in {s.name for s in chosen}),
        tuple(q.summary() for q in scenario.quarantine if q.entries) + tuple(scenario.guesses),
    )


@dataclass(frozen=True, eq=False)
class Compared:
    """A diagnosis with the evaluation sets that it is of, whose images a page shows."""

    diagnosis: Diagnosis
    sets: dict[str, EvalSet]


@dataclass(frozen=True)
class Options:
    """How two models are compared.

    Attributes:
        tolerance: the largest loss of what the old model knew that counts as safe.
        groups: columns of the data whose values make groups.
        limit: items of a set that are compared in the embedding space at most.
        blocks: whether to compare the blocks of the towers.
    """

    tolerance: float = TOLERANCE
    groups: tuple[str, ...] = ()
    limit: int = LIMIT
    blocks: bool = True


@dataclass
class _Both:
    """The two models with their names."""

    old: Learner
    new: Learner
    names: tuple[str, str]
    notes: list[str] = field(default_factory=list)
    same: bool = field(init=False)

    def __post_init__(self) -> None:
        """Say whether both encode alike; computed once, because it hashes all weights."""
        first, second = (learner.method.encoder_keys() for learner in self.learners)
        self.same = first == second
        if self.same:
            self.notes.append(
                "both models encode images and texts alike: embeddings, search results and blocks are equal"
            )

    def same_answers(self, s: EvalSet) -> bool:
        """Whether both must answer a set alike: they encode alike, and none has scores of its own for its classes."""
        heads = [learner.method.class_head() for learner in self.learners] if s.classes else []
        return self.same and all(head is None for head in heads)

    @property
    def learners(self) -> tuple[Learner, Learner]:
        return self.old, self.new


def diagnose(
    old: Learner,
    new: Learner,
    names: tuple[str, str],
    targets: Sequence[Target],
    options: Options | None = None,
    config: EvaluationConfig | None = None,
    tick: Callable[[str, int, int], None] = lambda model, done, total: None,
) -> Compared:
    """Compare two models on the same items.

    Args:
        old: the old model.
        new: the new model.
        names: what the result calls them.
        targets: what they are measured on.
        options: tolerance, groups, limits.
        config: confidence, batch size, cache.
        tick: called with (name of the model, images done, all images).

    Raises:
        ConfigError: without a set, for two sets of one name, or for a group column that no set has.
    """
    chosen, settings, started = options or Options(), config or EvaluationConfig(), time.monotonic()
    sets = {s.name: s for target in targets for s in target.sets}
    _require_sets(targets, chosen.groups)
    both = _Both(old, new, names, [note for target in targets for note in target.notes])
    before = sum(learner.features.encoded for learner in both.learners)
    judged: list[Judged] = []
    times: list[OverTime] = []
    for target in targets:
        parts = _of_target(both, target, chosen, settings, tick)
        judged += parts.values()
        if (found := _over_time(target, parts, names, settings.confidence)) is not None:
            times.append(found)
    blocks, notes = _blocks(both, sets) if chosen.blocks and not both.same else ({}, [])
    both.notes += notes
    both.notes += _seen_before(both, sets.values())
    return Compared(
        Diagnosis(
            old=names[0],
            new=names[1],
            towers={n: m.method.backbone.fingerprints() for n, m in zip(names, both.learners, strict=True)},
            data=[target.label for target in targets],
            confidence=settings.confidence,
            verdict=judge(judged, chosen.tolerance, settings.confidence),
            numbers=numbers_of(judged, settings.confidence),
            sets=[one.record for one in judged],
            blocks=blocks,
            over_time=times[0] if times else None,
            notes=list(dict.fromkeys(both.notes)),
            encoded=sum(learner.features.encoded for learner in both.learners) - before,
            seconds=round(time.monotonic() - started, 3),
        ),
        sets,
    )


def _require_sets(targets: Sequence[Target], groups: Sequence[str]) -> None:
    names = [s.name for target in targets for s in target.sets]
    if not names:
        raise ConfigError("diagnose: there is nothing to measure on; name data with --data.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"diagnose: two sets are named {twice!r}; rename the file, or leave one out.")
    for column in groups:
        tables = [s.data for target in targets for s in target.sets]
        if not any(table.has(column) for table in tables):
            known = sorted({name for table in tables for name in table.column_names})
            raise ConfigError(f"--group: no data have a column {column!r}; there are {', '.join(known)}.")


def _seen(
    both: _Both,
    target: Target,
    options: Options,
    settings: EvaluationConfig,
    tick: Callable[[str, int, int], None],
) -> tuple[dict[str, SeenSet], dict[str, SeenSet]]:
    """Return what both models answer."""
    found = []
    for name, learner in zip(both.names, both.learners, strict=True):
        learner.features.folders.keep_in(learner.features.folders.own, settings, both.notes.append)

        def of_model(done: int, total: int, name: str = name) -> None:
            tick(name, done, total)

        found.append(
            see(
                learner,
                target.scenario,
                target.learned,
                settings,
                0 if both.same else options.limit,
                target.headline,
                of_model,
                both.notes.append,
            )
        )
    return found[0], found[1]


def _of_target(
    both: _Both,
    target: Target,
    options: Options,
    settings: EvaluationConfig,
    tick: Callable[[str, int, int], None],
) -> dict[str, Judged]:
    """Return everything about each set of a target."""
    was, now = _seen(both, target, options, settings, tick)
    parts = {}
    for name, role in target.roles.items():
        if name not in was or name not in now:
            continue
        old, new = common_items(was[name], now[name])
        if old.text_of_row != new.text_of_row:
            both.notes.append(
                f"{name}: the tokenizers differ in which captions have equal tokens, so each caption is an item"
            )
        if old.positions != was[name].positions or new.positions != now[name].positions:
            both.notes.append(
                f"{name}: {len(old.positions):,} items that both models can answer are compared"
            )
        if old.positions:
            part = _of_set(old, new, role, options, settings.confidence)
            parts[name] = replace(part, same=both.same_answers(old.s))
    return parts


def _of_set(old: SeenSet, new: SeenSet, role: Role, options: Options, confidence: float) -> Judged:
    """Return everything about one set."""
    metric = old.metric
    answered = Answered(old.s.name, metric, False, old.outcomes[metric], new.outcomes[metric])
    record = SetDiagnosis(
        name=old.s.name,
        kind=old.s.kind,
        role=role,
        score=PairedMeasure(confidence).of_set(answered),
        flips=flip_counts(old, new, confidence),
        classes=class_changes(old, new, confidence),
        groups=group_changes(old, new, options.groups, confidence),
        lost=flipped_images(old, new, lost=True),
        gained=flipped_images(old, new, lost=False),
        calibration=calibration(old, new),
    )
    if old.embedded is not None and new.embedded is not None:
        values, turned = space_changes(old.embedded, new.embedded)
        before, after = SearchResults.of(old.embedded), SearchResults.of(new.embedded)
        record = record.model_copy(
            update={
                "hubs": hub_pairs(old.embedded, before, after),
                "queries": query_changes(old.embedded, before, after),
                "space": values,
                "rotations": turned,
            }
        )
    return Judged(record, answered)


def _over_time(
    target: Target, parts: Mapping[str, Judged], names: tuple[str, str], confidence: float
) -> OverTime | None:
    """Compare static with dated sets, if the target is a stream in time."""
    dated = [name for name in target.dated if name in parts]
    if not dated:
        return None
    static = [name for name, one in parts.items() if one.record.role == "kept" and name not in dated]
    answered = [replace(parts[name].answered, dated=name in dated) for name in [*static, *dated]]
    return over_time(names, answered, target.label, target.scenario.shown_protocol, confidence)


def _blocks(both: _Both, sets: Mapping[str, EvalSet]) -> tuple[dict[str, list[float | None]], list[str]]:
    """Compare the blocks of both towers on images and texts of all sets."""
    pictures, _ = Pictures.distinct([s.data for s in sets.values()])
    texts = [text for s in sets.values() for text in _texts(s)]
    similar, notes = compare_blocks(both.old, both.new, pictures, texts)
    return {str(side): values for side, values in similar.items()}, notes


def _texts(s: EvalSet) -> list[str]:
    if s.classes is not None:
        return [entry.prompts()[0] for entry in s.classes]
    captions = s.data.column("caption") if s.data.has("caption") else []
    return [str(caption) for caption in captions if caption is not None]


def _seen_before(both: _Both, sets: Collection[EvalSet]) -> list[str]:
    """Name the sets with images that a model was trained on."""
    return [
        f"{name} was trained on {count:,} images of {s.name}, so its score there is too good."
        for name, learner in zip(both.names, both.learners, strict=True)
        for s in sets
        if len(learner.pictures) and (count := learner.pictures.among(s.data))
    ]
