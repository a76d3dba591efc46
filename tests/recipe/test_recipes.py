"""Every method on every kind of scenario, with values of every slot: pairwise here, the full product when slow."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recipes

import presets
from everclip.errors import DataError
from everclip.evaluation.results import Results, json_schema
from everclip.registry import methods
from everclip.run import execute
from everclip.training.progress import Progress

Config = Callable[..., Any]
QUIET = Progress(quiet=True)
PAIRS = recipes.pairwise()
SHORT = ("training.steps=2", "evaluation.examples=0")
TWO_YEARS = 'scenario.tasks=[{name: "2001", where: {time: 2001}}, {name: "2002", where: {time: 2002}}]'
FEW_TASKS = {"time": TWO_YEARS, "classes": "scenario.per_task=3"}
"""Kind -> a setting that makes the stream shorter."""
LIKE_TIME = ("domains", "single", "sources")
"""Kinds whose sets are measured with the same code as those of the others."""


def run(config: Any) -> Results:
    results = execute(config, progress=QUIET)
    recipes.check(results, config)
    return results


def test_the_cases_hold_every_pair_of_values() -> None:
    for (a, xs), (b, ys) in itertools.combinations(recipes.SLOTS.items(), 2):
        for x, y in itertools.product(xs, ys):
            assert any(case[a] == x and case[b] == y for case in PAIRS)


# Every second case holds every value and four fifths of the pairs; the others are slow.
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.slow] * (i % 2)) for i, c in enumerate(PAIRS)],
    ids=recipes.label,
)
def test_pairs_of_slot_values(micro_config: Config, case: recipes.Case) -> None:
    kind, settings = recipes.overrides(case)
    run(micro_config(kind, *settings))


@pytest.mark.parametrize("name", recipes.OF_CLASSES)
def test_methods_of_classes_alone(micro_config: Config, name: str) -> None:
    run(micro_config("classes", *recipes.OF_CLASSES[name]))


FULL = [
    dict(zip(("method", "kind", "replay", "merge", "optimiser"), values, strict=True))
    for values in itertools.product(
        *(recipes.SLOTS[name] for name in ("method", "kind", "replay", "merge", "optimiser"))
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL, ids=recipes.label)
def test_every_combination(micro_config: Config, case: recipes.Case) -> None:
    kind, settings = recipes.overrides(case)
    run(micro_config(kind, "training.steps=2", *settings))


# -- what relates methods to each other -----------------------------------------------------------------------


def names(kind: str, published: bool) -> list[str]:
    """Return the presets that learn a kind of stream, those with published numbers beside their twins or not."""
    if kind in LIKE_TIME and not published:
        return ["zero-shot", "joint", "finetune", "cll-clip", "sit", "text-ridge"]
    fitting = methods() if kind == "classes" or published else presets.of_any_kind()
    return [name for name in fitting if presets.learns(name, kind)]


@pytest.mark.parametrize(
    ("kind", "published"),
    [
        *((kind, False) for kind in recipes.KINDS),
        *(pytest.param(k, True, marks=pytest.mark.slow) for k in recipes.KINDS if k != "classes"),
    ],
)
def test_all_methods_start_from_the_same_row_and_zero_shot_stays_there(
    micro_config: Config, kind: str, published: bool
) -> None:
    few = [FEW_TASKS[kind]] if kind in FEW_TASKS else []
    found = {
        name: run(micro_config(kind, *presets.settings(name), *SHORT, *few, output=name))
        for name in names(kind, published)
    }
    still = found["zero-shot"]
    for name, results in found.items():
        assert results.rows[0].scores == still.rows[0].scores, name
        assert results.matrix.values[0] == still.matrix.values[0]
        # A sweep may choose to stay at the start.
        if name != "zero-shot" and not any(row.notes for row in results.rows):
            assert results.rows[-1].representation != still.rows[-1].representation, f"{name} learned nothing"
    for row in still.rows[1:]:
        for protocol in ("own", "all"):
            for column, scores in row.scores.items():
                assert scores[protocol] == still.rows[0].scores[column][protocol]
    assert all(values == still.matrix.values[0] for values in still.matrix.values)
    assert [row.task for row in found["joint"].rows] == [None, None]
    assert len(found["joint"].rows) == 2


def test_a_cell_that_was_not_learned_is_absent_under_seen(micro_config: Config) -> None:
    results = run(micro_config("time", "training.steps=1"))
    for row in results.rows:
        for column in results.columns:
            learned = column.task is None or column.task < row.index
            assert (results.score(row.index, column.name, "seen", "mean_r1") is not None) == (
                learned and column.kind == "retrieval"
            )


def test_the_result_holds_what_the_published_schema_names_and_nothing_else(micro_config: Config) -> None:
    schema = json_schema()
    config = micro_config("classes", "method=wise-ft", "training.steps=1")
    run(config)
    document = json.loads((Path(config.output) / "results.json").read_text())
    assert document.keys() == schema["properties"].keys()
    parts = {"rows": "Row", "columns": "Column", "tasks": "TaskInfo", "examples": "Example"}
    for key, part in parts.items():
        for entry in document[key]:
            assert entry.keys() == schema["$defs"][part]["properties"].keys()
    document["rows"][0]["scores"]["names"]["own"]["mean_r1"]["value"] = "high"
    (Path(config.output) / "results.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"rows\.0\.scores\.names\.own\.mean_r1\.value"):
        Results.read(config.output)


# -- numbers --------------------------------------------------------------------------------------------------

# Losses of each step, rounded to 4 digits: one thread, fixed seed. A change here is a change of every result.
LITERALS: dict[tuple[str, str], list[float]] = {
    ("finetune", "time"): [2.1046, 2.6714, 3.2629, 2.1432, 2.5926, 2.4437, 2.4081, 2.0466, 2.0061],
    ("replay", "classes"): [0.7521, 1.0569, 0.8519, 1.3942, 1.6351, 1.3758, 1.8991, 1.7812, 1.7659],
}


@pytest.mark.parametrize(("method", "kind"), LITERALS)
def test_losses_are_those_of_yesterday(micro_config: Config, method: str, kind: str) -> None:
    config = micro_config(kind, f"method={method}", "training.steps=3")
    run(config)
    lines = (Path(config.output) / "metrics.jsonl").read_text().splitlines()
    name = "labels" if kind == "classes" else "contrastive"
    found = [round(json.loads(line)[name], 4) for line in lines]
    # One unit in the last digit: other CPUs sum in another order.
    assert found == pytest.approx(LITERALS[method, kind], abs=1.5e-4)


def test_the_same_run_twice_is_the_same_and_another_seed_is_another(micro_config: Config) -> None:
    one, two, other = (
        run(micro_config("classes", "method=replay", "training.steps=2", f"seed={seed}", output=name))
        for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    assert one.without_timing() == two.without_timing()
    assert one.rows[-1].representation != other.rows[-1].representation
