"""Check that runs are comparable: same benchmark, same headline, same evaluation sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from everclip.config import LOCATION_KEYS
from everclip.errors import DataError
from everclip.report.formats import percent
from everclip.report.runs import Run


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):  # an empty mapping adds no key
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def check_comparable(runs: Sequence[Run], force: bool) -> list[str]:
    """Check that all runs measured the same thing. With `force`, return the differences as notes.

    Raises:
        DataError: if they differ and `force` is false; shows the difference.
    """
    first = runs[0]
    differences = [line for run in runs[1:] for line in _differences(first, run)]
    if differences and not force:
        raise DataError(
            "these runs do not measure the same thing:\n  "
            + "\n  ".join(differences)
            + "\nScores on different benchmarks cannot be compared; --force (in Python, force=True) compares them "
            "anyway."
        )
    return [f"Compared by force: {line}" for line in differences]


def _differences(first: Run, other: Run) -> list[str]:
    lines: list[str] = []
    checks = [("benchmark", _benchmark), ("headline", _headline), ("evaluation sets", _sets)]
    if _benchmark(first) == _benchmark(
        other
    ):  # two runs of `emoji-time@1 (changed)` may have different changes
        checks.append(("scenario", _scenario))
    for what, of in checks:
        mine, theirs = of(first), of(other)
        if mine != theirs:
            lines.append(
                f"{what}: {_shown(mine, theirs)} in {first.place}, {_shown(theirs, mine)} in {other.place}"
            )
    return lines


def _benchmark(run: Run) -> list[str]:
    return [run.results.benchmark]


def _headline(run: Run) -> list[str]:
    return [f"{run.results.matrix.metric} under protocol {run.results.matrix.protocol}"]


def _sets(run: Run) -> list[str]:
    return [f"{column.name} ({column.group}, {column.samples} items)" for column in run.results.columns]


def _scenario(run: Run) -> list[str]:
    scenario = run.config.get("scenario")
    if not isinstance(scenario, Mapping):
        return []
    measured = {key: value for key, value in scenario.items() if key not in LOCATION_KEYS}
    return [f"{key}={value}" for key, value in flatten(measured).items()]


def _shown(mine: Sequence[str], theirs: Sequence[str]) -> str:
    """Return what only `mine` has."""
    only_mine = [item for item in mine if item not in theirs]
    return (
        ", ".join(only_mine) if only_mine else "nothing more" if len(mine) != len(theirs) else "another order"
    )


def comparison_notes(runs: Sequence[Run]) -> list[str]:
    """Return notes that a reader needs before trusting the table."""
    notes = [
        f"{run.place} ({run.name}, seed {run.results.seed}) is {run.results.status}: "
        f"{run.learned_count(run.last)} of {len(run.results.tasks)} tasks are learned."
        for run in runs
        if run.results.status != "finished"
    ]
    for what, of in (("backbone", lambda run: run.results.backbone), ("data", _data)):
        if any(of(run) != of(runs[0]) for run in runs):
            notes.append(f"The runs do not share the same {what}. This may be a part of the difference.")
    twice = [
        key for key, n in Counter((run.name, run.results.seed, _frozen(run)) for run in runs).items() if n > 1
    ]
    notes += [
        f"{name}, seed {seed}, was run more than once: these runs are not independent."
        for name, seed, _ in twice
    ]
    notes += _trained_differently(runs)
    notes += _computed(runs)
    if any(run.confidence != runs[0].confidence for run in runs):
        notes.append("The runs were evaluated at different confidence levels.")
    return notes


def _trained_differently(runs: Sequence[Run]) -> list[str]:
    """Return a note on learning rate and training length if they differ between methods.

    Runs of one method are skipped: their labels show the difference. A method that trains no weights has no rate.
    """
    settings_of: dict[str, str] = {}
    for run in runs:
        training = run.config.get("training")
        if isinstance(training, Mapping) and run.results.method.get("cost", {}).get("trainable_parameters"):
            values = [
                f"{key}={training[key]}" for key in ("lr", "epochs", "steps") if training.get(key) is not None
            ]
            settings_of.setdefault(run.name, ", ".join(values))
    if len(set(settings_of.values())) < 2:
        return []
    listed = "; ".join(f"{name} {settings}" for name, settings in settings_of.items())
    return [f"The methods trained with different settings. This is a part of the difference: {listed}."]


SAME_COMPUTATION = 0.05
"""Largest difference from the first method that counts as the same: a budget is used up to one step of each task."""


def _computed(runs: Sequence[Run]) -> list[str]:
    """Return a note on the multiply-accumulates that training spent, if they were counted for several methods."""
    counted: dict[str, list[float]] = {}
    for run in runs:
        macs = run.results.cost.get("macs") or 0
        if macs > 0:
            counted.setdefault(run.name, []).append(float(macs))
    if len(counted) < 2:
        return []
    (first, plain), *others = ((name, mean(values)) for name, values in counted.items())
    ratios = {name: macs / plain for name, macs in others}
    spent = f"{first} {plain:.3g} multiply-accumulates"
    if all(abs(ratio - 1) <= SAME_COMPUTATION for ratio in ratios.values()):
        return [
            f"The methods spent the same computation in training, up to {percent(SAME_COMPUTATION, 0)}: {spent}."
        ]
    listed = ", ".join(f"{name} {ratio:.2f} times as many" for name, ratio in ratios.items())
    return [
        "The methods did not spend the same computation in training. This is a part of the difference: "
        f"{spent}, {listed}."
    ]


def _data(run: Run) -> Any:
    return run.results.provenance.get("data")


def _frozen(run: Run) -> str:
    return repr(sorted(flatten({k: v for k, v in run.config.items() if k in ("method", "training")}).items()))
